"""To the remote: one address directly, several by Happy Eyeballs (RFC 8305).

A host with several addresses often has one that is dead, mostly IPv6 where only
IPv4 works. One after the other, a dead address costs its whole timeout; all at once
is rude to the host. So the next one is begun a quarter of a second after the last,
or at once when that fails, families taking turns; the first connection that stands
wins, and the others are closed. Whoever owns a name says how many addresses it has, and
each takes a descriptor: so few are tried at once, and the oldest has to make room.

What is judged is an address, and exactly that one is dialled: what a name means may
change at any moment, but nobody looks it up again in between. It must not know how a
name is looked up, nor what the client is told.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Mapping, Sequence

from fastsocks.addresses import Judge
from fastsocks.engine import Conn, Engine
from fastsocks.errors import Reply, reply_for
from fastsocks.literals import family_of
from fastsocks.resolve import LOOKING_UP, Resolver
from fastsocks.waits import unless_reset

# Seconds between two attempts; RFC 8305 section 5 recommends it.
STAGGER = 0.25
# Attempts at once. The oldest of them has had a second when it makes room, and a round trip
# by satellite takes 0.6; the last ones have all the time there is.
ATTEMPTS_MAX = 4

# Of several failures the one that says most about the host: it refuses, a packet filter
# forbids it, it is silent; rather than that we lack a descriptor, a route or the family.
TELLING = (
    Reply.CONNECTION_REFUSED,
    Reply.NOT_ALLOWED,
    Reply.HOST_UNREACHABLE,
    Reply.GENERAL_FAILURE,
    Reply.NETWORK_UNREACHABLE,
    Reply.ADDRESS_NOT_SUPPORTED,
)

log = logging.getLogger("fastsocks.dial")


class Dialer:
    """Connects for sessions. ``timeout`` is in seconds, for name and connecting
    together, 0 for none. ``sources`` are the addresses to connect from, by family
    (``ipv4``, ``ipv6``)."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        judge: Judge,
        timeout: float,
        sources: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._judge = judge
        self._timeout = timeout
        self._sources = dict(sources)

    def dial(
        self, client: Conn, client_host: str, host: str, port: int, is_name: bool
    ) -> Awaitable[Conn]:
        """Raises RuleDenied where ``client_host`` may not reach any address of the
        host, DialError where there is none, ClientGone, or the OSError of connect():
        of several attempts the most telling one."""
        if not is_name:
            self._judge.judge(client_host, host, port)
            return self._attempt(client, host, port, self._timeout)
        addresses = self._resolver.remembered(host)
        if addresses is not None:
            return self._dial_known(client, client_host, addresses, port, self._timeout)
        return self._dial_name(client, client_host, host, port)

    async def _dial_name(self, client: Conn, client_host: str, name: str, port: int) -> Conn:
        began = time.monotonic()
        lookup = self._resolver.resolve(name, self._timeout, client_host)
        addresses = await unless_reset(client, lookup, LOOKING_UP)
        budget = self._timeout
        if budget:
            # Not 0, which would be no limit; an engine counts in milliseconds.
            budget = max(0.001, began + budget - time.monotonic())
        return await self._dial_known(client, client_host, addresses, port, budget)

    def _dial_known(
        self, client: Conn, client_host: str, addresses: Sequence[str], port: int, budget: float
    ) -> Awaitable[Conn]:
        allowed = self._judge.choose(client_host, addresses, port)
        if len(allowed) == 1:
            return self._attempt(client, allowed[0], port, budget)
        return self._race(client, interleaved(allowed), port, budget)

    def _attempt(self, client: Conn, host: str, port: int, budget: float) -> Awaitable[Conn]:
        source = self._sources.get(family_of(host)) if self._sources else None
        return self._engine.dial(client, (host, port), source, budget)

    async def _race(self, client: Conn, addresses: Sequence[str], port: int, budget: float) -> Conn:
        deadline = time.monotonic() + budget
        waiting = iter(addresses)
        attempts: list[asyncio.Future[Conn]] = []
        """under way, the oldest first"""
        failures: list[OSError] = []
        try:
            while True:
                left = deadline - time.monotonic() if budget else 0.0
                address = None if budget and left <= 0 else next(waiting, None)
                if address is not None:
                    if len(attempts) == ATTEMPTS_MAX:
                        give_up(attempts.pop(0))
                        failures.append(out_of_time())
                    attempts.append(
                        asyncio.ensure_future(self._attempt(client, address, port, left))
                    )
                elif not attempts:
                    break
                ended, _ = await asyncio.wait(
                    attempts,
                    # With nothing left to begin, each ends by its own deadline.
                    timeout=STAGGER if address is not None else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in ended:
                    error = attempt.exception()
                    if error is not None and not isinstance(error, OSError):
                        raise error
                    attempts.remove(attempt)
                    if error is None:
                        return attempt.result()
                    failures.append(error)
        finally:
            for attempt in attempts:
                give_up(attempt)
        # Without any, the look-up has left no time.
        raise most_telling(failures or [out_of_time()])


def interleaved(addresses: Sequence[str]) -> list[str]:
    """Families taking turns, beginning with that of the first (RFC 8305 section 4)."""
    first = family_of(addresses[0])
    families = (
        [address for address in addresses if family_of(address) == first],
        [address for address in addresses if family_of(address) != first],
    )
    return [one for pair in itertools.zip_longest(*families) for one in pair if one is not None]


def give_up(attempt: asyncio.Future[Conn]) -> None:
    """Closes what an attempt has made, or would."""
    if not attempt.cancel() and not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def out_of_time() -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def most_telling(failures: Sequence[OSError]) -> OSError:
    return min(failures, key=lambda error: TELLING.index(reply_for(error)))
