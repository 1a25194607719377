# leverlab: `make repro` builds everything, `make test` checks it. The first call makes .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Paths are relative, for make splits a name at its spaces, and the repository may lie in a folder that has some.
VENV := .venv
STAMP := $(VENV)/.installed
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export DVC_NO_ANALYTICS := 1
# One thread gives the same bytes whatever the number of cores, and is faster for small models; raise it for large ones.
export OMP_NUM_THREADS ?= 1

.PHONY: help repro tiny clarify pull test lint format bench bench-clarify verify report gate gate-clarify demo test-demo clean setup setup-demo

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

repro: setup ## run the main pipeline: only the stages whose inputs changed
	leverlab params
	dvc repro

tiny: setup ## a first look: all stages of the main pipeline on a few dozen questions
	@git diff --quiet HEAD -- params.yaml || { echo "params.yaml has edits of yours; commit or stash them first" >&2; exit 1; }
	leverlab plan run tiny --again || { git restore --staged --worktree params.yaml; exit 1; }
	git restore --staged --worktree params.yaml
	@echo "the report is reports/report.html; make repro runs the whole job"

clarify: setup ## run the recipe clarify: only the stages whose inputs changed
	leverlab params recipes/clarify
	cd recipes/clarify && dvc repro

pull: setup ## fetch data and models of this commit from the DVC remote
	dvc pull

test: setup ## run the tests, in two processes
	pytest -n 2

lint: setup ## check style, types and the dependencies that dvc.yaml declares
	ruff check .
	ruff format --check .
	mypy
	leverlab deps --check

format: setup ## format the code and fix what ruff can fix
	ruff check --fix .
	ruff format .

bench: setup ## measure the scorer beside the naive way, and what picking demos takes (after make repro)
	python -m benchmarks.scoring
	python -m benchmarks.picking

bench-clarify: setup ## measure rollouts beside TRL's plain way (after make clarify)
	python -m benchmarks.dialogues

verify: setup ## run every stage again in an empty place and compare the bytes of its outs (as long as a cold run)
	leverlab verify

report: setup ## bring reports/ up to date, with the stages that it needs
	dvc repro report

gate: setup ## fail when an acceptance rule of the last report failed
	leverlab gate

gate-clarify: setup ## fail when an acceptance rule of the last report of the recipe clarify failed
	leverlab gate recipes/clarify

demo: setup-demo ## serve a page to try methods side by side, on 127.0.0.1
	dvc repro bundle
	leverlab demo

test-demo: setup-demo ## attack that page, and look at it and at the report pages in a browser where chromium is installed
	pytest -m demo
	if command -v chromium > /dev/null; then pytest -m browser; else \
	  echo "chromium is not installed: the page was attacked, and no page was looked at in a browser" >&2; fi

clean: ## remove build products; the DVC cache, data and models stay
	rm -rf build dist src/*.egg-info dvc_plots .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -name .git -o -name .dvc -o -name .venv \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

setup: $(STAMP)

setup-demo: setup
	$(PIP) install -r requirements-demo.txt

$(STAMP): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit("leverlab needs Python 3.11 or newer: make PYTHON=/path/to/it" if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' requirements.txt)"
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $(STAMP)
