# Shows that pipes are a means, never a need: with none, with few, and where the kernel grants
# an unprivileged user no more of them, every octet arrives. And that with pipes, splice is what
# carries a stream.
#
# Must not know: how an engine shares out its pipes.

from __future__ import annotations

import asyncio
import json
import resource

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
@pytest.mark.parametrize("relay_threads", [0, 1])
@pytest.mark.parametrize("after", ["many of them", "a rest"])
async def test_small_messages_are_copied_again_after_a_stream(
    start_engine, payload, engine, relay_threads, after
):
    rig = start_engine(engine, relay_threads=relay_threads)
    relayed = rig.relay()
    sent = 0

    async def send(size: int) -> None:
        nonlocal sent
        data = payload(size)
        sending = asyncio.ensure_future(relayed.client.send(data))
        assert await relayed.remote.read(size) == data
        await sending
        sent += size

    async def spliced() -> int:
        await rig.until(lambda: rig.moved() == sent, "all counted")
        return rig.engine.counters()["spliced"]

    await send(8 * MIB)
    if after == "a rest":
        await asyncio.sleep(1.1)  # it is time that makes the difference
    else:
        for _ in range(20):
            await send(100)
    before = await spliced()
    assert before > 4 * MIB
    for _ in range(5):
        await send(100)
    assert await spliced() == before


@NATIVE
async def test_a_stream_that_rests_holds_no_pipe(start_engine, payload, engine):
    """The next one gets it."""
    rig = start_engine(engine, relay="splice", max_pipes=1)
    size = 4 * MIB
    for number in range(1, 4):
        relayed = rig.relay()
        data = payload(size, number)
        sending = asyncio.ensure_future(relayed.client.send(data))
        assert await relayed.remote.read(size) == data
        await sending
        await rig.until(lambda total=number * size: rig.moved() == total, "all counted")
        assert rig.engine.counters()["spliced"] > (number - 0.1) * size
    assert rig.engine.counters()["pipes"] == 1
    assert rig.ends == []


@NATIVE
async def test_no_descriptor_for_a_pipe(start_engine, payload, engine):
    """It is copied then; and spliced when there are some again."""
    rig = start_engine(engine, relay="splice")
    relayed = rig.relay()
    data = payload(4 * MIB)

    async def send() -> None:
        sending = asyncio.ensure_future(relayed.client.send(data))
        assert await relayed.remote.read(len(data)) == data
        await sending

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        await send()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await rig.until(lambda: rig.moved() == len(data), "all counted")
    counters = rig.engine.counters()
    assert (counters["spliced"], counters["pipes"]) == (0, 0)
    assert counters["pipes_refused"] > 0
    deadline = rig.loop.time() + 20
    while not rig.engine.counters()["spliced"]:
        assert rig.loop.time() < deadline, "it never tried again"
        await send()


@NATIVE
@pytest.mark.parametrize("max_pipes", [1, 2, 5, 30])
async def test_all_threads_together_hold_no_more_pipes(start_engine, engine, max_pipes):
    """Streams whose readers do not read: each would hold one."""
    rig = start_engine(engine, relay="splice", relay_threads=4, max_pipes=max_pipes)
    streams = [rig.relay(buffers=64 * 1024) for _ in range(max_pipes + 4)]
    await rig.stuck(*(stream.client for stream in streams))
    assert 0 < rig.engine.counters()["pipes"] <= max_pipes


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


@pytest.mark.linux  # whose quota it is
@pytest.mark.parametrize("way", ["native-auto", "native-copy", "native-splice", "python-copy"])
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
