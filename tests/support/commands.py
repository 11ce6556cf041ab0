# Commands as somebody types them who has read the documentation, run on this machine.
#
# Must not know: where they stand.

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30
LISTENING = "fastsocks listening on"

# What the pages say about a reader's machine, and what it is here.
ELSEWHERE = (
    ("fastsocks  ", "fastsocks --listen 127.0.0.1:$PORT  "),  # without flags
    ("192.0.2.1", "127.0.0.1"),
    ("1080", "$PORT"),
    ("1081", "0"),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(kind: str, text: str, where: Path, **environment: str) -> subprocess.Popen[str]:
    program = [sys.executable] if kind.startswith("python") else ["sh", "-e"]
    (where / "block").write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "PORT": str(free_port()), **environment}
    return subprocess.Popen(
        [*program, "block"],
        cwd=where,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what a shell has started is stopped with it
    )


@contextlib.contextmanager
def running(kind: str, text: str, where: Path, **environment: str) -> Iterator[str]:
    """What it has said by the time that it listens, or has ended well."""
    process = start(kind, text, where, **environment)
    hurry = threading.Timer(2 * PATIENCE, process.kill)  # else a silent one is waited for
    hurry.start()
    try:
        said = ""
        while line := process.stdout.readline():
            said += line
            if line.startswith(LISTENING):
                break
        else:
            assert process.wait(PATIENCE) == 0, said
        yield said
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            said += process.stdout.read()
            # A shell with several commands dies by the signal, fastsocks says that it stops.
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM), said
        assert "Traceback" not in said
    finally:
        hurry.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
        process.stdout.close()


def here(text: str) -> str:
    for theirs, ours in ELSEWHERE:
        text = text.replace(theirs, ours)
    return text
