# Shows how an association begins and ends: on which ports, by which ends of its connection, by
# silence, by kill() or with the engine, each end reported once and nothing left behind.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import time

import pytest

from fastsocks import engine as contract


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


async def test_fin_on_the_control_connection_ends_it(make_place):
    place = make_place()
    client, target = place.client(), place.target()
    before = place.rig.descriptors()
    assert await client.ping(target, b"12345") == b"12345"
    client.control.shutdown(socket.SHUT_WR)
    assert await place.rig.ended() == (client.flow, 5, 5, contract.FINISHED, 0)
    await place.rig.at_rest()
    assert place.rig.descriptors() <= before - 2


@pytest.mark.parametrize("said", [1, 5000, 100_000])
async def test_fin_behind_what_nobody_reads_is_answered_with_a_fin(make_place, said):
    place = make_place()
    for number in range(1, 21):
        client = place.client()
        client.control.send(bytes(said))
        client.control.shutdown(socket.SHUT_WR)
        assert (await place.rig.ended(number))[3] == contract.FINISHED
        assert client.control.recv(1) == b""  # a reset would raise
    await place.rig.at_rest()


async def test_a_question_under_way_is_no_silence(make_place):
    """As when the loop is held up for longer than the limit."""
    place = make_place(udp_timeout=0.3)
    client, target = place.client(), place.target()
    client.send(b"ping", target.address)
    time.sleep(0.8)  # it is the loop that stands still
    assert await target.recv() == b"ping"


async def test_nor_is_one_that_takes_longer_than_the_limit(make_place):
    """As that for a name may, whose server is slow: what it keeps waiting is passed on."""
    place = make_place(udp_timeout=0.3)
    client, questions = place.undecided()
    target = place.target()
    client.send(b"ping", ("slow.test", target.port))
    await place.rig.until(lambda: bool(questions), "it asks", 20.0)
    await asyncio.sleep(1)  # nothing else tells that a limit has passed
    association, atyp, raw, port = questions[0]
    association.answer(atyp, raw, port, target.address, 0)
    assert await target.recv() == b"ping"
    assert (await place.rig.ended())[3] == contract.IDLE


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


def has_no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_one_that_the_loop_has_no_room_for_is_killed(make_python_place, monkeypatch):
    """As it belongs to the engine by then, nobody else could end it."""
    place = make_python_place()
    monkeypatch.setattr(place.rig.loop, "add_reader", has_no_room)
    client = place.client()
    end = await place.rig.ended()
    assert end == (client.flow, 0, 0, contract.KILLED, errno.ENOSPC)
    await place.rig.at_rest()


async def test_connection_that_the_loop_has_no_room_for(make_python_place, monkeypatch, caplog):
    place = make_python_place()
    client = place.client()  # whose datagrams it has room for
    monkeypatch.setattr(place.rig.loop, "add_reader", has_no_room)
    assert (await place.rig.ended())[::4] == (client.flow, errno.ENOSPC)
    await place.rig.at_rest()
    gc.collect()
    assert not caplog.records, "nobody is told of what nobody waits for"


async def test_remote_socket_that_the_loop_has_no_room_for(make_python_place, monkeypatch):
    place = make_python_place()
    client, target = place.client(), place.target()
    client.send_raw(b"")
    assert await client.drops("malformed", 1) == 1  # so that its connection is watched
    before = place.rig.descriptors()
    monkeypatch.setattr(place.rig.loop, "add_reader", has_no_room)
    client.send(b"lost", target.address)
    assert await client.drops("failed", 1) == 1
    assert place.rig.descriptors() == before
    monkeypatch.undo()
    assert await client.ping(target) == b"ping"


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
