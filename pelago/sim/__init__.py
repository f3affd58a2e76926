"""The virtual driver: event heap, virtual clock and links; no asyncio, no zmq, no time.

links.py           how long a payload takes from place to place
ports.py           what a node computes with: the plane and the trainer, as seen from here
trace.py           a digest of everything that happened
simulation.py      the heap, the clock, and the performing of effects

Where not all goes well:

fault_injector.py  loss, delay, cuts, clocks that differ, crashes and restarts
fault_profile.py   how often what goes wrong, and how the clocks go
disk.py            what a durable server has written down, and what a crash leaves of it
recovery.py        from there back to its machine and its plane
"""
