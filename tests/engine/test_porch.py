# Shows where a session is relayed: a short one on the loop's thread, and one that lasts or
# streams on a thread that does not need the loop; with all that is true of it on both.
#
# Must not know: how the one hands over to the other.

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from fastsocks.engine import FINISHED, HALF_CLOSED, IDLE, KILLED, REMOTE_RESET
from support.ends import PATIENCE

MIB = 1 << 20


@pytest.fixture
def make_rig(start_engine):
    return lambda **settings: start_engine("native", **{"relay_threads": 1} | settings)


def moved_on(rig) -> int:
    return rig.engine.counters()["moved_on"]


async def ping_pong(session, times: int) -> None:
    for _ in range(times):
        await session.client.send(b"ping")
        assert await session.remote.read(4) == b"ping"
        await session.remote.send(b"pong")
        assert await session.client.read(4) == b"pong"


async def until_moved_on(rig, count: int = 1) -> None:
    await rig.until(lambda: moved_on(rig) == count, f"{count} moved on", PATIENCE)


def blocking_ping_pong(session, times: int) -> int:
    """On the loop's thread, which can do nothing else meanwhile. How many round trips there
    were, each as it should be."""
    done = 0
    for end in (session.client.sock, session.remote.sock):
        end.settimeout(PATIENCE)
    for _ in range(times):
        session.client.sock.sendall(b"ping")
        assert session.remote.sock.recv(4) == b"ping"
        session.remote.sock.sendall(b"pong")
        assert session.client.sock.recv(4) == b"pong"
        done += 1
    return done


def watched() -> dict[int, int]:
    """How many descriptors each epoll of this process watches."""
    counts = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]":
                counts[int(fd)] = Path(f"/proc/self/fdinfo/{fd}").read_text().count("tfd:")
    return counts


async def test_a_short_session_ends_where_it_began(make_rig):
    rig = make_rig()
    session = rig.relay()
    await ping_pong(session, 3)
    await rig.over(session.client, session.remote)
    assert rig.ends[-1][1:4] == (12, 12, FINISHED)
    assert moved_on(rig) == 0


async def test_many_round_trips_move_it_on(make_rig):
    rig = make_rig()
    session = rig.relay()
    await ping_pong(session, 40)
    await until_moved_on(rig)
    assert blocking_ping_pong(session, 20) == 20


async def test_rest_moves_it_on(make_rig):
    rig = make_rig()
    session = rig.relay()
    await until_moved_on(rig)
    assert blocking_ping_pong(session, 1) == 1


@pytest.mark.parametrize("relay", ["auto", "copy"])
async def test_a_stream_moves_on_with_every_octet(make_rig, payload, relay):
    rig = make_rig(relay=relay)
    session = rig.relay()
    data = payload(24 * MIB)
    sending = asyncio.ensure_future(session.remote.send(data))
    received = await session.client.read(len(data))
    await sending
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    await until_moved_on(rig)
    await rig.over(session.client, session.remote)
    assert rig.ends[-1][1:3] == (0, len(data))


@pytest.mark.parametrize("pipes", [0, 8, 64])
async def test_what_is_held_moves_on_too(make_rig, payload, pipes):
    """The remote does not read: the engine holds octets, in a pipe if it has any."""
    rig = make_rig(max_pipes=pipes)
    session = rig.relay(buffers=64 * 1024)
    (sent,) = await rig.stuck(session.client)
    await until_moved_on(rig)
    data = await session.remote.read(sent)
    assert len(data) == sent
    rest = payload(100_000)
    sending = asyncio.ensure_future(session.client.send(rest))
    assert await session.remote.read(len(rest)) == rest
    await sending


@pytest.mark.parametrize("pipes", [0, 64])
async def test_what_is_held_is_neither_lost_nor_changed(make_rig, payload, pipes):
    rig = make_rig(max_pipes=pipes)
    session = rig.relay(buffers=64 * 1024)
    data = payload(3 * MIB)
    sending = asyncio.ensure_future(session.client.send(data))
    await until_moved_on(rig)
    assert await session.remote.read(len(data)) == data
    await sending


async def test_a_half_closed_session_moves_on(make_rig):
    rig = make_rig()
    session = rig.relay()
    await session.client.send(b"question")
    session.client.finish()
    assert await session.remote.read_to_end() == b"question"
    await until_moved_on(rig)
    await session.remote.send(b"answer")
    session.remote.close()
    assert await session.client.read_to_end() == b"answer"
    await rig.ended()
    assert rig.ends[-1][1:4] == (8, 6, FINISHED)


@pytest.mark.parametrize("moves_on", [False, True])
@pytest.mark.parametrize("reason", [REMOTE_RESET, KILLED])
async def test_broken_off_on_either(make_rig, moves_on, reason):
    rig = make_rig()
    session = rig.relay()
    if moves_on:
        await until_moved_on(rig)
    if reason == KILLED:
        rig.engine.kill(session.handle)
    else:
        session.remote.reset()
    assert (await rig.ended())[3] == reason
    assert moved_on(rig) == moves_on
    await session.client.expect_reset()


@pytest.mark.parametrize(
    ("limits", "half_closed", "reason"),
    [
        ({"idle_timeout": 0.3}, False, IDLE),
        ({"idle_timeout": 1.5}, False, IDLE),
        ({"idle_timeout": 0, "half_closed_timeout": 0.3}, True, HALF_CLOSED),
        ({"idle_timeout": 0, "half_closed_timeout": 1.5}, True, HALF_CLOSED),
    ],
)
async def test_limits_shorter_and_longer_than_its_stay(make_rig, limits, half_closed, reason):
    rig = make_rig(**limits)
    session = rig.relay()
    if half_closed:
        session.client.finish()
    began = rig.loop.time()
    assert (await rig.ended())[3] == reason
    assert rig.loop.time() - began >= max(limits.values())


async def test_sessions_are_spread_over_the_threads(make_rig):
    rig = make_rig(relay_threads=2)
    await asyncio.sleep(0)  # the loop enters what it watches as its turn begins
    before = watched()
    sessions = [rig.relay() for _ in range(8)]
    await until_moved_on(rig, 8)
    more = {epoll: count - before[epoll] for epoll, count in watched().items()}
    # None at the porch's epoll, and two sockets each of four sessions at a thread's.
    assert sorted(filter(None, more.values())) == [8, 8]
    assert [blocking_ping_pong(session, 2) for session in sessions] == [2] * 8


async def test_splice_asked_for_outright_begins_on_a_thread(make_rig):
    rig = make_rig(relay="splice")
    session = rig.relay()
    assert blocking_ping_pong(session, 2) == 2
    assert moved_on(rig) == 0


async def test_where_most_are_large_the_next_begins_on_a_thread(make_rig):
    rig = make_rig()

    async def begin_and_end(octets: int, times: int) -> None:
        for _ in range(times):
            session = rig.relay()
            sending = asyncio.ensure_future(session.remote.send(bytes(octets)))
            assert len(await session.client.read(octets)) == octets
            await sending
            session.client.close()
            session.remote.close()
            await rig.ended(len(rig.ends) + 1)

    await begin_and_end(MIB // 2, 20)
    before = moved_on(rig)
    session = rig.relay()
    assert blocking_ping_pong(session, 2) == 2
    assert moved_on(rig) == before
    await begin_and_end(1000, 20)
    session = rig.relay()
    await ping_pong(session, 40)
    await until_moved_on(rig, before + 1)


async def test_closing_ends_those_on_either(make_rig):
    rig = make_rig()
    old = rig.relay()
    await until_moved_on(rig)
    new = rig.relay()
    rig.engine.close()
    assert sorted(end[0] is old.flow for end in rig.ends) == [False, True]
    assert {end[3] for end in rig.ends} == {KILLED}
    assert new.flow in [end[0] for end in rig.ends]


async def test_an_order_to_end_finds_one_that_has_just_moved_on(many_descriptors, make_rig):
    """A turn takes 256 events: one of those moves the session on, and the order is not
    among them."""
    rig = make_rig()
    sessions = [rig.relay() for _ in range(300)]
    leaver = sessions[0]
    await ping_pong(leaver, 15)
    await leaver.client.send(b"x")
    assert await leaver.remote.read(1) == b"x"
    for session in sessions:
        session.client.sock.send(b"y")
    rig.engine.kill(leaver.handle)
    assert moved_on(rig) == 0
    rig.engine.run_once()
    assert moved_on(rig) == 1
    assert (await rig.ended())[0] is leaver.flow
    assert rig.ends[0][3] == KILLED
    assert await sessions[-1].remote.read(1) == b"y"


@pytest.mark.parametrize("threads", ["0", "1"])
def test_no_signal_of_a_broken_connection_ends_the_program(program, threads):
    """splice() raises SIGPIPE; a program may have undone that Python ignores it."""
    process = program("broken_pipes", threads, "5")
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, f"ended by {process.returncode}: {process.log.read_text()}"
    told = json.loads(printed)
    assert told["reasons"] == ["client reset"]
    assert told["spliced"] > MIB


@pytest.fixture
def slow_timer(tmp_path):
    """What makes the loop's thread slow, to be preloaded beside what is preloaded already."""
    library = tmp_path / "slow_timer.so"
    source = Path(__file__).parent / "programs" / "slow_timer.c"
    plain = {**os.environ, "LD_PRELOAD": ""}  # gcc itself has leaks
    command = ["gcc", "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, env=plain, check=True, timeout=60)
    return " ".join((os.environ.get("LD_PRELOAD", ""), str(library))).strip()


def test_what_has_rested_too_long_is_moved_on_and_ended_once(program, slow_timer):
    """Its thread may find so before the loop's has come to the end of handing it over."""
    process = program("moved_when_idle", LD_PRELOAD=slow_timer, MICROSECONDS="500")
    out, _ = process.communicate(timeout=PATIENCE + 60)
    assert process.returncode == 0, process.log.read_text()
    assert json.loads(out) == [1] * 120
