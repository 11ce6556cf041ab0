"""UDP ASSOCIATE: decides for the engine where a client's datagrams may go.

The engine asks once for each destination, and remembers the answer; the datagrams
themselves never come here. Names are resolved and every address is judged, as it is
for CONNECT. The DST of the request is never looked at: some clients put their own
address there, some zeros, and some the target.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Mapping

from fastsocks.addresses import Judge
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
    came in on (for NAT and containers), ``per_client`` is how many one client address
    may have at once, ``timeout`` in seconds is for looking up a name."""

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

    def open(self, client: Conn, client_host: str) -> Ours:
        """Raises DialError (general failure) for one too many, OSError where no port
        is to be had."""
        if self._held[client_host] >= self._per_client:
            raise DialError(
                f"{client_host} has {self._per_client} UDP associations already",
                Reply.GENERAL_FAILURE,
            )
        return Ours(self, client, client_host)

    # -- for one association -------------------------------------------------

    def begin(self, ours: Ours, client: Conn) -> tuple[Association, tuple[str, int]]:
        host = client.sockname[0]
        association = self._engine.open_udp(client, host, self._sources, ours.on_ask)
        self._held[ours.client_host] += 1
        bound = association.sockname
        return association, (self._address or bound[0], bound[1])

    def end(self, client_host: str) -> None:
        self._held[client_host] -= 1
        if not self._held[client_host]:
            del self._held[client_host]

    def judged(self, client_host: str, host: str, port: int) -> bool:
        try:
            self._judge.judge(client_host, host, port, datagram=True)
        except RuleDenied as error:
            log.debug("datagrams of %s to port %d: %s", client_host, port, error.reason)
            return False
        return True

    async def resolve(self, client_host: str, name: str, port: int) -> str | None:
        """The first address of a name that may be reached."""
        try:
            found = await self._resolver.resolve(name, self._timeout)
        except SocksError as error:
            log.debug("datagrams of %s: %s", client_host, error.reason)
            return None
        return next((host for host in found if self.judged(client_host, host, port)), None)


class Ours:
    """One association, from opening to its end."""

    def __init__(self, shared: Associations, client: Conn, client_host: str) -> None:
        self.client_host = client_host
        self._shared = shared
        self._names: set[asyncio.Task[None]] = set()
        self.association, self.announced = shared.begin(self, client)
        self._over = False

    def on_ask(self, association: Association, atyp: int, raw: bytes, port: int) -> None:
        """The engine's question about one destination, as it stands in the datagram."""
        try:
            host, is_name = wire.host_of(atyp, raw)
        except ProtocolError:
            association.answer(atyp, raw, port, None, 0)
            return
        if not is_name:
            allowed = self._shared.judged(self.client_host, host, port)
            association.answer(atyp, raw, port, (host, port) if allowed else None, 0)
        elif len(self._names) >= NAMES_LIMIT:
            association.answer(atyp, raw, port, None, FAILED_NAME_TTL)
        else:
            task = asyncio.ensure_future(self._look_up(association, atyp, raw, host, port))
            self._names.add(task)
            task.add_done_callback(self._names.discard)

    async def _look_up(
        self, association: Association, atyp: int, raw: bytes, name: str, port: int
    ) -> None:
        host = None  # where it fails as well: nothing may wait for ever
        try:
            host = await self._shared.resolve(self.client_host, name, port)
        except Exception:
            log.exception("datagrams of %s: a name could not be judged", self.client_host)
        address, ttl = ((host, port), NAME_TTL) if host else (None, FAILED_NAME_TTL)
        association.answer(atyp, raw, port, address, ttl)

    def end(self) -> None:
        """Gives up its place; what it still looks up is given up with it."""
        if not self._over:
            self._over = True
            self._shared.end(self.client_host)
            for task in tuple(self._names):
                task.cancel()
