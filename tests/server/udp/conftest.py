# What the tests of UDP ASSOCIATE share: sockets and associations that end with the test.

from __future__ import annotations

import contextlib
import socket

import pytest

from fastsocks import addresses, associate, resolve
from support.udp import Association, Datagrams, asked


@pytest.fixture
def datagrams():
    """``datagrams(host, port)``: a socket, closed with the test."""
    made = []

    def make(host="127.0.0.1", port=0):
        made.append(Datagrams(host, port))
        return made[-1]

    yield make
    for one in made:
        one.sock.close()


@pytest.fixture
def associated(dial, datagrams, say):
    """``await associated(server, which, dst, port)``: an association of a client on loopback,
    and the port that the client sends from."""

    async def make(server, which=0, dst=("0.0.0.0", 0), port=0):
        control = await dial(server, which)
        own = datagrams(control.name[0], port)
        reply = await asked(control, say, dst)
        assert reply[:3] == b"\x05\x00\x00", reply
        return Association(say, control, own, reply)

    return make


@pytest.fixture
def free_ports():
    """``free_ports(count)``: the first and the last of so many in a row that are free for UDP."""

    def find(count):
        for first in range(20_000, 21_000, count):  # the kernel gives out those from 32,768 on
            with contextlib.ExitStack() as held, contextlib.suppress(OSError):
                for port in range(first, first + count):
                    held.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(
                        ("127.0.0.1", port)
                    )
                return first, first + count - 1
        raise AssertionError("no free ports")

    return find


@pytest.fixture
def not_on_loopback(monkeypatch):
    """Clients count as coming from elsewhere, who may not reach loopback."""
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)


@pytest.fixture
def soon_old(monkeypatch):
    """What is known of a name is asked for again almost at once."""
    monkeypatch.setattr(associate, "NAME_TTL", 0.05)
    monkeypatch.setattr(associate, "FAILED_NAME_TTL", 0.05)
    monkeypatch.setattr(resolve, "REMEMBER_FOUND", 0.0)
    monkeypatch.setattr(resolve, "REMEMBER_FAILED", 0.0)
