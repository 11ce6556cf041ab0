"""BIND: waits, for a client, for one connection of a peer that it has named.

The classic user is FTP in active mode: the client learns from the first reply where
its server has to connect to, tells the server, and learns from the second reply that
it did. Whoever else connects is dropped: without that check a client could offer any
service on the proxy's address to everyone. It must not know how replies look.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from fastsocks.addresses import Judge
from fastsocks.engine import SECOND_LOOK, Conn, Engine
from fastsocks.errors import ClientGone, DialError, Reply, RuleDenied
from fastsocks.literals import family_of
from fastsocks.resolve import LOOKING_UP, Resolver
from fastsocks.routes import source_towards
from fastsocks.waits import LOOK_INTERVAL, unless_reset

# What a client may send before its peer is there; beyond, it has to wait.
EARLY_LIMIT = 64 * 1024
BACKLOG = 8  # one is waited for, and strangers before it are dropped as they come
ACCEPT_RETRY = 0.1  # seconds without accepting when the system is out of something
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
ANYONE = frozenset({"0.0.0.0", "::"})


class Binder:
    """Listens for sessions. ``anyone`` lets a client name no peer (0.0.0.0 or ::),
    ``lookup_timeout`` is in seconds for a peer's name, ``timeout`` from listening to the
    peer's connection, both 0 for none. ``sources`` are the addresses to listen on by
    family, in place of the one from which the peer would be reached."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        judge: Judge,
        sources: Mapping[str, str],
        anyone: bool,
        lookup_timeout: float,
        timeout: float,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._judge = judge
        self._sources = dict(sources)
        self._anyone = anyone
        self._lookup_timeout = lookup_timeout
        self._timeout = timeout

    async def listen(self, client: Conn, host: str, is_name: bool, tells_ipv6: bool) -> Waiting:
        """Of a name's addresses the first family that ``client`` may reach counts; IPv4, if
        it has any, where the client cannot be told an IPv6 address.

        Raises RuleDenied for a peer the client may not have, DialError for a name
        without an address, ClientGone, OSError where nothing can listen."""
        peers: tuple[str, ...] = (host,)
        if is_name:
            lookup = self._resolver.resolve(host, self._lookup_timeout, client.peer[0])
            found = await unless_reset(client, lookup, LOOKING_UP)
            peers = found if tells_ipv6 else tuple(sorted(found, key=family_of))
        if peers[0] in ANYONE:
            if not self._anyone:
                raise RuleDenied("BIND without a peer's address (needs --bind-anyone)")
            address = self._address_for_anyone(peers[0], client.sockname[0])
            peers = ()
        else:
            # The port is a hint at most; nobody is connected to there.
            allowed = self._judge.choose(client.peer[0], peers, 0)
            family = family_of(allowed[0])
            peers = tuple(peer for peer in allowed if family_of(peer) == family)
            address = self._sources.get(family, "")
            if not address or address in ANYONE:  # where nobody can connect to
                address = source_towards(peers[0])
        sock = socket.socket(FAMILIES[family_of(address)], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # the peer inherits it
            sock.bind(socket.getaddrinfo(address, 0, flags=socket.AI_NUMERICHOST)[0][4])
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return Waiting(self._engine, sock, frozenset(map(without_scope, peers)), self._timeout)

    def _address_for_anyone(self, asked: str, own: str) -> str:
        """In the family that is asked for, where there is one to be had, else in that of the
        client's connection, whose address ``own`` is, or in any that is used."""
        for family in (family_of(asked), family_of(own), *self._sources):
            address = self._sources.get(family, "")
            if not address or address in ANYONE:
                address = own
            if self._judge.uses(family) and family_of(address) == family:
                return address
        raise DialError(
            "BIND: no address of a family that is used (--prefer, -b)",
            Reply.ADDRESS_NOT_SUPPORTED,
        )


class Waiting:
    """A listening socket for one client; an empty set of ``peers`` means anyone."""

    def __init__(
        self, engine: Engine, sock: socket.socket, peers: frozenset[str], timeout: float
    ) -> None:
        self._engine = engine
        self._sock = sock
        self._peers = peers
        self._timeout = timeout
        self.sockname: tuple[str, int] = sock.getsockname()[:2]
        # Who has come, which a connection that was reset already cannot tell.
        self.peer = ("", 0)

    async def accept(self, client: Conn) -> tuple[Conn, bytes]:
        """The peer's connection, and what the client has sent meanwhile.

        Raises ClientGone when the client ends its connection, OSError when it resets
        it, DialError when nobody comes in time.
        """
        loop = asyncio.get_running_loop()
        arrival: asyncio.Future[socket.socket] = loop.create_future()
        early = bytearray()
        leaving = asyncio.ensure_future(keep(client, early))
        try:
            try:
                self._watch(arrival)
                await asyncio.wait(
                    (arrival, leaving),
                    timeout=self._timeout or None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not (arrival.done() or leaving.done()):
                    await asyncio.wait((arrival,), timeout=SECOND_LOOK)
            finally:
                loop.remove_reader(self._sock)
                arrival.cancel()
                leaving.cancel()
                # What it receives must be over before anybody else may receive.
                (left,) = await asyncio.gather(leaving, return_exceptions=True)
            if isinstance(left, Exception):
                raise left
            if arrival.cancelled():
                raise DialError(f"nobody connected in {self._timeout:g} s", Reply.HOST_UNREACHABLE)
            return self._engine.adopt(arrival.result()), bytes(early)
        except BaseException:
            if not arrival.cancelled():
                arrival.result().close()
            raise

    def close(self) -> None:
        self._sock.close()

    def _watch(self, arrival: asyncio.Future[socket.socket]) -> None:
        if self._sock.fileno() >= 0 and not arrival.done():
            loop = asyncio.get_running_loop()
            loop.add_reader(self._sock, self._on_connection, arrival)

    def _on_connection(self, arrival: asyncio.Future[socket.socket]) -> None:
        """Strangers are dropped, and take nothing of the time that is left."""
        loop = asyncio.get_running_loop()
        try:
            peer, address = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # gone again
            return
        except OSError:  # out of descriptors: the socket stays readable, so it must rest
            loop.remove_reader(self._sock)
            loop.call_later(ACCEPT_RETRY, self._watch, arrival)
            return
        # On macOS who has reset their connection already comes without an address.
        host = without_scope(address[0]) if address else ""
        if not host or arrival.done() or (self._peers and host not in self._peers):
            peer.close()
        else:
            self.peer = host, address[1]
            arrival.set_result(peer)


async def keep(client: Conn, early: bytearray) -> None:
    """Collects what the client sends, until it leaves."""
    while len(early) < EARLY_LIMIT and (data := await client.recv()):
        early += data
    # The rest waits in the socket, in front of the FIN. One that is behind more than the
    # receive window holds is not seen; then the timeout ends it.
    while len(early) >= EARLY_LIMIT and not client.has_left():  # noqa: ASYNC110 -- it is asked
        await asyncio.sleep(LOOK_INTERVAL)
    raise ClientGone("left before its peer came")


def without_scope(host: str) -> str:
    return host.partition("%")[0].removeprefix("::ffff:")
