"""Pelago: train one language model asynchronously across regions."""

__version__ = "0.1.0"
