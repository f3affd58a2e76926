"""The run file: its tables, what is wrong with one, and what is derived from it.

fields.py       kinds of values and their limits; the base class of all tables
training.py     [run], [model], [data], [worker]
servers.py      [lps], [gps]
topology.py     [[region]], [network], [local]
simulation.py   [simulation]
run_file.py     the whole file
run_toml.py     the file as text and back
toml_writer.py  writes any TOML
models_held.py  how many models each role holds in memory and on disk
timeouts.py     [network] on the machines' clock
validation.py   checks tables against a model, and words the faults
"""
