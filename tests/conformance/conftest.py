# What the conformance tests share: the proxies (Dante among them, as the oracle), and a client
# that is nothing but a socket: it decides every segment, and waits until one has been taken
# before it sends the next.

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from support.ends import exactly
from support.programs import wait_until
from support.proxies import Proxy, running_dante, running_fastsocks

PATIENCE = 5.0
PROXIES = ("dante", "native", "python")
USER, PASSWORD = b"alice", b"secret"
# By crypt(3), as Dante wants it: openssl passwd -6 -salt fastsocks secret
HASHED = (
    "$6$fastsocks$s4kR2VL4CQq/hUX2r0jE.uZ93gubtApORnyKSzPMQt7XGGeAIOBKtyUaIz4rHL0DTeeJfX8XkKAnmPy2"
    "GH1MS1"
)


@pytest.fixture(scope="session", params=PROXIES)
def proxy(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Proxy]:
    """Open to everyone on loopback, with every command."""
    directory = tmp_path_factory.mktemp(request.param)
    with (
        running_dante(directory, outside="127.0.0.1")
        if request.param == "dante"
        else running_fastsocks(request.param, directory / "stderr", "--allow-bind", "--bind-anyone")
    ) as running:
        yield running


# One for each test: after wrong passwords a client's next answers are held back.
@pytest.fixture(params=PROXIES)
def locked_proxy(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("locked")
    options = ("-u", USER.decode(), "-P", PASSWORD.decode())
    secrets = (PASSWORD.decode(),)
    with (
        running_dante(directory, login=(USER.decode(), HASHED), outside="127.0.0.1")
        if request.param == "dante"
        else running_fastsocks(request.param, directory / "stderr", *options, secrets=secrets)
    ) as running:
        yield running


def unread(sock: socket.socket) -> int:
    """Octets that the other end of a loopback connection has got and not yet read."""
    try:
        here, there = sock.getsockname()[1], sock.getpeername()[1]
    except OSError:
        return 0  # it has been closed already
    with open("/proc/net/tcp") as table:
        for row in table.read().splitlines()[1:]:
            _, local, remote, _, queues = row.split()[:5]
            if local.endswith(f":{there:04X}") and remote.endswith(f":{here:04X}"):
                return int(queues.split(":")[1], 16)
    return 0


@dataclass(slots=True)
class Client:
    sock: socket.socket

    def send(self, *segments: bytes) -> None:
        """Each is read by the proxy before the next is sent."""
        for number, segment in enumerate(segments):
            if number:
                wait_until(lambda: not unread(self.sock), "the segment is read")
            with contextlib.suppress(ConnectionError):  # its answer has been given before
                self.sock.sendall(segment)

    def exactly(self, size: int) -> bytes:
        return exactly(self.sock, size)

    def until(self, pattern: bytes) -> bytes:
        """What comes until the whole of it matches, or it ends."""
        received = b""
        while not re.fullmatch(pattern, received, re.DOTALL):
            piece = self.sock.recv(1)
            if not piece:
                break
            received += piece
        return received

    def to_end(self) -> bytes:
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.sock.recv(1 << 16):
                received += piece
        return received


@pytest.fixture
def dial() -> Iterator[Callable[[Proxy], Client]]:
    with contextlib.ExitStack() as stack:

        def connect(proxy: Proxy) -> Client:
            sock = stack.enter_context(proxy.connect())
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Client(sock)

        yield connect


@dataclass(slots=True)
class World:
    """Where requests may go: `echo` returns what it gets and says "bye" at its end, `echo6`
    is the same on ::1, nobody listens at `dead`."""

    echo: int
    echo6: int
    dead: int

    def fill(self, message: bytes) -> bytes:
        for name in ("echo6", "echo", "dead"):
            port = int(getattr(self, name)).to_bytes(2)
            message = message.replace(b"<%b>" % name.encode(), port)
        return message


def serve_echo(host: str, stack: contextlib.ExitStack) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(socket.create_server((host, 0), family=family, backlog=128))

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            connection.sendall(b"bye")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(PATIENCE)
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
    return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        yield World(serve_echo("127.0.0.1", stack), serve_echo("::1", stack), held.getsockname()[1])
