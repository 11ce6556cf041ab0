# Whom identd says the client is, octet by octet: a scripted identd on the client's own
# loopback address, and every way in which it can fail to give a name.

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import os
import socket

import pytest

from fastsocks import hosts
from fastsocks import ident as idents
from fastsocks import server as servers
from fastsocks.ident import Ident

HOST = "127.0.0.5"  # of the client and its identd, and of nobody else
# Where clients connect to in tests of where the query comes from: not the address that the
# kernel would take for it, which is 127.0.0.1 towards all of loopback.
OURS = "127.0.0.3"
NOT_SOUND = "'s answer is malformed ({}"
SOCKS5_REFUSED = b"\x05\xff"
REJECTED, NO_IDENTD, OTHER_USER = (bytes((0, code)) + bytes(6) for code in (91, 92, 93))


@pytest.fixture
async def identd(remote, monkeypatch):
    """``await identd(b" : USERID : UNIX : me\\r\\n")``: what it says after the ports;
    None is silence. ``queries`` are what it was asked, ``peers`` from where."""
    queries = []

    async def start(says=None, ports=None, host=HOST):
        async def script(reader, writer):
            queries.append(await reader.readline())
            if says is None:
                await reader.read()
                return
            writer.write((queries[-1].strip() if ports is None else ports) + says)
            await writer.drain()

        one = await remote(script, host)
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
# And what the log says of it, so that an operator sees whose fault it is.
NO_NAMES = [
    pytest.param(b" : ERROR : NO-USER\r\n", ' says it is an error, "NO-USER"', id="error"),
    pytest.param(b" : USERID : UNIX : mallory\r\n", ' says " mallory", who is not', id="another"),
    pytest.param(b" : USERID : UNIX : Alice\r\n", ' says " Alice", who is not', id="case"),
    pytest.param(b" : USERID : UNIX : alice", NOT_SOUND.format("no end of line"), id="cut"),
    pytest.param(b" : USERID : UNIX : alice\0\r\n", NOT_SOUND.format("a name that"), id="nul"),
    pytest.param(b" : USERID : UNIX :   \r\n", NOT_SOUND.format("empty name"), id="blank"),
    pytest.param(b" : USERID\r\n", NOT_SOUND.format("too few fields"), id="short"),
    pytest.param(b" : HELLO : UNIX : alice\r\n", NOT_SOUND.format("neither a name"), id="kind"),
    pytest.param(b"x" * 10_000_000, NOT_SOUND.format("no end of line"), id="endless"),
    pytest.param(b"\r\n", NOT_SOUND.format("too few fields"), id="nothing"),
]


@pytest.mark.parametrize("says", NAMES)
async def test_right_name(serve, come, identd, say, echo, says, books):
    daemon = await identd(says)
    async with serve(ident=["127.0.0.5=bob;alice"], listen=[f"{OURS}:0"]) as server:
        ledger = books(server)
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
        assert await client.echoes()
        port = client.sock.getsockname()[1]
        assert daemon.queries == [b"%d, %d\r\n" % (port, server.addresses[0][1])]
        assert daemon.peers[0][0] == OURS
        client.close()
        four = await come(server)
        assert (await four.ask(say.socks4("127.0.0.1", echo.port, b"alice"), 8))[:2] == b"\0\x5a"
        four.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize(("says", "told"), NO_NAMES)
async def test_no_such_name(serve, come, identd, say, says, told, books, caplog):
    caplog.set_level("INFO")
    await identd(says)
    async with serve(ident=["127.0.0.5=bob;alice"]) as server:
        ledger = books(server)
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        client.close()
        assert await ledger.outstanding() == {}
    assert f"ident (range 127.0.0.5): identd{told}" in caplog.text


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


async def test_other_ports(serve, come, identd, say, caplog):
    caplog.set_level("INFO")
    await identd(b":USERID:UNIX: alice\r\n", ports=b"1, 2")
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
    assert NOT_SOUND.format("it is about other ports") in caplog.text


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


async def test_ipv6(serve, dial, identd, remote, books):
    daemon = await identd(b":USERID:UNIX:alice\r\n", host="::1")
    echo = await remote(host="::1")
    async with serve(ident=["::1=alice"], listen=["[::1]:0"]) as server:
        ledger = books(server)
        client = await dial(server)
        assert (await client.connect("::1", echo.port))[1] == 0
        assert await client.echoes()
        assert daemon.queries == [b"%d, %d\r\n" % (client.name[1], server.addresses[0][1])]
        client.close()
        assert await ledger.outstanding() == {}


async def test_ipv4_client_of_a_listener_for_both_families(serve, dial, identd, echo):
    """Whose address is IPv4-mapped to the kernel: in no rule, and to no identd."""
    daemon = await identd(b":USERID:UNIX:alice\r\n")
    async with serve(ident=["127.0.0.5=alice"], listen=["[::]:0"]) as server:
        server.addresses[0] = (OURS, server.addresses[0][1])
        client = await dial(server, source=HOST)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
        assert [peer[0] for peer in daemon.peers] == [OURS]


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
    serve, come, names, say, until, monkeypatch, caplog, patience
):
    """Whether ident or the look-up gives up first, and whoever comes after that."""
    caplog.set_level("INFO")
    monkeypatch.setattr(hosts, "DEADLINE", 0.2)
    names.hang("hanging.test")
    async with serve(ident=["hanging.test=alice", "."], ident_timeout=patience) as server:
        for _ in range(2):
            client = await come(server)
            await client.send(say.no_login)
            assert await client.to_end() == SOCKS5_REFUSED
            await until(lambda: not server._ident._hosts._addresses._asking, "the look-up ends")
    assert names.asked == ["hanging.test"]
    assert "could not be looked up in time" in caplog.text
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
    assert "could not be looked up in time" in caplog.text


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


async def test_range_by_name(serve, come, names, echo):
    """Looked up once for many connections."""
    names.answers["client.test"] = [HOST]
    async with serve(ident=["client.test"]) as server:
        for _ in range(3):
            client = await come(server)
            assert (await client.connect("127.0.0.1", echo.port))[1] == 0
    assert names.asked == ["client.test"]


async def test_memory_of_hosts_without_identd_is_bounded(
    serve, dial, refused_port, say, monkeypatch
):
    monkeypatch.setattr(idents, "KEEP_LIMIT", 3)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=[".=alice"]) as server:
        for last in itertools.chain(range(2, 10), [9, 8]):
            client = await dial(server, source=f"127.0.0.{last}")
            await client.send(say.no_login)
            assert await client.to_end() == SOCKS5_REFUSED
        assert list(server._ident._silent) == ["127.0.0.7", "127.0.0.8", "127.0.0.9"]


async def test_identd_that_comes_back(serve, come, identd, say, echo, refused_port, monkeypatch):
    """Asked again when the memory of its absence is too old."""
    monkeypatch.setattr(idents, "KEEP_NO_ANSWER", 0.0)
    monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=refused_port))
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.no_login)
        assert await client.to_end() == SOCKS5_REFUSED
        daemon = await identd(b":USERID:UNIX:alice\r\n")
        server._ident._port = daemon.port
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0


async def test_our_own_trouble_is_not_the_hosts(serve, come, identd, say, echo, monkeypatch):
    """A descriptor that we lacked for one connection refuses that one, and no other."""
    await identd(b":USERID:UNIX:alice\r\n")
    real = Ident._dial
    troubles = [errno.EMFILE, errno.ENOBUFS]

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


@pytest.mark.parametrize(
    "says",
    [
        b":ERROR:\x1b[2Jforged\x07\x00\x85\n",
        b":USERID:UNIX:\x1b[2Jforged\x07\xe2\x80\xae\xff\n",
    ],
    ids=["error", "name"],
)
async def test_what_identd_writes_cannot_write_to_the_log(
    serve, come, identd, say, echo, caplog, says
):
    caplog.set_level("INFO")
    await identd(says)
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        await client.send(say.socks4("127.0.0.1", echo.port, b"\x1b]0;me\x07"))
        assert await client.ended()
    assert "forged" in caplog.text
    assert all(letter.isprintable() for letter in caplog.text.replace("\n", ""))


async def test_name_that_is_allowed_cannot_write_to_the_log(
    serve, come, identd, echo, caplog, monkeypatch
):
    caplog.set_level("DEBUG")
    await identd(b":USERID:UNIX:al\x1bice\n")
    monkeypatch.setattr(idents.rfc1413, "matches", lambda name, allowed: True)
    async with serve(ident=["127.0.0.5=alice"]) as server:
        client = await come(server)
        assert (await client.connect("127.0.0.1", echo.port))[1] == 0
    assert "al\\x1bice@" in caplog.text
    assert "\x1b" not in caplog.text
