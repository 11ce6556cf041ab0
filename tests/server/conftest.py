# What the tests of the running server share: a client that controls every segment, a
# remote that remembers what reached it, names that resolve as a test wants them to, and
# the books (descriptors, Tasks, sessions) that must balance when a session is over.

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import fastsocks
from fastsocks import engine
from support.ends import reset
from support.holes import Hole, black_hole
from support.system import open_descriptors

# For anything that should take milliseconds, on a machine that is busy elsewhere.
PATIENCE = 10.0
DATA_SEGMENTS_IN = 152  # offset in struct tcp_info

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# -- the octets of a handshake ---------------------------------------------------


def packed(host: str) -> bytes:
    """Address type and address of a SOCKS5 request: by what the host looks like."""
    for family, kind in ((socket.AF_INET, b"\x01"), (socket.AF_INET6, b"\x04")):
        with contextlib.suppress(OSError):
            return kind + socket.inet_pton(family, host)
    return b"\x03" + bytes((len(host),)) + host.encode()


def socks5(host: str, port: int, command: int = 1) -> bytes:
    return bytes((5, command, 0)) + packed(host) + port.to_bytes(2, "big")


def socks4(host: str, port: int, user: bytes = b"", command: int = 1) -> bytes:
    """SOCKS4a where the host is not an IPv4 address."""
    head, tail = bytes((4, command)) + port.to_bytes(2, "big"), user + b"\0"
    with contextlib.suppress(OSError):
        return head + socket.inet_pton(socket.AF_INET, host) + tail
    return head + b"\0\0\0\x01" + tail + host.encode() + b"\0"


def login(user: bytes, password: bytes) -> bytes:
    return b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password


def failed(code: int) -> bytes:
    return bytes((5, code)) + b"\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.fixture(scope="session")
def say() -> SimpleNamespace:
    """What clients say, and what they are told when it fails."""
    return SimpleNamespace(
        socks5=socks5,
        socks4=socks4,
        login=login,
        no_login=b"\x05\x01\x00",
        failed=failed,
        failed4=b"\x00\x5b\x00\x00\x00\x00\x00\x00",
    )


def hashed(secret: bytes, ln: int = 4) -> str:
    """A hash that takes no time to check, for tests that are not about its cost."""
    salt = os.urandom(8)
    digest = hashlib.scrypt(secret, salt=salt, n=1 << ln, r=1, p=1, dklen=32)
    texts = (base64.b64encode(one).decode().rstrip("=") for one in (salt, digest))
    return "$".join(("", "scrypt", f"ln={ln},r=1,p=1", *texts))


@pytest.fixture(scope="session", name="hashed")
def hashed_fixture() -> Callable[..., str]:
    """``hashed(b"password")``: its scrypt string."""
    return hashed


# -- clients ---------------------------------------------------------------------


class Client:
    """A socket of which the test decides every send, receive and end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.name = sock.getsockname()[:2]
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self.sock, data)

    async def dribble(self, data: bytes) -> None:
        """One octet per segment, each read before the next is sent."""
        for octet in data:
            await self.send(bytes((octet,)))
            await self.seen()

    async def seen(self) -> None:
        """Lets the server, on this same loop, read what has been sent so far."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def receive(self, limit: int = 1 << 16) -> bytes:
        """What one recv gives; b"" at FIN, ConnectionResetError at a reset."""
        async with asyncio.timeout(PATIENCE):
            return await self._loop.sock_recv(self.sock, limit)

    async def exactly(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(3 * PATIENCE):
            while len(data) < size and (more := await self.receive(size - len(data))):
                data += more
        return data

    async def to_end(self) -> bytes:
        data = b""
        async with asyncio.timeout(3 * PATIENCE):
            while more := await self.receive():
                data += more
        return data

    async def ended(self) -> bool:
        """True when the server has closed or reset, whatever it had sent before."""
        with contextlib.suppress(ConnectionError):
            await self.to_end()
        return True

    async def ask(self, data: bytes, size: int) -> bytes:
        await self.send(data)
        return await self.exactly(size)

    async def connect(self, host: str, port: int) -> bytes:
        """A whole SOCKS5 handshake, message by message; the reply to the request."""
        assert await self.ask(b"\x05\x01\x00", 2) == b"\x05\x00"
        return await self.ask(socks5(host, port), 22 if ":" in host else 10)

    async def echoes(self, data: bytes = b"are you there?") -> bool:
        return await self.ask(data, len(data)) == data

    def has_come_in(self, segments: int) -> bool:
        """Whether data came in so many segments, which no read can hide: where the kernel
        tells, and elsewhere true."""
        if sys.platform != "linux":
            return True
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return struct.unpack_from("I", info, DATA_SEGMENTS_IN)[0] == segments

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        reset(self.sock)


@pytest.fixture
async def dial() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """``await dial(server)``: a connected client, closed at the end of the test."""
    clients: list[Client] = []

    async def connect(target: Any, which: int = 0, source: str = "") -> Client:
        host, port = target.addresses[which] if hasattr(target, "addresses") else target
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        clients.append(Client(sock))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


# -- remotes ---------------------------------------------------------------------


class Remote:
    """A server behind the proxy: where it is, who came, and what he sent."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[Any]] = set()
        self.peers: list[tuple[str, int]] = []
        self.received = bytearray()
        self.host, self.port = "", 0

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, host, port)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        # A connection that was reset before it was accepted has no peer any more.
        self.peers.append((writer.get_extra_info("peername") or ("", 0))[:2])
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.received += data
            writer.write(data)
            await writer.drain()


@pytest.fixture
async def remote() -> AsyncIterator[Callable[..., Awaitable[Remote]]]:
    """``await remote(script, host)``: a server that ends with the test; the default
    script sends everything back and finishes when the client does."""
    started: list[Remote] = []

    async def start(script: Script | None = None, host: str = "127.0.0.1", port: int = 0) -> Remote:
        one = Remote(script) if script else Remote(lambda *streams: one.echo(*streams))
        await one.start(host, port)
        started.append(one)
        return one

    yield start
    for one in started:
        await one.stop()


@pytest.fixture
async def echo(remote: Callable[..., Awaitable[Remote]]) -> Remote:
    return await remote()


@pytest.fixture(name="black_hole")
def black_hole_fixture() -> Iterator[Hole]:
    with black_hole() as hole:
        yield hole


# -- the proxy -------------------------------------------------------------------


@pytest.fixture
def serve(engine_name: str) -> Callable[..., fastsocks.Server]:
    """``async with serve(users=...) as server``: on a free port of loopback."""

    def make(**settings: Any) -> fastsocks.Server:
        return fastsocks.Server(
            **{"listen": ["127.0.0.1:0"], "engine": engine_name, "grace": 0} | settings
        )

    return make


@pytest.fixture
async def server(serve: Callable[..., fastsocks.Server]) -> AsyncIterator[fastsocks.Server]:
    """A server with default settings that is open to everyone on loopback."""
    async with serve() as running:
        yield running


class Books:
    """What a session uses and has to give back. Opened with nobody connected."""

    def __init__(self, server: fastsocks.Server, until: Callable[..., Awaitable[None]]) -> None:
        self._server = server
        self._until = until
        self._opening = self.count()

    def count(self) -> dict[str, int]:
        return {
            "descriptors": open_descriptors(),
            "tasks": len(asyncio.all_tasks()),
            "sessions": self._server.sessions,
        }

    async def outstanding(self) -> dict[str, int]:
        """How much of what is not given back, although it was waited for."""

        def kept() -> dict[str, int]:
            kept = {what: now - self._opening[what] for what, now in self.count().items()}
            return {what: more for what, more in kept.items() if more > 0}

        with contextlib.suppress(pytest.fail.Exception):
            await self._until(lambda: not kept(), "the books balance", PATIENCE)
        return kept()


@pytest.fixture
def books(until: Callable[..., Awaitable[None]]) -> Callable[[fastsocks.Server], Books]:
    """``ledger = books(server)`` opens them; ``await ledger.outstanding()`` is empty when
    all has been given back."""
    return lambda server: Books(server, until)


@pytest.fixture
def choose_engine(engine_name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a program cannot choose an engine itself, the test does."""
    real = engine.choose
    monkeypatch.setattr(engine, "choose", lambda name, *rest: real(engine_name, *rest))
    return engine_name


# -- names -----------------------------------------------------------------------


class Names:
    """The resolver of a test. A name that is not in it goes to the real one."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | Exception] = {}
        self.asked: list[str] = []
        self._hanging: set[str] = set()
        self._released = threading.Event()
        self._real = socket.getaddrinfo

    def hang(self, *names: str) -> None:
        """These get no answer until ``release``; then they do not exist."""
        self._hanging.update(names)

    def release(self) -> None:
        self._released.set()

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in self.answers and host not in self._hanging:
            return self._real(host, port, *args, **kwargs)
        self.asked.append(host)
        if host in self._hanging:
            self._released.wait(PATIENCE * 3)
        answer = self.answers.get(host, socket.gaierror(socket.EAI_NONAME, "not known"))
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)  # a new one, or it would keep all it has seen alive
        return [
            entry
            for address in answer
            for entry in self._real(address, port, type=socket.SOCK_STREAM)
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    stand_in = Names()
    monkeypatch.setattr(socket, "getaddrinfo", stand_in.getaddrinfo)
    yield stand_in
    stand_in.release()
