"""Experiments under the virtual clock, one module or run file each, and their reports."""
