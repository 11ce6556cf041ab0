# The log of a proxy whose standard error nobody reads: strangers can fill what lies between,
# and then nobody must wait for a reader who does not come.

from __future__ import annotations

import errno
import os
import re
import select
import socket
import subprocess
import termios
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from fastsocks import journal
from support.ends import exactly
from support.programs import first_line

PATIENCE = 30.0
STRANGERS = 1500  # of a line each; a pipe has room for some 700
LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ .+")
LOST = re.compile(rb"WARNING (\d+) log lines were lost: nobody was reading\r?\n")


def a_pair_of_sockets() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


class Unread:
    """What nobody reads from; ``begin()`` lets its reader read, ``said()`` is what there is."""

    KINDS: ClassVar = {
        "pipe": os.pipe,
        "socket": a_pair_of_sockets,
        "terminal": os.openpty,
        "terminal on hold": os.openpty,
    }

    def __init__(self, kind: str) -> None:
        self.ours, self.theirs = self.KINDS[kind]()
        self._on_hold = kind == "terminal on hold"
        if self._on_hold:
            termios.tcflow(self.theirs, termios.TCOOFF)  # as by Ctrl-S

    def begin(self) -> None:
        if self._on_hold:
            termios.tcflow(self.theirs, termios.TCOON)

    def said(self) -> bytes:
        said = b""
        while select.select([self.ours], [], [], 0)[0]:
            said += os.read(self.ours, 1 << 16)
        return said

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture(params=Unread.KINDS)
def unread(request: pytest.FixtureRequest) -> Iterator[Unread]:
    channel = Unread(request.param)
    yield channel
    channel.close()


@pytest.fixture
def proxy(unread: Unread, command: Callable, environment: Callable) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command("--listen", "127.0.0.1:0", "--log-level", "debug"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=unread.theirs,
        env=environment(),
    )
    yield process
    process.kill()
    process.communicate()


def test_a_log_that_nobody_reads_keeps_nobody_waiting(proxy, unread):
    port = int(first_line(proxy).partition(" (")[0].rpartition(":")[2])
    for _ in range(STRANGERS):
        knock(port)
    unread.begin()
    before = unread.said().splitlines()
    assert len(before) < STRANGERS
    # Of the last one a terminal may have taken a part.
    assert all(map(LINE.fullmatch, before[:-1])), "whole lines"
    knock(port)
    while not (told := unread.said()):
        select.select([unread.ours], [], [], PATIENCE)
    lost = LOST.search(told)
    assert lost, told
    assert int(lost[1]) + len(before) >= STRANGERS
    proxy.terminate()
    assert proxy.wait(PATIENCE) == 0


def test_who_stops_reading_for_good_does_not_keep_it_from_stopping(proxy, unread):
    port = int(first_line(proxy).partition(" (")[0].rpartition(":")[2])
    for _ in range(STRANGERS):
        knock(port)
    proxy.terminate()
    assert proxy.wait(PATIENCE) == 0


def knock(port: int) -> None:
    """By somebody who takes it for something else, which gets a line in the log."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert exactly(stranger, 12) == b"HTTP/1.1 400"


def test_a_socket_where_no_descriptor_is_left(monkeypatch):
    def dup(handle):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "dup", dup)
    with ours, theirs:
        assert journal.way_to(theirs.fileno())(b"said") == 4
        assert ours.recv(4) == b"said"
