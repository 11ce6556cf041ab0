"""A log that strangers cannot flood: one line a second for each kind of trouble,
with the number of those left out. Where DEBUG is asked for, all are told.

It must not know what the trouble is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable

INTERVAL = 1.0


class QuietLog:
    """Wraps a logger. Kinds are few and fixed by the program, never by a peer."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def info(self, kind: Hashable, message: str, *details: object) -> None:
        self._log(logging.INFO, kind, message, details)

    def warning(self, kind: Hashable, message: str, *details: object) -> None:
        self._log(logging.WARNING, kind, message, details)

    def _log(self, level: int, kind: Hashable, message: str, details: tuple[object, ...]) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.log(level, message, *details)
            return
        if not self._logger.isEnabledFor(level):
            return
        now = time.monotonic()
        since, left_out = self._kinds.get(kind, (-INTERVAL, 0))
        if now - since < INTERVAL:
            self._kinds[kind] = (since, left_out + 1)
            return
        self._kinds[kind] = (now, 0)
        if left_out:
            message += " (and %d more like it)"
            details += (left_out,)
        self._logger.log(level, message, *details)
