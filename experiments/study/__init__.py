"""Studies: many runs of one question.

study_file.py  the study file
overrides.py   the keys that a study sets, and those that stand for several
plan.py        a study as a list of resolved run files, and the values that a search draws
engines.py     runs them: processes of this machine
ray_engine.py  runs them: a Ray cluster
runner.py      starts what is missing, resumes, confirms the best, sums up
measure.py     the results of one run, read from its folder
compare.py     runs over seeds, best trials, targets
table.py       table.csv
progress.py    the progress bar on the terminal
"""
