# Shows that an association relays for its client only, and that nothing a stranger or the client
# itself sends ends it, blocks others or makes it grow.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import random
import resource
import socket
import sys

import pytest

from fastsocks.proto import udp

PATIENCE = 20.0
NO_ROOM = BlockingIOError if sys.platform == "linux" else OSError  # ENOBUFS

# -- who may send ------------------------------------------------------------


async def test_another_host_is_not_the_client(make_place, header):
    place = make_place()
    client, target = place.client(), place.target()
    stranger = place.target("127.0.0.2")
    for _ in range(3):  # before the client is known by its port, and after
        stranger.sock.sendto(header(*target.address) + b"for me", client.relay)
    assert await client.drops("source", 3) == 3
    assert await client.ping(target) == b"ping"
    with contextlib.suppress(ConnectionRefusedError):
        stranger.sock.sendto(header(*target.address) + b"for me", client.relay)
    assert await client.ping(target) == b"ping"
    assert target.is_silent()


async def test_another_port_is_not_the_client(make_place, header):
    place = make_place()
    client, target, stranger = place.client(), place.target(), place.target()
    assert await client.ping(target) == b"ping"
    for _ in range(3):
        stranger.sock.sendto(header(*target.address) + b"for me", client.relay)
    assert await client.ping(target) == b"ping"
    assert target.is_silent()
    assert stranger.is_silent()


async def test_those_who_came_before_the_port_was_known(make_place, header):
    """They are in the socket's queue already when it is connected, so that the kernel has
    not sorted them out."""
    place = make_place(relay_threads=0)
    client, target = place.client(), place.target()
    strangers = [place.target() for _ in range(5)]
    client.send(b"first", target.address)  # nothing is read before the next await
    for stranger in strangers:
        stranger.sock.sendto(header(*target.address) + b"for me", client.relay)
    assert await target.echo() == b"first"
    assert await client.recv() == header(*target.address) + b"first"
    assert await client.drops("source", 5) == 5
    assert target.is_silent()


async def test_a_bad_datagram_does_not_make_the_client_known(make_place, header):
    place = make_place()
    client, target, stranger = place.client(), place.target(), place.target()
    stranger.sock.sendto(b"hello?", client.relay)
    stranger.sock.sendto(header(*target.address, frag=1) + b"x", client.relay)
    assert await client.drops("malformed", 1) == 1
    assert await client.drops("fragment", 1) == 1
    assert await client.ping(target) == b"ping"


async def test_a_scan_of_the_relay(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    scanner = place.target("127.0.0.3")
    for number in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            scanner.sock.sendto(bytes(number), client.relay)
    assert await client.ping(target) == b"ping"
    assert scanner.is_silent()
    assert target.is_silent()


# -- who may answer ----------------------------------------------------------


async def reached(client, target):
    """Where the target sees the client."""
    client.send(b"here", target.address)
    return (await target.recvfrom())[1]


async def test_a_stranger_does_not_get_through(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    outside = await reached(client, target)
    same_host, other_host = place.target(), place.target("127.0.0.4")
    same_host.sock.sendto(b"psst", outside)
    other_host.sock.sendto(b"psst", outside)
    assert await client.drops("stranger", 2) == 2
    assert await client.ping(target) == b"ping"
    assert client.is_silent()


async def test_a_denied_destination_does_not_get_through(make_place):
    place = make_place()
    target, forbidden = place.target(), place.target()

    def judge(association, atyp, raw, port):
        allowed = port != forbidden.port
        association.answer(atyp, raw, port, ("127.0.0.1", port) if allowed else None, 0)

    client = place.client(on_ask=judge)
    outside = await reached(client, target)
    client.send(b"?", forbidden.address)
    assert await client.drops("denied", 1) == 1
    forbidden.sock.sendto(b"psst", outside)
    assert await client.drops("stranger", 1) == 1
    assert client.is_silent()


async def test_full_cone_lets_everybody_through(make_place, header):
    place = make_place(udp_full_cone=True)
    client, target = place.client(), place.target()
    outside = await reached(client, target)
    other = place.target("127.0.0.4")
    other.sock.sendto(b"hello", outside)
    assert await client.recv() == header(*other.address) + b"hello"
    assert client.dropped("stranger") == 0


# -- what is sent ------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "name.example"])
async def test_a_header_cut_short_anywhere(make_place, header, host):
    place = make_place()
    client, target = place.client(), place.target()
    whole = header(host, target.port)
    for end in range(len(whole)):
        client.send_raw(whole[:end])
    assert await client.drops("malformed", len(whole)) == len(whole)
    assert not client.asked
    assert await client.ping(target) == b"ping"


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\x00\x7f\0\0\x01\0\x35",
        b"\0\0\0\x02\x7f\0\0\x01\0\x35",
        b"\0\0\0\x05\x7f\0\0\x01\0\x35",
        b"\0\0\0\xff\x7f\0\0\x01\0\x35",
        b"\0\0\0\x03\x00\0\x35",  # a name of no octets
        b"\0\0\0\x03\xff\0\x35",  # longer than the datagram
        b"\0\0\0\x01\x7f\0\0\x01\0\0",  # port 0
    ],
)
async def test_what_cannot_be_a_header(make_place, head):
    place = make_place()
    client, target = place.client(), place.target()
    client.send_raw(head + b"payload")
    assert await client.drops("malformed", 1) == 1
    assert await client.ping(target) == b"ping"
    assert len(client.asked) == 1


@pytest.mark.parametrize("frag", [1, 2, 0x7F, 0x80, 0xFF])
async def test_fragments_are_dropped(make_place, frag):
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    client.send(b"part", target.address, frag=frag)
    assert await client.drops("fragment", 1) == 1
    assert await client.ping(target) == b"ping"
    assert target.is_silent()


async def test_a_target_that_refuses(make_place):
    place = make_place()
    client, target, gone = place.client(), place.target(), place.target()
    gone.sock.close()
    for _ in range(20):
        client.send(b"anybody?", gone.address)
        assert await client.ping(target) == b"ping"


async def test_a_client_that_does_not_listen(make_place):
    """ICMP's refusals of what goes to the client end nothing either."""
    place = make_place()
    client, target = place.client(), place.target()
    outside = await reached(client, target)
    address = client.address
    client.sock.close()
    for _ in range(20):
        target.sock.sendto(b"reply", outside)
        await asyncio.sleep(0)
    client.sock = place.rig.hold(socket.socket(type=socket.SOCK_DGRAM))
    client.sock.bind(address)
    client.sock.setblocking(False)
    client.send(b"back again", target.address)
    while await target.recv() != b"back again":
        pass
    assert not place.rig.ends


async def test_an_unreachable_target(make_place):
    place = make_place()
    target = place.target()

    def judge(association, atyp, raw, port):
        away = ("255.255.255.255", port)  # a broadcast that nobody has asked to send
        association.answer(atyp, raw, port, away if atyp == 3 else ("127.0.0.1", port), 0)

    client = place.client(on_ask=judge)
    client.send(b"x", ("away.example", 9))
    assert await client.drops("failed", 1) == 1
    assert await client.ping(target) == b"ping"


# -- bounds ------------------------------------------------------------------


async def test_only_a_few_datagrams_wait_for_verdicts(make_place):
    place = make_place()
    questions = []
    client, target = place.client(on_ask=lambda *what: questions.append(what)), place.target()
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


async def test_only_a_few_questions_at_once(make_place):
    place = make_place()
    questions = []
    client, target = place.client(on_ask=lambda *what: questions.append(what)), place.target()
    for port in range(1, 101):
        client.send(b"x", ("127.0.0.1", port))
    assert await client.drops("full", 100 - 16) == 100 - 16
    await place.rig.until(lambda: len(questions) == 16, "asked")
    for association, *what in questions:
        association.answer(*what, None, 0)
    assert await client.drops("denied", 16) == 16
    client.send(b"now", target.address)
    await place.rig.until(lambda: len(questions) == 17, "asked again")


async def test_nothing_is_asked_where_nothing_can_wait(make_place, payload):
    """Else each datagram too large to wait would leave a destination that nobody answers
    for, until none of those that are remembered could be forgotten."""
    place = make_place()
    questions = []
    client, target = place.client(on_ask=lambda *what: questions.append(what)), place.target()
    client.send(payload(60_000), target.address)
    await place.rig.until(lambda: questions, "asked")
    for number in range(3000):
        client.send(payload(6_000), (f"n{number}.example", 53))
        assert await client.drops("full", number + 1) == number + 1
    assert len(questions) == 1
    association, *what = questions[0]
    association.answer(*what, target.address, 0)
    assert await target.recv() == payload(60_000)


async def test_old_verdicts_are_not_all_asked_for_at_once(make_place):
    place = make_place()
    target = place.target()
    questions = []

    def judge(association, *what):
        if len(client.asked) <= 60:
            association.answer(*what, target.address, 0.001)
        else:
            questions.append(what)

    client = place.client(on_ask=judge)
    names = [(f"n{number}.example", 53) for number in range(60)]
    for name in names:
        client.send(b"x", name)
        await target.recv()
    await asyncio.sleep(0.02)
    for name in names:
        client.send(b"x", name)
    assert await client.drops("full", 60 - 16) == 60 - 16
    await place.rig.until(lambda: len(questions) == 16, "asked")


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


async def test_a_forgotten_destination_is_a_stranger(make_place, header):
    place = make_place()
    client, first = place.client(), place.target()
    outside = await reached(client, first)
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
    assert await flooder.ping(target) == b"ping"
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
        sent = []
        for _ in range(40):  # no more than may wait for a verdict
            data = bytearray(chance.randbytes(chance.choice([0, 3, 4, 5, 9, 10, 21, 22, 40, 300])))
            if len(data) > 4 and chance.random() < 0.8:
                data[2] = chance.choice([0, 0, 0, 1])
                data[3] = chance.choice([1, 3, 4, 4, 5])
                data[4] = chance.choice([data[4], 0, len(data) - 7 & 0xFF])
            parsed = udp.parse(bytes(data))
            if isinstance(parsed, udp.Datagram):
                asked.add((parsed.atyp, parsed.raw, parsed.port))
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
