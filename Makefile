# Every target builds what it needs into .venv; a fresh machine has to bring
# CPython >= 3.11 with headers, gcc and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXTENSIONS := $(patsubst src/fastsocks/%.pyx,fastsocks.%,$(wildcard src/fastsocks/*.pyx))
SOURCES := pyproject.toml setup.py $(wildcard src/fastsocks/*.pyx src/fastsocks/*.pxd src/fastsocks/*.h)

.PHONY: run test lint format bench build clean

run: .venv/installed
	$(BIN)/fastsocks

test: .venv/tested
	$(BIN)/python -m pytest

lint: .venv/linted
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest $(EXTENSIONS) --allowlist stubtest.allow
	$(BIN)/codespell

format: .venv/linted
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed
	$(BIN)/python bench/run.py

build: .venv/built
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist src/*.egg-info src/fastsocks/*.so src/fastsocks/*.c bench/.build

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("fastsocks needs CPython 3.11 or newer") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python $(SOURCES)
	$(PIP) --editable .
	touch $@

# Each group of tools goes in when a target first asks for it.
.venv/tested: GROUP := test
.venv/linted: GROUP := lint
.venv/built: GROUP := build
.venv/tested .venv/linted .venv/built: .venv/installed
	$(PIP) --group $(GROUP)
	touch $@
