# Every target builds what it needs into .venv; a fresh machine has to bring
# CPython >= 3.11 with headers, gcc and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXTENSIONS := $(patsubst src/fastsocks/%.pyx,fastsocks.%,$(wildcard src/fastsocks/*.pyx))
SOURCES := pyproject.toml setup.py $(wildcard src/fastsocks/*.pyx src/fastsocks/*.pxd src/fastsocks/*.h)

# A build that is not the normal one has a tree of its own under build/.
INSTRUMENTED = PYTHONPATH="$(CURDIR)/build/$@/src" PYTHONMALLOC=malloc
ENGINE_TESTS := tests/engine -k "not python" \
    $(addprefix --ignore=tests/engine/test_,threads.py memory.py)

.PHONY: run test test-pure asan coverage lint format bench bench-peers bench-short build dist wheels-check clean

run: .venv/installed
	$(BIN)/fastsocks

test: .venv/tested
	$(BIN)/python -m pytest

# Where there is no native engine, which some tests of the engines need without saying so
# in their names.
test-pure: .venv/tested
	$(BIN)/python -m pytest tests/proto tests/test_wheel.py
	$(BIN)/python -m pytest -k python tests/engine
	$(BIN)/python -m pytest -k "not native or python" tests/server

# The sanitizers' runtime must be there before the interpreter, which is not built with
# them.
asan: .venv/tested build/asan/built
	$(INSTRUMENTED) LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
	    ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 \
	    $(BIN)/python -m pytest $(ENGINE_TESTS)

# With the relay on the loop's thread, as no other thread is traced; without what is about
# threads, starts programs of its own, or takes minutes where each line is counted. Run
# from the tree that was built, since lines of Cython are known by their path in it.
TRACED := -k "not python and not thread" \
    $(addprefix --ignore=../../tests/engine/test_,churn.py memory.py pipes.py porch.py splice_bugs.py threads.py)
COVERAGE = COVERAGE_FILE=data $(CURDIR)/$(BIN)/python -m coverage
coverage: .venv/tested build/coverage/built
	cd build/coverage && $(INSTRUMENTED) FASTSOCKS_TEST_INLINE=1 $(COVERAGE) run \
	    --rcfile=../../pyproject.toml -m pytest -c ../../pyproject.toml --rootdir=../.. \
	    ../../tests/engine $(TRACED)
	cd build/coverage && $(COVERAGE) report --rcfile=../../pyproject.toml
	cd build/coverage && $(COVERAGE) html --rcfile=../../pyproject.toml

lint: .venv/linted
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src
	$(BIN)/mypy
	MYPYPATH=src:bench $(BIN)/mypy --allow-untyped-decorators bench/*.py tools/*.py
	$(BIN)/mypy --explicit-package-bases fuzz/*.py
	$(BIN)/python -m mypy.stubtest $(EXTENSIONS) --allowlist stubtest.allow
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

format: .venv/linted
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed
	$(BIN)/python bench/run.py

bench-peers: .venv/installed
	$(BIN)/python bench/suite.py

bench-short: .venv/benched
	mkdir -p build
	$(BIN)/python bench/short.py bench --benchmark-json=build/bench-short.json

build: .venv/built
	$(BIN)/python -m build

dist: .venv/built
	$(BIN)/python tools/check_wheels.py dist

wheels-check: .venv/built
	$(BIN)/python tools/check_wheels.py all

clean:
	rm -rf .venv build dist src/*.egg-info src/fastsocks/*.so src/fastsocks/*.c bench/.build

# A stamp, since an interpreter is there as soon as its environment is begun.
.venv/made:
	$(PYTHON) -c 'import sys; sys.exit("fastsocks needs CPython 3.11 or newer") if sys.version_info < (3, 11) else 0'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade 'pip>=25.1'
	touch $@

.venv/installed: .venv/made $(SOURCES)
	$(PIP) --editable .
	touch $@

# Each group of tools goes in when a target first asks for it.
.venv/tested: GROUP := test
.venv/benched: GROUP := bench
.venv/linted: GROUP := lint
.venv/built: GROUP := build
.venv/instrumented: GROUP := instrument
.venv/tested .venv/benched .venv/linted .venv/built .venv/instrumented: .venv/installed
	$(PIP) --group $(GROUP)
	touch $@

build/asan/built: export FASTSOCKS_SANITIZE := address
build/coverage/built: export FASTSOCKS_TRACE := 1
build/%/built: $(SOURCES) $(wildcard src/fastsocks/*.py src/fastsocks/*/*.py) .venv/instrumented
	rm -rf build/$*
	mkdir -p build/$*
	tar c --exclude='*.c' --exclude='*.so' --exclude='*.egg-info' --exclude=__pycache__ \
	    src setup.py pyproject.toml README.md LICENSE | tar x -C build/$*
	cd build/$* && $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@
