"""The virtual driver: event heap, virtual clock and links; no asyncio, no zmq, no time.

links.py       how long a payload takes from place to place
ports.py       what a node computes with: the plane and the trainer, as seen from here
trace.py       a digest of everything that happened
simulation.py  the heap, the clock, and the performing of effects
"""
