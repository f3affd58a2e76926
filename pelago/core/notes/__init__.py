"""The notes of machines: a frozen class for each kind of line in a log."""
