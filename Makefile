# Every target sets up .venv with pip first and reuses it. Needs python3 (>= 3.11) and make, nothing else.
#
#   make demo        the whole way: raw text in, a chat out (runs/demo)
#   make test        the tests; `make test-slow` those that take longer
#   make check       ruff, pyright, import-linter
#   make docs        the documentation, in docs/_build/html
#   make bench       every benchmark in its quick form
#
# make PYTHON=python3.12 ...          another interpreter
# make PIP_ARGS="--index-url ..." ... another package index

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
# one worker a core, at most four: more do not help, and each holds torch and transformers in memory
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)))')
# torch's threads in each worker: the workers already fill the cores
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-slow check format docs bench clean help

help:
	@sed -n '1,12s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.ready-demo
	@$(BIN)/puna demo

test: $(VENV)/.ready-dev
	@$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.ready-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(VENV)/.ready-dev
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.ready-dev
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick; done

clean:
	rm -rf $(VENV) docs/_build docs/reference/generated build dist .pytest_cache .ruff_cache

# the stamps are older than pyproject.toml when dependencies may have changed
$(VENV)/.ready-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e '.[data,serve]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); ok or print("puna needs Python >= 3.11, $(PYTHON) is", sys.version.split()[0] + ". Type: make PYTHON=python3.12 ..."); sys.exit(not ok)'
	$(PYTHON) -m venv $(VENV)
