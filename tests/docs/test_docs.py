# Shows that the documentation is true: every command in it runs, and every flag is in it.
#
# The word behind ``` says how a block is tried: `sh test` and `python test` have to succeed (a
# server is stopped as soon as it listens), `sh fails` has to be refused with status 2, `sh root`
# changes the machine and is read only, any other kind is no command. $PORT is a free port.

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
PATIENCE = 20
SYSCTL = re.compile(r"^sysctl -w ([\w.-]+)=")


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    text: str


def blocks() -> list[Block]:
    return [
        Block(path.name, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])
        for path in PAGES
        for text in [path.read_text("utf-8")]
        for found in FENCE.finditer(text)
    ]


def of(*kinds: str) -> list[object]:
    chosen = [block for block in blocks() if block.kind in kinds]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in chosen]


def start(block: Block, where: Path) -> subprocess.Popen[str]:
    program = [sys.executable] if block.kind.startswith("python") else ["sh", "-e"]
    (where / "block").write_text(block.text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [*program, "block"],
        cwd=where,
        env={**os.environ, "PATH": path, "PORT": str(port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a shell has started is stopped with it
    )


@pytest.mark.parametrize("block", of("sh test", "python test"))
def test_it_runs(block, tmp_path):
    process = start(block, tmp_path)
    hurry = threading.Timer(3 * PATIENCE, os.killpg, [process.pid, signal.SIGKILL])
    hurry.start()
    try:
        said = ""
        while line := process.stdout.readline():
            said += line
            if line.startswith("fastsocks listening on"):
                os.killpg(process.pid, signal.SIGTERM)
        status = process.wait(PATIENCE)
    finally:
        hurry.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
    stopped = "fastsocks listening on" in said and status == -signal.SIGTERM
    assert status == 0 or stopped, said
    assert "Traceback" not in said
    assert said, "a command in the docs that shows nothing"


@pytest.mark.parametrize("block", of("sh fails"))
def test_it_is_refused(block, tmp_path):
    process = start(block, tmp_path)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize("block", of("sh root"))
def test_it_names_what_the_kernel_has(block):
    for line in block.text.splitlines():
        found = SYSCTL.match(line)
        assert found, f"cannot be checked: {line}"
        path = Path("/proc/sys", *found[1].split("."))
        assert path.exists() or not path.parent.exists(), line


def test_no_command_goes_unmarked():
    known = {"sh test", "sh root", "sh fails", "python test", "text", "ini", "yaml"}
    assert [block for block in blocks() if block.kind not in known] == []


def test_the_flags_are_those_of_the_program():
    written = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "flags.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    page = (ROOT / "docs" / "flags.md").read_text("utf-8")
    assert page == written.stdout, "run tools/flags.py > docs/flags.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), target
