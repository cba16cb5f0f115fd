# Needs make, Python 3.10 to 3.13 with venv, and the package index. `make` lists what it can do.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# A process for each core, with one thread. A file stays in one process, so that its fixtures are made once.
PYTEST_PARALLEL ?= --numprocesses auto --maxprocesses 8 --dist loadfile

ifeq ($(OS),Windows_NT)
PY := $(VENV)/Scripts/python.exe
else
PY := $(VENV)/bin/python
endif
# Twice quiet: errors only. pip's progress and its remarks on mirrors are not what one waits for.
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
SETUP := $(VENV)/.setup-done
SETUP_INPUTS := pyproject.toml constraints.txt tools/install_detectron2.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup quickstart classify test lint types contracts docs clean FORCE

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.12 chooses the Python (3.10 to 3.13), VENV=DIR the place of the environment (.venv)."

setup: $(SETUP) ## make .venv with all that is needed (a few GB the first time, nothing afterwards)

quickstart: setup ## fetch a small data set, train on it, test, write the report
	$(PY) datasets/prepare_trees.py
	$(PY) tools/train_net.py --config-file configs/quickstart.yaml --resume

classify: setup ## the same for 5,000 handwritten digits and the ODE-Net of Chen et al.
	$(PY) datasets/prepare_digits.py
	$(PY) tools/train_net.py --config-file configs/classification/digits_quickstart.yaml --resume

test: lint types contracts docs ## all checks: lint, types, contracts, docs, then the tests (PYTEST_ARGS="-k solvers")
	@echo "== pytest"
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_PARALLEL) $(PYTEST_ARGS)

lint: setup ## style: ruff check and ruff format --check
	@echo "== ruff check"
	@$(PY) -m ruff check .
	@echo "== ruff format --check"
	@$(PY) -m ruff format --check .

types: setup ## types: mypy
	@echo "== mypy"
	@$(PY) -m mypy

contracts: setup ## who may import whom: import-linter
	@echo "== lint-imports"
	@$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

docs: setup ## build the documentation into site/, warnings as errors
	@echo "== mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

clean: ## remove caches and build leftovers (not .venv, data or output)
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamp goes first and comes last, so that an interrupted set-up is repeated.
$(SETUP): $(VENV)/.python $(SETUP_INPUTS)
	@rm -f $@
	@echo "[1/4] torch and torchvision (the largest download by far: up to 3 GB; minutes)"
	@$(PIP) install --constraint constraints.txt torch torchvision
	@echo "[2/4] Detectron2"
	@$(PY) tools/install_detectron2.py --constraint constraints.txt
	@echo "[3/4] ode_detect, what it requires, and the tools of its developers"
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@echo "[4/4] pip check"
	@$(PY) -m pip check
	@touch $@
	@echo "Ready. $(PY) -m ode_detect.doctor shows what is installed and what this machine can do."

# Which Python the environment stands on, and where. Another one, or a moved folder, means a new environment; one that
# somebody else made with the right Python (to build Detectron2 in it, say) is taken as it is.
define IDENTITY
import os, sys
print("Python %d.%d" % sys.version_info[:2], os.path.realpath(sys.base_prefix), "in", os.getcwd())
endef
export IDENTITY

$(VENV)/.python: FORCE
	@$(PYTHON) -c "" || { echo "make needs Python 3.10 to 3.13; \"$(PYTHON)\" does not run. Install one, or name it:" \
	  "make setup PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))" || { \
	  echo "ode_detect runs on Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	  "Name another one: make setup PYTHON=python3.12" >&2; exit 2; }
	@want=$$($(PYTHON) -c "$$IDENTITY"); have=$$(cat $@ 2>/dev/null); \
	runs=$$($(PY) -c "import pip; $$IDENTITY" 2>/dev/null); \
	if [ "$$runs" = "$$want" ] && [ "$$have" = "$$want" ]; then exit 0; fi; \
	if [ "$$runs" != "$$want" ] || [ -n "$$have" ]; then \
	  $(PYTHON) -c "import ensurepip, venv" || { echo "$(PYTHON) must have the modules venv and ensurepip; see above." \
	    "On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	  if [ -n "$$have" ] && [ "$$have" != "$$want" ]; then echo "$(VENV) was made for $$have; now it is $$want"; fi; \
	  echo "Making $(VENV) with $$($(PYTHON) -V 2>&1)"; \
	  base=$$($(PYTHON) -c "import sys; print(getattr(sys, '_base_executable', sys.executable))"); \
	  rm -f $@ $(SETUP); "$$base" -m venv --clear $(VENV) || exit 2; \
	fi; \
	echo "$$want" > $@
