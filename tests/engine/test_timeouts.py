# Shows that every deadline of the settings is kept, by the right clock: silence is punished,
# activity in either direction is not, and 0 means no limit.
#
# Must not know: how exact an engine's timers are, beyond "soon".

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from fastsocks.engine import FINISHED, HALF_CLOSED, IDLE
from support.ends import Far

SHORT = 0.3
# Long enough to tell that a deadline was not kept when it should have been replaced.
LATER = 3 * SHORT
# What may pass between two octets of those who go on talking, also where the machine is
# busy elsewhere. Ten that come seven times as often take longer than that.
BETWEEN = 1.5


async def never(_conn):
    pytest.fail("a client that has not said anything was introduced")


async def test_a_silent_client_is_closed_and_never_introduced(make_engine):
    rig = make_engine(handshake_timeout=SHORT)
    client = rig.connect(rig.listen(never))
    await rig.until(lambda: rig.engine.sessions == 1, "the client accepted")
    assert await client.read_to_end() == b""
    await rig.at_rest()


async def test_what_is_left_of_a_deadline(make_engine):
    rig = make_engine()
    client, conn = rig.connected()
    assert conn.time_left() is None
    conn.deadline(60)
    assert 50 < conn.time_left() < 61
    conn.deadline(0.1)
    await rig.until(lambda: conn.time_left() == 0, "it has passed")
    with pytest.raises(TimeoutError):
        await conn.recv()
    conn.deadline(0)
    assert conn.time_left() is None
    await client.send(b"x")
    assert await conn.recv() == b"x"
    conn.close()


@pytest.mark.parametrize("count", [1, 300], ids=["one", "more than a turn looks at"])
async def test_what_came_in_time_counts_when_the_loop_stood_still(
    many_descriptors, make_engine, count
):
    rig = make_engine()
    made = [rig.connected("unix") for _ in range(count)]
    reading = []
    for _, conn in made:
        conn.deadline(0.3)
        reading.append(asyncio.ensure_future(conn.recv()))
    await asyncio.sleep(0)
    for client, _ in made:
        client.sock.send(b"x")
    time.sleep(0.6)  # it is the loop that stands still
    assert await asyncio.gather(*reading) == [b"x"] * count
    for _, conn in made:
        conn.close()


async def test_a_client_that_spoke_in_time_is_met_when_the_loop_stood_still(make_engine, until):
    met = []

    async def serve(conn) -> None:
        met.append(await conn.recv())
        conn.close()

    rig = make_engine(handshake_timeout=0.3)
    client = rig.connect(rig.listen(serve))
    await until(lambda: rig.engine.sessions == 1, "the client accepted")
    client.sock.send(b"x")
    time.sleep(0.6)  # it is the loop that stands still
    await until(lambda: met, "the client is met")
    assert met == [b"x"]
    await rig.at_rest()


async def test_the_handshake_timeout_runs_from_accept_not_from_the_last_octet(make_engine):
    rig = make_engine(handshake_timeout=LATER)
    raised = asyncio.Event()
    came = []

    async def serve(conn) -> None:
        with pytest.raises(TimeoutError):
            while True:
                came.append(await conn.recv())
        conn.close()
        raised.set()

    client = rig.connect(rig.listen(serve))
    began = rig.loop.time()
    while not raised.is_set():
        assert rig.loop.time() - began < 10 * LATER, "a trickle of octets kept the session alive"
        await client.send(b"x")
        await asyncio.sleep(0.05)
    assert len(came) > 3
    await rig.at_rest()


async def test_recv_raises_when_the_deadline_has_passed_before(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    conn.deadline(0.05)
    await rig.until(lambda: conn.time_left() == 0, "it has passed")
    with pytest.raises(TimeoutError):
        await conn.recv()
    with pytest.raises(TimeoutError):
        await conn.send(b"x")
    conn.close()


async def test_send_to_a_client_that_does_not_read_ends_at_the_deadline(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    conn.deadline(SHORT)
    with pytest.raises(TimeoutError):
        await conn.send(bytes(64 << 20))
    conn.close()


@pytest.mark.parametrize("seconds", [0, 20])
async def test_a_new_deadline_replaces_the_one_of_the_handshake(make_engine, seconds):
    rig = make_engine(handshake_timeout=SHORT)
    heard = asyncio.Event()

    async def serve(conn) -> None:
        conn.deadline(seconds)
        assert await conn.recv() == b"early"
        assert await conn.recv() == b"late"
        heard.set()
        conn.close()

    client = rig.connect(rig.listen(serve))
    await client.send(b"early")
    await asyncio.sleep(LATER)
    await client.send(b"late")
    await asyncio.wait_for(heard.wait(), 10)


async def test_a_deadline_does_not_outlive_the_handshake(make_engine):
    """What is relayed lives by the idle timeouts alone."""
    rig = make_engine()
    client, near = rig.connected()
    remote, far = rig.connected()
    near.deadline(SHORT)
    far.deadline(SHORT)
    rig.engine.relay(near, far, "flow", b"")
    await asyncio.sleep(LATER)
    await client.send(b"alive")
    assert await remote.read(5) == b"alive"
    assert rig.ends == []


async def test_an_idle_session_is_ended_by_reset(make_way):
    rig = make_way(idle_timeout=SHORT, half_closed_timeout=60)
    relayed = rig.relay()
    await relayed.client.send(b"x")
    assert await relayed.remote.read(1) == b"x"
    flow, up, down, reason, _ = await rig.ended()
    assert (flow, up, down, reason) == (relayed.flow, 1, 0, IDLE)
    await relayed.client.expect_reset()
    await relayed.remote.expect_reset()
    await rig.at_rest()


async def test_a_session_without_a_single_octet_is_idle_too(make_way):
    rig = make_way(idle_timeout=SHORT)
    sessions = [rig.relay() for _ in range(5)]
    await rig.ended(5)
    assert {end[3] for end in rig.ends} == {IDLE}
    assert {id(end[0]) for end in rig.ends} == {id(relayed.flow) for relayed in sessions}
    await rig.at_rest()


@pytest.mark.parametrize("reason", [IDLE, HALF_CLOSED])
async def test_the_shortest_limit_is_not_none(make_way, reason):
    short = {IDLE: "idle_timeout", HALF_CLOSED: "half_closed_timeout"}[reason]
    rig = make_way(**{short: 1e-9})
    relayed = rig.relay()
    if reason is HALF_CLOSED:
        relayed.client.finish()
    assert (await rig.ended())[3] == reason


async def test_blocked_octets_are_no_activity(make_way):
    """The sender is willing, the reader is gone without a word: nothing moves."""
    rig = make_way(idle_timeout=0.8)
    relayed = rig.relay()
    await rig.stuck(relayed.client)
    assert (await rig.ended())[3] == IDLE
    await relayed.remote.expect_reset()
    await rig.at_rest()


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
async def test_activity_in_one_direction_is_activity(make_way, upwards):
    rig = make_way(idle_timeout=BETWEEN)
    relayed = rig.relay()
    source, sink = relayed[:2] if upwards else relayed[1::-1]
    for _ in range(10):
        await source.send(b"x")
        assert await sink.read(1) == b"x"
        await asyncio.sleep(BETWEEN / 7)
    assert rig.ends == []
    assert (await rig.ended())[3] == IDLE


@pytest.mark.parametrize("first", ["client", "remote"])
async def test_a_half_closed_session_that_stays_silent(make_way, first):
    rig = make_way(idle_timeout=60, half_closed_timeout=SHORT)
    relayed = rig.relay()
    finishes, other = relayed[:2] if first == "client" else relayed[1::-1]
    finishes.finish()
    assert await other.read_to_end() == b""
    assert (await rig.ended())[3] == HALF_CLOSED
    await finishes.expect_reset()
    await rig.at_rest()


async def test_a_fin_after_a_long_rest(make_way):
    """The other end has its time from the FIN on, however long nothing was said before."""
    rig = make_way(idle_timeout=60, half_closed_timeout=1.5)
    relayed = rig.relay()
    await relayed.client.send(b"question")
    assert await relayed.remote.read(8) == b"question"
    await asyncio.sleep(1.8)
    relayed.client.finish()
    assert await relayed.remote.read_to_end() == b""
    await asyncio.sleep(0.3)  # ticks of the timer go by
    await relayed.remote.send(b"answer")
    relayed.remote.finish()
    assert await relayed.client.read_to_end() == b"answer"


async def test_a_half_closed_session_with_activity_lives_on(make_way):
    rig = make_way(idle_timeout=60, half_closed_timeout=BETWEEN)
    relayed = rig.relay()
    relayed.client.finish()
    assert await relayed.remote.read_to_end() == b""
    for _ in range(10):
        await relayed.remote.send(b"x")
        assert await relayed.client.read(1) == b"x"
        await asyncio.sleep(BETWEEN / 7)
    relayed.remote.finish()
    assert await rig.ended() == (relayed.flow, 0, 10, FINISHED, 0)


@pytest.mark.parametrize("finishes", [True, False], ids=["half-closed", "idle"])
async def test_who_takes_its_time_gets_all_that_the_kernel_holds(make_way, finishes):
    """The remote has sent all, so that for the relay nothing moves; the client goes on reading,
    as behind a modem, and that takes longer than the limit."""
    limit = 1.0
    rig = make_way(idle_timeout=limit, half_closed_timeout=limit)
    ours, its = rig.pair(buffers=1 << 15)
    # What the kernel holds for the client is more than what it lets be on its way to it.
    its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    remote, far = rig.connected()
    client = Far(ours)
    rig.engine.relay(rig.engine.adopt(its), far, object(), b"")
    octets = bytes(400_000)
    await remote.send(octets)
    if finishes:
        remote.finish()
    await rig.until(lambda: rig.moved() == len(octets), "all of it is the kernel's")
    began = rig.loop.time()
    for _ in range(0, len(octets), 8000):
        assert len(await client.read(8000)) == 8000
        await asyncio.sleep(0.04)
    assert rig.loop.time() - began > 1.8 * limit, "in so short a time nothing is shown"
    assert (await rig.ended())[3] == (HALF_CLOSED if finishes else IDLE)


def test_a_process_that_was_stopped_takes_nobody_for_idle(program, engine_name):
    """What came meanwhile waits in the kernel: in one look there is not room for all of it."""
    process = program("stopped", engine_name, "300")
    told, _ = process.communicate(timeout=60)
    assert json.loads(told) == {"alive": 300, "ends": {}}, process.log.read_text()


def test_deadlines_outlive_a_loop_that_is_left(program, engine_name):
    """An embedding program may run it again after a SystemExit."""
    process = program("deadlines_left", engine_name)
    told, _ = process.communicate(timeout=60)
    assert told == "4\n", process.log.read_text()


async def test_no_limits(make_way):
    rig = make_way(handshake_timeout=0, idle_timeout=0, half_closed_timeout=0)
    heard = asyncio.Event()

    async def serve(conn) -> None:
        assert await conn.recv() == b"hello"
        heard.set()
        conn.close()

    client = rig.connect(rig.listen(serve))
    whole, half = rig.relay(), rig.relay()
    half.client.finish()
    assert await half.remote.read_to_end() == b""
    await asyncio.sleep(LATER)
    assert rig.ends == []
    await client.send(b"hello")
    await asyncio.wait_for(heard.wait(), 10)
    await whole.client.send(b"x")
    assert await whole.remote.read(1) == b"x"
    await half.remote.send(b"y")
    assert await half.client.read(1) == b"y"


@pytest.mark.parametrize(
    ("idle", "half_closed"), [(SHORT, 0), (0, SHORT)], ids=["half-closed", "whole"]
)
async def test_one_limit_without_the_other(make_way, idle, half_closed):
    """0 is no limit, not another one."""
    rig = make_way(idle_timeout=idle, half_closed_timeout=half_closed)
    whole, half = rig.relay(), rig.relay()
    half.client.finish()
    assert await half.remote.read_to_end() == b""
    limited, free = (whole, half) if idle else (half, whole)
    assert (await rig.ended())[0] is limited.flow
    await asyncio.sleep(LATER)
    await free.remote.send(b"x")
    assert await free.client.read(1) == b"x"
    assert len(rig.ends) == 1
