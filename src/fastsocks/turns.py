"""Who is next, where many clients want few workers: each in turn, and nobody so much
that nothing is left for others.

A client may take a place while more are free than it has itself, both where one waits
and where one is worked for. So the first gets half of them, the next half of what is
left; and as jobs end, those who have most wait for those who have less.

It must not know what the work is.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Turns(Generic[Job]):
    """For any threads. ``places`` is how many jobs there may be at once, waiting or at
    work, ``workers`` how many of them at work."""

    def __init__(self, places: int, workers: int) -> None:
        self._places = places
        self._workers = workers
        self._row: OrderedDict[str, deque[Job]] = OrderedDict()  # who is next stands in front
        self._held: Counter[str] = Counter()  # waiting or at work
        self._working: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Jobs that are waiting or at work."""
        with self._changed:
            return self._held.total()

    def put(self, client: str, job: Job) -> bool:
        """Whether there was a place for one more of this client's."""
        with self._changed:
            if self._held[client] >= self._places - self._held.total():
                return False
            self._held[client] += 1
            self._row.setdefault(client, deque()).append(job)
            self._changed.notify()
        return True

    def take(self, timeout: float) -> tuple[str, Job] | None:
        """The next job and whose it is, to be told ``done()``; None where none comes
        within ``timeout`` seconds, and after ``close()``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next() is not None, timeout)
            client = self._next()
            if client is None or self._closed:
                return None
            jobs = self._row.pop(client)
            job = jobs.popleft()
            if jobs:
                self._row[client] = jobs  # behind all others
            self._working[client] += 1
            return client, job

    def done(self, client: str) -> None:
        """A worker is free again; it is expected to take the next job itself."""
        with self._changed:
            for count in (self._held, self._working):
                count[client] -= 1
                if not count[client]:
                    del count[client]

    def close(self) -> None:
        """Nobody is given any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def _next(self) -> str | None:
        free = self._workers - self._working.total()
        return next((client for client in self._row if self._working[client] < free), None)
