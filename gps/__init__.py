"""The global parameter server.

It merges the regions' pseudo-gradients into the one global model as they arrive, lends samples to the
regions and keeps the ledger of samples.
"""
