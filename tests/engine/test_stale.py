# Shows that what happens to one connection is never taken for another's: not when it is closed
# and its slot is used again while its event waits in the same batch, not when somebody else
# has kept its socket open, and not when an order for it comes too late.
#
# These are about the turns of the native engine, so here they are taken by hand: run_once is
# one of the front and of the relay without a thread. A batch has its events in the order they
# happened.

from __future__ import annotations

import asyncio
import json
import os
import socket

import pytest

from fastsocks.engine import CLIENT_RESET, KILLED
from support.namespaces import bare_network

# On the loop's thread, on a relay thread that splices, and on one that copies.
THREADS = pytest.mark.parametrize(
    "relaying",
    [
        {"relay_threads": 0},
        {"relay_threads": 1, "relay": "splice"},
        {"relay_threads": 1, "relay": "splice", "max_pipes": 0},
    ],
    ids=["loop", "splice", "copy"],
)


@pytest.fixture
async def rig(start_engine):
    """The native engine, whose relay has its turns on the loop's thread."""
    return start_engine("native", relay_threads=0)


# -- the front ---------------------------------------------------------------


def batch_of_two(rig, action):
    """Two connections, of which the first has something to tell: then ``action(second)``."""
    first, near = rig.connected()
    second, doomed = rig.connected()
    near.recv().add_done_callback(lambda _: action(doomed))
    doomed.recv()
    return first, second


async def test_a_crowd_at_the_door_leaves_the_others_their_turn(rig):
    served: list[object] = []
    old, near = rig.connected()
    said = near.recv()
    listener = rig.hold(socket.create_server(("127.0.0.1", 0)))
    rig.engine.listen(listener, lambda conn: served.append(conn))
    for _ in range(40):
        rig.connect(listener.getsockname()).sock.send(b"x")
    old.sock.send(b"here")
    rig.engine.run_once()
    assert said.done()
    assert 0 < len(served) < 40
    await rig.until(lambda: len(served) == 40, "all are served")
    for conn in served:
        conn.close()


async def test_a_reset_of_a_connection_that_was_closed_before_it(rig):
    newcomers = []

    def replace(doomed):
        doomed.close()
        newcomers.append(rig.connected())

    first, second = batch_of_two(rig, replace)
    listener = rig.listener()
    first.sock.send(b"x")
    second.reset()
    rig.engine.run_once()
    newcomer, conn = newcomers[0]
    remote = await rig.engine.dial(conn, listener.getsockname(), None, 10)
    await newcomer.send(b"still here")
    assert await conn.recv() == b"still here"
    remote.close()
    conn.close()


async def test_octets_of_a_connection_that_was_closed_are_no_successful_dial(rig, black_hole):
    dials = []
    _caller, conn = rig.connected()

    def replace(doomed):
        doomed.close()
        dials.append(rig.engine.dial(conn, black_hole, None, 20))

    first, second = batch_of_two(rig, replace)
    first.sock.send(b"x")
    second.sock.send(b"x")
    rig.engine.run_once()
    assert not dials[0].done()
    dials[0].cancel()
    conn.close()


async def test_a_reset_is_not_the_client_s_who_was_accepted_meanwhile(rig):
    outcome = rig.loop.create_future()
    listener = rig.listener()

    async def serve(conn):
        remote = await rig.engine.dial(conn, listener.getsockname(), None, 10)
        remote.close()
        conn.close()
        outcome.set_result(None)

    address = rig.listen(serve)
    first, second = batch_of_two(rig, lambda doomed: doomed.close())
    first.sock.send(b"x")
    client = rig.connect(address)
    second.reset()
    rig.engine.run_once()
    await client.send(b"x")
    assert await client.read_to_end() == b""
    assert outcome.done()


async def test_a_listener_that_somebody_else_has_open_too(rig, calm):
    """A service manager, or a child between fork and exec: closing does not take it off the
    epoll then, and clients go on coming."""
    listener = rig.hold(socket.create_server(("127.0.0.1", 0)))
    address = listener.getsockname()
    kept = rig.hold(listener.dup())
    kept.settimeout(20)
    rig.engine.listen(listener, lambda conn: conn.close())
    rig.engine.stop_listening()
    client = rig.connect(address)
    await calm()
    accepted, peer = kept.accept()
    rig.hold(accepted)
    assert peer == client.sock.getsockname(), "the client is not ours"


async def test_nothing_is_adopted_by_an_engine_that_is_closed(rig):
    refused = []

    def on_closed(ended):
        with pytest.raises(OSError, match="closed"):
            rig.connected()
        refused.append(ended)

    rig.engine.close()
    rig.engine = type(rig.engine)(rig.loop, rig.settings, on_closed)
    rig.relay()
    rig.engine.close()
    assert len(refused) == 1


@pytest.mark.parametrize("engine", ["native"])
def test_engines_that_nobody_closed_are_taken_apart_in_order(program, engine):
    """Their threads use until the last moment what the garbage collector would free first."""
    # Where an allocator is set it is a sanitizer's, which sees as much.
    malloc = os.environ.get("PYTHONMALLOC", "debug")
    process = program("forgotten", PYTHONMALLOC=malloc, PYTHONWARNINGS="ignore")
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "0 0\n"), process.log.read_text()


# -- the relay of streams ----------------------------------------------------


async def ping(relayed):
    """There and back, twice: a session that takes nothing for its end."""
    for _ in range(2):
        await relayed.client.send(b"ping")
        assert await relayed.remote.read(4) == b"ping"
        await relayed.remote.send(b"pong")
        assert await relayed.client.read(4) == b"pong"


@THREADS
@pytest.mark.parametrize("which", ["client", "remote"])
@pytest.mark.parametrize("event", ["reset", "finish"])
async def test_a_socket_that_somebody_else_has_open_too(
    start_engine, reset, relaying, which, event
):
    rig = start_engine("native", **relaying)
    (client, near), (remote, far) = rig.pair(), rig.pair()
    rig.hold((near if which == "client" else far).dup())
    ended = rig.engine.relay(rig.engine.adopt(near), rig.engine.adopt(far), "ended", b"")
    rig.engine.kill(ended)
    assert (await rig.ended())[3] == KILLED
    successor = rig.relay()
    await ping(successor)
    its = client if which == "client" else remote
    if event == "reset":
        reset(its)
    else:
        its.shutdown(socket.SHUT_WR)
    await ping(successor)
    assert len(rig.ends) == 1


async def test_an_order_to_end_that_comes_after_the_end(rig):
    """Obeyed when the slot has been used again."""
    relayed = rig.relay()
    await ping(relayed)
    relayed.client.reset()
    rig.engine.run_once()
    rig.engine.kill(relayed.handle)
    assert (await rig.ended())[3] == CLIENT_RESET
    await ping(rig.relay())
    assert len(rig.ends) == 1


async def test_an_end_and_the_order_to_end_in_one_batch(rig):
    relayed = rig.relay()
    await ping(relayed)
    relayed.client.reset()
    rig.engine.kill(relayed.handle)
    relayed.remote.reset()
    successor = rig.relay()
    rig.engine.run_once()
    await ping(successor)
    assert len(rig.ends) == 1


@pytest.mark.parametrize("relay", ["auto", "splice"])
async def test_octets_and_the_reset_behind_them_in_one_event(start_engine, relay):
    """The kernel tells of a reset as of an end with an error; it must not become an end."""
    rig = start_engine("native", relay_threads=0, relay=relay)
    for size in (1, 1000, 100_000):
        relayed = rig.relay()
        await ping(relayed)
        relayed.client.sock.send(bytes(size))
        relayed.client.reset()
        await relayed.remote.expect_reset()
    assert {end[3] for end in (await rig.ended(3), *rig.ends)} == {CLIENT_RESET}


async def test_a_stream_leaves_the_others_their_turn(make_way):
    """It has more to move, and room for it, than it gets moved before another's octet."""
    rig = make_way(relay_threads=0)
    client, near = rig.connected()
    _remote, far = rig.connected()
    queued = client.fill(2 << 20)
    assert queued == 2 << 20
    rig.engine.relay(near, far, "bulk", b"")
    other = rig.relay(early=b"")
    other.client.sock.send(b"x")
    got = b""
    while not got:
        await asyncio.sleep(0)
        try:
            got = other.remote.sock.recv(1)
        except BlockingIOError:
            continue
    assert rig.moved() < queued
    await rig.until(lambda: rig.moved() == queued + 1, "all moved")


# -- urgent data -------------------------------------------------------------


def test_urgent_data_that_nothing_announces(program):
    """Out of order, it gets in front without EPOLLPRI: splice finds nothing there, for ever,
    and only recv goes past it."""
    process = program("urgent_unannounced", prefix=bare_network())
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    got = "AAAA" + "BBBB" + "C" * 40 + "DDDD"
    assert json.loads(out) == {"got": got, "announced": False}
