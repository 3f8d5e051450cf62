# make demo    sets up, trains on embedded digits, evaluates, draws samples (minutes)
# make check   sets up, checks the code with ruff and mypy (half a minute)
# make test    sets up, runs the tests (minutes)
# make test-all  the long ones too, with every command of the documentation, for few steps of training
# make bench   sets up, measures speed against the machine's own limits (18 minutes on 2 cores); JSON in runs/bench/
# make setup   only sets up: everything in .venv, again when setup.py changes

PYTHON ?= python3
RUN := .venv/bin/python
UV := $(shell command -v uv 2>/dev/null)
VENV := $(if $(UV),uv venv --quiet --seed --python $(PYTHON),$(PYTHON) -m venv)
INSTALL := $(if $(UV),uv pip install --python $(RUN),$(RUN) -m pip install --disable-pip-version-check)
DEMO := runs/digits

.PHONY: bench check demo test test-all setup

setup: .venv/ready

.venv/ready: setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11-3.13 is needed: make PYTHON=python3.12")'
	rm -rf .venv
	$(VENV) .venv
	$(INSTALL) --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(RUN) main.py --config=configs/digits.py --config.data_dir=runs/data --workdir=$(DEMO)
	@echo "Samples, one row per digit: $(DEMO)/samples/"

check: setup
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: setup
	$(RUN) -m pytest -q -n 2 --dist worksteal tests

test-all: setup
	$(RUN) -m pytest -q -n 2 --dist worksteal tests -m ''

bench: setup
	mkdir -p runs/bench
	for part in attention training pipeline sampling scale startup; do \
	  $(RUN) benchmarks/$$part.py --out=runs/bench/$$part.json || exit; \
	done
