# Shows that nobody has edited a figure by hand: the page and the charts are what the results
# that were measured make of themselves.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = "import sys, pathlib, render; render.write_all(*map(pathlib.Path, sys.argv[1:]))"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    results = str(ROOT / "bench" / "results")
    command = [sys.executable, "-c", MAKE, results, str(docs)]
    subprocess.run(command, cwd=ROOT / "bench", check=True, timeout=60)
    return docs


@pytest.mark.parametrize("name", ["benchmarks.md", "benchmarks.svg", "benchmarks-detail.svg"])
def test_is_what_was_measured(made, name):
    assert (made / name).read_text() == (ROOT / "docs" / name).read_text()
