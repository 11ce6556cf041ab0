# fastsocks.relay: the engine as a function over two sockets of the caller's, TCP or Unix,
# with the same ends that a session has.

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time

import pytest

import fastsocks
from fastsocks import engine
from support.ends import reset
from support.pairs import PAIRS, receive, result, send
from support.system import open_descriptors

pytestmark = pytest.mark.usefixtures("choose_engine")


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


async def test_the_last_octets_arrive_though_the_caller_would_have_reset_the_connection(pair):
    client, client_side = pair("tcp")
    remote, remote_side = pair("tcp")
    for sock in (client_side, remote_side):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    relaying = asyncio.ensure_future(fastsocks.relay(client_side, remote_side))
    answer = os.urandom(150_000)  # of which the engine's end keeps some, until they are read
    client.shutdown(socket.SHUT_WR)
    await send(remote, answer)
    remote.close()
    assert await result(relaying) == (0, len(answer), engine.FINISHED, 0)
    assert await receive(client, len(answer)) == answer
    assert await receive(client, 1) == b""


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


def test_a_loop_that_is_closed_under_it(pair):
    """Nobody is left to be told; what it relayed is ended by the next one that relays."""
    near, far = pair("tcp")
    client, its = pair("tcp")

    async def begin():
        relaying = asyncio.ensure_future(fastsocks.relay(its, far))
        await send(client, b"x")
        assert await receive(near, 1) == b"x"
        return relaying

    loop = asyncio.new_event_loop()
    relaying = loop.run_until_complete(begin())
    loop.close()
    test_on_a_plain_asyncio_loop(pair)
    for sock in (near, client):
        sock.settimeout(10)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert not relaying.done()
