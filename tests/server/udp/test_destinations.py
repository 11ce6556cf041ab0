# Where the datagrams of an association get to and where not: names, of which each is asked
# for once and some never answered, and addresses that its client may not reach.

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from fastsocks import addresses, associate
from support.udp import reaches_until

# -- names -----------------------------------------------------------------------


async def test_name_is_resolved_here(server, associated, datagrams, names):
    names.answers["target.test"] = ["127.0.0.1"]
    one = await associated(server)
    target = datagrams()
    for _ in range(3):
        assert await one.reaches(target, "target.test")
        assert await one.reaches(target, "TARGET.test")
    assert names.asked == ["target.test"]


async def test_name_that_does_not_exist_is_dropped(server, associated, datagrams, names):
    names.answers["nowhere.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
    one = await associated(server)
    target = datagrams()
    for name in ("nowhere.test", "empty..label", "127.1", "a/b", "a b"):
        one.send(name, target.name[1], b"lost")
    assert await one.reaches(target)
    assert names.asked == ["nowhere.test"]


async def test_literal_in_a_name_field(server, associated, datagrams):
    one = await associated(server)
    target = datagrams()
    field = b"\x00\x00\x00\x03\x09127.0.0.1" + target.name[1].to_bytes(2)
    one.own.sock.sendto(field + b"ping", one.place)
    assert (await target.receive())[0] == b"ping"


@pytest.mark.parametrize("limit", [3, associate.NAMES_LIMIT])
async def test_names_that_wait_are_bounded_and_literals_are_not(
    serve, associated, datagrams, names, monkeypatch, books, limit
):
    """Neither does one client's hold up another's."""
    monkeypatch.setattr(associate, "NAMES_LIMIT", limit)
    many = [f"name{number}.test" for number in range(100)]
    names.hang(*many)
    names.answers["known.test"] = ["127.0.0.1"]
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        one, other = await associated(server), await associated(server)
        assert await one.reaches(target)  # its literal is known before the flood
        for name in many:
            one.send(name, 9, b"held")
            await one.control.seen()
        assert await one.reaches(target)
        assert await other.reaches(target, "known.test")
        assert 0 < len(names.asked) - 1 <= limit
        one.end()
        other.end()
        assert await ledger.outstanding() == {}  # although nothing has been answered


async def test_name_that_is_answered_after_the_end(
    serve, associated, datagrams, names, until, books
):
    """What waited for it is gone with the association; the answer serves the next one."""
    names.hang("slow.test")
    names.answers["slow.test"] = ["127.0.0.1"]
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        one = await associated(server)
        one.send("slow.test", target.name[1], b"held")
        await until(lambda: names.asked, "it is asked for")
        one.end("reset")
        assert await ledger.outstanding() == {}
        names.release()
        other = await associated(server)
        assert await other.reaches(target, "slow.test")
        assert target.is_silent()


async def test_flow_goes_on_while_its_name_is_looked_up_again(
    serve, associated, datagrams, names, soon_old
):
    names.answers["target.test"] = ["127.0.0.1"]
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        one = await associated(server)
        assert await one.reaches(target, "target.test")
        names.hang("target.test")
        await reaches_until(lambda: names.asked.count("target.test") == 2, one, target)
        for _ in range(10):
            assert await one.reaches(target, "target.test")
        names.release()
        await reaches_until(lambda: names.asked.count("target.test") == 3, one, target)
        counters = server.engine.counters()
        assert not [name for name in counters if "dropped" in name and counters[name]]


async def test_flow_goes_on_where_too_many_names_wait(
    serve, associated, datagrams, names, soon_old, monkeypatch
):
    monkeypatch.setattr(associate, "NAMES_LIMIT", 1)
    names.answers["target.test"] = ["127.0.0.1"]
    names.hang("slow.test")
    target = datagrams()
    async with serve(connect_timeout=60) as server:
        one = await associated(server)
        assert await one.reaches(target, "target.test")
        one.send("slow.test", 9, b"held")
        now = asyncio.get_running_loop().time
        end = now() + 4 * associate.NAME_TTL
        await reaches_until(lambda: now() > end, one, target)


@pytest.mark.parametrize(
    "later",
    [socket.gaierror(socket.EAI_AGAIN, "temporary failure"), ["127.0.0.9", "127.0.0.1"]],
    ids=["failure", "other order"],
)
async def test_answer_that_moves_no_flow(server, associated, datagrams, names, soon_old, later):
    names.answers["target.test"] = ["127.0.0.1", "127.0.0.9"]
    one, target = await associated(server), datagrams()
    assert await one.reaches(target, "target.test")
    names.answers["target.test"] = later
    await reaches_until(lambda: names.asked.count("target.test") == 4, one, target)


async def test_answer_that_moves_a_flow(server, associated, datagrams, names, soon_old, until):
    names.answers["target.test"] = ["127.0.0.1"]
    one, target = await associated(server), datagrams()
    assert await one.reaches(target, "target.test")
    elsewhere = datagrams("127.0.0.9", target.name[1])
    names.answers["target.test"] = ["127.0.0.9"]

    def has_moved():
        one.send("target.test", target.name[1], b"where to?")
        return not elsewhere.is_silent()

    await until(has_moved, "the new address is used")


# -- associations of others --------------------------------------------------------


def forged(target):
    """A datagram with a header, to be sent through the proxy to an association."""
    return b"\x00\x00\x00\x01\x7f\x00\x00\x01" + target.name[1].to_bytes(2) + b"forged"


@pytest.mark.parametrize("source", [None, "127.0.0.1", "0.0.0.0"])
async def test_nobody_sends_into_another_clients_association(
    serve, associated, datagrams, until, source
):
    """What comes there from the proxy has the address of a client on its machine."""
    async with serve(source=source) as server:
        victim, hostile = await associated(server), await associated(server)
        target = datagrams()
        for host in (victim.place[0], "localhost", "::ffff:127.0.0.1"):
            hostile.send(host, victim.place[1], forged(target))
        counters = server.engine.counters
        await until(lambda: counters()["udp_dropped_source"] == 3, "none is the client's")
        assert await victim.reaches(target)
        assert target.is_silent()


@pytest.mark.linux  # whose loopback is all of 127.0.0.0/8
async def test_client_with_the_port_of_a_remote_socket(serve, associated, datagrams):
    """Of another address than that, it is the client all the same."""
    async with serve(source="127.0.0.2") as server:
        target = datagrams()
        (await associated(server)).send(*target.name, b"from where?")
        _, (host, port) = await target.receive()
        assert host == "127.0.0.2"
        assert await (await associated(server, port=port)).reaches(target)


@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
async def test_nor_into_one_that_begins_later(
    serve, associated, datagrams, free_ports, until, ends
):
    """Though the destination was allowed before; nor with what it has sent before its end."""
    first, last = free_ports(2)
    async with serve(udp_ports=(first, last)) as server:
        hostile = await associated(server)
        (other,) = {first, last} - {hostile.place[1]}
        taken = datagrams("127.0.0.1", other)
        assert await hostile.reaches(taken)
        taken.sock.close()
        victim = await associated(server)
        assert victim.place[1] == other
        target = datagrams()
        hostile.send("127.0.0.1", other, forged(target))
        if ends:
            hostile.end()
            await until(lambda: server.sessions == 1, "it has ended")
        await until(
            lambda: server.engine.counters()["udp_dropped_source"] == 1, "it is not the client's"
        )
        assert await victim.reaches(target)
        assert target.is_silent()


# -- where they may go -----------------------------------------------------------


async def test_denied_destination_gets_nothing(serve, associated, datagrams, not_on_loopback):
    """And the association lives on. What is allowed may be said by its range."""
    async with serve(allow=["127.0.0.9/32"]) as server:
        one = await associated(server)
        denied, open_to_it = datagrams(), datagrams("127.0.0.9")
        for _ in range(3):
            one.send(*denied.name, b"never")
            one.send("::1", denied.name[1], b"never")
            one.send("::ffff:127.0.0.1", denied.name[1], b"never")
            assert await one.reaches(open_to_it)
        assert denied.is_silent()
        assert server.engine.counters()["udp_dropped_denied"] == 9


@pytest.mark.parametrize("settings", [{"source": "127.0.0.1"}, {"prefer": "ipv4-only"}], ids=str)
async def test_family_that_is_not_used(serve, associated, datagrams, settings):
    """Its datagrams would carry an address that nobody chose."""
    async with serve(**settings) as server:
        one = await associated(server)
        other = datagrams("::1")
        one.send("::1", other.name[1], b"lost")
        assert await one.reaches(datagrams())
        assert server.engine.counters()["udp_dropped_denied"] == 1
        assert other.is_silent()


@pytest.mark.parametrize("allow", ["loopback", "all", "127.0.0.0/8"])
async def test_operator_opens_a_range(serve, associated, datagrams, not_on_loopback, allow):
    async with serve(allow=[allow]) as server:
        one = await associated(server)
        assert await one.reaches(datagrams())


async def test_name_with_a_denied_and_an_allowed_address(
    serve, associated, datagrams, names, not_on_loopback
):
    async with serve(allow=["127.0.0.9/32"]) as server:
        allowed = datagrams("127.0.0.9")
        denied = datagrams("127.0.0.1", allowed.name[1])
        names.answers["both.test"] = ["127.0.0.1", "127.0.0.9"]
        names.answers["denied.test"] = ["127.0.0.1"]
        one = await associated(server)
        one.send("denied.test", allowed.name[1], b"never")
        for _ in range(3):
            assert await one.reaches(allowed, "both.test")
        assert denied.is_silent()


async def test_name_that_means_something_else_later(
    serve, associated, datagrams, names, not_on_loopback, soon_old, until
):
    """It is judged again when it is resolved again."""
    async with serve(allow=["127.0.0.9/32"]) as server:
        target = datagrams("127.0.0.9")
        denied = datagrams("127.0.0.1", target.name[1])
        names.answers["rebound.test"] = ["127.0.0.9"]
        one = await associated(server)
        assert await one.reaches(target, "rebound.test")
        names.answers["rebound.test"] = ["127.0.0.1"]

        def is_denied():
            one.send("rebound.test", target.name[1], b"again")
            return server.engine.counters()["udp_dropped_denied"] > 0

        await until(is_denied, "the new address is refused")
        assert denied.is_silent()


@pytest.mark.parametrize("host", ["127.0.0.1", "target.test"])
async def test_error_in_judging(
    server, associated, datagrams, names, monkeypatch, books, caplog, host, until
):
    """Is a no, is in the log once, and harms nobody: not even the same association."""
    names.answers["target.test"] = ["127.0.0.1"]
    bad, good = datagrams(), datagrams()
    ledger = books(server)
    real = addresses.Judge.judge

    def judge(self, client_host, host, port, datagram=False):
        if port == bad.name[1]:
            raise RuntimeError("a mistake in judging")
        real(self, client_host, host, port, datagram)

    monkeypatch.setattr(addresses.Judge, "judge", judge)
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: reported.append(what))
    caplog.set_level(logging.INFO)
    one, other = await associated(server), await associated(server)
    for _ in range(5):
        one.send(host, bad.name[1], b"never")
    for each in (one, other, one):
        assert await each.reaches(good)
    await until(
        lambda: server.engine.counters()["udp_dropped_denied"] == 5, "all of them are dropped"
    )
    assert bad.is_silent()
    told = len(reported) + sum(record.exc_info is not None for record in caplog.records)
    assert told == 1
    one.end()
    other.end()
    assert await ledger.outstanding() == {}
