# Shows that TCP's urgent octet, wherever it is in the stream, costs no octet beside it, no
# processor, and no session. (It stops splice without emptying the queue, which once was a
# denial of service: CVE-2017-6214.) Whether the octet itself is relayed is left open.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import socket

import pytest

from fastsocks.engine import FINISHED

MIB = 1 << 20
URGENT = b"\xff"


def plain(size):
    """Octets without the urgent one's value."""
    return bytes(range(251)) * (size // 251 + 1)


def without_urgent(octets):
    return octets.replace(URGENT, b"")


def send_urgent(end):
    assert end.sock.send(URGENT, socket.MSG_OOB) == 1


async def finish(rig, sender, receiver, expected, direction="up"):
    receiver.finish()
    assert await sender.read_to_end() == b""
    _, up, down, reason, _ = await rig.ended()
    moved, other = (up, down) if direction == "up" else (down, up)
    assert expected <= moved <= expected + 1
    assert (other, reason) == (0, FINISHED)


@pytest.mark.parametrize(
    ("before", "after"), [(1, 1), (1000, 3 * MIB), (3 * MIB, 1000), (3 * MIB, 3 * MIB)]
)
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_in_the_middle(make_way, before, after, direction):
    rig = make_way()
    relayed = rig.relay()
    ends = relayed.client, relayed.remote
    sender, receiver = ends if direction == "up" else reversed(ends)
    head, tail = plain(before), plain(after)

    async def talk() -> None:
        await sender.send(head)
        send_urgent(sender)
        await sender.send(tail)
        sender.finish()

    sending = asyncio.ensure_future(talk())
    assert without_urgent(await receiver.read_to_end()) == head + tail
    await sending
    await finish(rig, sender, receiver, len(head) + len(tail), direction)


async def test_in_front_of_everything(make_way, calm):
    rig = make_way()
    relayed = rig.relay()
    send_urgent(relayed.client)
    await calm()
    await relayed.client.send(plain(1000))
    relayed.client.finish()
    assert without_urgent(await relayed.remote.read_to_end()) == plain(1000)
    await finish(rig, relayed.client, relayed.remote, len(plain(1000)))


async def test_before_the_relay_begins(make_way, calm):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    await client.send(b"before")
    send_urgent(client)
    await client.send(b"after")
    rig.engine.relay(near, far, "flow", b"")
    client.finish()
    assert without_urgent(await remote.read_to_end()) == b"beforeafter"
    await calm()
    remote.finish()
    assert (await rig.ended())[3] == FINISHED


async def test_just_before_the_end(make_way, calm):
    rig = make_way()
    relayed = rig.relay()
    await relayed.client.send(plain(1000))
    send_urgent(relayed.client)
    relayed.client.finish()
    assert without_urgent(await relayed.remote.read_to_end()) == plain(1000)
    await calm()
    await finish(rig, relayed.client, relayed.remote, len(plain(1000)))


async def test_alone_and_then_the_end(make_way, calm):
    rig = make_way()
    relayed = rig.relay()
    send_urgent(relayed.client)
    relayed.client.finish()
    assert without_urgent(await relayed.remote.read_to_end()) == b""
    await calm()
    await finish(rig, relayed.client, relayed.remote, 0)


async def test_at_the_end_of_a_full_stream_and_then_silence(make_way, calm):
    """The reader takes what is there; the urgent octet stays in front of nothing."""
    rig = make_way()
    relayed = rig.relay()
    head = plain(2 * MIB)
    sending = asyncio.ensure_future(relayed.client.send(head))
    got = await relayed.remote.read(len(head))
    await sending
    send_urgent(relayed.client)
    await calm()
    await relayed.client.send(b"more")
    relayed.client.finish()
    got += await relayed.remote.read_to_end()
    assert without_urgent(got) == head + b"more"


async def test_again_and_again(make_way):
    rig = make_way()
    relayed = rig.relay()
    piece = plain(30_000)

    async def talk() -> None:
        for _ in range(50):
            await relayed.client.send(piece)
            send_urgent(relayed.client)
        relayed.client.finish()

    sending = asyncio.ensure_future(talk())
    assert without_urgent(await relayed.remote.read_to_end()) == piece * 50
    await sending
    relayed.remote.finish()
    assert (await rig.ended())[3] == FINISHED
