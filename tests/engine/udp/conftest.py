# What the tests of UDP associations share: a client with its association, targets that echo,
# and a judge that notes what it was asked.
#
# Must not know: how an engine does what the contract in engine.py promises.

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE = 20.0
IPV4, NAME, IPV6 = 1, 3, 4


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def header(host: str, port: int, atyp: int | None = None, frag: int = 0) -> bytes:
    """As a client writes it; a ``host`` that is no literal is a name."""
    try:
        raw = ipaddress.ip_address(host).packed
    except ValueError:
        raw = bytes([len(host)]) + host.encode()
        atyp = atyp or NAME
    atyp = atyp or (IPV4 if len(raw) == 4 else IPV6)
    return bytes([0, 0, frag, atyp]) + raw + port.to_bytes(2)


class Peer:
    """A datagram socket of the test's."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        # To macOS this is the size of the largest datagram, 9,216 by itself.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self.sock = sock
        self.address = sock.getsockname()[:2]

    @property
    def port(self) -> int:
        return self.address[1]

    async def recvfrom(self) -> tuple[bytes, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                data, sender = self.sock.recvfrom(1 << 17)
                return data, sender[:2]
            except (BlockingIOError, ConnectionRefusedError):
                assert loop.time() < deadline, "nothing came"
                await asyncio.sleep(0.001)

    async def recv(self) -> bytes:
        return (await self.recvfrom())[0]

    async def echo(self) -> bytes:
        data, sender = await self.recvfrom()
        self.sock.sendto(data, sender)
        return data

    def is_silent(self) -> bool:
        try:
            self.sock.recv(1 << 17)
        except BlockingIOError:
            return True
        return False


class Client(Peer):
    """A client with an association: ``control`` is its TCP connection."""

    rig: Any
    control: Any
    association: Any
    handle: int
    flow: object
    asked: list[tuple[int, bytes, int]]

    def send(self, payload: bytes, to: tuple[str, int], **how: Any) -> None:
        self.sock.sendto(header(*to, **how) + payload, self.relay)

    def send_raw(self, data: bytes) -> None:
        self.sock.sendto(data, self.relay)

    @property
    def relay(self) -> tuple[str, int]:
        return self.association.sockname

    async def seen_by(self, target: Peer) -> tuple[str, int]:
        """Where the target sees this client."""
        self.send(b"here", target.address)
        return (await target.recvfrom())[1]

    async def ping(self, target: Peer, payload: bytes = b"ping") -> bytes:
        """What comes back from there; whatever else there was to do has been done before it."""
        self.send(payload, target.address)
        assert await target.echo() == payload
        answer, head = await self.recv(), header(*target.address)
        assert answer.startswith(head), answer
        return answer[len(head) :]

    def dropped(self, why: str) -> int:
        return self.rig.engine.counters()[f"udp_dropped_{why}"]

    async def drops(self, why: str, at_least: int) -> int:
        """How many datagrams were dropped for that reason, once there are so many."""
        await self.rig.until(
            lambda: self.dropped(why) >= at_least,
            f"{at_least} dropped as {why}: {self.rig.engine.counters()}",
            PATIENCE,
        )
        return self.dropped(why)


def allow(association: Any, atyp: int, raw: bytes, port: int) -> None:
    """What the tests mostly want: literals as they are, names on loopback."""
    host = "127.0.0.1" if atyp == NAME else str(ipaddress.ip_address(raw))
    association.answer(atyp, raw, port, (host, port), 0)


class Place:
    """Where clients and targets are made, to be closed with the engine."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig

    def target(self, host: str = "127.0.0.1") -> Peer:
        return Peer(self._bound(host))

    def _bound(self, host: str) -> socket.socket:
        sock = self.rig.hold(socket.socket(family_of(host), socket.SOCK_DGRAM))
        sock.bind((host, 0))
        return sock

    def control(self, host: str) -> tuple[socket.socket, Any]:
        with socket.create_server((host, 0), family=family_of(host)) as listener:
            ours = self.rig.hold(socket.create_connection((host, listener.getsockname()[1])))
            return ours, self.rig.engine.adopt(listener.accept()[0])

    def client(
        self,
        host: str = "127.0.0.1",
        on_ask: Callable[..., None] = allow,
        sources: tuple[str, ...] = (),
    ) -> Client:
        client = Client(self._bound(host))
        client.rig, client.flow, client.asked, client.old = self.rig, object(), [], []
        client.control, conn = self.control(host)

        def ask(association: Any, atyp: int, raw: bytes, port: int, old: Any) -> None:
            assert association is client.association
            client.asked.append((atyp, raw, port))
            client.old.append(old)
            on_ask(association, atyp, raw, port)

        client.association = self.rig.engine.open_udp(conn, conn.sockname[0], sources, ask)
        client.handle = self.rig.engine.associate(conn, client.association, client.flow)
        return client

    def barred_from(self, forbidden: Peer) -> Client:
        """A client that may send to every port of loopback but this one."""

        def judge(association: Any, atyp: int, raw: bytes, port: int) -> None:
            address = ("127.0.0.1", port) if port != forbidden.port else None
            association.answer(atyp, raw, port, address, 0)

        return self.client(on_ask=judge)

    def undecided(self) -> tuple[Client, list[tuple[Any, ...]]]:
        """A client, and the questions about its destinations, which nobody answers."""
        questions: list[tuple[Any, ...]] = []
        return self.client(on_ask=lambda *what: questions.append(what)), questions


@pytest.fixture
def make_place(make_engine: Callable[..., Any]) -> Callable[..., Place]:
    """make_place(**settings): an engine with clients and targets, once on each engine."""
    return lambda **settings: Place(make_engine(**settings))


@pytest.fixture
def make_native_place(start_engine: Callable[..., Any]) -> Callable[..., Place]:
    """The same on the native engine, in a thread and inline."""
    return lambda **settings: Place(start_engine("native", **settings))


@pytest.fixture
def make_python_place(start_engine: Callable[..., Any]) -> Callable[..., Place]:
    return lambda **settings: Place(start_engine("python", **settings))


@pytest.fixture(name="header")
def header_fixture() -> Callable[..., bytes]:
    return header


@pytest.fixture
def ipv6() -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return
    pytest.fail("this machine has no IPv6 on loopback, which these tests need")
