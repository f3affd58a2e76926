"""Whole clusters under injected faults, each drawn from one seed: `python -m convergence.fuzz --seed 7`.

scenario.py           topology, settings and faults of a seed
fuzzed_cluster.py     its nodes in the virtual driver, who starts them again, and faults of whole nodes
invariant_checker.py  what must hold of the whole: nothing lost, nothing twice, no promise broken
silence_checker.py    that a peer was silent whom a node gave up
ledgers.py            what servers noted of their own history
trial.py              one seed: the faulty phase, then the healthy one, and a verdict
pool.py               many seeds, on all cores
summary.py            the results of many seeds
__main__.py           the command line
"""
