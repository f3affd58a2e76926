"""Experiments under the virtual clock: run files and studies, and the command that runs them.

__main__.py    the `experiments` command
catalogue.py   finds the run files and studies that lie in this folder
replay.py      runs one run file and writes its results
study/         many runs of one question: planned, run, measured, compared
report/        one page of tables and plots
LOG.md         what was measured, with verdicts; negative results are kept
"""
