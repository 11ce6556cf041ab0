"""A fair queue: who is next, where many clients want few workers. Each in turn, and nobody
so much that nothing is left for others.

A client may take a place while more are free than it has itself, both where one waits
and where one is worked for. So the first gets half of them, the next half of what is
left; and as jobs end, those who have most wait for those who have less. A site, which could
be as many clients as it likes (``clients.site_of``), gets three quarters at most: as much as
two of its clients get, so that one of them cannot keep its neighbours out.

It must not know what the work is.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

from fastsocks.clients import site_of

Job = TypeVar("Job")

# A client may have as many places as are free, a site this many times as many as are free
# beside the last one, which is for a site that has none.
SITE_SHARE = 3


class Turns(Generic[Job]):
    """For any threads. ``places`` is how many jobs there may be at once, waiting or at
    work, ``workers`` how many of them at work."""

    def __init__(self, places: int, workers: int) -> None:
        self._places = places
        self._workers = workers
        # The site that is next stands in front, and in a site the client.
        self._row: OrderedDict[str, OrderedDict[str, deque[Job]]] = OrderedDict()
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
        site = site_of(client)
        with self._changed:
            free = self._places - self._held.total
            if not (self._held.allow_site(site, free) and self._held.allow(client, free)):
                return False
            self._held.add(client, site, 1)
            self._row.setdefault(site, OrderedDict()).setdefault(client, deque()).append(job)
            self._changed.notify()
        return True

    def take(self, timeout: float) -> tuple[str, Job] | None:
        """The next job and whose it is, to be told ``done()``; None where none comes
        within ``timeout`` seconds, and after ``close()``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next() is not None, timeout)
            turn = self._next()
            if turn is None or self._closed:
                return None
            site, client = turn
            clients = self._row.pop(site)
            jobs = clients.pop(client)
            job = jobs.popleft()
            if jobs:
                clients[client] = jobs  # behind all others
            if clients:
                self._row[site] = clients
            self._working.add(client, site, 1)
            if self._next() is not None:
                # One job that is done can let two begin: its client's, who has one fewer now,
                # and another's, since a worker is free.
                self._changed.notify()
            return client, job

    def done(self, client: str) -> None:
        """A worker is free again; it is expected to take the next job itself."""
        site = site_of(client)
        with self._changed:
            self._held.add(client, site, -1)
            self._working.add(client, site, -1)

    def close(self) -> None:
        """Nobody is given any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def _next(self) -> tuple[str, str] | None:
        """Passes over those only who have some at work, so it looks at no more of them than
        there are workers, however many wait."""
        free = self._workers - self._working.total
        if not free:
            return None
        for site, clients in self._row.items():
            if self._working.allow_site(site, free):
                for client in clients:
                    if self._working.allow(client, free):
                        return site, client
        return None


class Shares:
    """How many each client has, and each site."""

    def __init__(self) -> None:
        self.total = 0
        self._clients: Counter[str] = Counter()
        self._sites: Counter[str] = Counter()

    def allow(self, client: str, free: int) -> bool:
        """Whether a client may have one more where so many are free."""
        return self._clients[client] < free

    def allow_site(self, site: str, free: int) -> bool:
        """The last one is for a site that has none."""
        has = self._sites[site]
        return not has or has < SITE_SHARE * (free - 1)

    def add(self, client: str, site: str, number: int) -> None:
        self.total += number
        for count, who in ((self._clients, client), (self._sites, site)):
            count[who] += number
            if not count[who]:
                del count[who]
