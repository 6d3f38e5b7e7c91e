# Two commands on a fresh machine (Python 3.11+ and make): `make demo`, `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
# What starts no Ray, in two processes of one thread each.
SIDE_BY_SIDE = OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: demo test test-all lint clean

demo: .venv/ready  ## make surfaces, put four defects on each, show the contact sheet
	$(BIN)/raygen demo

test: .venv/ready  ## the fast tests: under 12 minutes on 2 cores
	$(SIDE_BY_SIDE) -m "not ray and not slow"
	$(BIN)/pytest -m "ray and not slow"

test-all: .venv/ready  ## every test: under 45 minutes on 2 cores
	$(SIDE_BY_SIDE) -m "not ray"
	$(BIN)/pytest -m ray

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
