"""Names to addresses, on threads of its own, with a deadline and a memory.

Neither asyncio's executor (6 threads on 2 cores, shared with the embedding
program) nor uvloop's getaddrinfo (4 threads for the whole process) will do: a few
dead names would stall every session.

    resolve(name) -- remembered --> addresses, or why there are none
                  \\- being asked for already -> waits for that lookup (single flight)
                   \\- else -> queue -> thread -> remembered -> all who wait

Clients have their turns at the threads (crew.py), so that one who asks for dead names by
the hundred waits alone. It must not know who may reach an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from fastsocks.clients import network_of
from fastsocks.crew import Crew, Full
from fastsocks.errors import DialError, Reply
from fastsocks.literals import family_of, literal_of
from fastsocks.names import addresses_of

# A name that hangs keeps a thread for as long as the C library has patience (10 s and
# more), whoever has given up; others need threads meanwhile. Idle ones end. One client
# gets at most half of them.
THREADS_MAX = 256
THREAD_IDLE = 10.0

# Waiting longer than this is waiting for nothing: refuse while it is cheap.
QUEUE_LIMIT = 2048

# getaddrinfo does not tell the TTL. A minute is what browsers remember as well; a name
# that does not exist may soon.
REMEMBER_FOUND = 60.0
REMEMBER_FAILED = 5.0
CACHE_SIZE = 4096

# Of each family. No honest name has more, and a hostile one shall not make us remember
# thousands, nor knock at as many doors for one session.
ADDRESSES_MAX = 16

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
ORDER = {
    "ipv4": ("ipv4", "ipv6"),
    "ipv6": ("ipv6", "ipv4"),
    "ipv4-only": ("ipv4",),
    "ipv6-only": ("ipv6",),
}
"""What ``prefer`` may be, if not empty: the families that are used, and which is first."""

LOOKING_UP = "the name it asked for was looked up"
"""what a client waits for, in the words of the log"""

Answer = tuple[str, ...] | DialError
"""The addresses of a name, at least one, or why there are none."""


class Resolver:
    """For one event loop; threads start when they are needed. ``prefer`` puts the
    addresses of one family first (``ipv4``, ``ipv6``), drops those of the other
    (``ipv4-only``, ``ipv6-only``), or keeps the C library's order (RFC 6724)."""

    def __init__(self, prefer: str = "") -> None:
        self._prefer = prefer
        self._cache = Cache(CACHE_SIZE)
        self._lookups: dict[str, Lookup] = {}
        self._crew = Crew("fastsocks-dns", QUEUE_LIMIT, THREADS_MAX, THREAD_IDLE)

    def remembered(self, name: str) -> tuple[str, ...] | None:
        """The addresses, if they are known already. Raises DialError if it is known
        that there are none."""
        answer = self._cache.get(name)
        if isinstance(answer, DialError):
            raise DialError(answer.reason, answer.reply)  # or it would collect tracebacks
        return answer

    async def resolve(self, name: str, budget: float, client_host: str) -> tuple[str, ...]:
        """Every address of ``name`` once, as IP literals (a link-local one with its
        scope), IPv4-mapped ones as IPv4.

        Raises DialError (host unreachable) for no address of a family that is wanted
        or no answer within ``budget`` seconds (0: no limit), and (general failure)
        for too many names waiting, of all clients or of ``client_host``.
        """
        if (known := self.remembered(name)) is not None:
            return known
        lookup = self._ask(name, network_of(client_host))
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()
        lookup.waiters.add(waiter)
        late = DialError(f"no answer for {name} in {budget:g} s", Reply.HOST_UNREACHABLE)
        timer = loop.call_later(budget, _settle, waiter, late) if budget else None
        try:
            answer = await waiter
        finally:
            if timer is not None:
                timer.cancel()
            lookup.waiters.discard(waiter)
            if not lookup.waiters and not lookup.begun:
                lookup.abandoned = True
                self._forget(lookup)
        if isinstance(answer, DialError):
            raise DialError(answer.reason, answer.reply)
        return answer

    def close(self) -> None:
        self._crew.close()

    def _ask(self, name: str, client: str) -> Lookup:
        lookup = self._lookups.get(name) or Lookup(name, self._on_found)
        # Who joins a lookup that is waiting for its turn does not wait for another
        # client's: it stands in both rows, and the first turn that comes serves all.
        if not lookup.begun and client not in lookup.clients:
            run = functools.partial(lookup.run, asked_for(self._prefer))
            try:
                self._crew.put(client, run)
            except Full as error:
                reason = f"{name} cannot be looked up: {error}"
                raise DialError(reason, Reply.GENERAL_FAILURE) from None
            lookup.clients.add(client)
            self._lookups[name] = lookup
        return lookup

    def _forget(self, lookup: Lookup) -> None:
        if self._lookups.get(lookup.name) is lookup:
            del self._lookups[lookup.name]

    def _on_found(self, lookup: Lookup, found: list[str], failure: str, lasting: bool) -> None:
        self._forget(lookup)
        addresses = self._arranged(found)
        answer: Answer = addresses
        if not addresses:
            failure = failure or f"no address ({self._prefer or 'any family'})"
            reply = Reply.HOST_UNREACHABLE if lasting else Reply.GENERAL_FAILURE
            answer = DialError(f"{lookup.name}: {failure}", reply)
        if lasting:
            self._cache.put(lookup.name, answer, REMEMBER_FOUND if addresses else REMEMBER_FAILED)
        for waiter in tuple(lookup.waiters):
            _settle(waiter, answer)

    def _arranged(self, found: list[str]) -> tuple[str, ...]:
        """Each address once, in the order and of the families that are preferred."""
        hosts = list(dict.fromkeys(found))
        kept: list[str] = []
        for family in ORDER.get(self._prefer, FAMILIES):
            kept += [host for host in hosts if family_of(host) == family][:ADDRESSES_MAX]
        return tuple(kept if self._prefer else sorted(kept, key=hosts.index))


class Lookup:
    """One name on its way through a thread, and who waits for it."""

    def __init__(self, name: str, on_found: Callable[[Lookup, list[str], str, bool], None]) -> None:
        self.name = name
        self.waiters: set[asyncio.Future[Answer]] = set()
        self.clients: set[str] = set()  # in whose rows it stands
        self.abandoned = False
        self._begun = threading.Lock()  # held for good by the thread that was first
        self._on_found = on_found
        self._loop = asyncio.get_running_loop()

    @property
    def begun(self) -> bool:
        return self._begun.locked()

    def run(self, family: int) -> None:
        """Looks it up, unless another thread does or nobody waits for it any more."""
        if self.abandoned or not self._begun.acquire(blocking=False):
            return
        found: list[str] = []
        failure, lasting = "", True
        try:
            found = [literal_of(address) for address in addresses_of(self.name, family)]
        except socket.gaierror as error:
            failure = error.strerror or str(error)
        except OSError as error:  # our own trouble, such as no descriptor
            failure, lasting = error.strerror or str(error), False
        except Exception as error:
            # The IDNA codec has errors of its own; and nothing may end this thread.
            failure = f"cannot be resolved ({type(error).__name__})"
            lasting = not isinstance(error, MemoryError)
        # RuntimeError: the loop is closed, so nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_found, self, found, failure, lasting)


class Cache:
    """A bounded memory that strangers cannot wash out: what has been asked for once
    is forgotten before anything that has been asked for again."""

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._once: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._again: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def get(self, name: str) -> Answer | None:
        entry = self._again.pop(name, None) or self._once.pop(name, None)
        if entry is None or entry[0] <= time.monotonic():
            return None
        self._again[name] = entry
        if len(self._again) > self._half:
            self._keep(self._once, *self._again.popitem(last=False))
        return entry[1]

    def put(self, name: str, answer: Answer, seconds: float) -> None:
        entry = (time.monotonic() + seconds, answer)
        if name in self._again:
            self._again[name] = entry
        else:
            self._keep(self._once, name, entry)

    def _keep(
        self, where: OrderedDict[str, tuple[float, Answer]], name: str, entry: tuple[float, Answer]
    ) -> None:
        where[name] = entry
        if len(where) > self._half:
            where.popitem(last=False)


def is_wanted(prefer: str, family: str) -> bool:
    """Whether ``prefer`` lets addresses of a family be used at all."""
    return family in ORDER.get(prefer, FAMILIES)


def asked_for(prefer: str) -> int:
    """Of the C library: one family where no other is wanted."""
    order = ORDER.get(prefer, ())
    return FAMILIES[order[0]] if len(order) == 1 else socket.AF_UNSPEC


def _settle(waiter: asyncio.Future[Answer], answer: Answer) -> None:
    if not waiter.done():
        waiter.set_result(answer)
