"""UDP ASSOCIATE: decides for the engine where a client's datagrams may go.

The engine asks once for each destination, and remembers the answer; the datagrams
themselves never come here. Names are resolved and every address is judged, as it is
for CONNECT. The DST of the request is never looked at: some clients put their own
address there, some zeros, and some the target.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastsocks import addresses, routes
from fastsocks.addresses import Judge
from fastsocks.clients import network_of
from fastsocks.engine import Address, Association, Conn, Engine
from fastsocks.errors import DialError, ProtocolError, Reply, RuleDenied, SocksError
from fastsocks.flow import Flow
from fastsocks.literals import family_of
from fastsocks.own_ports import PERMITTED_MOST, OwnPorts, Place
from fastsocks.proto import wire
from fastsocks.quiet import QuietLog
from fastsocks.resolve import Resolver

# Names of one association that may wait for the resolver at once.
NAMES_LIMIT = 32
# Seconds that an answer is good for. An address that may be reached keeps its verdict.
NAME_TTL, DENIED_TTL = 60.0, 5.0

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
        self._own_ports = OwnPorts()

    def open(self, client: Conn, flow: Flow) -> Opened:
        """Raises DialError (general failure) for one too many or where no port is free,
        OSError for whatever else is wrong with the socket."""
        holder = network_of(flow.client[0])
        if self._held[holder] >= self._per_client:
            raise DialError(
                f"{holder} has {self._per_client} UDP associations already",
                Reply.GENERAL_FAILURE,
            )
        targets = Targets(
            self._resolver, self._judge, self._own_ports, flow, self._timeout, self._quiet
        )
        host = client.sockname[0]
        try:
            association = self._engine.open_udp(client, host, self._sources, targets.on_ask)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            reason = "no port for datagrams is free, of those that may be used (--udp-ports)"
            raise DialError(reason, Reply.GENERAL_FAILURE) from None
        self._held[holder] += 1
        host, port = association.sockname
        place = (addresses.read(host).spellings[0], port)
        self._own_ports.take(place)
        # To a client of the other family it would be a place that it cannot send to.
        if self._address is not None and family_of(self._address) == family_of(host):
            host = self._address
        end = functools.partial(self._end, holder, place, targets)
        return Opened(association, (host, port), end)

    def _end(self, holder: str, place: Place, targets: Targets) -> None:
        targets.give_up()
        self._own_ports.release(place)
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]


class Opened(NamedTuple):
    """An association, the address that its client is told, and what to call when it
    has ended, once."""

    association: Association
    announced: tuple[str, int]
    end: Callable[[], None]


class Destination(NamedTuple):
    """As the engine asks for it."""

    association: Association
    atyp: int
    raw: bytes
    port: int

    def answer(self, address: Address | None, ttl: float) -> None:
        self.association.answer(self.atyp, self.raw, self.port, address, ttl)


class Targets:
    """Where the datagrams of one association may go."""

    def __init__(
        self,
        resolver: Resolver,
        judge: Judge,
        own_ports: OwnPorts,
        flow: Flow,
        timeout: float,
        quiet: QuietLog,
    ) -> None:
        self._resolver = resolver
        self._judge = judge
        self._own_ports = own_ports
        self._permitted: set[tuple[Place, Destination]] = set()
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
        destination = Destination(association, atyp, raw, port)
        if not is_name:
            if self._may_reach(host, destination):
                destination.answer((host, port), 0)
            else:
                destination.answer(None, DENIED_TTL)
        elif len(self._names) >= NAMES_LIMIT:
            destination.answer(old, DENIED_TTL)
        else:
            task = asyncio.ensure_future(self._look_up(host, old, destination))
            self._names.add(task)
            task.add_done_callback(self._names.discard)

    def give_up(self) -> None:
        """What is still looked up is not any more, and what was permitted neither."""
        for task in tuple(self._names):
            task.cancel()
        for place, destination in self._permitted:
            self._own_ports.forget(place, destination)

    async def _look_up(self, name: str, old: Address | None, destination: Destination) -> None:
        address, ttl = None, DENIED_TTL  # in any case: nothing may wait for ever
        try:
            host = await self._resolve(name, old, destination)
            if host is not None:
                address, ttl = (host, destination.port), NAME_TTL
        except SocksError as error:
            self._tell(error)
            address = old  # a name server that is away cuts no flow that stands
        except Exception:
            log.exception("%s: a name could not be judged", self._flow)
        destination.answer(address, ttl)

    async def _resolve(
        self, name: str, old: Address | None, destination: Destination
    ) -> str | None:
        """The first address of a name that may be reached, and that there is a way to; the
        one that it had before the others, which an answer whose order changes would move a
        flow to."""
        found = await self._resolver.resolve(name, self._timeout, self._client_host)
        known = sorted(found, key=lambda host: old is None or host != old[0])
        allowed = [host for host in known if self._may_reach(host, destination)]
        ways = (host for host in allowed if routes.exists(host, destination.port))
        return next(ways, next(iter(allowed), None))

    def _may_reach(self, host: str, destination: Destination) -> bool:
        try:
            self._judge.judge(self._client_host, host, destination.port, datagram=True)
            self._keep_from_others(host, destination)
        except RuleDenied as error:
            self._tell(error)
            return False
        return True

    def _keep_from_others(self, host: str, destination: Destination) -> None:
        """Raises RuleDenied for the port of an association; see own_ports.py."""
        places = [(packed, destination.port) for packed in addresses.read(host).spellings]
        if self._own_ports.are_taken(places):
            raise RuleDenied(f"{host} port {destination.port} is an association of this proxy")
        for place in places:
            if (place, destination) not in self._permitted and routes.leads_here(*place):
                if len(self._permitted) >= PERMITTED_MOST:
                    raise RuleDenied(f"{host}: too many destinations on this machine itself")
                self._permitted.add((place, destination))
                revoke = functools.partial(destination.answer, None, DENIED_TTL)
                self._own_ports.permit(place, destination, revoke)

    def _tell(self, error: SocksError) -> None:
        self._quiet.info((Targets, type(error), error.reply), "%s: %s", self._flow, error.reason)
