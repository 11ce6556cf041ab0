# Hosts without an identd, or with one that fails: told apart, remembered so that they are not
# asked again at once, and no longer than is right.

from __future__ import annotations

import errno
import functools
import itertools
import os

import pytest

from fastsocks import ident as idents
from fastsocks import server as servers
from fastsocks.ident import Ident
from support.ident import NO_IDENTD, SOCKS5_REFUSED


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH])
async def test_host_that_cannot_be_reached(serve, come, say, monkeypatch, caplog, number):
    """Told apart from one that refuses and from one that is silent."""
    caplog.set_level("INFO")

    async def dial(self, client):
        raise OSError(number, "in whatever words")

    monkeypatch.setattr(Ident, "_dial", dial)
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.socks4("127.0.0.1", 80, b"alice"))
        assert await client.to_end() == NO_IDENTD
    assert f"identd cannot be reached: {os.strerror(number)}" in caplog.text


async def test_no_identd_is_remembered(serve, come, refused_port, say, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=["127.0.0.5=alice"]) as server:
        asked = []
        real = Ident._dial
        monkeypatch.setattr(
            Ident, "_dial", lambda self, client: asked.append(1) or real(self, client)
        )
        for _ in range(3):
            client = await come(server)
            await client.send(say.socks4("127.0.0.1", 80, b"alice"))
            assert await client.to_end() == NO_IDENTD
        assert len(asked) == 1
    assert "connection refused" in caplog.text


async def test_one_conversation_that_failed_is_not_the_hosts(
    serve, come, identd, say, echo, monkeypatch
):
    """One user of a host could lock the others out by troubling its identd."""
    await identd(b":USERID:UNIX:alice\r\n")
    real = Ident._exchange
    troubles = [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError()]

    async def exchange(self, client, connection):
        if troubles:
            raise troubles.pop()
        return await real(self, client, connection)

    monkeypatch.setattr(Ident, "_exchange", exchange)
    async with serve(ident=["127.0.0.5=alice"]) as server:
        for _ in range(2):
            client = await come(server)
            await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
            assert await client.to_end() == NO_IDENTD
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0


async def test_memory_of_hosts_without_identd_is_bounded(
    serve, dial, identd, refused_port, say, monkeypatch
):
    """An identd that comes is asked where its absence is forgotten, and not where it is known."""
    monkeypatch.setattr(idents, "KEEP_LIMIT", 3)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=[".=alice"]) as server:
        for last in itertools.chain(range(2, 10), [9, 8]):
            client = await dial(server, source=f"127.0.0.{last}")
            await client.send(say.no_login)
            assert await client.to_end() == SOCKS5_REFUSED
        admitted = []
        for last in range(5, 10):
            await identd(b":USERID:UNIX:alice\r\n", host=f"127.0.0.{last}", port=refused_port)
            client = await dial(server, source=f"127.0.0.{last}")
            if await client.ask(say.no_login, 2) != SOCKS5_REFUSED:
                admitted.append(last)
        assert admitted == [5, 6]


async def test_identd_that_comes_back(serve, come, identd, say, echo, refused_port, monkeypatch):
    """Asked again when the memory of its absence is too old."""
    monkeypatch.setattr(idents, "KEEP_NO_ANSWER", 0.0)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        await identd(b":USERID:UNIX:alice\r\n", port=refused_port)
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.ENOSPC])
async def test_our_own_trouble_is_not_the_hosts(
    serve, come, identd, say, echo, monkeypatch, number
):
    """What we lacked for one connection refuses that one, and no other."""
    await identd(b":USERID:UNIX:alice\r\n")
    real = Ident._dial
    troubles = [number] * 2

    async def dial(self, client):
        if troubles:
            raise OSError(troubles.pop(), "no more of it")
        return await real(self, client)

    monkeypatch.setattr(Ident, "_dial", dial)
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        client = await come(server)
        await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
        assert await client.to_end() == NO_IDENTD
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
