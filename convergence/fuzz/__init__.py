"""Whole clusters under injected faults, each drawn from one seed: `python -m convergence.fuzz --seed 7`.

draw.py               topology, settings and faults of a seed
world.py              its nodes in the virtual driver, and who starts them again
invariant_checker.py  what must hold of the whole: nothing lost, nothing twice, no promise broken
books.py              what servers noted of their own history
trial.py              one seed: the faulty phase, then the healthy one, and a verdict
pool.py               many seeds, on all cores
tally.py              what they came to
__main__.py           the command line
"""
