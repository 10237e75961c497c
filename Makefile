# Shortcuts for work on Tweezer (see CONTRIBUTING.md). They use the tools of the active environment.

PYTHON ?= python
BENCHMARK ?= dispatch

.PHONY: check fix test bench

check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

fix:
	ruff check --fix .
	ruff format .

test:
	$(PYTHON) -m pytest

bench:
	$(PYTHON) benchmarks/$(BENCHMARK).py
