"""UDP ASSOCIATE: decides for the engine where a client's datagrams may go.

The engine asks once for each destination, and again when the answer has grown old; the
datagrams themselves never come here. Names are resolved and every address is judged, as it is
for CONNECT. The DST of the request is never looked at: some clients put their own
address there, some zeros, and some the target. It must not know how datagrams move, nor
what their header looks like.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastsocks import addresses, routes
from fastsocks.addresses import Judge
from fastsocks.clients import network_of
from fastsocks.engine import Address, Association, Conn, Engine
from fastsocks.errors import DialError, NotJudged, ProtocolError, Reply, RuleDenied, SocksError
from fastsocks.flow import Flow
from fastsocks.literals import family_of
from fastsocks.proto import wire
from fastsocks.quiet import QuietLog
from fastsocks.resolve import Resolver

# Names of one association that may wait for the resolver at once.
NAMES_LIMIT = 32
# Seconds that an answer for a name is good for. An address keeps its verdict, where there is one.
NAME_TTL, FAILED_NAME_TTL = 60.0, 5.0
NOT_JUDGED_TTL = 1.0

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
        quiet: QuietLog,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._judge = judge
        self._sources = tuple(sources.values())
        self._address = address
        self._per_client = per_client
        self._timeout = timeout
        self._quiet = quiet
        self._held: collections.Counter[str] = collections.Counter()

    def open(self, client: Conn, flow: Flow) -> Opened:
        """Raises DialError (general failure) for one too many or where no port is free,
        OSError for whatever else is wrong with the socket."""
        holder = network_of(flow.client[0])
        if self._held[holder] >= self._per_client:
            raise DialError(
                f"{holder} has {self._per_client} UDP associations already",
                Reply.GENERAL_FAILURE,
            )
        targets = Targets(self._resolver, self._judge, flow, self._timeout, self._quiet)
        host = client.sockname[0]
        is_local = addresses.is_own(flow.client[0])
        try:
            association = self._engine.open_udp(
                client, host, self._sources, targets.on_ask, is_local
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            reason = "no port for datagrams is free, of those that may be used (--udp-ports)"
            raise DialError(reason, Reply.GENERAL_FAILURE) from None
        self._held[holder] += 1
        host, port = association.sockname
        # To a client of the other family it would be a place that it cannot send to.
        if self._address is not None and family_of(self._address) == family_of(host):
            host = self._address
        end = functools.partial(self._end, holder, targets)
        return Opened(association, (host, port), end)

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

    def __init__(
        self, resolver: Resolver, judge: Judge, flow: Flow, timeout: float, quiet: QuietLog
    ) -> None:
        self._resolver = resolver
        self._judge = judge
        self._flow = flow
        self._client_host = flow.client[0]
        self._quiet = quiet
        self._timeout = timeout
        self._names: set[asyncio.Task[None]] = set()

    def on_ask(
        self, association: Association, atyp: int, raw: bytes, port: int, old: Address | None
    ) -> None:
        """The engine's question about one destination, as it stands in the datagram."""
        try:
            host, is_name = wire.host_of(atyp, raw)
        except ProtocolError:
            association.answer(atyp, raw, port, None, 0)
            return
        if not is_name:
            ttl = 0.0
            try:
                address = (host, port) if self._may_reach(host, port) else None
            except NotJudged as error:
                self._tell(error)
                address, ttl = old, NOT_JUDGED_TTL
            association.answer(atyp, raw, port, address, ttl)
        elif len(self._names) >= NAMES_LIMIT:
            association.answer(atyp, raw, port, old, FAILED_NAME_TTL)
        else:
            answer = functools.partial(association.answer, atyp, raw, port)
            task = asyncio.ensure_future(self._look_up(host, port, old, answer))
            self._names.add(task)
            task.add_done_callback(self._names.discard)

    def give_up(self) -> None:
        """What is still looked up is not any more."""
        for task in tuple(self._names):
            task.cancel()

    async def _look_up(
        self,
        name: str,
        port: int,
        old: Address | None,
        answer: Callable[[Address | None, float], None],
    ) -> None:
        address, ttl = None, FAILED_NAME_TTL  # in any case: nothing may wait for ever
        try:
            host = await self._resolve(name, port, old)
            if host is not None:
                address, ttl = (host, port), NAME_TTL
        except SocksError as error:
            self._tell(error)
            address = old  # a look-up that fails cuts no flow that stands
        except MemoryError:
            self._quiet.warning("memory", "%s: no memory to look a name up", self._flow)
            address = old
        except Exception:
            log.exception("%s: a name could not be judged", self._flow)
        answer(address, ttl)

    async def _resolve(self, name: str, port: int, old: Address | None) -> str | None:
        """The first address of a name that may be reached, and that there is a way to; the
        one that it had before the others, which an answer whose order changes would move a
        flow to. Raises DialError where it cannot be told which."""
        found = await self._resolver.resolve(name, self._timeout, self._client_host)
        known = sorted(found, key=lambda host: old is None or host != old[0])
        allowed = [host for host in known if self._may_reach(host, port)]
        ways = (host for host in allowed[:-1] if routes.exists(host, port))
        try:
            return next(ways, allowed[-1] if allowed else None)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise DialError(f"{name}: no way to it can be looked for: {reason}") from None

    def _may_reach(self, host: str, port: int) -> bool:
        """Raises NotJudged, which is no verdict to be remembered."""
        try:
            self._judge.judge(self._client_host, host, port, datagram=True)
        except NotJudged:
            raise
        except RuleDenied as error:
            self._tell(error)
            return False
        return True

    def _tell(self, error: SocksError) -> None:
        self._quiet.info((Targets, type(error), error.reply), "%s: %s", self._flow, error.reason)
