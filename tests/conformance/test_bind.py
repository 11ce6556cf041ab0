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
    first = client.exactly(shape.reply)
    assert (len(first), first[:2]) == (shape.reply, shape.fine)
    host, port = shape.read(first)
    assert host not in ("0.0.0.0", "::"), "nobody can connect there"
    assert port
    return host, port


def finish(client, shape: Shape, peer: socket.socket, early: bytes = b"") -> None:
    second = client.exactly(shape.reply)
    assert (len(second), second[:2]) == (shape.reply, shape.fine)
    assert shape.read(second) == peer.getsockname()[:2]
    client.sock.sendall(b"down")
    got = b""
    while len(got) < len(early) + 4:
        got += peer.recv(100)
    assert got == early + b"down"
    peer.sendall(b"up")
    peer.shutdown(socket.SHUT_WR)
    assert client.to_end() == b"up"


def test_two_replies(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape))
    with socket.create_connection(address, timeout=20) as peer:
        finish(client, shape, peer)


def test_early_octets_reach_the_peer(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape), early=b"early")
    with socket.create_connection(address, timeout=20) as peer:
        finish(client, shape, peer, early=b"early")


@pytest.mark.parametrize("shape", SHAPES[:2], ids=lambda shape: shape.name)
def test_only_the_named_peer(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, "127.0.0.1")
    with socket.create_connection(address, 20, ("127.0.0.9", 0)) as stranger:
        stranger.settimeout(20)
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    if proxy.name == "dante" and shape.name != "socks5-ipv6":
        # It gives up with the first stranger: whoever connects first can spoil a BIND.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=20).close()
        return
    with socket.create_connection(address, timeout=20) as peer:
        finish(client, shape, peer)


def test_client_that_leaves_takes_the_listener_with_it(proxy, dial, shape) -> None:
    client = dial(proxy)
    address = listening(client, shape, loopback(shape))
    client.sock.close()

    def gone() -> bool:
        try:
            socket.create_connection(address, timeout=20).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(gone, 20, "nothing listens there")
