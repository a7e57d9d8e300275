# `make` prints this list. Every target that runs something sets itself up first.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs bench clean

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'PYTHON=python3.12 picks the interpreter of .venv; ARGS=... is passed on (make test ARGS="-k golden").'

setup: $(STAMP)  ## Create .venv with the pinned versions (reruns when pyproject.toml or constraints.txt change)

demo: $(STAMP)  ## Train a PPO scheduler and compare it with others
	$(BIN)/llmsched demo $(ARGS)

test: $(STAMP)  ## Run the tests, a process for each core
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)  ## Check format, rules, types and measures
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/measures.py

# --quiet would hide warnings from the strict build, too, and none would end it.
docs: $(STAMP)  ## Build the guide into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo 'The guide: build/site/index.html'

bench: $(STAMP)  ## Measure speed beside the named peers
	$(BIN)/llmsched bench $(ARGS)

clean:  ## Remove .venv, builds and caches (runs/ and out/ stay)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find agents baselines engine llmsched_env tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first: it brings the pinned setuptools, so that the project itself builds without isolation,
# with that version and without another download.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "llmsched needs Python 3.11 or newer, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "llmsched needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "llmsched needs the venv module of $(PYTHON) (Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo 'Setting up $(VENV) with the versions of constraints.txt; this takes a few minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt torch==2.13.0 setuptools
	$(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $(STAMP)
