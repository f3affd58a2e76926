"""One page with the results of experiments, for any mixture of runs and studies.

reading.py     folders -> rows; a folder of a single run is a study of one
formatting.py  figures as columns, for the page and for the terminal
canvas.py      colours, style, panels
plots.py       loss over time, bars, lines along an axis, staleness
searches.py    the spread of a search's trials
page.py        the page: no scripts, nothing loaded
"""
