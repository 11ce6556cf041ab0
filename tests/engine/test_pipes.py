# Shows that pipes are a means, never a need: with none, with few, and where the kernel grants
# an unprivileged user no more of them, every octet arrives. And that with pipes, splice is what
# carries a stream.
#
# Must not know: how an engine shares out its pipes.

from __future__ import annotations

import asyncio
import json

import pytest

from fastsocks.engine import FINISHED

MIB = 1 << 20
NATIVE = pytest.mark.parametrize("engine", ["native"])


@NATIVE
async def test_splice_carries_the_bulk(start_engine, bulk, engine):
    rig = start_engine(engine, relay="auto")
    await bulk.exchange(rig.relay(), up=256 * MIB, down=0)
    await rig.ended()
    counters = rig.engine.counters()
    assert counters["spliced"] >= 0.9 * 256 * MIB
    assert counters["spliced"] + counters["copied"] == 256 * MIB


@NATIVE
async def test_splice_carries_an_object_from_its_beginning(start_engine, payload, engine):
    """A download of some hundred KB is over before there is much to be learned from it."""
    rig = start_engine(engine, relay="auto")
    # Unix sockets queue it all before there is a relay. Over TCP the window would let only
    # its beginning in, and how the rest comes, and so how it is moved, would be a race.
    client, near = rig.connected("unix")
    remote, far = rig.connected("unix")
    data = payload(128 * 1024)
    await remote.send(data)
    rig.engine.relay(near, far, None, b"")
    assert await client.read(len(data)) == data
    await rig.over(client, remote)
    counters = rig.engine.counters()
    assert counters["copied"] <= 32 * 1024
    assert counters["spliced"] + counters["copied"] == len(data)


@NATIVE
async def test_small_messages_are_copied(start_engine, engine):
    rig = start_engine(engine, relay="auto")
    relayed = rig.relay()
    for _ in range(100):
        await relayed.client.send(bytes(1000))
        assert len(await relayed.remote.read(1000)) == 1000
    await rig.over(relayed.client, relayed.remote)
    counters = rig.engine.counters()
    assert (counters["spliced"], counters["copied"]) == (0, 100_000)


@NATIVE
@pytest.mark.parametrize("settings", [{"relay": "copy"}, {"max_pipes": 0}], ids=str)
async def test_no_pipe_where_none_is_wanted(start_engine, bulk, engine, settings):
    rig = start_engine(engine, **settings)
    await bulk.exchange(rig.relay(), up=64 * MIB, down=64 * MIB)
    await rig.ended()
    counters = rig.engine.counters()
    assert (counters["spliced"], counters["pipes"]) == (0, 0)
    assert counters["copied"] == 128 * MIB


@NATIVE
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_splice_alone_carries_everything(start_engine, payload, engine, kind):
    rig = start_engine(engine, relay="splice")
    relayed = rig.relay(kind)
    data = payload(2 * MIB)
    sending = asyncio.ensure_future(relayed.client.send(data))
    assert await relayed.remote.read(len(data)) == data
    await sending
    await rig.over(relayed.client, relayed.remote)
    assert rig.engine.counters()["spliced"] >= 0.9 * len(data)


@pytest.mark.parametrize("engine", ["python"])
async def test_the_twin_has_no_pipes(start_engine, bulk, engine):
    rig = start_engine(engine)
    await bulk.exchange(rig.relay(), up=16 * MIB, down=0)
    await rig.ended()
    counters = rig.engine.counters()
    assert (counters["spliced"], counters["pipes"], counters["pipes_refused"]) == (0, 0, 0)
    assert counters["copied"] == 16 * MIB


@pytest.mark.parametrize("max_pipes", [0, 1, 3])
async def test_more_streams_than_pipes(make_way, payload, max_pipes):
    rig = make_way(max_pipes=max_pipes)

    async def one(seed: int) -> None:
        relayed = rig.relay()
        up, down = payload(6 * MIB, seed), payload(5 * MIB, -seed)

        assert await relayed.talk(up, down) == (up, down)

    await asyncio.gather(*(one(seed) for seed in range(1, 9)))
    await rig.ended(8)
    assert {end[3] for end in rig.ends} == {FINISHED}
    assert rig.engine.counters()["pipes"] <= max_pipes


async def test_pipes_go_round_when_their_users_are_blocked(make_way, payload):
    """One pipe, and who has it does not read: the others go on without."""
    rig = make_way(max_pipes=1)
    holder = rig.relay()
    [stuck] = await rig.stuck(holder.client)
    data = payload(8 * MIB)
    other = rig.relay()
    sending = asyncio.ensure_future(other.client.send(data))
    assert await other.remote.read(len(data)) == data
    await sending
    assert len(await holder.remote.read(stuck)) == stuck


def test_an_unprivileged_user_whose_pipe_quota_is_used_up(way, program):
    """Root never meets this quota (64 MB for all processes of a user), users do at once."""
    engine, relay = way.split("-")
    process = program("starved_of_pipes", engine, relay)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    result = json.loads(out)
    assert result["uid"] != 0
    assert result["granted"] < 1 << 16, "the quota did not bite, so nothing was shown"
    assert result["wrong"] == 0
    assert result["finished"] == result["sessions"]
