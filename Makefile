# Everything runs from .venv, which `setup` builds once and again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/demo

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test test-slow mutants records pages docs lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "unmask needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv and install the package with its development tools

demo: setup  ## train uniform counts, PUMA and a control on Sudoku, compare them, solve a puzzle (about 4 minutes)
	$(BIN)/unmask compare sudoku --arms uniform-count puma high-rates --seeds 1 --steps 560 --evaluate-every 80 --jobs 3 \
	  --out $(RUN) --overwrite
	$(BIN)/unmask sample $(RUN)/puma/seed-0/steps-560
	@echo "Report: $(RUN)/report.html"

test: setup  ## the quick test suite (about 5 minutes)
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: setup  ## the slow tests alone
	$(BIN)/pytest -q -n 2 --dist loadfile -m slow

mutants: setup  ## which small faults of the mathematics no test notices (hours)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[mutants]'
	$(BIN)/python scripts/mutants.py

records: setup  ## records of all experiments: runs what is left of their studies (days), gathers what is whole
	$(BIN)/python -m scripts.records

pages: setup  ## tables and figures of docs, README and experiments, from the records that are there
	$(BIN)/python -m scripts.pages

docs: setup  ## the site, into site/, with warnings as errors
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup  ## rewrite files into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment and what runs left behind
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
