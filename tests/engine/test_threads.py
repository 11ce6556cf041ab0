# Shows that the loop's thread and the relay threads never touch the same memory unordered: what
# they hand to each other is stressed under ThreadSanitizer, which sees a race even when it
# happens to do no harm.
#
# Must not know: how the hand-over works.

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import missing

ROOT = Path(__file__).parents[2]
SUPPRESSIONS = Path(__file__).with_name("tsan.supp")
SECONDS = 4


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The package, with its extensions built under ThreadSanitizer."""
    tree = tmp_path_factory.mktemp("tsan")
    built = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "src", tree / "src", ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    target = tree / "built"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    build = subprocess.run(
        [*pip, "--no-deps", "--target", str(target), str(tree)],
        env={**os.environ, "FASTSOCKS_SANITIZE": "thread"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return target


@pytest.fixture(scope="module")
def runtime():
    """The sanitizer's library, which has to be there before the interpreter starts."""
    found = subprocess.run(
        ["gcc", "-print-file-name=libtsan.so"],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()
    if not Path(found).is_absolute():
        missing("ThreadSanitizer", "install the libtsan of your gcc")
    return found


def fixed_addresses():
    """The sanitizer's map of the address space cannot stand much randomness in it."""
    command = ["setarch", "-R"]
    tried = subprocess.run([*command, "true"], capture_output=True, timeout=10)
    return command if tried.returncode == 0 else []


def test_the_extensions_are_instrumented(sanitized):
    extensions = list((sanitized / "fastsocks").glob("*.so"))
    assert len(extensions) >= 2
    for extension in extensions:
        octets = extension.read_bytes()
        assert b"__tsan_read" in octets, extension
        if extension.name.startswith(("_relay", "_udp")):
            assert b"__tsan_atomic" in octets, extension


def stressed(program, name, sanitized, runtime, *arguments):
    """Runs it under the sanitizer, which must have nothing to say; returns its findings."""
    process = program(
        name,
        *arguments,
        str(SECONDS),
        prefix=fixed_addresses(),
        PYTHONPATH=str(sanitized),
        PYTHONMALLOC="malloc",
        LD_PRELOAD=runtime,
        TSAN_OPTIONS=f"suppressions={SUPPRESSIONS} verbosity=1 halt_on_error=0",
    )
    out, _ = process.communicate(timeout=100)
    log = process.log.read_text()
    assert "Running under ThreadSanitizer" in log, log
    assert "WARNING: ThreadSanitizer" not in log, log[:20_000]
    assert process.returncode == 0, log[-5_000:]
    result = json.loads(out)
    assert sum(result["reasons"].values()) == result["started"]
    assert result["started"] > 200, "too few sessions to show anything"
    return result


@pytest.mark.parametrize("relay", ["auto", "splice"])
def test_the_hand_over_is_free_of_races(sanitized, runtime, program, relay):
    result = stressed(program, "handed_over", sanitized, runtime, relay)
    assert set(result["reasons"]) >= {"finished", "killed", "client reset", "remote reset"}
    assert (result["moved_on"] > 100) == (relay == "auto")


def test_associations_are_free_of_races(sanitized, runtime, program):
    result = stressed(program, "associated", sanitized, runtime)
    assert set(result["reasons"]) >= {"finished", "killed"}
    assert result["asked"] > 100
    assert result["down"] > 100
