# UDP ASSOCIATE through the server, as its clients see it: the address they are told, how
# many they may have, and what ends one.

from __future__ import annotations

import asyncio

import pytest

from fastsocks import associate
from support.udp import GREETED, asked

# -- the reply -------------------------------------------------------------------

DSTS = [("0.0.0.0", 0), ("127.0.0.1", 53), ("198.51.100.7", 9), ("::", 0), ("0", 0), ("a.test", 5)]


@pytest.mark.parametrize("dst", DSTS, ids=lambda dst: f"dst {dst[0]}")
@pytest.mark.parametrize("host", ["127.0.0.3", "::1"])
async def test_reply_and_a_datagram_each_way(serve, associated, datagrams, books, host, dst):
    """BND is where the client came to, in its own family; DST is looked at by nobody."""
    targets = [datagrams(family) for family in ("127.0.0.1", "::1")]
    async with serve(listen=[f"[{host}]:0" if ":" in host else f"{host}:0"]) as server:
        ledger = books(server)
        one = await associated(server, dst=dst)
        assert one.place[0] == host
        assert one.place[1] not in (0, server.addresses[0][1])
        assert len(one.reply) == (22 if ":" in host else 10)
        assert one.control.has_come_in(2), "a reply in pieces"
        for target in targets:
            assert await one.reaches(target)
        assert server.sessions == 1
        one.end()
        assert await ledger.outstanding() == {}


async def test_client_of_a_listener_for_both_families(serve, associated, datagrams):
    """Its address is IPv4-mapped to the kernel, and to nobody else."""
    async with serve(listen=["[::]:0"], open=True) as server:
        server.addresses[0] = ("127.0.0.1", server.addresses[0][1])
        one = await associated(server)
        assert one.place[0] == "127.0.0.1"
        assert await one.reaches(datagrams())


@pytest.mark.parametrize("announced", ["192.0.2.77", "::ffff:192.0.2.77", "2001:db8::77"])
@pytest.mark.parametrize("dst", ["0.0.0.0", "::"])
async def test_announced_address(serve, associated, datagrams, announced, dst):
    """As behind NAT: a client of its family is told another one; the port is the true one. To
    one of the other family it would be a place that it cannot send to."""
    async with serve(udp_address=announced, listen=["127.0.0.1:0", "[::1]:0"]) as server:
        for which, own in ((0, "127.0.0.1"), (1, "::1")):
            one = await associated(server, which, dst=(dst, 0))
            same = (":" in own) == ("." not in announced)
            assert one.place[0] == (announced.removeprefix("::ffff:") if same else own)
            one.place = (own, one.place[1])
            assert await one.reaches(datagrams(own))


async def test_range_of_ports(
    serve, associated, dial, say, datagrams, free_ports, books, until, caplog
):
    """Used up, it is a general failure; what has ended makes room."""
    target = datagrams()
    port_range = free_ports(2)
    caplog.set_level("INFO")
    async with serve(udp_ports=port_range) as server:
        ledger = books(server)
        both = [await associated(server) for _ in range(2)]
        assert {one.place[1] for one in both} == set(port_range)
        third = await dial(server)
        assert await asked(third, say) == say.failed(1)
        assert await third.to_end() == b""
        assert "no port for datagrams is free" in caplog.text
        third.close()
        both[0].end()
        await until(lambda: server.sessions == 1, "the first has ended")
        again = await associated(server)
        assert again.place[1] == both[0].place[1]
        assert await again.reaches(target)
        assert await both[1].reaches(target)
        again.end()
        both[1].end()
        assert await ledger.outstanding() == {}


# -- how many --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_so_many_for_one_client(serve, associated, dial, say, books, until, how):
    async with serve(udp_per_client=2, listen=["127.0.0.1:0", "[::1]:0"]) as server:
        ledger = books(server)
        first, second = [await associated(server) for _ in range(2)]
        for _ in range(3):  # and being refused costs nothing either
            third = await dial(server)
            assert await asked(third, say) == say.failed(1)
            assert await third.to_end() == b""
            third.close()
        other = await associated(server, which=1)
        first.end(how)
        await until(lambda: server.sessions == 2, "the first has ended")
        again = await associated(server)
        for one in (second, other, again):
            one.end()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("how", ["finish", "close", "reset", "reset before its reply"])
async def test_each_that_has_ended_makes_room_for_one(
    serve, associated, dial, say, books, until, how
):
    """And not for two."""
    async with serve(udp_per_client=3) as server:
        ledger = books(server)
        for _ in range(3):
            if how == "reset before its reply":
                client = await dial(server)
                assert await client.ask(say.no_login, 2) == GREETED
                await client.send(say.socks5("0.0.0.0", 0, command=3))
                client.reset()
            else:
                one = await associated(server)
                one.end(how)
                one.control.close()
        await until(lambda: server.sessions == 0, "all have ended")
        again = [await associated(server) for _ in range(3)]
        fourth = await dial(server)
        assert await asked(fourth, say) == say.failed(1)
        fourth.close()
        for one in again:
            one.end()
        assert await ledger.outstanding() == {}


async def test_one_that_could_not_be_made_is_not_counted(
    serve, associated, dial, say, monkeypatch, books
):
    async with serve(udp_per_client=1) as server:
        ledger = books(server)
        with monkeypatch.context() as patch:
            patch.setattr(associate, "Targets", out_of_descriptors)
            for _ in range(2):
                client = await dial(server)
                assert await asked(client, say) == say.failed(1)
                client.close()
        one = await associated(server)
        one.end()
        assert await ledger.outstanding() == {}


def out_of_descriptors(*what):
    raise OSError(24, "Too many open files")


# -- its end ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "close", "reset"])
async def test_it_ends_with_its_connection(server, associated, datagrams, books, how):
    target, late = datagrams(), datagrams()
    ledger = books(server)
    one = await associated(server)
    assert await one.reaches(target)
    await one.control.send(b"means nothing")
    assert await one.reaches(target)
    one.end(how)
    if how == "finish":
        assert await one.control.to_end() == b""
        one.control.close()
    assert await ledger.outstanding() == {}
    late.sock.sendto(b"too late", one.place)
    await one.control.seen()
    assert target.is_silent()


async def test_it_ends_when_the_server_stops(
    descriptors_balance, serve, associated, datagrams, names, until
):
    """And with it what it has still to look up."""
    names.hang("slow.test")
    tasks = asyncio.all_tasks()
    server = serve(connect_timeout=60)
    server.start()
    ones = [await associated(server) for _ in range(3)]
    assert await ones[0].reaches(datagrams())
    ones[1].send("slow.test", 9, b"held")
    await until(lambda: names.asked, "it is asked for")
    async with asyncio.timeout(5):
        await server.stop(0)
    await until(lambda: asyncio.all_tasks() == tasks, "nothing of it goes on")
    for one in ones:
        assert await one.control.ended()
        one.control.close()


async def test_it_ends_when_nothing_is_said(serve, associated, books):
    async with serve(udp_timeout=0.3, idle_timeout=0) as server:
        ledger = books(server)
        one = await associated(server)
        assert await one.control.ended()
        one.end()
        assert await ledger.outstanding() == {}


async def test_many_that_come_and_go(server, associated, datagrams, books):
    target = datagrams()
    ledger = books(server)
    for how in ("close", "reset", "finish") * 7:
        one = await associated(server)
        assert await one.reaches(target)
        one.end(how)
        one.control.close()
    assert await ledger.outstanding() == {}


# -- where it is not offered -----------------------------------------------------


async def test_a_server_without_udp_says_that_it_has_no_such_command(serve, dial, say, books):
    async with serve(udp=False) as server:
        ledger = books(server)
        client = await dial(server)
        assert await asked(client, say) == say.failed(7)
        assert await client.to_end() == b""
        client.close()
        assert await ledger.outstanding() == {}


async def test_socks4_has_none(server, dial, say, books):
    ledger = books(server)
    client = await dial(server)
    await client.send(say.socks4("127.0.0.1", 53, command=3))
    assert await client.to_end() == say.failed4
    client.close()
    assert await ledger.outstanding() == {}
