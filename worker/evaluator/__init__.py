"""The evaluator: measures the held-out loss of the global model, and exports it."""
