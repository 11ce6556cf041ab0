# Who may use the proxy: user and password as RFC 1929 has them, nothing else where users
# are configured, and whoever comes where none are.

from __future__ import annotations

import pytest

from support.logins import RIGHT, USERS, WRONG


@pytest.fixture
async def locked(serve):
    async with serve(users=USERS) as running:
        yield running


@pytest.mark.parametrize(("user", "password"), RIGHT)
async def test_who_has_the_password_is_served_and_named_in_the_log(
    locked, dial, say, echo, user, password, caplog
):
    client = await dial(locked)
    assert await client.ask(b"\x05\x02\x00\x02", 2) == b"\x05\x02"
    assert await client.ask(say.login(user, password), 2) == b"\x01\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    assert await client.echoes()
    assert f"{user.decode()}@" in caplog.text


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", WRONG),
        (b"alice", b""),
        (b"alice", b"correct hors"),
        (b"alice", b"correct horse "),
        (b"alice", b"correct horse\0"),
        (b"alice", b"Correct horse"),
        (b"Alice", b"correct horse"),
        (b"alice\0", b"correct horse"),
        (b"nobody", b"correct horse"),
        (b"nobody", b""),
        (b"nobody", b"\0"),
        (b"", b""),
        (b"bob", b"p\xe4ssword"),
        (b"\xff" * 255, b"\xff" * 255),
        (b"\r\nroot", b"\x1b[2J"),
    ],
)
async def test_a_wrong_login_is_told_so_and_no_more(locked, dial, say, books, user, password):
    ledger = books(locked)
    client = await dial(locked)
    assert await client.ask(b"\x05\x01\x02", 2) == b"\x05\x02"
    await client.send(say.login(user, password))
    assert await client.to_end() == b"\x01\x01"
    assert client.has_come_in(2)
    client.close()
    assert await ledger.outstanding() == {}


async def test_wrong_and_the_request_behind_it(locked, dial, say, echo):
    """All in one segment: the refusal survives it, and nobody is dialled."""
    client = await dial(locked)
    request = say.socks5("127.0.0.1", echo.port) + b"payload"
    await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG) + request)
    assert await client.to_end() == b"\x05\x02\x01\x01"
    assert echo.peers == []


@pytest.mark.parametrize("offered", [b"\x00", b"\x01", b"\x00\x01\x03", b"\x00" * 255])
async def test_method_is_missing(locked, dial, say, echo, offered):
    client = await dial(locked)
    greeting = b"\x05" + bytes((len(offered),)) + offered
    await client.send(greeting + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() == b"\x05\xff"
    assert echo.peers == []


async def test_request_in_place_of_the_login(locked, dial, say, echo):
    client = await dial(locked)
    await client.send(b"\x05\x02\x00\x02" + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() == b"\x05\x02\x01\x01"
    assert echo.peers == []


@pytest.mark.parametrize("version", [0, 2, 4, 5, 255])
async def test_login_of_another_version(locked, dial, say, version):
    client = await dial(locked)
    right = say.login(b"alice", b"correct horse")
    await client.send(b"\x05\x01\x02" + bytes((version,)) + right[1:])
    assert await client.to_end() == b"\x05\x02\x01\x01"


@pytest.mark.parametrize("user", [b"", b"alice", b"alice:correct horse"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_socks4_cannot_log_in(locked, dial, say, echo, host, user):
    client = await dial(locked)
    await client.send(say.socks4(host, echo.port, user))
    assert await client.to_end() == say.failed4
    assert echo.peers == []


@pytest.mark.parametrize("password", [b"correct horse", WRONG], ids=["right", "wrong"])
async def test_a_second_login_is_no_request(locked, dial, say, echo, password):
    """Right or wrong: one is judged, and no second can weaken that."""
    client = await dial(locked)
    await client.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
    assert await client.exactly(4) == b"\x05\x02\x01\x00"
    await client.send(say.login(b"alice", password) + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() == say.failed(1)
    assert echo.peers == []


@pytest.mark.parametrize(
    "credentials", [(b"", b""), (b"any", b"thing"), (b"\xff" * 255, b"x" * 255)]
)
async def test_open_server_takes_whoever_can_only_log_in(server, dial, say, echo, credentials):
    client = await dial(server)
    assert await client.ask(b"\x05\x01\x02", 2) == b"\x05\x02"
    assert await client.ask(say.login(*credentials), 2) == b"\x01\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    assert await client.echoes()


@pytest.mark.parametrize(
    "offered", [b"\x00\x02", b"\x02\x00", b"\x01\x02\x00", b"\x02" * 9 + b"\x00"]
)
async def test_open_server_prefers_no_login(server, dial, offered):
    # Java offers both and then sends the name of the operating system's user.
    client = await dial(server)
    assert await client.ask(b"\x05" + bytes((len(offered),)) + offered, 2) == b"\x05\x00"


async def test_open_server_takes_a_login_nobody_asked_for(server, dial, say, echo):
    client = await dial(server)
    await client.send(say.no_login + say.login(b"isolate", b"stream"))
    assert await client.exactly(4) == b"\x05\x00\x01\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    assert await client.echoes()


async def test_log_says_who_failed_without_control_characters(locked, dial, say, caplog):
    client = await dial(locked)
    await client.ask(b"\x05\x01\x02", 2)
    await client.send(say.login(b"mall\x1b[31mory\r\nroot logged in", WRONG))
    assert await client.to_end() == b"\x01\x01"
    lines = [record.getMessage() for record in caplog.records if "mall" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].isprintable()


async def test_no_name_passes_for_something_else_that_the_log_says(locked, dial, say, caplog):
    """As a program would read it that shuts out whoever fails too often."""
    client = await dial(locked)
    await client.ask(b"\x05\x01\x02", 2)
    await client.send(say.login(b'x" #1 y@192.0.2.1:5 -> -: "', WRONG))
    assert await client.to_end() == b"\x01\x01"
    (line,) = (one.getMessage() for one in caplog.records if "192.0.2.1" in one.getMessage())
    assert line.endswith(r'for user "x\x22 #1 y@192.0.2.1:5 -> -: \x22"')


async def test_a_name_is_one_word_in_front_of_its_client(serve, dial, say, refused_port, caplog):
    async with serve(users={"z -> y": "secret"}) as server:
        client = await dial(server)
        await client.ask(b"\x05\x01\x02", 2)
        await client.ask(say.login(b"z -> y", b"secret"), 2)
        assert (await client.ask(say.socks5("127.0.0.1", refused_port), 10))[1] == 5
    (line,) = (one.getMessage() for one in caplog.records if "refused" in one.getMessage())
    assert r" z\x20->\x20y@127.0.0.1:" in line


def test_nothing_shows_the_passwords_of_a_server(serve):
    server = serve(users=USERS)
    for shown in (repr(server), repr(server.config), str(server.config)):
        for secret in USERS.values():
            assert secret not in shown


# -- methods ---------------------------------------------------------------------


async def test_strict_methods_turn_away_who_can_only_log_in(serve, dial):
    async with serve(strict_methods=True) as server:
        client = await dial(server)
        await client.send(b"\x05\x01\x02")
        assert await client.to_end() == b"\x05\xff"
        client = await dial(server)
        assert await client.ask(b"\x05\x02\x02\x00", 2) == b"\x05\x00"
