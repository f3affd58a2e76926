"""The worker: trains the model on leased samples and pushes the update."""
