# Everything here runs in .venv, which the first target makes: only Python 3.11+ and PyPI are needed.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin

.PHONY: check test test-slow fuzz demo format

check: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: check
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[students,readers,fast-eval]'
	$(BIN)/pytest -n 2 -m slow

fuzz: .venv/installed
	$(BIN)/python benchmarks/fuzz.py --count 10000

demo: .venv/installed
	$(BIN)/malcli demo

format: .venv/installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "malcli needs Python 3.11 or later on the PATH" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' && touch $@
