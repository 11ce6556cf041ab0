# What fastsocks.relay cannot relay is refused, says why, and leaves the other one alone.

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

import fastsocks
from support.pairs import receive, send

pytestmark = pytest.mark.usefixtures("choose_engine")


def unconnected() -> socket.socket:
    return socket.socket()


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def datagram() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    return sock


def sequenced() -> socket.socket:
    one, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
    other.close()
    return one


def encrypted() -> socket.socket:
    context = ssl.create_default_context()
    ours, theirs = socket.socketpair()
    with theirs:  # to macOS ours has no peer any more once it is closed
        return context.wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False)


def closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: None, "socket"),
        (lambda: 3, "socket"),
        (lambda: "127.0.0.1:80", "socket"),
        (closed, "open socket"),
        (unconnected, "connected"),
        (listening, "connected"),
        (datagram, "stream"),
        pytest.param(sequenced, "stream", marks=pytest.mark.linux),  # macOS has none
        (encrypted, "ciphertext"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("place", ["first", "second"])
async def test_what_cannot_be_relayed_is_refused_and_the_other_left_alone(
    pair, make, wanted, place
):
    near, good = pair("tcp")
    wrong = make()
    pair_given = (wrong, good) if place == "first" else (good, wrong)
    with pytest.raises(TypeError, match=wanted):
        await fastsocks.relay(*pair_given)
    # The good one is left alone.
    await send(near, b"x")
    good.setblocking(False)
    assert await receive(good, 1) == b"x"
    if isinstance(wrong, socket.socket):
        wrong.close()


async def test_the_socket_of_a_transport(echo, pair):
    """It belongs to the transport; the error says what would be right."""
    _, good = pair("tcp")
    _, writer = await asyncio.open_connection("127.0.0.1", echo.port)
    with pytest.raises(TypeError, match="socket module"):
        await fastsocks.relay(writer.get_extra_info("socket"), good)
    writer.close()
    await writer.wait_closed()
    await echo.stop()


async def test_one_socket_twice(pair):
    near, good = pair("tcp")
    with pytest.raises((TypeError, ValueError)):
        await fastsocks.relay(good, good)
    await send(near, b"x")
    good.setblocking(False)
    assert await receive(good, 1) == b"x"


async def test_outside_a_loop_nothing_is_taken(pair):
    _, one = pair("tcp")
    _, other = pair("tcp")
    coroutine = fastsocks.relay(one, other)
    coroutine.close()
    assert one.fileno() >= 0
    assert other.fileno() >= 0


def test_a_listening_socket_with_a_timeout_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as fresh:
        listener.settimeout(60)
        for sock in (listener, fresh):
            with pytest.raises(TypeError, match="connected sockets"):
                asyncio.run(fastsocks.relay(sock, listener))
