# Shows that a destination gets what the program's answer allows and nothing more: before there
# is one, when it denies, when it grows old, and when it changes.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio

import pytest


async def test_an_answer_may_take_its_time(make_place):
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    for number in range(10):
        client.send(b"%d" % number, target.address)
    await place.rig.until(lambda: questions, "asked")
    assert target.is_silent()
    association, *what = questions[0]
    association.answer(*what, target.address, 0)
    assert [await target.recv() for _ in range(10)] == [b"%d" % number for number in range(10)]
    assert len(questions) == 1


async def test_a_denied_destination(make_place):
    place = make_place()
    target, forbidden = place.target(), place.target()
    client = place.barred_from(forbidden)
    for _ in range(5):
        client.send(b"let me", forbidden.address)
    assert await client.drops("denied", 5) == 5
    assert await client.ping(target) == b"ping"
    assert forbidden.is_silent()
    assert len(client.asked) == 2


async def test_a_verdict_is_asked_for_again_when_it_is_old(make_place):
    place = make_place()
    target = place.target()
    client = place.client(
        on_ask=lambda association, *what: association.answer(*what, target.address, 0.001)
    )
    assert await client.ping(target) == b"ping"
    await asyncio.sleep(0.02)
    client.send(b"later", target.address)
    assert await target.recv() == b"later"
    await place.rig.until(lambda: len(client.asked) == 2, "asked again")
    assert client.old == [None, target.address]


async def test_a_flow_goes_on_while_its_verdict_is_asked_for_again(make_place, header):
    """Both ways, and until another one is given."""
    place = make_place()
    old, new = place.target(), place.target()

    def judge(association, *what):
        if len(client.asked) == 1:
            association.answer(*what, old.address, 0.001)

    client = place.client(on_ask=judge)
    outside = await client.seen_by(old)
    await asyncio.sleep(0.02)
    for _ in range(3):
        client.send(b"up", old.address)
        assert await old.recv() == b"up"
        old.sock.sendto(b"down", outside)
        assert await client.recv() == header(*old.address) + b"down"
    await place.rig.until(lambda: len(client.asked) == 2, "asked again")
    client.association.answer(*client.asked[1], new.address, 0)
    client.send(b"elsewhere", old.address)
    assert await new.recv() == b"elsewhere"
    old.sock.sendto(b"too late", outside)
    assert await client.drops("stranger", 1) == 1


async def test_a_verdict_may_change(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    outside = await client.seen_by(target)
    client.association.answer(*client.asked[0], None, 0)
    client.send(b"not any more", target.address)
    assert await client.drops("denied", 1) == 1
    target.sock.sendto(b"nor back", outside)
    assert await client.drops("stranger", 1) == 1
    client.association.answer(*client.asked[0], target.address, 0)
    assert await client.ping(target) == b"ping"


async def test_no_address_is_no_answer(make_place):
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    client.send(b"x", target.address)
    await place.rig.until(lambda: questions, "asked")
    association, *what = questions[0]
    with pytest.raises(OSError):
        association.answer(*what, ("not.a.literal.example", 53), 0)
    association.answer(3, b"never asked", 53, target.address, 0)
    association.answer(*what, target.address, 0)
    assert await target.recv() == b"x"
