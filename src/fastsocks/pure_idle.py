"""The idle timer of the Python engine: for how long nothing has moved.

It must not know what moves, nor what ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastsocks.engine import SECOND_LOOK

CLOCK_GRAIN = 0.002  # seconds; uvloop's clock stands still within a turn


class IdleTimer:
    """Calls ``on_idle`` once, when ``moved`` is ``limit`` seconds ago; 0 for no limit.

    It is not moved along whenever something moves: when it fires, it is set for what
    is left. If nothing is, ``gets_on`` says whether something moves all the same; when it
    last did is not known, so it is asked again at half the limit.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: float,
        on_idle: Callable[[], None],
        gets_on: Callable[[], bool] = lambda: False,
    ) -> None:
        self.moved = loop.time()
        self._loop = loop
        self._limit = limit
        self._on_idle = on_idle
        self._gets_on = gets_on
        self._handle: asyncio.TimerHandle | None = None
        self._set()

    def restart(self, limit: float) -> None:
        """From now on, with another limit."""
        self.cancel()
        self.moved = self._loop.time()
        self._limit = limit
        self._set()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _set(self) -> None:
        if self._limit:
            self._handle = self._loop.call_at(self.moved + self._limit, self._look)

    def _look(self, second: bool = False) -> None:
        if self._loop.time() + CLOCK_GRAIN < self.moved + self._limit:
            self._set()
        elif not second:
            self._handle = self._loop.call_later(SECOND_LOOK, self._look, True)
        elif self._gets_on():
            self._handle = self._loop.call_later(self._limit / 2, self._look)
        else:
            self._on_idle()
