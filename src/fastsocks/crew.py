"""A fair thread pool for calls that block: clients have their turns at it (turns.py), and
one whose calls hang waits alone.

A call that hangs keeps its thread, whoever has given up; others need threads meanwhile,
so there may be many. They start when they are needed and end when they are idle. They
are daemons, so that no call can keep the program from ending. It must not know what is
called, nor who waits for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from fastsocks.turns import Turns

Job = Callable[[], None]


class Full(Exception):
    """There is no place for one more job; the text says why."""


class Crew:
    """``places`` is how many jobs there may be at once, waiting or at work, ``workers``
    how many threads, each called ``name``; one that has been idle for ``idle`` seconds
    ends."""

    def __init__(self, name: str, places: int, workers: int, idle: float) -> None:
        self._name = name
        self._workers = workers
        self._idle = idle
        self._turns: Turns[Job] = Turns(places, workers)
        self._lock = threading.Lock()
        self._threads = 0

    def put(self, client: str, job: Job) -> None:
        """Raises Full where there is no place for one more of this client's, or no thread. A
        job may raise nothing, and is dropped if it has not begun at ``close()``."""
        with self._lock:
            if self._threads < self._workers and self._threads <= self._turns.unfinished:
                self._start_thread()
            if not self._threads:
                raise Full("no thread can be started (ulimit -u, or a limit of the container's)")
            if not self._turns.put(client, job):
                raise Full("too many are waiting")

    def close(self) -> None:
        self._turns.close()

    def _start_thread(self) -> None:
        # RuntimeError: the system has none left. Those that there are have to do.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._threads += 1

    def _work(self) -> None:
        while True:
            turn = self._turns.take(self._idle)
            if turn is None:
                with self._lock:
                    if self._turns.closed or self._turns.unfinished < self._threads:
                        self._threads -= 1
                        return
                continue
            client, job = turn
            try:
                job()
            finally:
                del turn, job  # or an idle thread keeps alive all that it has worked on
                self._turns.done(client)
