# make setup | train | images | check | test | bench; PYTHON is the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
TESTED = $(VENV)/.ready-test
ARGS ?= task=pusht
# test,robosuite tests robomimic's tasks, too; it needs a C compiler
TEST_EXTRAS ?= test

.PHONY: setup train images check test bench

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('error: got Python %d.%d, expected 3.11 or newer: make PYTHON=python3.12 ...' % sys.version_info[:2])"
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(TESTED): pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable ".[$(TEST_EXTRAS)]"
	touch $@ $(READY)

setup: $(READY)

# the main job: demonstrations -> trained policy -> evaluation -> report
train: $(READY)
	$(RUN) -m policy.train $(ARGS)

# every image system of the literature on digits, goes on where it was stopped; then one page of all of it
images: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m images.reference tier=quick jobs=2
	$(RUN) -m images.gallery

check: $(TESTED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# one thread per process: with both cores busy, two threads each run several times slower
test: check
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

# the quick measurement, then README's tables; the long ones are python -m benchmarks.<name>
bench: $(TESTED)
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.sampler_overhead --out benchmarks/results/sampler_overhead.json
	$(RUN) -m benchmarks.render
