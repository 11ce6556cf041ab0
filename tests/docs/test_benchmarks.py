# Shows that nobody has edited a figure by hand: the page and the charts are what the results
# that were measured make of themselves.

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = "import sys, pathlib, render; render.write_all(*map(pathlib.Path, sys.argv[1:]))"


def make(results: Path, docs: Path) -> Path:
    command = [sys.executable, "-c", MAKE, str(results), str(docs)]
    subprocess.run(command, cwd=ROOT / "bench", check=True, timeout=60)
    return docs


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make(ROOT / "bench" / "results", tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize("name", ["benchmarks.md", "benchmarks.svg", "benchmarks-detail.svg"])
def test_is_what_was_measured(made, name):
    assert (made / name).read_text() == (ROOT / "docs" / name).read_text()


def test_says_which_part_could_not_be_measured(tmp_path):
    """And has no older figures of it, which another machine may have given."""
    results = shutil.copytree(ROOT / "bench" / "results", tmp_path / "results")
    (results / "veth.json").write_text(json.dumps({"unmeasured": True}))
    page = (make(results, tmp_path / "docs") / "benchmarks.md").read_text()
    _, _, veth = page.partition("## Over veth")
    part, _, rest = veth.partition("\n## ")
    assert part.split("\n", 1)[1].strip() == "This could not be measured."
    assert rest.startswith("Relay threads")


def test_a_part_that_there_is_not_is_refused():
    command = [sys.executable, "suite.py", "--part", "lopback"]
    done = subprocess.run(command, cwd=ROOT / "bench", capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--part lopback: must be one of loopback, unprivileged, veth, threads" in done.stderr
