"""Experiments under the virtual clock, one module or run file each, and their reports.

__main__.py  the `experiments` command
replay.py    runs one run file and writes what it gave
shipped.py   finds the run files that lie in this folder
LOG.md       what was measured, with verdicts; negative results are kept
"""
