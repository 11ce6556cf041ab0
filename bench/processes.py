"""Processes: start them, end them by pid whatever happens, read what a whole tree has used."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

# Dies with the harness even if that is killed outright.
GUARD = ("setpriv", "--pdeathsig", "KILL")

# Becomes nobody. The one capability it keeps lets it read an interpreter that lives below a closed
# home directory; the kernel's limits on pipes, which are the point of this, ask for quite others.
AS_NOBODY = (
    *("--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


class Unmeasured(Exception):
    """Why there is no figure, in words for the report."""


@dataclass(frozen=True, slots=True)
class Stat:
    pid: int
    parent: int
    started: int
    reaped_ticks: int
    pages: int


def _stat(pid: int) -> Stat | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name before the bracket may hold anything, brackets and blanks too.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    # cutime and cstime: of children already reaped, since living ones are counted by themselves.
    return Stat(pid, int(fields[1]), int(fields[19]), sum(map(int, fields[13:15])), int(fields[21]))


def tree(root: int) -> list[Stat]:
    stats = [stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))]
    members = {root}
    while grown := {stat.pid for stat in stats if stat.parent in members} - members:
        members |= grown
    return [stat for stat in stats if stat.pid in members]


def cpu_seconds(root: int) -> float:
    return sum(_cpu_clock(stat.pid) + stat.reaped_ticks / TICKS_PER_SECOND for stat in tree(root))


def _cpu_clock(pid: int) -> float:
    """Seconds of all threads of a process, ended ones too: in nanoseconds, where /proc has ticks
    of 10 ms, of which a short run has but a few dozen."""
    sched_clock_of_process = (~pid << 3) | 2  # clock_getcpuclockid(3), as Linux numbers them
    try:
        return time.clock_gettime(sched_clock_of_process)
    except OSError:
        return 0.0  # it has ended meanwhile


def resident_bytes(root: int) -> int:
    return sum(stat.pages for stat in tree(root)) * PAGE_SIZE


class Server:
    """A system under test, for as long as the with-block lasts."""

    def __init__(
        self, command: Sequence[str], address: tuple[str, int], *, unprivileged: bool
    ) -> None:
        self.command = [*GUARD, *(AS_NOBODY if unprivileged else ()), "--", *command]
        self.address = address

    def __enter__(self) -> Server:
        # No log goes to a file or a pipe: writing it would cost each system differently.
        self.process = self._start(subprocess.DEVNULL)
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _start(self, errors: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            cwd="/",
        )

    def _wait_until_it_listens(self, patience: float = 10.0) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(self.address, timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise Unmeasured(f"it did not come to listen: {self._last_words()}")

    def _last_words(self) -> str:
        """Start it once more for nothing but its complaint."""
        self.stop()
        again = self.process = self._start(subprocess.PIPE)
        try:
            _, said = again.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            self.stop()
            said = again.stderr.read() if again.stderr else ""
        return (said.strip().splitlines() or ["it said nothing"])[-1]

    def stop(self, patience: float = 3.0) -> None:
        members = tree(self.pid) if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for member in members:
            now = _stat(member.pid)
            if now and now.started == member.started:
                os.kill(member.pid, signal.SIGKILL)


class Load:
    """One run of the load generator: an origin or a client."""

    def __init__(self, *command: object, limit: float) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # It stops by itself; this is for the day it does not.
        self._watchdog = threading.Timer(limit, self.process.kill)
        self._watchdog.start()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        line = self.process.stdout.readline().strip()  # type: ignore[union-attr]
        if not line:
            said = self.process.stderr.read().strip()  # type: ignore[union-attr]
            raise Unmeasured(said or "the load generator ended without a word")
        return line

    def wait_for(self, mark: str) -> None:
        line = self.line()
        if line != mark:
            raise Unmeasured(describe_failure(json.loads(line)))

    def release(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdin = None

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line())
        if "failed" in found:
            raise Unmeasured(describe_failure(found))
        return found


def describe_failure(found: dict[str, Any]) -> str:
    troubles = ", ".join(f"{count} {name}" for name, count in found["errors"].items() if count)
    return f"{found.get('failed', 'it went wrong')} ({troubles or 'no error seen'})"
