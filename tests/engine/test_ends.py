# Shows that each session's end is reported exactly once, with what it was, however and whenever
# it ends: by itself, by kill(), or with the engine.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os

import pytest

from fastsocks.engine import CLIENT_RESET, FINISHED, IDLE, KILLED, REMOTE_RESET
from support.system import open_descriptors

CROWD = 400  # sessions that stay idle, each with four descriptors
ROUNDS = 10
DOOMED = 50  # sessions that are killed at once


async def test_kill_resets_both_ends(make_way):
    rig = make_way()
    relayed = rig.relay()
    await relayed.client.send(b"x")
    assert await relayed.remote.read(1) == b"x"
    rig.engine.kill(relayed.handle)
    assert await rig.ended() == (relayed.flow, 1, 0, KILLED, 0)
    await relayed.client.expect_reset()
    await relayed.remote.expect_reset()
    await rig.at_rest()


async def test_last_words_before_a_reset_arrive(make_way, reset):
    """A server that has seen enough of an upload says so and closes, which is a reset where
    some of it was not read: the client learns why, whatever it is sending just then."""
    rig = make_way()
    for number in range(1, 41):
        relayed = rig.relay()
        relayed.client.sock.send(b"an upload")
        relayed.remote.sock.send(b"enough")
        reset(relayed.remote.sock)
        with contextlib.suppress(ConnectionError):  # its end may have come already
            relayed.client.sock.send(b", and more of it")
        assert await relayed.client.read(6) == b"enough"
        _, _, down, reason, error = await rig.ended(number)
        assert (down, reason, error) == (6, REMOTE_RESET, errno.ECONNRESET)
    await rig.at_rest()


async def test_kill_at_once_after_relay(make_way):
    rig = make_way()
    for number in range(1, 101):
        relayed = rig.relay(early=b"early")
        rig.engine.kill(relayed.handle)
        assert (await rig.ended(number))[0] is relayed.flow
    assert {end[3] for end in rig.ends} == {KILLED}
    await rig.at_rest()


async def test_kill_at_once_while_a_crowd_is_welcomed(many_descriptors, make_way):
    """The first order wakes a thread that has many sessions to make the acquaintance of;
    the next ones are about sessions that it has yet to hear of."""
    rig = make_way(idle_timeout=1)
    for number in range(1, ROUNDS + 1):
        made = [(rig.connected("unix"), rig.connected("unix")) for _ in range(CROWD + DOOMED)]
        for index, ((_, near), (_, far)) in enumerate(made):
            handle = rig.engine.relay(near, far, None, b"")
            if index >= CROWD:
                rig.engine.kill(handle)
        await rig.ended((CROWD + DOOMED) * (number - 1) + DOOMED)
        for (client, _), (remote, _) in made:
            client.close()
            remote.close()
        await rig.ended((CROWD + DOOMED) * number)
    assert [end[3] for end in rig.ends].count(KILLED) == ROUNDS * DOOMED
    rig.relay("unix")
    # With its timer go those that have wrongly outlived their sessions.
    assert (await rig.ended((CROWD + DOOMED) * ROUNDS + 1))[3] == IDLE
    await rig.at_rest()


async def test_kill_of_a_session_that_is_blocked(make_way):
    rig = make_way()
    relayed = rig.relay()
    await rig.stuck(relayed.client, relayed.remote)
    rig.engine.kill(relayed.handle)
    assert (await rig.ended())[3] == KILLED
    await relayed.client.expect_reset()
    await rig.at_rest()


async def test_kill_twice_and_after_the_end(make_way, calm):
    rig = make_way()
    first, second = rig.relay(), rig.relay()
    rig.engine.kill(first.handle)
    rig.engine.kill(first.handle)
    assert (await rig.ended())[0] is first.flow
    rig.engine.kill(first.handle)
    second.client.finish()
    second.remote.finish()
    assert await rig.ended(2) == (second.flow, 0, 0, FINISHED, 0)
    rig.engine.kill(second.handle)
    await calm(0.1)
    assert len(rig.ends) == 2


async def test_an_old_handle_does_not_kill_a_new_session(make_way):
    """Slots are used again, handles are not."""
    rig = make_way()
    handles = []
    for number in range(1, 51):
        relayed = rig.relay()
        handles.append(relayed.handle)
        rig.engine.kill(relayed.handle)
        await rig.ended(number)
    survivor = rig.relay()
    assert len({*handles, survivor.handle}) == 51
    for handle in handles:
        rig.engine.kill(handle)
    await survivor.client.send(b"alive")
    assert await survivor.remote.read(5) == b"alive"
    assert len(rig.ends) == 50


async def test_a_handle_that_never_was(make_engine):
    rig = make_engine()
    rig.engine.kill(12345)
    relayed = rig.relay()
    rig.engine.kill(relayed.handle + 1)
    await relayed.client.send(b"alive")
    assert await relayed.remote.read(5) == b"alive"


async def test_kill_races_with_every_other_end(make_way):
    rig = make_way(idle_timeout=0.2)
    sessions = [rig.relay(early=bytes(number)) for number in range(120)]
    for number, relayed in enumerate(sessions):
        if number % 4 == 0:
            relayed.client.reset()
        elif number % 4 == 1:
            relayed.client.close()
            relayed.remote.close()
        elif number % 4 == 2:
            await asyncio.sleep(0.005)
        rig.engine.kill(relayed.handle)
    await rig.ended(120)
    assert {id(end[0]) for end in rig.ends} == {id(relayed.flow) for relayed in sessions}
    assert {end[3] for end in rig.ends} <= {KILLED, FINISHED, IDLE, CLIENT_RESET, REMOTE_RESET}
    await rig.at_rest()


async def test_a_killed_session_still_finds_its_record(make_way):
    """The engine holds the only reference to it."""
    rig = make_way()
    for number in range(50):
        client, near = rig.connected()
        remote, far = rig.connected()
        rig.engine.relay(near, far, ["a record", number], b"")
        client.close()
        remote.close()
    await rig.ended(50)
    assert sorted(end[0][1] for end in rig.ends) == list(range(50))


async def test_ends_come_in_batches(make_engine):
    batches = []
    rig = make_engine()
    rig.engine.close()
    rig.engine = type(rig.engine)(rig.loop, rig.settings, lambda ended: batches.append(list(ended)))
    for relayed in [rig.relay() for _ in range(64)]:
        relayed.client.close()
        relayed.remote.close()
    await rig.until(lambda: sum(map(len, batches)) >= 64, "all ends reported")
    assert sum(map(len, batches)) == 64
    assert len(batches) < 64


async def test_close_reports_and_ends_everything(make_way):
    rig = make_way()
    before = open_descriptors()
    blocked, half, fresh, idle = (rig.relay() for _ in range(4))
    await rig.stuck(blocked.client, blocked.remote)
    half.client.finish()
    assert await half.remote.read_to_end() == b""
    await fresh.client.send(b"x")
    rig.engine.close()
    assert len(rig.ends) == 4, "not reported before close() returned"
    assert {end[3] for end in rig.ends} == {KILLED}
    assert {id(end[0]) for end in rig.ends} == {
        id(relayed.flow) for relayed in (blocked, half, fresh, idle)
    }
    assert rig.engine.sessions == 0
    # The far ends are the test's; of the engine's descriptors none is left.
    fars = 2 * 4
    assert open_descriptors() <= before + fars
    await idle.client.expect_reset()
    await idle.remote.expect_reset()
    await blocked.client.expect_reset()


async def test_close_ends_those_who_are_not_relayed_yet(make_engine):
    rig = make_engine()
    introduced = []

    async def serve(conn) -> None:
        introduced.append(conn)
        with pytest.raises(OSError):
            while await conn.recv():
                pass
        introduced.append("over")

    address = rig.listen(serve)
    silent, talking = rig.connect(address), rig.connect(address)
    await talking.send(b"x")
    await rig.until(lambda: len(introduced) == 1 and rig.engine.sessions == 2, "both accepted")
    rig.engine.close()
    assert rig.engine.sessions == 0
    await rig.until(lambda: introduced[-1] == "over", "the session's coroutine told")
    for client in (silent, talking):
        with pytest.raises(ConnectionError):
            await client.read_to_end()
            await client.send(b"x")
            await client.send(b"x")
    assert rig.ends == []


async def test_close_twice(make_engine):
    rig = make_engine()
    rig.relay()
    rig.engine.close()
    rig.engine.close()
    assert len(rig.ends) == 1


async def test_a_dead_engine_leaves_the_loop_alone(make_engine, calm):
    for _ in range(5):
        rig = make_engine()
        relayed = rig.relay()
        await relayed.client.send(b"x")
        assert await relayed.remote.read(1) == b"x"
        rig.engine.close()
    await calm(0.3)


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("engine", ["native"])
async def test_relay_threads(start_engine, payload, engine, threads):
    before = set(os.listdir("/proc/self/task"))
    rig = start_engine(engine, relay_threads=threads)
    started = set(os.listdir("/proc/self/task")) - before
    assert len(started) == threads
    sessions = [rig.relay() for _ in range(8)]

    async def one(relayed, seed: int) -> None:
        up, down = payload(3 << 20, seed), payload(2 << 20, -seed)

        assert await relayed.talk(up, down) == (up, down)

    await asyncio.gather(*map(one, sessions, itertools.count(1)))
    await rig.ended(8)
    assert {end[3] for end in rig.ends} == {FINISHED}
    rig.engine.close()
    await rig.until(
        lambda: not started & set(os.listdir("/proc/self/task")), "the relay threads ended"
    )


def test_a_forked_child_that_ends_harms_no_session_of_the_native_engine(program):
    """It has a copy of the engine, whose sockets are not its own. (Of the Python engine it has
    Tasks as well, which asyncio ends there, with the loop's epoll that both have.)"""
    process = program("forked", "native")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    assert json.loads(out) == {"came": ["last words", "second"], "ended": FINISHED}


def test_a_forked_child_that_stops_listening_leaves_its_parent_alone(program):
    """Of the native engine's epoll it has a copy as well."""
    process = program("forked_listener", "native")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    assert out == "served\n"


async def test_both_ends_may_have_been_accepted(make_engine):
    """Then they are one session, not two, and its end leaves none."""
    rig = make_engine(max_sessions=2)
    introduced = []

    async def serve(conn) -> None:
        introduced.append(conn)

    address = rig.listen(serve)
    for _ in range(3):
        introduced.clear()
        fars = [rig.connect(address) for _ in range(2)]
        for far in fars:
            await far.send(b"x")
        await rig.until(lambda: len(introduced) == 2, "both introduced")
        for conn in introduced:
            assert await conn.recv() == b"x"
            conn.deadline(0)
        rig.engine.relay(*introduced, "flow", b"")
        for far in fars:
            far.close()
        await rig.until(lambda: rig.ends, "the end is told")
        rig.ends.clear()
        assert rig.engine.sessions == 0
