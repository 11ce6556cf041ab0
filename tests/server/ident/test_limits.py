# How long an identd may take, and how much it may say: one budget of time for all of it, and
# no more octets than an answer has. Where a client is held up by its own host's identd, it
# is for no longer than that.

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace

import pytest

from fastsocks import ident as idents
from fastsocks import server as servers
from fastsocks.ident import Ident
from fastsocks.proto.ident import Answer, Outcome
from fastsocks.ranges import parse_rule
from support.ident import HOST, NO_IDENTD, REJECTED, SOCKS5_REFUSED


async def test_answer_that_drips(serve, dial, remote, monkeypatch, say, caplog):
    """Each octet in time, but not the line: there is one budget for all of it."""
    caplog.set_level("INFO")
    ended = asyncio.Event()

    async def drip(reader, writer):
        line = (await reader.readline()).strip() + b":USERID:UNIX:" + b" " * 400
        try:
            for octet in line:
                writer.write(bytes((octet,)))
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            ended.set()

    daemon = await remote(drip, HOST)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=daemon.port))
    async with serve(ident=["127.0.0.5=alice"], ident_timeout=0.3) as server:
        client = await dial(server, source=HOST)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        async with asyncio.timeout(5):
            await ended.wait()
    assert "no answer in time" in caplog.text


async def test_answer_that_is_too_long_is_not_waited_for(
    serve, dial, remote, say, monkeypatch, caplog, until
):
    """RFC 1413 lets it have 1,000 octets: identd is hung up on then, which it waits for, and
    told apart from one that is silent."""
    caplog.set_level("INFO")
    ends = []

    async def endless(reader, writer):
        await reader.readline()
        writer.write(b"x" * 1000)
        ends.append(await reader.read())

    daemon = await remote(endless, HOST)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=daemon.port))
    async with serve(ident=["127.0.0.5=alice"], ident_timeout=8) as server:
        client = await dial(server, source=HOST)
        await client.send(say.socks4("127.0.0.1", 80, b"alice"))
        assert await client.to_end() == REJECTED
        await until(lambda: ends == [b""], "identd is hung up on")
    assert "identd's answer is malformed (no end of line)" in caplog.text


async def test_identd_that_swallows_the_question(
    serve, dial, black_hole, say, monkeypatch, books, caplog
):
    """As behind a packet filter: connecting to it is given up as well."""
    caplog.set_level("INFO")
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=black_hole.port))
    async with serve(ident=["127.0.0.1=alice"], ident_timeout=0.3) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(say.socks4("127.0.0.1", 80, b"alice"))
        assert await client.to_end() == NO_IDENTD
        assert black_hole.waiting() == 0
        client.close()
        assert await ledger.outstanding() == {}
    assert "no answer in time" in caplog.text


async def test_reset_of_a_client_whose_identd_is_asked_is_noticed(
    serve, come, identd, say, until, books
):
    """Not only when identd has had its time: it would hold its place until then."""
    daemon = await identd(None)
    async with serve(ident=["127.0.0.5=alice"], ident_timeout=60, handshake_timeout=60) as server:
        ledger = books(server)
        client = await come(server)
        await client.send(say.no_login)
        await until(lambda: daemon.queries, "identd is asked")
        client.reset()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_leaves_meanwhile(serve, come, identd, say, until, books, how):
    daemon = await identd(None)
    async with serve(ident=["127.0.0.5=alice"], ident_timeout=0.3) as server:
        ledger = books(server)
        client = await come(server)
        await client.send(say.no_login)
        await until(lambda: daemon.queries, "identd is asked")
        getattr(client, how)()
        assert await ledger.outstanding() == {}


class SlowIdentd:
    """An engine and its only connection, in a time of its own: it takes ``accepting``
    seconds to connect, and nothing is ever said."""

    def __init__(self, accepting: float) -> None:
        self.now = 1000.0
        self._accepting = accepting
        self._deadline = 0.0

    def monotonic(self) -> float:
        return self.now

    async def dial(self, client, address, source, timeout) -> SlowIdentd:
        self.now += min(self._accepting, timeout or self._accepting)
        if 0 < timeout < self._accepting:
            raise TimeoutError
        return self

    def deadline(self, seconds: float) -> None:
        self._deadline = self.now + seconds

    async def send(self, data: bytes) -> None:
        pass

    async def recv(self) -> bytes:
        assert self._deadline, "it would wait for ever"
        self.now = self._deadline
        raise TimeoutError

    def close(self) -> None:
        pass


@pytest.mark.parametrize("accepting", [0.0, 3.0, 7.0, 9.5, 60.0])
async def test_one_budget_to_connect_and_to_answer(monkeypatch, accepting):
    """Who is slow at the one has the less for the other: it is ten seconds in all."""
    slow = SlowIdentd(accepting)
    monkeypatch.setattr(idents, "time", slow)
    client = SimpleNamespace(peer=(HOST, 40_000), sockname=("127.0.0.1", 1080))
    ident = Ident(slow, [parse_rule("127.0.0.5=alice")], 10.0)
    verdict = await ident.verdict(client)
    assert verdict.answer == Answer(Outcome.TIMEOUT)
    assert slow.now == pytest.approx(1010.0)
