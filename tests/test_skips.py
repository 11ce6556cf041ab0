# Where everything is there that tests need (CI=true), one that skips is one that was lost.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
WAYS = {
    "in its body": "def test(): pytest.skip('no such program')",
    "by a mark": "@pytest.mark.skip\ndef test(): ...",
    "in a fixture": "@pytest.fixture\ndef tool(): pytest.skip('none')\ndef test(tool): ...",
    "without a case": "@pytest.mark.parametrize('case', [])\ndef test(case): ...",
    "with its file": "pytest.importorskip('no_such_module')",
}


def outcome(folder: Path, ci: str) -> tuple[int, str]:
    """Of pytest over the tests in there, with the rules of this folder: its status, and
    its closing line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", os.devnull]
    ended = subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)],
        env=os.environ | {"CI": ci, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("way", WAYS)
def test_in_ci_a_skip_is_a_failure(tmp_path, way) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\n{WAYS[way]}\n")
    status, closing = outcome(tmp_path, "true")
    assert status != 0
    assert closing.startswith(("1 failed", "1 error")), closing


def test_elsewhere_it_is_a_skip(tmp_path) -> None:
    for number, text in enumerate(WAYS.values()):
        (tmp_path / f"test_{number}.py").write_text(f"import pytest\n{text}\n")
    status, closing = outcome(tmp_path, "")
    assert closing.startswith(f"{len(WAYS)} skipped"), closing
    assert status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def test_what_is_about_linux_is_no_test_elsewhere(tmp_path) -> None:
    # To the rules alone, as much else would have to be true of another system.
    elsewhere = "import pytest, conftest, types\n"
    elsewhere += "conftest.sys = types.SimpleNamespace(platform='darwin')\n"
    (tmp_path / "test_it.py").write_text(
        f"{elsewhere}@pytest.mark.linux\ndef test(): ...\ndef test_other(): ...\n"
    )
    status, closing = outcome(tmp_path, "true")
    assert status == 0
    assert closing.startswith("1 passed, 1 deselected"), closing
