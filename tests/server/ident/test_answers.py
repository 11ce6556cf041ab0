# Whom identd says the client is, octet by octet: every way in which it can fail to give a name,
# and where and about whom it is asked.

from __future__ import annotations

import pytest

from fastsocks import ident as idents
from support.ident import HOST, NO_IDENTD, OTHER_USER, OURS, REJECTED, SOCKS5_REFUSED

NOT_SOUND = "'s answer is malformed ({}"
NAMES = [
    pytest.param(b" : USERID : UNIX : alice\r\n", id="blank first"),
    pytest.param(b":USERID:UNIX:alice\n", id="bare"),
    pytest.param(b" : USERID : UNIX , UTF-8 :alice\r\n", id="charset"),
    pytest.param(b"\t:userid: OTHER:\talice \r\nrest", id="liberal"),
]
# And what the log says of it, so that an operator sees whose fault it is.
NO_NAMES = [
    pytest.param(b" : ERROR : NO-USER\r\n", ' says it is an error, "NO-USER"', id="error"),
    pytest.param(b' : ERROR : NO"x\r\n', r' says it is an error, "NO\x22x"', id="quote"),
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
