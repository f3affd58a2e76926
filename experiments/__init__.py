"""Experiments under the virtual clock: run files and studies, and the command that runs them.

__main__.py    the `experiments` command
shipped.py     finds the run files and studies that lie in this folder
replay.py      runs one run file and writes what it gave
study.py       the study file: many runs of one question
keys.py        the keys that a study sets, and those that stand for several
plan.py        a study as a list of resolved run files, and what a search draws
engines.py     runs them: processes of this machine
ray_engine.py  runs them: a Ray cluster
conduct.py     starts what is missing, resumes, confirms the best, sums up
measure.py     what one run came to, read from its folder
compare.py     runs over seeds, best trials, targets
table.py       table.csv
report/        one page of tables and plots
progress.py    the bar on the terminal
toml.py        writes TOML
LOG.md         what was measured, with verdicts; negative results are kept
"""
