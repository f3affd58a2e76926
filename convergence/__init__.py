"""Does it converge, in both senses: clusters built inside the virtual driver, and their checks.

problems/         what is trained, as a cluster sees it
lm/               the problem `lm`: many small Llamas, trained in one batch
methods.py        a method as an arrangement of the machines
cluster.py        a run file as nodes of a simulation, and the results of its run
rounds.py         rounds in progress, trained when their results are needed
batch_trainer.py  trains the models of several simulated runs together
theory/           a bound on convergence, compared with measured runs
fuzz/             clusters under drawn faults, and their invariants
"""
