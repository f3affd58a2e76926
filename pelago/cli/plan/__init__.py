"""What a run will need, computed from its run file and the shape of its model; nothing is started.

facts.py      what must be known of a model, and of the GPUs
processes.py  memory of each process, on the host and on the GPU
links.py      bytes of a transfer in each encoding, seconds on a link
pace.py       seconds of a step and of a round, busy fraction, seconds between exchanges
forecast.py   all of it for one run file
verdicts.py   what cannot work, and what would
command.py    `pelago plan`: the table and the JSON

How many models each role holds is in pelago/config/models_held.py, where the forecast of disks has it too.
"""
