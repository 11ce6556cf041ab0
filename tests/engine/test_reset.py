# Shows that a reset is passed on as a reset, whatever is under way and whatever state the
# session is in: never as an end, which the other side would take for success.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import sys

import pytest

from fastsocks.engine import CLIENT_RESET, FINISHED, REMOTE_RESET

MIB = 1 << 20
SIDES = pytest.mark.parametrize("side", ["client", "remote"])
REASON = {"client": CLIENT_RESET, "remote": REMOTE_RESET}
# macOS says to who sends that the pipe is broken.
TOLD_WHO_SENDS = ConnectionResetError if sys.platform == "linux" else BrokenPipeError


def ends_of(relayed, side):
    ends = relayed.client, relayed.remote
    return ends if side == "client" else ends[::-1]


@SIDES
async def test_a_reset_at_rest(make_way, side):
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    await breaks.send(b"x")
    assert await other.read(1) == b"x"
    breaks.reset()
    await other.expect_reset()
    flow, *_, reason, error = await rig.ended()
    assert flow is relayed.flow
    assert reason == REASON[side]
    assert error != 0
    await rig.at_rest()


@SIDES
async def test_a_reset_before_the_relay_begins(make_way, side):
    rig = make_way()
    client, near = rig.connected()
    remote, far = rig.connected()
    breaks, other = (client, remote) if side == "client" else (remote, client)
    breaks.reset()
    rig.engine.relay(near, far, "flow", b"")
    await other.expect_reset()
    assert (await rig.ended())[3] == REASON[side]
    await rig.at_rest()


@SIDES
async def test_a_reset_of_who_sends_while_the_other_does_not_read(make_way, side):
    """Everything between is full, and nothing that is read will ever tell of the reset."""
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    await rig.stuck(breaks)
    breaks.reset()
    assert (await rig.ended())[3] == REASON[side]
    await other.expect_reset()
    await rig.at_rest()


@SIDES
async def test_a_reset_of_who_does_not_read_while_the_other_sends(make_way, side):
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    await rig.stuck(other)
    breaks.reset()
    assert (await rig.ended())[3] == REASON[side]
    with pytest.raises(TOLD_WHO_SENDS):
        await other.send(bytes(64 * MIB))
    await rig.at_rest()


@SIDES
async def test_a_reset_while_both_directions_are_full(make_way, side):
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    await rig.stuck(breaks, other)
    breaks.reset()
    assert (await rig.ended())[3] == REASON[side]
    await other.expect_reset()
    await rig.at_rest()


@SIDES
async def test_a_reset_after_its_own_fin(make_way, side):
    """Half-closed, so nobody reads from it any more."""
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    breaks.finish()
    assert await other.read_to_end() == b""
    breaks.reset()
    assert (await rig.ended())[3] == REASON[side]
    with pytest.raises(ConnectionError):  # it has read a FIN, so recv goes on telling of that
        while True:
            await other.send(b"anybody there?")
            await asyncio.sleep(0)
    await rig.at_rest()


@SIDES
async def test_a_reset_after_the_other_ends_fin(make_way, side):
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    other.finish()
    assert await breaks.read_to_end() == b""
    breaks.reset()
    await other.expect_reset()
    assert (await rig.ended())[3] == REASON[side]
    await rig.at_rest()


@pytest.mark.linux  # the kernel of macOS sends a FIN
@SIDES
async def test_closing_with_unread_input_is_a_reset(make_way, side):
    """What a killed or careless program does: the kernel sends the reset for it."""
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    await other.send(b"never read")
    await rig.until(lambda: rig.moved() == 10, "the octets went through")
    breaks.close()
    await other.expect_reset()
    assert (await rig.ended())[3] == REASON[side]


async def test_a_late_answer_to_a_client_that_has_closed(make_way):
    """The client closed for good and its FIN was taken for a half-close; the remote's next
    octets are answered by a reset."""
    rig = make_way()
    relayed = rig.relay()
    relayed.client.close()
    assert await relayed.remote.read_to_end() == b""
    await relayed.remote.send(b"too late")
    assert (await rig.ended())[3] == CLIENT_RESET
    with pytest.raises(ConnectionError):  # it has read a FIN, so recv goes on telling of that
        while True:
            await relayed.remote.send(b"even later")
            await asyncio.sleep(0)
    await rig.at_rest()


@SIDES
async def test_what_was_sent_before_a_reset_of_the_other_end_counts(make_way, payload, side):
    rig = make_way()
    relayed = rig.relay()
    breaks, other = ends_of(relayed, side)
    there, back = payload(70_000, 1), payload(50_000, 2)
    await breaks.send(there)
    assert await other.read(len(there)) == there
    await other.send(back)
    assert await breaks.read(len(back)) == back
    breaks.reset()
    await other.expect_reset()
    _, up, down, reason, _ = await rig.ended()
    assert (up, down) == ((70_000, 50_000) if side == "client" else (50_000, 70_000))
    assert reason == REASON[side]


async def test_a_unix_socket_that_closes_with_unread_input(make_way):
    """A Unix socket cannot be reset; it can be closed on unread octets, which tells the same."""
    rig = make_way()
    relayed = rig.relay("unix")
    await rig.stuck(relayed.client)
    relayed.remote.close()
    assert (await rig.ended())[3] == REMOTE_RESET
    with pytest.raises(ConnectionError):
        await relayed.client.send(bytes(64 * MIB))
    await rig.at_rest()


async def test_a_finished_session_is_not_reset(make_way, payload):
    """The last octets are still on their way to a slow reader when the session has ended."""
    rig = make_way()
    relayed = rig.relay()
    data = payload(200_000)
    relayed.client.finish()
    assert await relayed.remote.read_to_end() == b""
    await relayed.remote.send(data)
    relayed.remote.close()
    assert (await rig.ended())[3] == FINISHED
    assert await relayed.client.read_to_end() == data
