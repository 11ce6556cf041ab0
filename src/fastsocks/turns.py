"""Who is next, where many clients want few workers: each in turn, and nobody so much
that nothing is left for others.

A client may take a place while more are free than it has itself, both where one waits
and where one is worked for. So the first gets half of them, the next half of what is
left; and as jobs end, those who have most wait for those who have less. A site, which could
be as many clients as it likes (``clients.around``), gets three quarters at most: as much as
two of its clients get, so that one of them cannot keep its neighbours out.

It must not know what the work is.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

from fastsocks.clients import around

Job = TypeVar("Job")

# A client may have as many as are free, a site so many times as many, but for the last.
SITE = 3


class Turns(Generic[Job]):
    """For any threads. ``places`` is how many jobs there may be at once, waiting or at
    work, ``workers`` how many of them at work."""

    def __init__(self, places: int, workers: int) -> None:
        self._places = places
        self._workers = workers
        self._row: OrderedDict[str, deque[Job]] = OrderedDict()  # who is next stands in front
        self._held = Shares()  # waiting or at work
        self._working = Shares()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Jobs that are waiting or at work."""
        with self._changed:
            return self._held.total

    def put(self, client: str, job: Job) -> bool:
        """Whether there was a place for one more of this client's."""
        with self._changed:
            if not self._held.allow(client, self._places - self._held.total):
                return False
            self._held.add(client, 1)
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
            self._working.add(client, 1)
            return client, job

    def done(self, client: str) -> None:
        """A worker is free again; it is expected to take the next job itself."""
        with self._changed:
            self._held.add(client, -1)
            self._working.add(client, -1)

    def close(self) -> None:
        """Nobody is given any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def _next(self) -> str | None:
        free = self._workers - self._working.total
        return next((one for one in self._row if self._working.allow(one, free)), None)


class Shares:
    """How many each client has, and each site."""

    def __init__(self) -> None:
        self.total = 0
        self._clients: Counter[str] = Counter()
        self._sites: Counter[str] = Counter()

    def allow(self, client: str, free: int) -> bool:
        """Whether it may have one more where so many are free. The last one is for a site
        that has none."""
        site = self._sites[around(client)]
        return self._clients[client] < free and (not site or site < SITE * (free - 1))

    def add(self, client: str, number: int) -> None:
        self.total += number
        for count, who in ((self._clients, client), (self._sites, around(client))):
            count[who] += number
            if not count[who]:
                del count[who]
