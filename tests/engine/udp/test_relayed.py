# Shows that datagrams of an association arrive, whole and unaltered, where they were sent to,
# and that what comes back says who sent it.
#
# Must not know: which engine it is.

from __future__ import annotations

import ipaddress
import socket

import pytest

from fastsocks import engine as contract


async def test_there_and_back(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    assert await client.ping(target, b"again") == b"again"
    assert client.asked == [(1, socket.inet_aton("127.0.0.1"), target.port)]
    counters = place.rig.engine.counters()
    assert (counters["datagrams_up"], counters["datagrams_down"]) == (2, 2)
    assert counters["udp_associations"] == 1


async def test_on_the_loop_itself_they_are_relayed_as_well(make_place):
    place = make_place(relay_threads=0)
    client, target = place.client(), place.target()
    for number in range(100):
        assert await client.ping(target, b"%d" % number) == b"%d" % number
    client.control.close()
    assert (await place.rig.ended())[3] == contract.FINISHED


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("near", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("far", ["127.0.0.1", "::1"])
async def test_every_family_towards_every_other(make_place, near, far):
    place = make_place()
    client, target = place.client(near), place.target(far)
    assert client.association.sockname[0] == near
    assert await client.ping(target) == b"ping"


@pytest.mark.usefixtures("ipv6")
async def test_both_families_at_once(make_place):
    place = make_place()
    client, old, new = place.client(), place.target(), place.target("::1")
    for _ in range(3):
        assert await client.ping(old) == b"ping"
        assert await client.ping(new) == b"ping"


async def test_a_name_goes_where_the_answer_says(make_place, header):
    place = make_place()
    target = place.target()
    client = place.client(
        on_ask=lambda association, *what: association.answer(*what, target.address, 0)
    )
    client.send(b"by name", ("some.name.example", 53))
    assert await target.echo() == b"by name"
    # The reply says who sent it: an address, whatever the client had called it.
    assert await client.recv() == header(*target.address) + b"by name"
    assert client.asked == [(3, b"some.name.example", 53)]


async def test_the_longest_name(make_place):
    place = make_place()
    target = place.target()
    client = place.client(
        on_ask=lambda association, *what: association.answer(*what, target.address, 0)
    )
    name = "n" * 255
    for payload in (b"one", b"two"):
        client.send(payload, (name, target.port))
        assert await target.recv() == payload
    assert client.asked == [(3, name.encode(), target.port)]


async def test_mapped_addresses_are_ipv4(make_place, header):
    place = make_place()
    client, target = place.client(), place.target()
    mapped = ipaddress.ip_address("::ffff:127.0.0.1").packed
    client.send_raw(b"\0\0\0\x04" + mapped + target.port.to_bytes(2) + b"mapped")
    assert await target.echo() == b"mapped"
    assert await client.recv() == header(*target.address) + b"mapped"


@pytest.mark.parametrize("size", [0, 1, 1200, 1472, 1473, 9000, 65_497])
async def test_every_size(make_place, payload, size):
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target, payload(size)) == payload(size)


async def test_the_largest_datagrams(make_place, payload):
    """65,507 octets is what IPv4 carries; with a header in front that is too long for the
    way down, where it is dropped and nothing more."""
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    origin = await client.seen_by(target)
    target.sock.sendto(payload(65_507), origin)
    assert await client.drops("failed", 1) == 1
    target.sock.sendto(payload(65_497), origin)
    assert len(await client.recv()) == 65_507
    assert await client.ping(target) == b"ping"


async def test_the_socket_for_targets_is_bound_to_the_source(make_place):
    place = make_place()
    client, target = place.client(sources=("127.0.0.9", "::1")), place.target()
    assert (await client.seen_by(target))[0] == "127.0.0.9"


async def test_rsv_is_not_looked_at(make_place, header):
    place = make_place()
    client, target = place.client(), place.target()
    client.send_raw(b"\xff\xff" + header(*target.address)[2:] + b"set")
    assert await target.recv() == b"set"


async def test_many_targets(make_place):
    place = make_place()
    client = place.client()
    targets = [place.target() for _ in range(40)]
    for _ in range(2):
        for target in targets:
            assert await client.ping(target) == b"ping"
    assert len(client.asked) == 40
