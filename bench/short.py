"""The short benchmarks, in a network namespace where the machine lets us have one.

python bench/short.py [PYTEST ARGUMENTS]
"""

from __future__ import annotations

import sys

import pytest

import namespace

if __name__ == "__main__":
    if namespace.possible() or not namespace.outside():
        print(*namespace.enter(), sep="\n")
    sys.exit(pytest.main(sys.argv[1:]))
