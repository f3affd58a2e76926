"""Does it converge, in both senses: clusters built inside the virtual driver, and their checks.

problems.py  what is trained, as a cluster sees it; `timing`: nothing at all
scalar.py    `scalar`: one float64 parameter, HALoS's conformance problem
tensors.py   the daemons' tensor plane as a plane of the virtual driver
cluster.py   a run file as nodes of a simulation, and what a run of it gave
"""
