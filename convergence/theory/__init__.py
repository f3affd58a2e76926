"""A convergence bound for every lossless method of the simulator, derived in docs/THEORY.md.

bound.py         the theorem
coefficients.py  what it needs to know of a run
tightness.py     the bound against measured runs
__main__.py      prints the table of docs/THEORY.md
"""
