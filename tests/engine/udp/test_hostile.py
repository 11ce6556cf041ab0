# Shows that an association relays for its client only, and that nothing a stranger or the client
# itself sends ends it. What it may take at most is in test_bounds.py.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

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


async def test_a_stranger_does_not_get_through(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    outside = await client.seen_by(target)
    same_host, other_host = place.target(), place.target("127.0.0.4")
    same_host.sock.sendto(b"psst", outside)
    other_host.sock.sendto(b"psst", outside)
    assert await client.drops("stranger", 2) == 2
    assert await client.ping(target) == b"ping"
    assert client.is_silent()


async def test_a_denied_destination_does_not_get_through(make_place):
    place = make_place()
    target, forbidden = place.target(), place.target()
    client = place.barred_from(forbidden)
    outside = await client.seen_by(target)
    client.send(b"?", forbidden.address)
    assert await client.drops("denied", 1) == 1
    forbidden.sock.sendto(b"psst", outside)
    assert await client.drops("stranger", 1) == 1
    assert client.is_silent()


async def test_full_cone_lets_everybody_through(make_place, header):
    place = make_place(udp_full_cone=True)
    client, target = place.client(), place.target()
    outside = await client.seen_by(target)
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
    outside = await client.seen_by(target)
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
