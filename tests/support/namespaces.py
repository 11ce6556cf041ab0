# A network of a test's own, where ports and addresses are nobody else's, and files of the
# system that only it sees.

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from support.programs import first_line, missing, need

PATIENCE = 60.0
HOLD = """
import fcntl, socket, struct, subprocess, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
mount, *files = sys.argv[1:]
for own, system in zip(files[::2], files[1::2]):
    subprocess.run([mount, "--bind", own, system], check=True)
print("up", flush=True)
sys.stdin.read()
"""
BIND = """
while [ "$1" != -- ]; do "$0" --bind "$1" "$2" || exit; shift 2; done
shift
exec "$@"
"""


def to_bind(files: Mapping[str, Path]) -> list[str]:
    """Each file and whose place it takes, one after the other."""
    if os.geteuid():
        missing("the right to make a namespace", "run the tests as root")
    return [word for system, own in files.items() for word in (str(own), system)]


@contextlib.contextmanager
def own_network(files: Mapping[str, Path] = {}) -> Iterator[list[str]]:
    """The start of a command line that runs the rest in there, with loopback alone and
    with ``files`` in place of those of the system."""
    pairs = to_bind(files)
    holder = subprocess.Popen(
        [need("unshare"), "--net", "--mount", sys.executable, "-c", HOLD, need("mount"), *pairs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert first_line(holder) == "up\n"
        own = f"/proc/{holder.pid}/ns"
        yield [need("nsenter"), f"--net={own}/net", f"--mount={own}/mnt", "--"]
    finally:
        holder.communicate(timeout=PATIENCE)


def with_files(files: Mapping[str, Path]) -> list[str]:
    """The start of a command line that runs the rest with ``files`` in place of those of the
    system, and in the network of everybody."""
    command = [need("unshare"), "--mount", "sh", "-c", BIND, need("mount")]
    return [*command, *to_bind(files), "--"]


def bare_network() -> list[str]:
    """The start of a command line that runs the rest in a network of its own, as root in
    there: what every user may, if the system lets users."""
    command = [need("unshare"), "--user", "--map-root-user", "--net"]
    tried = subprocess.run([*command, "true"], capture_output=True, timeout=PATIENCE)
    if tried.returncode:
        missing("the right to make a namespace", tried.stderr.decode().strip())
    return command


@contextlib.contextmanager
def programs_in(
    namespace: list[str], environment: Mapping[str, str], logs: Path
) -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """``start(*command)``: a program in there, which is ended with the others."""
    running: list[subprocess.Popen[Any]] = []

    def start(*command: str) -> subprocess.Popen[Any]:
        with (logs / f"log-{len(running)}").open("wb") as log:
            process = subprocess.Popen(
                [*namespace, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        running.append(process)
        return process

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=PATIENCE)
