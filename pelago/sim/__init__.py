"""The virtual driver: event heap, virtual clock and links; no asyncio, no zmq, no time.

simulation.py         the heap, the clock, and the machines that handle events
node.py               a process of a simulation, and its routes to others
executor.py           what carries out the effects of one part of the vocabulary
tensor_executor.py    effects on tensors
training_executor.py  effects of training
network.py            messages, where nothing goes wrong on the way
links.py              how long a payload takes from place to place
planes.py             what a node computes with: the plane and the trainer, as the driver sees them
trace.py              a digest of everything that happened

With faults:

fault_injector.py     handles events with faults: crashes, freezes, clocks that differ
process.py            a process, its clock and disk, and the events that wait for it
fault_profile.py      how likely each fault is, and how fast the clocks are
fault_draws.py        what faults are drawn from, and how many happened
faulty_network.py     loss, repetition, delay, cuts and slow links
durable_servers.py    records, snapshots, restarts and losses of power
disk.py               what a durable server has written, and what a crash leaves of it
recovery.py           restores its machine and its plane from its disk
observer.py           the interface of what checks a simulation with faults
"""
