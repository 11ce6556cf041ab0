# Shows that associations take turns: a flood on one is read a few datagrams at a time, and
# those of another are seen to in between. And that a flood to ever new destinations, each of
# which has to be judged, leaves the loop time for all else.
#
# Must not know: which engine it is, or how many datagrams it takes at a time.

from __future__ import annotations

import asyncio
import collections

from fastsocks.engine import QUESTIONS_PER_TURN

# More than an engine may take at a time, and fewer than a socket's queue holds of this size.
FLOOD = 200
PATIENCE = 20.0


async def count_when_served(waiting, flooded) -> int:
    """How much of the flood has been passed on by the turn in which the one datagram is."""
    async with asyncio.timeout(PATIENCE):
        while waiting.is_silent():
            await asyncio.sleep(0)
    return count(flooded)


def count(flooded) -> int:
    passed = 0
    while not flooded.is_silent():
        passed += 1
    return passed


async def all_of_it(place, flooded, before: int) -> None:
    """Else the flood was none: something of it had no room in a queue."""
    arrived = [before]
    await place.rig.until(
        lambda: arrived.append(count(flooded)) or sum(arrived) == FLOOD, "the flood is passed on"
    )


async def test_on_the_way_up(make_place):
    # On the loop's thread, where nothing is read before the next await.
    place = make_place(relay_threads=0)
    (flooder, drain), (other, target) = [(place.client(), place.target()) for _ in range(2)]
    assert await flooder.ping(drain) == b"ping"
    assert await other.ping(target) == b"ping"
    for _ in range(FLOOD):
        flooder.send(b"flood", drain.address)
    other.send(b"one", target.address)
    before = await count_when_served(target, drain)
    assert before < FLOOD, "it had to wait for all of the flood"
    await all_of_it(place, drain, before)


async def test_on_the_way_down(make_place):
    place = make_place(relay_threads=0)
    (flooder, drain), (other, target) = [(place.client(), place.target()) for _ in range(2)]
    flooder.send(b"here", drain.address)
    other.send(b"here", target.address)
    _, flooded = await drain.recvfrom()
    _, outside = await target.recvfrom()
    for _ in range(FLOOD):
        drain.sock.sendto(b"flood", flooded)
    target.sock.sendto(b"one", outside)
    before = await count_when_served(other, flooder)
    assert before < FLOOD, "it had to wait for all of the flood"
    await all_of_it(place, flooder, before)


async def test_the_loop_is_asked_a_few_questions_at_a_time(make_place):
    place = make_place()
    clients, each = 12, 30
    turn, asked = 0, collections.Counter()

    def judge(association, atyp, raw, port):
        asked[turn] += 1
        association.answer(atyp, raw, port, None, 0)

    flooders = [place.client(on_ask=judge) for _ in range(clients)]
    for flooder in flooders:
        for port in range(1, 1 + each):
            flooder.send(b"x", ("127.0.0.1", port))
    async with asyncio.timeout(PATIENCE):
        while asked.total() < clients * each:
            await asyncio.sleep(0)
            turn += 1
    assert max(asked.values()) <= QUESTIONS_PER_TURN
