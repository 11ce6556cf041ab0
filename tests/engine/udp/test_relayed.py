# Shows that datagrams of an association arrive, whole and unaltered, where they were sent to, and
# that the association ends when it has to.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
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


@pytest.mark.linux  # whose names these are
async def test_its_connection_is_probed(make_place):
    """Nothing is said on it, so a client that has lost its power would never be missed while
    a target goes on sending."""
    place = make_place()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place.rig.hold(socket.create_connection(listener.getsockname()))
        control = listener.accept()[0]
    with control.dup() as seen:
        conn = place.rig.engine.adopt(control)
        association = place.rig.engine.open_udp(conn, "127.0.0.1", (), lambda *_: None)
        place.rig.engine.associate(conn, association, "flow")
        assert seen.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        probing = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        found = tuple(seen.getsockopt(socket.IPPROTO_TCP, option) for option in probing)
    assert found == contract.CONTROL_KEEPALIVE


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
    origin = await _origin(client, target)
    target.sock.sendto(payload(65_507), origin)
    assert await client.drops("failed", 1) == 1
    target.sock.sendto(payload(65_497), origin)
    assert len(await client.recv()) == 65_507
    assert await client.ping(target) == b"ping"


async def _origin(client, target):
    client.send(b"who is it", target.address)
    return (await target.recvfrom())[1]


async def test_the_socket_for_targets_is_bound_to_the_source(make_place):
    place = make_place()
    client, target = place.client(sources=("127.0.0.9", "::1")), place.target()
    assert (await _origin(client, target))[0] == "127.0.0.9"


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


# -- verdicts ----------------------------------------------------------------


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

    def judge(association, atyp, raw, port):
        allowed = port != forbidden.port
        association.answer(atyp, raw, port, ("127.0.0.1", port) if allowed else None, 0)

    client = place.client(on_ask=judge)
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
    outside = await _origin(client, old)
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
    outside = await _origin(client, target)
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


# -- ends --------------------------------------------------------------------


async def test_fin_on_the_control_connection_ends_it(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    before = place.rig.descriptors()
    assert await client.ping(target, b"12345") == b"12345"
    client.control.shutdown(socket.SHUT_WR)
    assert await place.rig.ended() == (client.flow, 5, 5, contract.FINISHED, 0)
    await place.rig.at_rest()
    assert place.rig.descriptors() <= before - 2


async def test_reset_of_the_control_connection_ends_it(make_place, reset):
    place = make_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    reset(client.control)
    flow, _, _, reason, error = await place.rig.ended()
    assert (flow, reason) == (client.flow, contract.CLIENT_RESET)
    assert error
    await place.rig.at_rest()


async def test_what_is_said_on_the_control_connection_means_nothing(make_place, payload):
    place = make_place()
    client, target = place.client(), place.target()
    client.control.setblocking(False)
    loop = asyncio.get_running_loop()
    await asyncio.wait_for(loop.sock_sendall(client.control, payload(3_000_000)), 20)
    assert await client.ping(target) == b"ping"
    client.control.send(b"!", socket.MSG_OOB)
    assert await client.ping(target) == b"ping"
    client.control.close()
    assert (await place.rig.ended())[3] == contract.FINISHED


async def test_the_shortest_limit_is_not_none(make_place):
    place = make_place(udp_timeout=1e-9)
    place.client()
    assert (await place.rig.ended())[3] == contract.IDLE


async def test_an_idle_association_ends(make_place):
    place = make_place(udp_timeout=0.3)
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    flow, _, _, reason, _ = await place.rig.ended()
    assert (flow, reason) == (client.flow, contract.IDLE)
    await place.rig.at_rest()


async def test_datagrams_keep_it_alive(make_place):
    place = make_place(udp_timeout=1.5)
    client, target = place.client(), place.target()
    for _ in range(10):
        assert await client.ping(target) == b"ping"
        await asyncio.sleep(0.2)
    assert not place.rig.ends
    assert (await place.rig.ended())[3] == contract.IDLE


async def test_one_that_is_killed_takes_no_other_along(make_place):
    place = make_place()
    client, other, target = place.client(), place.client(), place.target()
    assert await client.ping(target) == b"ping"
    assert await other.ping(target) == b"ping"
    place.rig.engine.kill(client.handle)
    assert (await place.rig.ended())[::3] == (client.flow, contract.KILLED)
    place.rig.engine.kill(client.handle)
    assert await other.ping(target) == b"ping"


async def test_killed_before_they_began_all_are_reported(make_place):
    place = make_place()
    clients = [place.client() for _ in range(50)]
    for client in clients:
        place.rig.engine.kill(client.handle)
    await place.rig.ended(50)
    assert {end[0] for end in place.rig.ends} == {client.flow for client in clients}
    assert {end[3] for end in place.rig.ends} == {contract.KILLED}
    await place.rig.at_rest()


async def test_the_engine_closes_with_every_end_reported(make_place):
    place = make_place()
    clients = [place.client() for _ in range(20)]
    target = place.target()
    assert await clients[0].ping(target) == b"ping"
    place.rig.engine.close()
    assert {end[0] for end in place.rig.ends} == {client.flow for client in clients}
    assert {end[3] for end in place.rig.ends} == {contract.KILLED}


async def test_an_answer_after_the_end_is_void(make_place):
    place = make_place()
    (client, questions), target = place.undecided(), place.target()
    client.send(b"x", target.address)
    await place.rig.until(lambda: questions, "asked")
    client.control.close()
    await place.rig.ended()
    association, *what = questions[0]
    association.answer(*what, target.address, 0)
    assert target.is_silent()
    association.close()


async def test_given_up_before_the_hand_over(make_place):
    place = make_place()
    _, conn = place.control("127.0.0.1")
    association = place.rig.engine.open_udp(conn, "127.0.0.1", (), lambda *what: None)
    association.close()
    association.close()
    with pytest.raises(OSError):
        place.rig.engine.associate(conn, association, object())
    conn.close()
    with pytest.raises(OSError):
        place.rig.engine.open_udp(conn, "127.0.0.1", (), lambda *what: None)


async def test_the_range_of_ports(make_place):
    low = _free_range(3)
    place = make_place(udp_ports=(low, low + 2))
    clients = [place.client() for _ in range(3)]
    assert {client.relay[1] for client in clients} == {low, low + 1, low + 2}
    _, conn = place.control("127.0.0.1")
    with pytest.raises(OSError):
        place.rig.engine.open_udp(conn, "127.0.0.1", (), lambda *what: None)
    freed = clients[1].relay[1]
    clients[1].control.close()
    await place.rig.ended()
    assert place.client().relay[1] == freed
    conn.close()


def _free_range(count):
    for low in range(20_000, 30_000, 10):
        socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(count)]
        try:
            for number, sock in enumerate(socks):
                sock.bind(("127.0.0.1", low + number))
            return low
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise AssertionError("no free ports")


async def test_no_such_address_to_bind(make_place):
    place = make_place()
    _, conn = place.control("127.0.0.1")
    with pytest.raises(OSError):
        place.rig.engine.open_udp(conn, "192.0.2.1", (), lambda *what: None)
    conn.close()


async def test_a_thousand_opened_and_dropped(make_place):
    place = make_place()
    target = place.target()
    before = place.rig.descriptors()
    for hundreds in range(1, 11):
        clients = [place.client() for _ in range(100)]
        for client in clients[::7]:
            client.send(b"x", target.address)
        for client in clients:
            client.control.close()
            client.sock.close()
        # An ordinary user has 1,024 descriptors, for all of these.
        await place.rig.ended(100 * hundreds)
    await place.rig.at_rest()
    assert {end[3] for end in place.rig.ends} == {contract.FINISHED}
    assert place.rig.descriptors() <= before
