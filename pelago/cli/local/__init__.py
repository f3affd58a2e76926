"""`pelago local` and `pelago resume`: a whole run as processes on this machine.

command.py         the two commands
results_folder.py  the folder of the results: made ready, in use, results of an earlier incarnation
topology.py        which nodes there are, on which ports, and the emulated links between them
processes.py       the nodes' processes: started, asked to end, killed
supervisor.py      follows a run to its end: restarts, failures, signals, exit code
progress.py        what is shown meanwhile
"""
