# Shows that a FIN is passed on as a FIN, after the last octet and not before, while the other
# direction goes on; each way, whatever is still under way, however slow the reader.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import socket

import pytest

from fastsocks.engine import FINISHED
from support.ends import say

MIB = 1 << 20
PENDING = [0, 1, 64 << 10, 10 * MIB]
DIRECTIONS = pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])


def ends_of(relayed, upwards):
    ends = relayed.client, relayed.remote
    return ends if upwards else ends[::-1]


def counts(upwards, there, back):
    return (there, back) if upwards else (back, there)


@DIRECTIONS
@pytest.mark.parametrize("pending", PENDING)
async def test_the_last_octet_comes_before_the_end(make_way, payload, pending, upwards):
    rig = make_way()
    relayed = rig.relay()
    source, sink = ends_of(relayed, upwards)
    data, late = payload(pending, 1), payload(MIB, 2)

    sending = asyncio.ensure_future(say(source, data))
    assert await sink.read_to_end() == data
    await sending
    # The other direction is untouched by it.
    sending = asyncio.ensure_future(sink.send(late))
    assert await source.read(len(late)) == late
    await sending
    assert rig.ends == []
    sink.finish()
    assert await source.read_to_end() == b""
    assert await rig.ended() == (relayed.flow, *counts(upwards, pending, MIB), FINISHED, 0)
    await rig.at_rest()


@DIRECTIONS
async def test_a_slow_reader_gets_all_of_it(make_way, payload, upwards):
    """The FIN is there long before the reader is, and everything between is full."""
    rig = make_way(pipe_size=1 << 16)
    relayed = rig.relay(buffers=32768)
    source, sink = ends_of(relayed, upwards)
    data = payload(2 * MIB)

    sending = asyncio.ensure_future(say(source, data))
    got = bytearray()
    while piece := await sink.recv(20_000):
        got += piece
        await asyncio.sleep(0.001)
    assert bytes(got) == data
    await sending
    sink.finish()
    assert await rig.ended() == (relayed.flow, *counts(upwards, len(data), 0), FINISHED, 0)


@DIRECTIONS
async def test_a_stuck_reader_that_wakes_up_after_the_fin(make_way, calm, upwards):
    rig = make_way(pipe_size=1 << 16)
    relayed = rig.relay(buffers=32768)
    source, sink = ends_of(relayed, upwards)
    [sent] = await rig.stuck(source)
    source.finish()
    await calm()
    assert len(await sink.read_to_end()) == sent
    sink.finish()
    assert await rig.ended() == (relayed.flow, *counts(upwards, sent, 0), FINISHED, 0)


async def test_both_ends_finish_at_once_with_data_under_way(make_way, payload):
    rig = make_way()
    relayed = rig.relay()
    up, down = payload(3 * MIB, 1), payload(3 * MIB, 2)

    assert await relayed.talk(up, down) == (up, down)
    assert await rig.ended() == (relayed.flow, len(up), len(down), FINISHED, 0)


@pytest.mark.parametrize("first", ["client", "remote"])
async def test_a_close_on_one_side_ends_the_session_when_the_other_closes(make_way, first):
    """Most programs never half-close: close() on both ends has to be an ordinary end."""
    rig = make_way()
    relayed = rig.relay()
    closes, stays = ends_of(relayed, first == "client")
    closes.close()
    assert await stays.read_to_end() == b""
    stays.close()
    assert (await rig.ended())[3] == FINISHED
    await rig.at_rest()


@DIRECTIONS
async def test_half_closed_unix_sockets(make_way, payload, upwards):
    rig = make_way()
    relayed = rig.relay("unix")
    source, sink = ends_of(relayed, upwards)
    data = payload(5 * MIB)

    sending = asyncio.ensure_future(say(source, data))
    assert await sink.read_to_end() == data
    await sending
    await sink.send(b"late")
    sink.finish()
    assert await source.read_to_end() == b"late"
    assert await rig.ended() == (relayed.flow, *counts(upwards, len(data), 4), FINISHED, 0)


async def test_a_read_of_a_unix_socket_that_stops_short(make_way):
    """It stops behind each message that passes descriptors, which are not passed on, but
    there is more."""
    rig = make_way()
    client, near = rig.connected("unix")
    remote, far = rig.connected("unix")
    for number in range(4):
        socket.send_fds(client.sock, [b"part %d " % number], [0])
    client.finish()
    rig.engine.relay(near, far, None, b"")
    assert await remote.read_to_end() == b"part 0 part 1 part 2 part 3 "


async def test_a_half_closed_session_at_rest_uses_no_processor(make_way, calm):
    rig = make_way()
    relayed = rig.relay()
    await relayed.client.send(b"question")
    relayed.client.finish()
    assert await relayed.remote.read_to_end() == b"question"
    await calm()
    await relayed.remote.send(b"answer")
    relayed.remote.finish()
    assert await relayed.client.read_to_end() == b"answer"
    assert await rig.ended() == (relayed.flow, 8, 6, FINISHED, 0)
