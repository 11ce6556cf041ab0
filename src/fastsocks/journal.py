"""The log on standard error, which keeps nobody waiting.

Standard error may be a pipe whose reader has stopped reading, or a terminal in which
someone has pressed Ctrl-S. A write would then wait for them, and every session with it;
and strangers have ways to make a proxy log. So what nobody takes is lost, and once
somebody reads again a line says how much. It must not know what is logged, nor why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from typing import TextIO

# What is written at once. A pipe that says it can be written to has room for as much, and
# so has a socket.
PIECE = select.PIPE_BUF


class Journal(logging.Handler):
    """Writes to ``stream``'s descriptor what that takes without waiting."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._handle = stream.fileno()
        self._encoding = stream.encoding
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record) + "\n"
        if self._lost and self._write(self._confession(record)):
            self._lost = 0
        if self._lost or not self._write(lines):
            self._lost += 1

    def _confession(self, record: logging.LogRecord) -> str:
        lost = logging.LogRecord(
            *(record.name, logging.WARNING, record.pathname, record.lineno),
            *("%d lines of this log are lost: nobody took them", (self._lost,), None),
        )
        return self.format(lost) + "\n"

    def _write(self, lines: str) -> bool:
        """Whether the whole of it was taken."""
        octets = lines.encode(self._encoding, "backslashreplace")
        with contextlib.suppress(OSError):  # the reader is gone
            while octets and self._is_ready():
                octets = octets[os.write(self._handle, octets[:PIECE]) :]
        return not octets

    def _is_ready(self) -> bool:
        # Not poll(), which macOS does not have for terminals.
        return bool(select.select((), (self._handle,), (), 0)[1])
