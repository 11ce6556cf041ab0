# Shows that what is kept for an association, asked for it and done for it at a time has its
# bounds, whatever its client sends, and that octets at random are read as the codec reads them.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import random
import resource
import sys

import pytest

from fastsocks.proto import udp

PATIENCE = 20.0
NO_ROOM = BlockingIOError if sys.platform == "linux" else OSError  # ENOBUFS


async def test_only_a_few_datagrams_wait_for_verdicts(make_place):
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    for number in range(100):
        client.send(b"%d" % number, target.address)
    assert await client.drops("full", 100 - 16) == 100 - 16
    await place.rig.until(lambda: questions, "asked")
    association, *what = questions[0]
    association.answer(*what, target.address, 0)
    assert [await target.recv() for _ in range(16)] == [b"%d" % number for number in range(16)]


async def test_large_datagrams_wait_less(make_place, payload):
    place = make_place()
    client, target = place.client(on_ask=lambda *what: None), place.target()
    for _ in range(4):
        client.send(payload(30_000), target.address)
    assert await client.drops("full", 2) == 2


@pytest.mark.parametrize("size", [10, 1_400, 30_000])
async def test_what_waits_for_a_slow_name_leaves_room_for_others(make_place, payload, size):
    """A name server may be silent for as long as the client has patience."""
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    for name in ("slow.example", "as-slow.example"):
        for _ in range(min(40, 120_000 // size)):
            client.send(payload(size), (name, 53))

    def is_asked() -> bool:  # again, as its socket may have been full
        client.send(payload(size), target.address)
        return len(questions) == 3

    await place.rig.until(is_asked, "asked")
    association, *what = questions[2]
    association.answer(*what, target.address, 0)
    assert await target.recv() == payload(size)


async def test_what_waits_for_many_names_leaves_room_for_addresses(make_place):
    """As of one who is in a swarm, and some of whose trackers are gone."""
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    for number in range(40):
        client.send(b"x", (f"n{number}.example", 53))
    assert await client.drops("full", 40 - 24) == 40 - 24
    client.send(b"now", target.address)
    await place.rig.until(lambda: len(questions) == 25, "asked")
    association, *what = questions[-1]
    association.answer(*what, target.address, 0)
    assert await target.recv() == b"now"


async def test_only_a_few_questions_at_once(make_place):
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    for port in range(1, 101):
        client.send(b"x", ("127.0.0.1", port))
    assert await client.drops("full", 100 - 32) == 100 - 32
    await place.rig.until(lambda: len(questions) == 32, "asked")
    for association, *what in questions:
        association.answer(*what, None, 0)
    assert await client.drops("denied", 32) == 32
    client.send(b"now", target.address)
    await place.rig.until(lambda: len(questions) == 33, "asked again")


async def test_nothing_is_asked_where_nothing_can_wait(make_place, payload):
    """Else each datagram too large to wait would leave a destination that nobody answers
    for, until none of those that are remembered could be forgotten."""
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    client.send(payload(60_000), ("slow.example", 53))
    client.send(payload(60_000), target.address)
    await place.rig.until(lambda: len(questions) == 2, "asked")
    for number in range(300):
        client.send(payload(12_000), (f"n{number}.example", 53))
        assert await client.drops("full", number + 1) == number + 1
    assert len(questions) == 2
    association, *what = questions[1]
    association.answer(*what, target.address, 0)
    assert await target.recv() == payload(60_000)


async def test_old_refusals_are_not_all_asked_for_at_once(make_place):
    place = make_place()
    questions = []

    def judge(association, *what):
        if len(client.asked) <= 60:
            association.answer(*what, None, 0.001)
        else:
            questions.append(what)

    client = place.client(on_ask=judge)
    names = [(f"n{number}.example", 53) for number in range(60)]
    for number, name in enumerate(names):
        client.send(b"x", name)
        assert await client.drops("denied", number + 1) == number + 1
    await asyncio.sleep(0.02)
    for name in names:
        client.send(b"x", name)
    assert await client.drops("full", 60 - 24) == 60 - 24
    await place.rig.until(lambda: len(questions) == 24, "asked")


async def test_old_permissions_are_asked_for_once_each(make_place):
    """However much is sent meanwhile, and nothing of it is lost."""
    place = make_place()
    target = place.target()

    def judge(association, *what):
        if len(client.asked) <= 60:
            association.answer(*what, target.address, 0.001)

    client = place.client(on_ask=judge)
    names = [(f"n{number}.example", 53) for number in range(60)]
    for name in names:
        client.send(b"x", name)
        await target.recv()
    await asyncio.sleep(0.02)
    for _ in range(5):
        for name in names:
            client.send(b"x", name)
            await target.recv()
    await place.rig.until(lambda: len(client.asked) == 120, "all are asked for")
    assert sorted(client.asked[60:]) == sorted(client.asked[:60])
    assert client.old == [None] * 60 + [target.address] * 60


async def test_a_client_that_sends_everywhere(make_place):
    """More destinations than are remembered: the least used are forgotten, and asked for
    again when they come back."""
    place = make_place()
    target = place.target()

    def judge(association, atyp, raw, port):
        association.answer(atyp, raw, port, target.address, 0)

    client = place.client(on_ask=judge)
    count = 5_000
    for number in range(count):
        client.send(b"%d" % number, (f"n{number}.example", 53))
        assert await target.recv() == b"%d" % number
    assert len(client.asked) == count
    client.send(b"remembered", (f"n{count - 1000}.example", 53))
    assert await target.recv() == b"remembered"
    assert len(client.asked) == count
    client.send(b"forgotten", ("n0.example", 53))
    assert await target.recv() == b"forgotten"
    assert len(client.asked) == count + 1


async def test_who_answers_is_not_forgotten(make_place):
    """Though nothing is sent there any more, as by a client that listens to a stream."""
    place = make_place()
    stream, others = place.target(), place.target()

    def judge(association, atyp, raw, port):
        where = stream.address if raw == b"stream.example" else others.address
        association.answer(atyp, raw, port, where, 0)

    client = place.client(on_ask=judge)
    client.send(b"begin", ("stream.example", 53))
    _, outside = await stream.recvfrom()
    for number in range(1100):
        client.send(b"%d" % number, (f"n{number}.example", 53))
        assert await others.recv() == b"%d" % number
        if number % 100 == 0:
            stream.sock.sendto(b"%d" % number, outside)
            assert (await client.recv()).endswith(b"%d" % number)
    assert client.dropped("stranger") == 0


async def test_a_forgotten_destination_is_a_stranger(make_place):
    place = make_place()
    client, first = place.client(), place.target()
    outside = await client.seen_by(first)
    sink = place.target("127.0.0.5")
    known = len(client.asked)
    for number in range(1024):
        client.send(b"x", (f"127.0.{1 + number // 256}.{number % 256}", 9))
        await place.rig.until(lambda n=number: len(client.asked) == known + 1 + n, "asked")
    del sink
    first.sock.sendto(b"still there?", outside)
    assert await client.drops("stranger", 1) == 1


async def test_a_flood_on_one_leaves_the_others_their_answers(make_place, payload):
    place = make_place()
    flooder, target, drain = place.client(), place.target(), place.target()
    others = [place.client() for _ in range(3)]
    for client in (flooder, *others):
        assert await client.ping(target) == b"ping"
    flooder.send(b"ask first", drain.address)
    await drain.recv()
    block = payload(1000)
    for _ in range(100):
        for _ in range(200):
            with contextlib.suppress(NO_ROOM):
                flooder.send(block, drain.address)
        for client in others:
            assert await client.ping(target) == b"ping"
    async with asyncio.timeout(PATIENCE):
        while target.is_silent():  # its own queue may be full of the flood for a while
            flooder.send(b"ping", target.address)
            await asyncio.sleep(0.001)
    assert not place.rig.ends


async def test_no_descriptor_for_the_socket_to_targets(make_place):
    """Out of descriptors a datagram is lost, no more: the next one finds some."""
    place = make_place()
    client, target = place.client(), place.target()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        client.send(b"lost", target.address)
        assert await client.drops("failed", 1) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await client.ping(target) == b"ping"


async def test_an_error_in_the_judge_is_reported(make_place):
    place = make_place()
    reported = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    def judge(association, atyp, raw, port):
        if port == 9:
            raise OSError(errno.EINVAL, "a judge's bug")
        association.answer(atyp, raw, port, ("127.0.0.1", port), 0)

    client, target = place.client(on_ask=judge), place.target()
    client.send(b"x", ("127.0.0.1", 9))
    assert await client.drops("denied", 1) == 1
    assert await client.ping(target) == b"ping"
    await place.rig.until(lambda: reported, "reported")


async def test_random_octets_are_read_as_the_codec_reads_them(make_place):
    """Header by header against fastsocks.proto.udp, which has tests of its own."""
    place = make_place()
    client = place.client(on_ask=lambda association, *what: association.answer(*what, None, 0))
    chance = random.Random(3)
    expected = collections.Counter()
    asked = set()
    for batch in range(500):
        sent, questions = [], 0
        while len(sent) < 40 and questions < 16:  # no more than may wait for a verdict
            data = bytearray(chance.randbytes(chance.choice([0, 3, 4, 5, 9, 10, 21, 22, 40, 300])))
            if len(data) > 4 and chance.random() < 0.8:
                data[2] = chance.choice([0, 0, 0, 1])
                data[3] = chance.choice([1, 3, 4, 4, 5])
                data[4] = chance.choice([data[4], 0, len(data) - 7 & 0xFF])
            parsed = udp.parse(bytes(data))
            if isinstance(parsed, udp.Datagram):
                asked.add((parsed.atyp, parsed.raw, parsed.port))
                questions += 1
            expected["denied" if isinstance(parsed, udp.Datagram) else parsed.value] += 1
            client.send_raw(data)
            sent.append(data.hex())
        await place.rig.until(
            lambda: sum(client.dropped(why) for why in expected) == expected.total(),
            f"batch {batch} dropped as foreseen: {sent}",
            PATIENCE,
        )
        assert {why: client.dropped(why) for why in expected} == expected, sent
    assert set(client.asked) == asked
    assert min(expected.values()) > 1000


async def test_a_question_that_fails_takes_no_others_along(make_place):
    """Nor is it asked for ever, whatever was raised."""
    place = make_place()
    target = place.target()

    def judge(association, *what):
        if what[1] == b"n0.example":
            raise asyncio.CancelledError
        association.answer(*what, target.address, 0)

    place.rig.loop.set_exception_handler(lambda loop, context: None)
    client = place.client(on_ask=judge)
    for number in range(4):
        client.send(b"%d" % number, (f"n{number}.example", 53))
    assert [await target.recv() for _ in range(3)] == [b"1", b"2", b"3"]
    assert await client.drops("denied", 1) == 1
