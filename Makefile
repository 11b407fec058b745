# Two commands do nearly everything: `make book` and `make test`. Both set up .venv when no
# virtual environment is active. Without make, README.md has the same steps as plain pip lines.
SHELL   := /bin/bash
PYTHON  ?= python3
VENV    := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.flcourse-installed
PROFILE ?= quick
JOBS    ?= 2

export FLCOURSE_PROFILE ?= $(PROFILE)
# Two processes share two cores, so each takes one.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND = Agg

.DEFAULT_GOAL := help
.PHONY: help venv book test check lint sync lab address clean lower-bounds

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | column -t -s '|'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

venv: $(STAMP)  ## make .venv (or fill the active one) with everything that book and tests need

book: $(STAMP)  ## run the chapters that changed and build the book into _build/html
	$(BIN)/python -m data_scripts.book.build --jobs $(JOBS)

test: $(STAMP)  ## unit, oracle, pair and exercise tests
	$(BIN)/python -m pytest -m "not browser" -n $(JOBS) $(ARGS)

check: $(STAMP)  ## look at the built book in a browser (after make book; needs Chromium)
	$(BIN)/python -m pytest tests/browser -m browser $(ARGS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check flcourse data_scripts tests benchmarks
	$(BIN)/mypy

sync: $(STAMP)  ## write chapters/NAME.ipynb from chapters/NAME.md
	$(BIN)/python -m data_scripts.book.pairs sync

lab: $(STAMP)  ## open one chapter in JupyterLab: make lab CHAPTER=01
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lab]'
	$(BIN)/jupyter lab $$(ls chapters/$(or $(CHAPTER),01)_*.ipynb)

address: $(STAMP)  ## say where the course is published: make address URL=https://github.com/OWNER/NAME
	$(BIN)/python -m data_scripts.book.address "$(URL)"

lower-bounds:  ## unit tests with the oldest versions that pyproject.toml allows
	$(PYTHON) data_scripts/lower_bounds.py > .book-lower-bounds.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -e '.[book,test]' -c .book-lower-bounds.txt
	.venv-oldest/bin/python -m pytest -m "not browser" -n $(JOBS) $(ARGS)

clean:  ## remove the built book, executed copies and caches (not .venv)
	rm -rf _build .book .book-lower-bounds.txt .pytest_cache .mypy_cache .ruff_cache
