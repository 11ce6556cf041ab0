"""A logging handler for standard error that never blocks (it has nothing to do with
systemd's journal).

Standard error may be a pipe whose reader has stopped reading, or a terminal in which
someone has pressed Ctrl-S. A write would then wait for them, and every session with it;
and strangers have ways to make a proxy log. So what nobody takes is lost, and once
somebody reads again a line says how much. It must not know what is logged, nor why.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TextIO


class Journal(logging.Handler):
    """Writes to ``stream``'s descriptor what that takes without waiting."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream  # which would close its descriptor with itself
        self._take = way_to(stream.fileno())
        self._lost = 0
        self._is_cut = False  # in the middle of a line

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record)
        if self._lost and self._write(self._confession(record)):
            self._lost = 0
        if self._lost or not self._write(lines):
            self._lost += 1

    def _confession(self, record: logging.LogRecord) -> str:
        lost = logging.LogRecord(
            record.name,
            logging.WARNING,
            record.pathname,
            record.lineno,
            "%d log lines were lost: nobody was reading",
            (self._lost,),
            None,
        )
        return self.format(lost)

    def _write(self, lines: str) -> bool:
        """Whether the whole of it was taken."""
        text = "\n" * self._is_cut + lines + "\n"
        whole = rest = text.encode(self._stream.encoding, "backslashreplace")
        with contextlib.suppress(OSError):  # there is no room for it, or the reader is gone
            while rest:
                rest = rest[self._take(rest) :]
        if len(rest) < len(whole):
            self._is_cut = bool(rest)
        return not rest


def way_to(handle: int) -> Callable[[bytes], int]:
    """Writes some of what it is given and returns how much, or raises OSError; never waits.

    O_NONBLOCK alone will not do: everybody would have it whose standard error comes from the
    same shell."""
    try:
        if stat.S_ISSOCK(os.fstat(handle).st_mode):
            sock = socket.socket(fileno=os.dup(handle))
            return lambda octets: sock.send(octets, socket.MSG_DONTWAIT)
        # A terminal can be opened once more. It says that it can be written to when it has
        # room for one octet, and would wait for the rest.
        own = os.open(os.ttyname(handle), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # neither, another user's, or there is no descriptor left
        return functools.partial(write_when_ready, handle)
    return functools.partial(os.write, own)


def write_when_ready(handle: int, octets: bytes) -> int:
    # Not poll(), which macOS does not have for terminals.
    if not select.select((), (handle,), (), 0)[1]:
        raise BlockingIOError
    # For so much there is room in a pipe that can be written to.
    return os.write(handle, octets[: select.PIPE_BUF])
