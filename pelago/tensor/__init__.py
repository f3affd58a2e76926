"""Flat-tensor maths: optimisers, merge, checksums; torch and numpy, no I/O."""
