"""UDP ASSOCIATE: decides for the engine where a client's datagrams may go.

The engine asks once for each destination, and remembers the answer; the datagrams
themselves never come here. Names are resolved and every address is judged, as it is
for CONNECT. The DST of the request is never looked at: some clients put their own
address there, some zeros, and some the target.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastsocks.addresses import Judge
from fastsocks.clients import network_of
from fastsocks.engine import Association, Conn, Engine
from fastsocks.errors import DialError, ProtocolError, Reply, RuleDenied, SocksError
from fastsocks.proto import wire
from fastsocks.resolve import Resolver

# Names of one association that may wait for the resolver at once.
NAMES_LIMIT = 32
# Seconds that an answer for a name is good for. An address keeps its verdict.
NAME_TTL, FAILED_NAME_TTL = 60.0, 5.0

log = logging.getLogger("fastsocks.associate")


class Associations:
    """Those of a server. ``address`` is told to clients in place of the one that they
    came in on (for NAT and containers), ``per_client`` is how many one client may have
    at once, ``timeout`` in seconds is for looking up a name."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        judge: Judge,
        sources: Mapping[str, str],
        address: str | None,
        per_client: int,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._judge = judge
        self._sources = tuple(sources.values())
        self._address = address
        self._per_client = per_client
        self._timeout = timeout
        self._held: collections.Counter[str] = collections.Counter()

    def open(self, client: Conn, client_host: str) -> Opened:
        """Raises DialError (general failure) for one too many, OSError where no port
        is to be had."""
        holder = network_of(client_host)
        if self._held[holder] >= self._per_client:
            raise DialError(
                f"{holder} has {self._per_client} UDP associations already",
                Reply.GENERAL_FAILURE,
            )
        targets = Targets(self._resolver, self._judge, client_host, self._timeout)
        host = client.sockname[0]
        association = self._engine.open_udp(client, host, self._sources, targets.on_ask)
        self._held[holder] += 1
        bound = association.sockname
        announced = (self._address or bound[0], bound[1])
        return Opened(association, announced, functools.partial(self._end, holder, targets))

    def _end(self, holder: str, targets: Targets) -> None:
        targets.give_up()
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]


class Opened(NamedTuple):
    """An association, the address that its client is told, and what to call when it
    has ended, once."""

    association: Association
    announced: tuple[str, int]
    end: Callable[[], None]


class Targets:
    """Where the datagrams of one association may go."""

    def __init__(self, resolver: Resolver, judge: Judge, client_host: str, timeout: float) -> None:
        self._resolver = resolver
        self._judge = judge
        self._client_host = client_host
        self._timeout = timeout
        self._names: set[asyncio.Task[None]] = set()

    def on_ask(self, association: Association, atyp: int, raw: bytes, port: int) -> None:
        """The engine's question about one destination, as it stands in the datagram."""
        try:
            host, is_name = wire.host_of(atyp, raw)
        except ProtocolError:
            association.answer(atyp, raw, port, None, 0)
            return
        if not is_name:
            address = (host, port) if self._may_reach(host, port) else None
            association.answer(atyp, raw, port, address, 0)
        elif len(self._names) >= NAMES_LIMIT:
            association.answer(atyp, raw, port, None, FAILED_NAME_TTL)
        else:
            task = asyncio.ensure_future(self._look_up(association, atyp, raw, host, port))
            self._names.add(task)
            task.add_done_callback(self._names.discard)

    def give_up(self) -> None:
        """What is still looked up is not any more."""
        for task in tuple(self._names):
            task.cancel()

    async def _look_up(
        self, association: Association, atyp: int, raw: bytes, name: str, port: int
    ) -> None:
        host = None  # where it fails as well: nothing may wait for ever
        try:
            host = await self._resolve(name, port)
        except Exception:
            log.exception("datagrams of %s: a name could not be judged", self._client_host)
        address, ttl = ((host, port), NAME_TTL) if host else (None, FAILED_NAME_TTL)
        association.answer(atyp, raw, port, address, ttl)

    async def _resolve(self, name: str, port: int) -> str | None:
        """The first address of a name that may be reached."""
        try:
            found = await self._resolver.resolve(name, self._timeout, self._client_host)
        except SocksError as error:
            log.debug("datagrams of %s: %s", self._client_host, error.reason)
            return None
        return next((host for host in found if self._may_reach(host, port)), None)

    def _may_reach(self, host: str, port: int) -> bool:
        try:
            self._judge.judge(self._client_host, host, port, datagram=True)
        except RuleDenied as error:
            log.debug("datagrams of %s to port %d: %s", self._client_host, port, error.reason)
            return False
        return True
