# Shows that the errors which relays with splice have had, here and there, over the years, are
# not in this one. Each test is named after one of them. Copying is held to the same.
#
# Must not know: which engine it is; only what may go wrong.

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios

import pytest

from fastsocks.engine import FINISHED, IDLE, KILLED, REMOTE_RESET
from support.ends import PATIENCE

MIB = 1 << 20
SMALL_PIPE = 1 << 16  # 16 slots: soon full, by octets or by segments
# A socket that is corked keeps what is no full segment for 200 ms; so many of those nobody
# waits for.
BEYOND_PATIENCE = int(2 * PATIENCE / 0.2)


def queued(sock: socket.socket, which: int) -> int:
    """The octets that the kernel has to send, or has to be read."""
    return int.from_bytes(fcntl.ioctl(sock, which, bytes(4)), sys.byteorder)


async def streaming(rig, **options):
    """A session whose up direction has proved to be a stream."""
    relayed = rig.relay(**options)
    sending = asyncio.ensure_future(relayed.client.send(bytes(4 * MIB)))
    assert len(await relayed.remote.read(4 * MIB)) == 4 * MIB
    await sending
    return relayed


# -- the five classes ---------------------------------------------------------


@pytest.mark.parametrize("buffers", [0, 16384])
async def test_class_1_the_end_is_passed_on_while_octets_are_held(make_way, payload, buffers):
    rig = make_way(pipe_size=SMALL_PIPE)
    relayed = rig.relay(buffers=buffers)
    data = payload(8 * MIB)
    sending = asyncio.ensure_future(relayed.client.send(data))
    got = await relayed.remote.read(4 * MIB)  # now it streams
    await rig.until(lambda: sending.done() or rig.moved() >= 4 * MIB, "the sender goes on")
    await rig.stuck()
    finishing = asyncio.ensure_future(sending)
    finishing.add_done_callback(lambda _: relayed.client.finish())
    got += await relayed.remote.read_to_end()
    await sending
    assert got == data
    relayed.remote.finish()
    assert await rig.ended() == (relayed.flow, len(data), 0, FINISHED, 0)


async def test_class_2_eagain_means_no_slot_in_the_pipe_not_no_input(make_way, payload):
    """A slot, not an octet, is the unit of a pipe: a few tiny segments fill it."""
    rig = make_way(pipe_size=SMALL_PIPE)
    client, near = rig.connected()
    remote, far = rig.connected(buffers=16384)
    rig.engine.relay(near, far, "flow", b"")
    stream = payload(MIB, 1)
    sending = asyncio.ensure_future(client.send(stream))
    assert await remote.read(MIB) == stream
    await sending
    tiny = payload(120_000, 2)
    for start in range(0, len(tiny), 40):
        await client.send(tiny[start : start + 40])
        if start % 640 == 0:
            await asyncio.sleep(0)
    assert await remote.read(len(tiny)) == tiny
    # And that was not the last that ever came.
    await client.send(b"more")
    assert await remote.read(4) == b"more"


async def test_class_3_the_last_block_and_the_end_in_one_wake_up(make_way, payload, calm):
    """One event tells both; if neither leg takes the second half, it is told for ever."""
    rig = make_way()
    relayed = await streaming(rig)
    block = payload(50_000)
    assert relayed.client.sock.send(block) == len(block)
    relayed.client.finish()
    assert await relayed.remote.read_to_end() == block
    await calm()
    relayed.remote.finish()
    assert (await rig.ended())[3] == FINISHED


async def test_class_4_both_pipes_are_full(make_way, calm):
    rig = make_way(pipe_size=SMALL_PIPE)
    relayed = await streaming(rig)
    up, down = await rig.stuck(relayed.client, relayed.remote)
    await calm()
    got = await asyncio.gather(relayed.remote.read(up), relayed.client.read(down))
    assert [len(octets) for octets in got] == [up, down]
    relayed.client.finish()
    relayed.remote.finish()
    assert (await rig.ended())[3] == FINISHED


@pytest.mark.parametrize("how", ["kill", "reset", "idle"])
async def test_class_5_a_dirty_pipe_goes_back_to_the_pool(make_way, payload, how):
    """The octets of a session that was cut off must not turn up in another one."""
    rig = make_way(max_pipes=2, pipe_size=SMALL_PIPE, idle_timeout=1.5 if how == "idle" else 0)
    for round_number in range(2):
        secret = rig.relay()
        assert secret.client.sock.send(b"S" * 50_000) > 0
        await rig.stuck(secret.client)
        if how == "kill":
            rig.engine.kill(secret.handle)
        elif how == "reset":
            secret.remote.reset()
        reason = (await rig.ended(2 * round_number + 1))[3]
        assert reason == {"kill": KILLED, "reset": REMOTE_RESET, "idle": IDLE}[how]
        data = payload(4 * MIB, round_number)
        next_one = rig.relay()
        sending = asyncio.gather(next_one.client.send(data), next_one.remote.send(data))
        got = await asyncio.gather(next_one.remote.read(len(data)), next_one.client.read(len(data)))
        await sending
        assert got == [data, data]
        assert rig.engine.counters()["pipes"] <= 2
        next_one.client.close()
        next_one.remote.close()
        await rig.ended(2 * round_number + 2)
    await rig.at_rest()


# -- others on record ---------------------------------------------------------


async def test_octets_left_in_the_pipe_and_the_writer_not_armed(make_way, payload):
    """A burst larger than everything between, then silence: no event of the sender's will
    ever push the rest."""
    rig = make_way(pipe_size=SMALL_PIPE)
    relayed = await streaming(rig, buffers=16384)
    burst = payload(3 * MIB)
    sending = asyncio.ensure_future(relayed.client.send(burst))
    got = bytearray()
    while len(got) < len(burst):
        got += await relayed.remote.recv(30_000)
        await asyncio.sleep(0)
    assert bytes(got) == burst
    await sending


async def test_a_pipe_kept_after_a_failed_send(make_way):
    """The session is freed, and so is its pipe, though octets were in it."""
    rig = make_way(max_pipes=4)
    for number in range(1, 4):
        relayed = await streaming(rig)
        await rig.stuck(relayed.client)
        relayed.remote.reset()
        assert (await rig.ended(number))[3] == REMOTE_RESET
    await rig.at_rest()
    assert rig.engine.counters()["pipes"] <= 4


async def test_objects_of_a_megabyte_over_one_connection(make_way, payload):
    """Stream, stop, stream: each object has to come without the next one pushing it."""
    rig = make_way()
    relayed = rig.relay()
    data = payload(MIB)
    async with asyncio.timeout(PATIENCE):
        for _ in range(BEYOND_PATIENCE):
            await relayed.client.send(b"GET")
            assert await relayed.remote.read(3) == b"GET"
            sending = asyncio.ensure_future(relayed.remote.send(data))
            assert await relayed.client.read(MIB) == data
            await sending


async def test_a_small_message_after_a_stream_is_not_held_back(make_way):
    """As a corked socket would do."""
    rig = make_way()
    relayed = await streaming(rig)
    async with asyncio.timeout(PATIENCE):
        for _ in range(BEYOND_PATIENCE):
            await relayed.client.send(b"ping")
            assert await relayed.remote.read(4) == b"ping"
            await relayed.remote.send(b"pong")
            assert await relayed.client.read(4) == b"pong"


async def test_from_stream_to_ping_pong_and_back(make_way, payload):
    """Splice and copy take turns in one direction; nothing is lost or overtaken."""
    rig = make_way()
    relayed = rig.relay()
    total = 0
    for round_number in range(6):
        data = payload(2 * MIB, round_number)
        sending = asyncio.ensure_future(relayed.client.send(data))
        assert await relayed.remote.read(len(data)) == data
        await sending
        for size in range(1, 30):
            await relayed.client.send(data[:size])
            assert await relayed.remote.read(size) == data[:size]
        total += len(data) + sum(range(1, 30))
    relayed.client.finish()
    relayed.remote.finish()
    assert await rig.ended() == (relayed.flow, total, 0, FINISHED, 0)


@pytest.mark.linux  # elsewhere sockets have no TIOCOUTQ
async def test_traffic_is_counted_where_it_leaves(make_way):
    """What sits in a pipe or a buffer when the session is cut off was not relayed."""
    rig = make_way()
    client, near = rig.connected(buffers=16384)
    far, its = rig.pair(buffers=16384)
    with its.dup() as seen:
        handle = rig.engine.relay(near, rig.engine.adopt(its), "flow", b"")
        [sent] = await rig.stuck(client)
        left = queued(seen, termios.TIOCOUTQ) + queued(far, termios.FIONREAD)
    assert rig.moved() == left < sent
    rig.engine.kill(handle)
    assert (await rig.ended())[1:4] == (left, 0, KILLED)


async def test_the_idle_timer_is_fed_by_splice(make_way):
    rig = make_way(idle_timeout=1.5)
    relayed = await streaming(rig)
    for _ in range(10):
        sending = asyncio.ensure_future(relayed.client.send(bytes(1 << 18)))
        assert len(await relayed.remote.read(1 << 18)) == 1 << 18
        await sending
        await asyncio.sleep(0.2)
    assert rig.ends == []
    assert (await rig.ended())[3] == IDLE
