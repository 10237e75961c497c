# Shortcuts for work on Tweezer (see CONTRIBUTING.md). They use the tools of the active environment.

PYTHON ?= python
BENCHMARK ?= dispatch

.PHONY: check fix test docs bench

check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo
	$(PYTHON) .ci/check_english.py
	mkdocs build --strict --quiet

fix:
	ruff check --fix .
	ruff format .

test:
	$(PYTHON) -m pytest

docs:
	mkdocs serve

bench:
	$(PYTHON) benchmarks/$(BENCHMARK).py
