# Where there are users as well: identd's word and the password, and neither in place of the other.

from __future__ import annotations

import pytest

from support.ident import REJECTED, SOCKS5_REFUSED

IDENT = ["127.0.0.5=alice"]
USERS = {"me": "secret"}
USER_PASSWORD = b"\x05\x01\x02"


@pytest.fixture
async def alice(identd):
    """The client's identd, which says that it is her."""
    return await identd(b" : USERID : UNIX : alice\r\n")


@pytest.fixture
async def server(alice, serve):
    async with serve(ident=IDENT, users=USERS) as running:
        yield running


async def test_a_name_is_no_password(server, come):
    client = await come(server)
    await client.send(b"\x05\x01\x00")
    assert await client.to_end() == SOCKS5_REFUSED


async def test_a_wrong_password_beside_the_right_name(server, come, say):
    client = await come(server)
    assert await client.ask(USER_PASSWORD, 2) == b"\x05\x02"
    await client.send(say.login(b"me", b"other"))
    assert await client.to_end() == b"\x01\x01"


@pytest.mark.parametrize("offered", [b"\x05\x01\x02", b"\x05\x02\x00\x02"])
async def test_both_are_right(alice, server, come, say, echo, offered):
    client = await come(server)
    assert await client.ask(offered, 2) == b"\x05\x02"
    assert await client.ask(say.login(b"me", b"secret"), 2) == b"\x01\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    assert len(alice.queries) == 1


async def test_a_wrong_name_is_asked_for_no_password(identd, serve, come):
    await identd(b" : USERID : UNIX : mallory\r\n")
    async with serve(ident=IDENT, users=USERS) as server:
        client = await come(server)
        await client.send(USER_PASSWORD)
        assert await client.to_end() == SOCKS5_REFUSED


async def test_socks4_has_no_password(alice, server, come, say, echo):
    client = await come(server)
    await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
    assert await client.to_end() == REJECTED
    assert echo.peers == []
    assert alice.queries == [], "nothing that it says would help"
