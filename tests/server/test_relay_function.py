# fastsocks.relay: the engine as a function over two sockets of the caller's, TCP or Unix,
# with the same ends that a session has, and nothing taken that it cannot relay.

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time

import pytest

import fastsocks
from fastsocks import engine
from support.ends import reset
from support.system import open_descriptors

pytestmark = pytest.mark.usefixtures("choose_engine")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def tcp6_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    return near, far


PAIRS = {"tcp": tcp_pair, "tcp6": tcp6_pair, "unix": socket.socketpair}


@pytest.fixture
def pair():
    """``pair("tcp")``: (the test's end, the end to relay), closed with the test, which
    must leave no descriptor open."""
    before = open_descriptors()
    opened = []

    def make(kind: str) -> tuple[socket.socket, socket.socket]:
        near, far = PAIRS[kind]()
        near.setblocking(False)
        opened.extend((near, far))
        return near, far

    yield make
    for sock in opened:
        sock.close()
    assert open_descriptors() <= before, "descriptors were left open"


@pytest.fixture
def start(pair):
    """``start("tcp", "unix")``: the client's end, the remote's end, the relay's Task."""

    def run(client_kind: str = "tcp", remote_kind: str = "tcp"):
        client, client_side = pair(client_kind)
        remote, remote_side = pair(remote_kind)
        return client, remote, asyncio.ensure_future(fastsocks.relay(client_side, remote_side))

    return run


async def send(sock, data: bytes) -> None:
    async with asyncio.timeout(20):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(20):
        while len(data) < size:
            more = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
            if not more:
                break
            data += more
    return data


async def result(relaying) -> fastsocks.Outcome:
    return await asyncio.wait_for(relaying, 20)


@pytest.mark.parametrize("remote_kind", PAIRS)
@pytest.mark.parametrize("client_kind", PAIRS)
async def test_both_ways_and_the_outcome(start, client_kind, remote_kind):
    client, remote, relaying = start(client_kind, remote_kind)
    up, down = os.urandom(200_000), os.urandom(300_000)
    received = asyncio.gather(receive(remote, len(up)), receive(client, len(down)))
    await asyncio.gather(send(client, up), send(remote, down))
    assert await received == [up, down]
    client.shutdown(socket.SHUT_WR)
    assert await receive(remote, 1) == b""
    assert not relaying.done()
    remote.shutdown(socket.SHUT_WR)
    assert await receive(client, 1) == b""
    outcome = await result(relaying)
    assert outcome == fastsocks.Outcome(len(up), len(down), engine.FINISHED, 0)
    assert (outcome.up, outcome.down, outcome.reason) == (200_000, 300_000, "finished")


@pytest.mark.parametrize("kind", PAIRS)
async def test_half_close_and_late_data(start, kind):
    client, remote, relaying = start(kind, kind)
    await send(client, b"question")
    client.shutdown(socket.SHUT_WR)
    assert await receive(remote, 100) == b"question"
    for _ in range(3):
        await send(remote, b"late answer")
        assert await receive(client, 11) == b"late answer"
    remote.close()
    assert await receive(client, 1) == b""
    assert await result(relaying) == (8, 33, "finished", 0)


def test_on_a_plain_asyncio_loop(pair):
    async def program():
        client, client_side = pair("tcp")
        remote, remote_side = pair("unix")
        relaying = asyncio.ensure_future(fastsocks.relay(client_side, remote_side))
        await send(client, b"question")
        assert await receive(remote, 8) == b"question"
        remote.close()
        client.close()
        return await result(relaying)

    for _ in range(2):
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            assert runner.run(program()) == (8, 0, "finished", 0)


async def test_half_close_from_the_other_end(start):
    client, remote, relaying = start()
    remote.shutdown(socket.SHUT_WR)
    assert await receive(client, 1) == b""
    await send(client, b"still talking")
    assert await receive(remote, 13) == b"still talking"
    client.close()
    assert await result(relaying) == (13, 0, "finished", 0)


async def test_two_ends_that_close_without_a_word_have_finished(start):
    client, remote, relaying = start()
    client.close()
    remote.close()
    assert await result(relaying) == (0, 0, "finished", 0)


@pytest.mark.parametrize("resetting", ["client", "remote"])
async def test_reset_is_passed_on(start, resetting):
    client, remote, relaying = start()
    await send(client, b"up")
    assert await receive(remote, 2) == b"up"
    first, second = (client, remote) if resetting == "client" else (remote, client)
    reset(first)
    with pytest.raises(ConnectionResetError):
        await receive(second, 1)
    outcome = await result(relaying)
    assert (outcome.up, outcome.down) == (2, 0)
    assert (
        outcome.reason == {"client": engine.CLIENT_RESET, "remote": engine.REMOTE_RESET}[resetting]
    )
    assert outcome.errno


async def test_data_that_was_there_before(pair):
    client, client_side = pair("tcp")
    remote, remote_side = pair("tcp")
    await send(client, b"early")
    client.shutdown(socket.SHUT_WR)
    remote.shutdown(socket.SHUT_WR)
    assert await fastsocks.relay(client_side, remote_side) == (5, 0, "finished", 0)
    assert await receive(remote, 100) == b"early"


@pytest.mark.parametrize("blocking", [True, False])
async def test_blocking_mode_of_the_sockets_does_not_matter(pair, blocking):
    client, client_side = pair("tcp")
    remote, remote_side = pair("unix")
    client_side.setblocking(blocking)
    remote_side.settimeout(5 if blocking else 0)
    relaying = asyncio.ensure_future(fastsocks.relay(client_side, remote_side))
    await send(client, b"hello")
    assert await receive(remote, 5) == b"hello"
    client.close()
    remote.close()
    assert (await result(relaying)).up == 5


@pytest.mark.parametrize("resetting", ["client", "remote"])
async def test_reset_before_it_began(pair, until, resetting):
    """Which no program can foresee: it is how the session ended, not a mistake in calling."""
    client, client_side = pair("tcp")
    remote, remote_side = pair("tcp")
    gone, given, other = (
        (client, client_side, remote) if resetting == "client" else (remote, remote_side, client)
    )
    reset(gone)
    poll = select.poll()
    poll.register(given, select.POLLIN)
    await until(lambda: poll.poll(0), "the reset has come")
    outcome = await asyncio.wait_for(fastsocks.relay(client_side, remote_side), 20)
    assert outcome.reason == f"{resetting} reset"
    with pytest.raises(ConnectionResetError):
        await receive(other, 1)


@pytest.mark.parametrize("begun", [False, True])
async def test_who_cancels_it_resets_both_ends(start, begun):
    client, remote, relaying = start()
    await asyncio.sleep(0)
    if begun:
        await send(client, b"up")
        assert await receive(remote, 2) == b"up"
    relaying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await result(relaying)
    for sock in (client, remote):
        with pytest.raises(ConnectionResetError):
            await receive(sock, 1)


async def test_cancelled_again_before_it_is_over(start):
    """Nothing is left of it all the same."""
    descriptors = open_descriptors()
    client, remote, relaying = start()
    await asyncio.sleep(0)
    for _ in range(2):
        relaying.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await result(relaying)
    for sock in (client, remote):
        with pytest.raises(ConnectionResetError):
            await receive(sock, 1)
        sock.close()
    async with asyncio.timeout(20):
        while open_descriptors() > descriptors:
            await asyncio.sleep(0.01)


async def test_cancelled_by_a_timeout(start):
    client, _, relaying = start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(relaying, 0.1)
    with pytest.raises(ConnectionResetError):
        await receive(client, 1)


async def test_sockets_are_taken_over(pair):
    client, client_side = pair("tcp")
    remote, remote_side = pair("tcp")
    relaying = asyncio.ensure_future(fastsocks.relay(client_side, remote_side))
    await send(client, b"x")
    assert await receive(remote, 1) == b"x"
    assert client_side.fileno() == remote_side.fileno() == -1
    client.close()
    remote.close()
    await result(relaying)


async def test_several_at_once_end_one_by_one(start):
    """The first that ends takes nothing from the others."""
    relays = [start("tcp", "unix") for _ in range(4)]
    while relays:
        client, remote, relaying = relays.pop()
        client.close()
        remote.close()
        assert (await result(relaying)).reason == "finished"
        for other_client, other_remote, other in relays:
            await send(other_client, b"still here")
            assert await receive(other_remote, 10) == b"still here"
            assert not other.done()


async def test_beside_a_server(start, serve, dial, echo):
    async with serve() as server:
        proxied = await dial(server)
        await proxied.connect("127.0.0.1", echo.port)
        client, remote, relaying = start()
        assert await proxied.echoes()
        client.close()
        remote.close()
        await result(relaying)
        assert await proxied.echoes()
        proxied.close()
    await echo.stop()


# -- what it does not take ---------------------------------------------------


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


async def test_one_end_has_finished_both_ways_before(pair):
    """Its answer is still to be read, though the kernel knows its peer no more."""
    near, far = pair("tcp")
    client, its = pair("tcp")
    far.shutdown(socket.SHUT_WR)
    near.send(b"answer")
    near.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            far.getpeername()
        except OSError:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    relaying = asyncio.ensure_future(fastsocks.relay(its, far))
    assert await receive(client, 6) == b"answer"
    client.close()
    outcome = await relaying
    assert (outcome.down, outcome.reason) == (6, engine.FINISHED)


def test_a_listening_socket_with_a_timeout_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as fresh:
        listener.settimeout(60)
        for sock in (listener, fresh):
            with pytest.raises(TypeError, match="connected sockets"):
                asyncio.run(fastsocks.relay(sock, listener))
