# `make demo` and `make test` work on a bare clone: python3, make and a package index are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.installed
READY := $(VENV)/.installed-dev
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses=8 --dist=worksteal --durations=10

.PHONY: help demo demo-detect demo-segment test lint types quick slow processors timm bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train a GLNet on handwritten digits, evaluate it, predict, write a report"
	@echo "make demo-detect    generate pictures, train a detector, find objects (up to 10 minutes)"
	@echo "make demo-segment   generate pictures, train a segmenter, find the class of each pixel (up to 10 minutes)"
	@echo "make test   everything CI checks: style, types, import rules, all tests"
	@echo "make quick  the tests without the slow ones"
	@echo "make processors   operator and layer tests with fewer processor instructions, and without a compiler"
	@echo "make timm   timm's own tests on the models of this package"
	@echo "make bench  measure speed and memory, and write docs/performance.md"
	@echo "make clean  remove the virtual environment and the caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "convattn needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }

# The dependencies are installed once, and again when their list changes: those of training, or all
# that the tests need.
INSTALL = @echo "Installing convattn into $(VENV) (PyTorch included: about 6 GB, a few minutes, only once)"; \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e

$(RUNS): pyproject.toml | $(BIN)/python
	$(INSTALL) ".[train]"
	@touch $@

$(READY): pyproject.toml | $(BIN)/python
	$(INSTALL) ".[train,dev]"
	@touch $(RUNS) $@

demo: $(RUNS)
	@$(BIN)/python -m examples.demo

demo-detect: $(RUNS)
	@$(BIN)/python -m examples.demo_detect

demo-segment: $(RUNS)
	@$(BIN)/python -m examples.demo_segment

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(READY)
	@$(BIN)/mypy

quick: $(READY)
	@$(PYTEST) -m "not slow"

slow: $(READY)
	@$(PYTEST) -m slow

# Tests of operators, layers and deployed models: with SSE4 or AVX2 only, and without a compiler.
processors: $(READY)
	@$(BIN)/python -m tests.processors

# timm's own tests on the models of this package: the nano models, or all with MODELS='*'.
MODELS := *nano
timm: $(READY)
	@$(BIN)/python -m tests.models.timm_suite '$(MODELS)'

# Takes about forty minutes on an otherwise idle machine. OPTIONS='--device cuda' on a GPU.
bench: $(RUNS)
	@for script in ops backbones training scaling dense; do \
	  $(BIN)/python -m benchmarks.$$script $(OPTIONS) || exit; done
	@$(BIN)/python -m benchmarks.page --write

test: lint types quick slow processors timm

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
