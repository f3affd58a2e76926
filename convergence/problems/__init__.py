"""What a simulated cluster trains.

problem.py    what a problem is: planes, rounds, validation
registry.py   the problem that a run file names
timing.py     `timing`: nothing is trained
scalar.py     `scalar`: one float64 parameter, HALoS's conformance problem
quadratic.py  `quadratic`: a convex problem with everything known
nonconvex.py  `nonconvex`: a nonconvex problem with known constants
sgd.py        plain SGD with drawn noise, for the two above
tensors.py    the daemons' tensor plane as a plane of the virtual driver
"""
