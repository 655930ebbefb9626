# The environment is .venv; the first target that needs it makes it, and only that needs a network.
#   make demo ARGS=--full     make test ARGS='-k decoder -x'     make PYTHON=python3.12 test

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test check bench soak clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

demo: $(STAMP) ## flights of 2013 through an embedded Postgres into a log, with a model
	@$(BIN)/eventlog demo $(ARGS)

test: $(STAMP) ## every test but the long ones, against real Postgres servers
	@$(BIN)/python -m pytest -m "not soak" $(ARGS)

check: $(STAMP) ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP) ## the benchmarks, each with its peers and limits
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP) ## the tests that run for long
	@$(BIN)/python -m pytest -m soak --timeout=7200 $(ARGS)

clean: ## remove the environment and what tools left; no log is touched
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The builds run in the environment itself, so that constraints.txt pins what builds, too.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Error: $(PYTHON) is not a Python of version 3.11 or later" >&2; \
	  echo "Hint: name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into .venv (once, about half a minute)"
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt pip setuptools
	@PYTHONWARNINGS=ignore $(PIP) install --constraint constraints.txt --no-build-isolation \
	  --editable '.[demo,dev]'
	@touch $@
