# demo   train a small model across two emulated regions and write runs/demo
# test   everything that must hold before a change lands: check, then the tests
# check  lint, format, types, import contracts, spelling
# tables draw the machines' transitions into docs/ARCHITECTURE.md
# fuzz   one seed after the other through simulated faults, for MINUTES (5)
# bench  side-by-side benchmarks; bench/README.md says what they measure

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check tables fuzz bench coverage

demo: $(INSTALLED)
	$(BIN)/pelago local demo.toml --out runs/demo --overwrite

test: check
	$(BIN)/pytest -n $(JOBS) --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

tables: $(INSTALLED)
	$(BIN)/python -m tests.draw_transitions

MINUTES ?= 5
SEED ?= 1

fuzz: $(INSTALLED)
	$(BIN)/python -m convergence.fuzz --seed $(SEED) --minutes $(MINUTES)

bench: $(INSTALLED)
	@echo "What these measure, and on which machines: bench/README.md"
	@for each in $(filter-out bench/soak.py,$(wildcard bench/*.py)); do echo "== $$each"; $(BIN)/python "$$each" || exit 1; done

MACHINES := gps/state.py,gps/regions.py,gps/exchanges.py,gps/evaluators.py,lps/state.py,lps/membership.py,lps/exchange*.py,lps/workers.py

# What decides has no excuse for an untested branch.
coverage: $(INSTALLED)
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage report --fail-under=95 \
		--include='pelago/core/*,pelago/wire/*,worker/state.py,$(MACHINES)'

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Pelago needs Python 3.11 or newer, and $(PYTHON) is not:" \
			"name another one with 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "This Python cannot make virtual environments (Debian: install python3-venv)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' \
		--config-settings editable_mode=compat
	touch $@
