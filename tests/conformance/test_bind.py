# BIND octet by octet (RFC 1928, 4 and 6; SOCKS4): two replies of full length, the first with
# an address that can be connected to, the second with the peer's; only DST's peer is let in;
# what the client sends meanwhile reaches the peer.

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import pytest

from support.programs import wait_until

Address = tuple[str, int]


class Shape(NamedTuple):
    """How a version asks for BIND, and where the address in its replies is."""

    name: str
    family: socket.AddressFamily
    request: Callable[[str], bytes]
    reply: int
    fine: bytes

    def read(self, reply: bytes) -> Address:
        assert (len(reply), reply[:2]) == (self.reply, self.fine)
        size = 4 if self.family == socket.AF_INET else 16
        if self.name == "socks4":
            host, port = reply[4:8], reply[2:4]
        else:
            assert reply[2:4] == (b"\0\1" if size == 4 else b"\0\4")
            host, port = reply[4 : 4 + size], reply[4 + size :]
        return socket.inet_ntop(self.family, host), int.from_bytes(port)


def ask4(host: str) -> bytes:
    return b"\4\2\0\0" + socket.inet_aton(host) + b"\0"


def ask5(host: str) -> bytes:
    return b"\5\2\0\1" + socket.inet_aton(host) + b"\0\0"


def ask6(host: str) -> bytes:
    return b"\5\2\0\4" + socket.inet_pton(socket.AF_INET6, host) + b"\0\0"


SHAPES = [
    Shape("socks4", socket.AF_INET, ask4, 8, b"\0\x5a"),
    Shape("socks5", socket.AF_INET, ask5, 10, b"\5\0"),
    Shape("socks5-ipv6", socket.AF_INET6, ask6, 22, b"\5\0"),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    return request.param


def loopback(shape: Shape) -> str:
    return "::1" if shape.family == socket.AF_INET6 else "127.0.0.1"


def listening(client, shape: Shape, host: str, early: bytes = b"") -> Address:
    """Asks for BIND; where the proxy listens."""
    if shape.name != "socks4":
        client.send(b"\5\1\0")
        assert client.exactly(2) == b"\5\0"
    client.send(shape.request(host) + early)
    host, port = shape.read(client.exactly(shape.reply))
    assert host not in ("0.0.0.0", "::"), "nobody can connect there"
    assert port
    return host, port


def finish(client, shape: Shape, peer: socket.socket) -> tuple[Address, bytes, bytes]:
    """Whom the second reply names, what the peer gets with `down`, and the client with `up`."""
    named = shape.read(client.exactly(shape.reply))
    client.sock.sendall(b"down")
    client.sock.shutdown(socket.SHUT_WR)
    down = b"".join(iter(lambda: peer.recv(100), b""))
    peer.sendall(b"up")
    peer.shutdown(socket.SHUT_WR)
    return named, down, client.to_end()


def test_two_replies(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape))
    with socket.create_connection(address, timeout=20) as peer:
        assert finish(client, shape, peer) == (peer.getsockname()[:2], b"down", b"up")


def test_octets_behind_the_request_reach_the_peer(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape), early=b"early, ")
    with socket.create_connection(address, timeout=20) as peer:
        assert finish(client, shape, peer) == (peer.getsockname()[:2], b"early, down", b"up")


# Dante reads what comes between its two replies as another request, and gives up.
@pytest.mark.parametrize("proxy", ["native", "python"], indirect=True)
def test_octets_between_the_replies_reach_the_peer(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape))
    client.send(b"early, ", b"")  # and it has been read
    with socket.create_connection(address, timeout=20) as peer:
        assert finish(client, shape, peer) == (peer.getsockname()[:2], b"early, down", b"up")


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: shape.name)
def test_only_the_named_peer(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, "127.0.0.1")
    with socket.create_connection(address, 20, ("127.0.0.9", 0)) as stranger:
        stranger.settimeout(20)
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    if proxy.name == "dante":
        # It gives up with the first stranger: whoever connects first can spoil a BIND.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=20).close()
    else:
        with socket.create_connection(address, timeout=20) as peer:
            assert finish(client, shape, peer) == (peer.getsockname(), b"down", b"up")


def listens(port: int) -> bool:
    """Looks without connecting: a BIND ends with whoever connects."""
    rows = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            rows += [row.split() for row in file.readlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def test_client_that_leaves_takes_the_listener_with_it(proxy, dial, shape) -> None:
    client = dial(proxy)
    _, port = listening(client, shape, loopback(shape))
    assert listens(port)
    client.sock.close()
    wait_until(lambda: not listens(port), "nobody listens there any more")
