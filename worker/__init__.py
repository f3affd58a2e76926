"""The worker: trains the model on leased samples and pushes what it learnt."""
