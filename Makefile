# Everything runs in .venv, which is made on the first call and refreshed when pyproject.toml changes.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest

.PHONY: help venv demo test-smoke test coverage test-all clean-install lint format types docs notebooks bench-structure bench-accuracy reproduce all-rows results clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# A folder without a working pip was left half made by an interrupted call: make it anew.
ifneq ($(wildcard $(VENV)),)
ifneq ($(shell $(BIN)/python -m pip --version >/dev/null 2>&1 && echo works),works)
$(shell rm -rf $(VENV))
endif
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"infoprune needs Python 3.10 or newer; $(PYTHON) is {v[0]}.{v[1]}. Say: make PYTHON=/path/to/python3 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@

venv: $(VENV)/.dev  ## make .venv with everything that development needs

demo: $(VENV)/.demo  ## train, prune and fine-tune a small CNN on two CPU cores, in under two minutes
	$(BIN)/infoprune fit --config configs/quickstart.yaml

# pytest takes six seconds to compile the test files, and keeps them for the next run where Python may write.
test-smoke test coverage test-all: export PYTHONDONTWRITEBYTECODE =

test-smoke: $(VENV)/.dev  ## the heart of every part, in about a minute
	$(PYTEST) -q -m smoke

test: $(VENV)/.dev  ## the fast test suite, doctests included
	$(PYTEST) -n 2 --dist loadfile --max-worker-restart 0

coverage: $(VENV)/.dev  ## the fast test suite with the lines and branches that it misses, also as build/coverage.xml
	$(PYTEST) -n 2 --dist loadfile --max-worker-restart 0 --cov --cov-report=term --cov-report=xml:build/coverage.xml

test-all: $(VENV)/.dev  ## every test, the slow ones too
	$(PYTEST) -m ''

clean-install:  ## the wheel in an environment of its own, every command and the tests: VERSIONS=lowest or newest [TESTS=...]
	PYTHON=$(PYTHON) tests/clean_install.sh $(or $(VERSIONS),newest) $(TESTS)

lint: $(VENV)/.dev  ## ruff: rules and format; hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/Dockerfile

format: $(VENV)/.dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy on the package
	$(BIN)/mypy

docs: $(VENV)/.docs  ## build the documentation into build/site; open build/site/index.html
	$(BIN)/mkdocs build --strict

notebooks: $(VENV)/.dev  ## execute the notebooks in place; those about ResNet-56 say which data they need
	cd notebooks && $(CURDIR)/$(BIN)/jupyter-execute --inplace *.ipynb

bench-structure: $(VENV)/.dev  ## a whole pruning call against Torch-Pruning, on every torchvision classifier
	$(BIN)/python -m pip install -e '.[bench]'
	$(BIN)/python -m benchmarks.structure
	$(BIN)/python -m benchmarks.tracing

bench-accuracy: $(VENV)/.dev  ## accuracy at equal MACs and equal training, against Torch-Pruning: CIFAR=folder WEIGHTS=folder [ARGS=...]
	$(BIN)/python -m pip install -e '.[bench]'
	$(BIN)/python -m benchmarks.accuracy --cifar $(or $(CIFAR),data) --weights $(or $(WEIGHTS),weights) $(ARGS)

reproduce: $(VENV)/.dev  ## run a row of RESULTS.md: ROW=cifar10/resnet56/method_b_46 [CONTROL=random] [SEED=42] [MINUTES=30] [WEIGHTS=file] [ARGS=...]
	$(BIN)/python -m benchmarks.reproduce $(ROW) $(if $(CONTROL),--control $(CONTROL)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--max-minutes $(MINUTES)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(ARGS)

all-rows: $(VENV)/.dev  ## every row with its controls, three seeds, side by side on one GPU: [ARGS='--epochs 300 --at-once 8']
	$(BIN)/python -m benchmarks.all_rows $(ARGS)

results: $(VENV)/.dev  ## write RESULTS.md from the runs that are done
	$(BIN)/python -m benchmarks.reproduced

clean:  ## remove caches and build output; keeps .venv and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find infoprune tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
