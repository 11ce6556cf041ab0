# Whom identd says the client is, octet by octet: a scripted identd on the client's own
# loopback address, and every way in which it can fail to give a name.

from __future__ import annotations

import asyncio
import functools
import socket

import pytest

from fastsocks import server as servers
from fastsocks.ident import Ident

HOST = "127.0.0.5"  # of the client and its identd, and of nobody else
SOCKS5_REFUSED = b"\x05\xff"
REJECTED, NO_IDENTD, OTHER_USER = (bytes((0, code)) + bytes(6) for code in (91, 92, 93))


@pytest.fixture
async def identd(remote, monkeypatch):
    """``await identd(b" : USERID : UNIX : me\\r\\n")``: what it says after the ports;
    None is silence. ``queries`` are what it was asked, ``peers`` from where."""
    queries = []

    async def start(says=None, ports=None):
        async def script(reader, writer):
            queries.append(await reader.readline())
            if says is None:
                await reader.read()
                return
            writer.write((queries[-1].strip() if ports is None else ports) + says)
            await writer.drain()

        one = await remote(script, HOST)
        one.queries = queries
        monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=one.port))
        return one

    return start


@pytest.fixture
def come(dial):
    """A client from HOST."""

    async def connect(server):
        sock = socket.socket()
        sock.bind((HOST, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.addresses[0])
        client = await dial(server)
        client.sock.close()
        client.sock = sock
        return client

    return connect


NAMES = [
    pytest.param(b" : USERID : UNIX : alice\r\n", id="blank first"),
    pytest.param(b":USERID:UNIX:alice\n", id="bare"),
    pytest.param(b" : USERID : UNIX , UTF-8 :alice\r\n", id="charset"),
    pytest.param(b"\t:userid: OTHER:\talice \r\nrest", id="liberal"),
]
NO_NAMES = [
    pytest.param(b" : ERROR : NO-USER\r\n", id="error"),
    pytest.param(b" : USERID : UNIX : mallory\r\n", id="another"),
    pytest.param(b" : USERID : UNIX : Alice\r\n", id="case"),
    pytest.param(b" : USERID : UNIX : alice", id="cut"),
    pytest.param(b" : USERID : UNIX : alice\0\r\n", id="nul"),
    pytest.param(b" : USERID : UNIX :   \r\n", id="blank"),
    pytest.param(b"x" * 10_000_000, id="endless"),
    pytest.param(b"\r\n", id="nothing"),
]


@pytest.mark.parametrize("says", NAMES)
async def test_right_name(serve, come, identd, say, echo, says, books):
    daemon = await identd(says)
    async with serve(ident=["127.0.0.5=bob;alice"]) as server:
        ledger = books(server)
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
        assert await client.echoes()
        port = client.sock.getsockname()[1]
        assert daemon.queries == [b"%d, %d\r\n" % (port, server.addresses[0][1])]
        assert daemon.peers[0][0] == server.addresses[0][0]
        client.close()
        four = await come(server)
        assert (await four.ask(say.socks4("127.0.0.1", echo.port, b"alice"), 8))[:2] == b"\0\x5a"
        four.close()
        await ledger.balance()


@pytest.mark.parametrize("says", NO_NAMES)
async def test_no_such_name(serve, come, identd, say, echo, says, books):
    await identd(says)
    async with serve(ident=["127.0.0.5=bob;alice"]) as server:
        ledger = books(server)
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        client.close()
        await ledger.balance()


@pytest.mark.parametrize(
    ("says", "user_id", "reply"),
    [
        (b":USERID:UNIX: alice\r\n", b"bob", OTHER_USER),
        (b":USERID:UNIX: alice\r\n", b"", OTHER_USER),
        (b":USERID:UNIX: mallory\r\n", b"mallory", REJECTED),
        (b":ERROR:HIDDEN-USER\r\n", b"alice", REJECTED),
        (b"nonsense\r\n", b"alice", REJECTED),
        (None, b"alice", NO_IDENTD),
    ],
)
async def test_socks4(serve, come, identd, say, echo, says, user_id, reply):
    await identd(says)
    async with serve(ident=["127.0.0.5=bob;alice"], ident_timeout=0.3) as server:
        client = await come(server)
        await client.send(say.socks4("127.0.0.1", echo.port, user_id))
        assert await client.to_end() == reply


async def test_other_ports(serve, come, identd, say):
    await identd(b":USERID:UNIX: alice\r\n", ports=b"1, 2")
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED


async def test_no_identd_is_remembered(serve, come, refused_port, say, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=["127.0.0.5=alice"]) as server:
        asked = []
        real = Ident._exchange
        monkeypatch.setattr(
            Ident, "_exchange", lambda self, client: asked.append(1) or real(self, client)
        )
        for _ in range(3):
            client = await come(server)
            await client.send(say.socks4("127.0.0.1", 80, b"alice"))
            assert await client.to_end() == NO_IDENTD
        assert len(asked) == 1
    assert "connection refused" in caplog.text


async def test_first_range_decides_and_anyone_is_not_asked(serve, come, identd, say, echo):
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


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_leaves_meanwhile(serve, come, identd, say, until, books, how):
    daemon = await identd(None)
    async with serve(ident=["127.0.0.5=alice"], ident_timeout=0.3) as server:
        ledger = books(server)
        client = await come(server)
        await client.send(say.no_login)
        await until(lambda: daemon.queries, "identd is asked")
        getattr(client, how)()
        await ledger.balance()
