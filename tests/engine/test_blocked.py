# Shows what holds while nobody reads: memory stays bounded, the processor stays idle, and once
# somebody reads, everything comes.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import os

from support.system import resident_octets

MIB = 1 << 20


async def test_both_ends_write_10_mb_before_they_read(make_way, payload, calm):
    rig = make_way(pipe_size=1 << 16)
    relayed = rig.relay(buffers=65536)
    up, down = payload(10 * MIB, 1), payload(10 * MIB, 2)
    sending = [
        asyncio.ensure_future(relayed.client.send(up)),
        asyncio.ensure_future(relayed.remote.send(down)),
    ]
    await rig.stuck()
    assert not any(task.done() for task in sending), "nothing was blocked"
    await calm()
    got = await asyncio.gather(relayed.remote.read(len(up)), relayed.client.read(len(down)))
    assert got == [up, down]
    await asyncio.gather(*sending)


async def test_blocked_sessions_hold_a_bounded_amount(make_way, calm):
    rig = make_way(max_pipes=8)
    before = resident_octets(os.getpid())
    sessions = [rig.relay() for _ in range(20)]
    sent = await rig.stuck(*(end for relayed in sessions for end in relayed[:2]))
    assert min(sent) > 0
    await calm()
    # Each of the 40 directions may hold one buffer; a pipe's pages are the kernel's.
    assert resident_octets(os.getpid()) - before < 40 * MIB


async def test_a_blocked_session_does_not_stop_others(make_way, payload):
    rig = make_way(max_pipes=2, pipe_size=1 << 16)
    blocked = [rig.relay() for _ in range(6)]
    await rig.stuck(*(relayed.client for relayed in blocked))
    other = rig.relay()
    data = payload(8 * MIB)
    sending = asyncio.ensure_future(other.client.send(data))
    assert await other.remote.read(len(data)) == data
    await sending


async def test_one_direction_blocked_the_other_goes_on(make_way, payload):
    rig = make_way()
    relayed = rig.relay()
    [sent] = await rig.stuck(relayed.client)
    data = payload(8 * MIB)
    sending = asyncio.ensure_future(relayed.remote.send(data))
    assert await relayed.client.read(len(data)) == data
    await sending
    assert len(await relayed.remote.read(sent)) == sent


async def test_idle_sessions_use_no_processor(make_way, calm):
    rig = make_way()
    sessions = [rig.relay() for _ in range(100)]
    for relayed in sessions:
        await relayed.client.send(b"x")
        assert await relayed.remote.read(1) == b"x"
    await calm()
