# make install: into .venv.   make demo: install, then compare strategies under one budget.
# make test: install what tests need, then run them all.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin

.PHONY: install demo test lint format docs kills damage clean

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/cil compare experiment=demo

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.developing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.developing
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.developing # build/docs/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . build/docs

kills: $(VENV)/.developing
	$(BIN)/python tests/engine/kill_runs.py --kills 50

damage: $(VENV)/.developing
	$(BIN)/python tests/engine/damage_commands.py --files 50

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "cil needs Python 3.11, 3.12 or 3.13; say which one: make PYTHON=..."; exit 1; }
	@echo "installing into $(VENV): minutes, and 1.5 GB or more, most of it torch; pip is quiet until it is done"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.developing: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs dist build
