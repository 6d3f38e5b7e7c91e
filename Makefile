# Two commands on a fresh machine (Python 3.11+ and make): `make demo`, `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/ready  ## make surfaces, put four defects on each, show the contact sheet
	$(BIN)/raygen demo

test: .venv/ready  ## the fast tests: under 12 minutes on 2 cores
	$(BIN)/pytest -m "not slow"

test-all: .venv/ready  ## every test: under 45 minutes on 2 cores
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("raygen needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo
