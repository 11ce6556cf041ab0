# Shows that what goes in at one end of a relayed session comes out at the other: every octet,
# in order, once, and counted.
#
# Must not know: which engine it is, except where counters tell splice from copy.

from __future__ import annotations

import asyncio

import pytest

from fastsocks.engine import FINISHED

MIB = 1 << 20
GIB = 1 << 30


async def test_one_gib_each_way_at_once(make_engine, bulk):
    rig = make_engine()
    relayed = rig.relay()
    await bulk.exchange(relayed, up=GIB, down=GIB)
    assert await rig.ended() == (relayed.flow, GIB, GIB, FINISHED, 0)
    await rig.at_rest()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_stream_each_way_in_every_way_of_relaying(make_way, bulk, kind):
    rig = make_way()
    relayed = rig.relay(kind)
    await bulk.exchange(relayed, up=64 * MIB, down=32 * MIB)
    assert await rig.ended() == (relayed.flow, 64 * MIB, 32 * MIB, FINISHED, 0)


async def test_a_tcp_and_a_unix_socket_can_be_joined(make_way, payload):
    rig = make_way()
    client, near = rig.connected("tcp")
    remote, far = rig.connected("unix")
    rig.engine.relay(near, far, "mixed", b"")
    data = payload(4 * MIB)
    sending = asyncio.gather(client.send(data), remote.send(data))
    assert await client.read(len(data)) == data
    assert await remote.read(len(data)) == data
    await sending
    client.finish()
    remote.finish()
    assert await rig.ended() == ("mixed", len(data), len(data), FINISHED, 0)


@pytest.mark.parametrize("size", [1, 1000, 3 * MIB])
async def test_early_octets_come_before_all_that_come_later(make_way, payload, size):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    early, later = payload(size, 1), payload(MIB, 2)
    await client.send(later[:1000])  # is in the kernel already when the relay begins
    rig.engine.relay(near, far, "early", early)
    sending = asyncio.ensure_future(client.send(later[1000:]))
    assert await remote.read(size + MIB) == early + later
    await sending
    client.finish()
    remote.finish()
    assert await rig.ended() == ("early", size + MIB, 0, FINISHED, 0)


async def test_early_octets_wait_for_a_remote_that_does_not_read(make_way, payload):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected(buffers=8192)
    early = payload(8 * MIB)
    rig.engine.relay(near, far, "early", early)
    client.finish()
    assert await remote.read_to_end() == early
    remote.finish()
    assert await rig.ended() == ("early", len(early), 0, FINISHED, 0)


async def test_a_reply_sent_before_the_relay_comes_before_relayed_octets(make_way, payload):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    stream = payload(4 * MIB)
    sending = asyncio.ensure_future(remote.send(stream))
    await near.send(b"the reply")
    rig.engine.relay(near, far, "reply", b"")
    assert await client.read(9 + len(stream)) == b"the reply" + stream
    await sending


async def test_what_recv_has_not_taken_is_relayed(make_engine, payload):
    """Payload that came in one segment with the handshake, and more than recv takes."""
    rig = make_engine()
    client, near = rig.connected()
    remote, far = rig.connected()
    data = payload(100_000)
    await client.send(data)
    taken = await near.recv()
    assert 0 < len(taken) <= 16384
    rig.engine.relay(near, far, "leftover", taken[10:])
    assert await remote.read(len(data) - 10) == data[10:]


async def test_a_remote_that_speaks_first(make_way):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    await remote.send(b"220 hello")
    rig.engine.relay(near, far, "greeting", b"")
    assert await client.read(9) == b"220 hello"
    await client.send(b"EHLO")
    assert await remote.read(4) == b"EHLO"


@pytest.mark.parametrize("greeting", [b"", b"bye"], ids=["silent", "with data"])
async def test_a_remote_that_has_closed_before_the_relay_begins(make_way, greeting):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    await remote.send(greeting)
    remote.close()
    rig.engine.relay(near, far, "closed", b"")
    assert await client.read_to_end() == greeting
    client.finish()
    assert await rig.ended() == ("closed", 0, len(greeting), FINISHED, 0)


async def test_ping_pong_of_all_sizes(make_way, payload):
    rig = make_way()
    relayed = rig.relay()
    total = 0
    for size in (1, 2, 63, 64, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 200_000, 1):
        data = payload(size, size)
        await relayed.client.send(data)
        assert await relayed.remote.read(size) == data
        await relayed.remote.send(data[::-1])
        assert await relayed.client.read(size) == data[::-1]
        total += size
    relayed.client.finish()
    relayed.remote.finish()
    assert await rig.ended() == (relayed.flow, total, total, FINISHED, 0)


async def test_many_sessions_at_once_do_not_mix(make_way, payload):
    rig = make_way(max_pipes=4)

    async def one(seed: int) -> None:
        relayed = rig.relay()
        data = payload(MIB + seed, seed)
        sending = asyncio.gather(relayed.client.send(data), relayed.remote.send(data[::-1]))
        got = await asyncio.gather(relayed.remote.read(len(data)), relayed.client.read(len(data)))
        await sending
        assert got == [data, data[::-1]]
        relayed.client.finish()
        relayed.remote.finish()

    await asyncio.gather(*(one(seed) for seed in range(20)))
    await rig.ended(20)
    assert {end[3] for end in rig.ends} == {FINISHED}
    assert sorted(end[1] for end in rig.ends) == [MIB + seed for seed in range(20)]
    await rig.at_rest()


async def test_a_busy_stream_leaves_others_their_turn(make_engine, bulk):
    """While one session streams without a pause, another one's small messages go through."""
    rig = make_engine()
    small = rig.relay()
    enough = asyncio.Event()

    async def stream() -> None:
        while not enough.is_set():
            await bulk.exchange(rig.relay(), up=64 * MIB, down=64 * MIB)

    streaming = asyncio.ensure_future(stream())
    for _ in range(50):
        before = rig.moved()
        await small.client.send(b"ping")
        assert await small.remote.read(4) == b"ping"
        await rig.until(lambda before=before: rig.moved() > before + 4, "the stream goes on")
    enough.set()
    await streaming
