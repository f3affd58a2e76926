"""Whole clusters under injected faults, each drawn from one seed: `python -m convergence.fuzz --seed 7`.

scenario.py           topology, settings and faults of a seed
fuzzed_cluster.py     its nodes in the virtual driver, their restarts, and faults of whole nodes
invariant_checker.py  the invariants of a whole cluster: nothing is lost, nothing is applied twice
silence_checker.py    checks that a peer that was given up had been silent
ledgers.py            what servers have noted about their samples and updates
trial.py              one seed: the faulty phase, then the healthy one, and a verdict
pool.py               many seeds, on all cores
summary.py            the results of many seeds
__main__.py           the command line
"""
