# Which range decides about a client, and what becomes of one whose range has a name in it that
# the resolver has not found yet, or never will.

from __future__ import annotations

import asyncio
import socket

import pytest

from fastsocks import hosts
from support.ident import HOST, REJECTED, SOCKS5_REFUSED


async def test_first_range_decides_and_anyone_is_not_asked(serve, come, identd, echo):
    daemon = await identd(None)
    async with serve(ident=["10.;127.0.0.", ".=alice"]) as server:
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
    assert daemon.queries == []


async def test_in_no_range(serve, come, identd, say):
    daemon = await identd(b":USERID:UNIX: alice\r\n")
    async with serve(ident=["10.=alice", "127.0.0.6"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        client = await come(server)
        await client.send(say.socks4("127.0.0.1", 80, b"alice"))
        assert await client.to_end() == REJECTED
    assert daemon.queries == []


async def test_range_by_name(serve, come, names, echo):
    """Looked up once for many connections."""
    names.answers["client.test"] = [HOST]
    async with serve(ident=["client.test"]) as server:
        for _ in range(3):
            client = await come(server)
            assert (await client.connect("127.0.0.1", echo.port))[1] == 0
    assert names.asked == ["client.test"]


@pytest.mark.parametrize("rule", ["hanging.test=alice", "hanging.test", "a.test:hanging.test"])
async def test_resolver_that_hangs(serve, dial, come, names, say, echo, rule):
    """Holds up those whom the rule is about, for as long as they are given, and nobody
    else. A later rule does not decide because of it."""
    names.hang("hanging.test")
    names.answers["a.test"] = ["127.0.0.1"]
    async with serve(ident=["127.0.0.6", rule, "."], ident_timeout=0.3) as server:
        waiting = await come(server)
        await waiting.send(say.no_login)
        other = await dial(server, source="127.0.0.6")
        assert (await other.connect("127.0.0.1", echo.port))[1] == 0
        assert await other.echoes()
        assert await waiting.to_end() == SOCKS5_REFUSED
        four = await come(server)
        await four.send(say.socks4("127.0.0.1", echo.port, b"alice"))
        assert await four.to_end() == REJECTED


@pytest.mark.parametrize("patience", [0.05, 30], ids=["shorter", "longer"])
async def test_later_range_never_decides_while_names_get_no_answer(
    serve, come, names, say, books, monkeypatch, caplog, patience
):
    """Whether ident or the look-up gives up first, and whoever comes after that."""
    caplog.set_level("INFO")
    monkeypatch.setattr(hosts, "DEADLINE", 0.2)
    names.hang("hanging.test")
    async with serve(ident=["hanging.test=alice", "."], ident_timeout=patience) as server:
        ledger = books(server)
        for _ in range(2):
            client = await come(server)
            await client.send(say.no_login)
            assert await client.to_end() == SOCKS5_REFUSED
            client.close()
            assert await ledger.outstanding() == {}  # so the look-up is over too
    assert names.asked == ["hanging.test"]
    assert "the names in the ranges could not be looked up" in caplog.text
    assert "in no range" not in caplog.text


async def test_name_that_does_not_exist_contains_nobody(serve, come, names, say, echo, caplog):
    """So that a later range decides; but not while its name server fails."""
    caplog.set_level("INFO")
    names.answers["nobody.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
    names.answers["failing.test"] = socket.gaierror(socket.EAI_AGAIN, "temporary failure")
    async with serve(ident=["nobody.test=alice", "127.0.0.5", "."]) as server:
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
    async with serve(ident=["failing.test=alice", "."]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
    assert "the names in the ranges could not be looked up" in caplog.text


async def test_clients_that_wait_for_a_resolver_and_leave(serve, come, names, say, until, books):
    names.hang("hanging.test")
    async with serve(ident=["hanging.test"]) as server:
        ledger = books(server)
        clients = [await come(server) for _ in range(3)]
        for client in clients:
            await client.send(say.no_login)
        await until(lambda: names.asked, "the resolver is asked")
        for client in clients:
            client.reset()
        names.release()
        assert await ledger.outstanding() == {}
        assert names.asked == ["hanging.test"]


async def test_server_stops_while_a_resolver_hangs(serve, come, names, say, until):
    names.hang("hanging.test")
    server = serve(ident=["hanging.test"], ident_timeout=60)
    server.start()
    client = await come(server)
    await client.send(say.no_login)
    await until(lambda: names.asked, "the resolver is asked")
    async with asyncio.timeout(2):
        await server.stop(0)
    assert await client.ended()
