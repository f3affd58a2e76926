"""A convergence bound for every lossless method of the simulator, derived in docs/THEORY.md.

bound.py         the theorem
coefficients.py  the coefficients of a run that it needs
tightness.py     the bound compared with measured runs
__main__.py      prints the table of docs/THEORY.md
"""
