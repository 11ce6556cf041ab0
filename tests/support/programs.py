# Foreign programs: where they are, what happens when one is missing, how a server of
# somebody else's is started on a free port and ended.

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

READY_SECONDS = 60.0  # for a program to come up or to end, on a machine that is busy elsewhere
PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "danted": "dante-server",
    "dnsmasq": "dnsmasq-base",
    "drill": "ldnsutils",
    "git": "git",
    "ip": "iproute2",
    "java": "default-jre-headless",
    "javac": "default-jdk-headless",
    "kdig": "knot-dnsutils",
    "make": "make",
    "mount": "mount",
    "nc": "netcat-openbsd",
    "ncat": "ncat",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "oidentd": "oidentd",
    "proxychains4": "proxychains4",
    "setpriv": "util-linux",
    "socksify": "dante-client",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "strace": "strace",
    "sysctl": "procps",
    "tnftp": "tnftp",
    "unshare": "util-linux",
    "vsftpd": "vsftpd",
}


def missing(what: str, remedy: str) -> NoReturn:
    """Skips, which is a failure in CI: tests/conftest.py."""
    pytest.skip(f"{what} is missing: {remedy}")


def first_line(process: subprocess.Popen[Any]) -> str:
    """What a program says when it is ready: as much of it as it says in time."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(process.stdout.fileno(), 1)  # one at a time: the rest is communicate's
        if not piece:
            break
        line += piece
    return line.decode(errors="replace")


def need(program: str) -> str:
    """The program's path."""
    # Servers live in sbin, which an ordinary user's PATH leaves out.
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found and program == "nc":
        usage = subprocess.run([found, "-h"], capture_output=True, timeout=READY_SECONDS)
        if b"-X proto" not in usage.stdout + usage.stderr:
            found = None  # another netcat, which cannot use a proxy
    if not found:
        missing(program, f"apt-get install {PACKAGES[program]}")
    return found


def plain_environment() -> dict[str, str]:
    """Without what would put a proxy of the developer's own between client and proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")
        and not name.startswith(("FASTSOCKS_", "GIT_", "SOCKS_"))
    }
    return kept | {"LC_ALL": "C", "PYTHONFAULTHANDLER": "1"}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds:g} s have passed, and still not: {what}"
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_daemon(command: Callable[[int], list[str]], log: Path) -> Iterator[int]:
    """The port of 127.0.0.1 on which the server that `command(port)` starts listens."""
    # These servers cannot be asked which port they got, so a free one is picked for them,
    # and another one where somebody was quicker.
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with log.open("ab") as sink:
            process = subprocess.Popen(
                command(port), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )

        def answers(process: subprocess.Popen[bytes] = process, port: int = port) -> bool:
            if process.poll() is not None:
                return True
            with socket.socket() as knock:
                return knock.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(answers, f"{process.args!r} listens")
            if process.poll() is None:
                yield port
                return
        finally:
            end(process)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')}")
