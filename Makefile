# Everything works on a fresh machine with Python 3.11 or newer, git and make. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The environment's own `python` and `dvc`, also for the stages' commands.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing reports to anybody, and state stays inside the project.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site
export GX_ANALYTICS_ENABLED := false
export PREFECT_HOME := $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo repro serve check lint types test unit e2e slow browser format clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: repro ## from nothing to a trained policy and its report
	@python tools/demo_summary.py

# All stages; but `record` only where `prepare.raw` names what it makes.
repro: $(VENV)/.installed ## bring the pipeline up to date: dvc repro report
	@dvc repro report

serve: $(VENV)/.installed ## a local Prefect server and worker, until Ctrl-C
	@exec python -m flows.serve

# Side by side on two cores; each one's output in one piece, at its end, where make is 4.0 or newer.
test: $(VENV)/.installed-test ## lint, types and all tests
	@$(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) check e2e unit

unit: $(VENV)/.installed-test ## tests of single parts
	@python -m pytest tests/unit tests/contract

e2e: $(VENV)/.installed-test ## tests of the whole: pipelines, servers, the report's page
	@python -m pytest tests/e2e

slow: $(VENV)/.installed-test ## the tests that take minutes: every environment through the whole pipeline
	@python -m pytest -m slow

check: lint types ## lint and types only

lint: $(VENV)/.installed-test
	@ruff check .
	@ruff format --check .

types: $(VENV)/.installed-test
	@mypy

format: $(VENV)/.installed-test ## put the code in its form
	@ruff check --fix .
	@ruff format .

browser: ## install Chromium for the tests that look at pages (Debian or Ubuntu, as root)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { \
	    echo "install Chromium yourself: this needs root and apt-get" >&2; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; }

clean: ## remove environment, caches and server state; results and DVC's cache stay
	rm -rf $(VENV) .prefect .mypy_cache .ruff_cache .pytest_cache .hypothesis build macflow.egg-info
	find macflow flows tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: nothing is installed again until pyproject.toml changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "macflow needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing macflow into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	@echo "installing the test tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@
