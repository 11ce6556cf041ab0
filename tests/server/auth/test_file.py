# A users file behind the logins: as right and wrong as users that are configured, read
# again while it serves, and hashes that are slow for who guesses and for nobody else.

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

import fastsocks
from fastsocks import auth, backoff, passwords
from fastsocks import server as servers
from fastsocks.auth import Users
from support.logins import RIGHT, USERS, WRONG
from support.system import open_descriptors


@pytest.mark.parametrize(("user", "password"), RIGHT)
async def test_who_is_in_the_file_is_served(filed, dial, say, echo, books, user, password):
    ledger = books(filed)
    for _ in range(2):  # by its hash, and by what is remembered
        client = await dial(filed)
        await client.send(b"\x05\x01\x02" + say.login(user, password))
        await client.send(say.socks5("127.0.0.1", echo.port))
        assert (await client.exactly(14))[:6] == b"\x05\x02\x01\x00\x05\x00"
        assert await client.echoes()
        client.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", WRONG),
        (b"alice", b""),
        (b"alice", b"correct horse\0"),
        (b"nobody", b"correct horse"),
        (b"", b""),
        (b"bob", b"p\xe4ssword"),
        (b"\xff" * 255, b"\xff" * 255),
        (b"long", b"p" * 254),
    ],
)
async def test_who_is_not_in_the_file_reaches_nobody(filed, dial, say, echo, books, user, password):
    ledger = books(filed)
    client = await dial(filed)
    request = say.socks5("127.0.0.1", echo.port) + b"payload"
    await client.send(b"\x05\x01\x02" + say.login(user, password) + request)
    assert await client.to_end() == b"\x05\x02\x01\x01"
    assert echo.peers == []
    client.close()
    assert await ledger.outstanding() == {}


async def test_socks4_cannot_log_in_by_file(filed, dial, say, echo):
    client = await dial(filed)
    await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
    assert await client.to_end() == say.failed4
    assert echo.peers == []


async def test_an_empty_file_is_no_open_proxy(serve, dial, say, file):
    file.write_text("")
    async with serve(users_file=file) as server:
        client = await dial(server)
        assert await client.ask(say.no_login, 2) == b"\x05\xff"
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"", b""))
        assert await client.to_end() == b"\x05\x02\x01\x01"


async def test_six_connections_of_a_browser_cost_one_hash(filed, log_in, monkeypatch):
    checked = []

    def check(stored, secret):
        checked.append(secret)
        return passwords.check(stored, secret)

    monkeypatch.setattr(auth, "check", check)
    told = await asyncio.gather(*(log_in(filed, b"alice", b"correct horse") for _ in range(6)))
    assert told == [b"\x01\x00"] * 6
    assert await log_in(filed, b"alice", b"correct horse") == b"\x01\x00"
    assert len(checked) == 1


async def test_nobody_waits_while_a_password_is_checked(
    filed, dial, say, log_in, monkeypatch, until
):
    go_on, checking = threading.Event(), threading.Event()

    def check(stored, secret):
        if secret == WRONG:
            checking.set()
            go_on.wait(30)
        return passwords.check(stored, secret)

    monkeypatch.setattr(auth, "check", check)
    try:
        client = await dial(filed)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.exactly(2) == b"\x05\x02"
        await until(checking.is_set, "a check is under way")
        assert await log_in(filed, b"alice", b"correct horse") == b"\x01\x00"
    finally:
        go_on.set()
    assert await client.to_end() == b"\x01\x01"


async def test_stopping_while_a_password_is_checked(
    serve, dial, say, file, monkeypatch, until, caplog
):
    go_on, checking = threading.Event(), threading.Event()

    def check(stored, secret):
        checking.set()
        return go_on.wait(30)

    monkeypatch.setattr(auth, "check", check)
    try:
        async with serve(users_file=file) as server:
            client = await dial(server)
            await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
            await until(checking.is_set, "a check is under way")
        assert await client.ended()
    finally:
        go_on.set()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_reload_while_serving(filed, dial, say, echo, log_in, file, hashed, caplog):
    client = await dial(filed)
    await client.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
    await client.send(say.socks5("127.0.0.1", echo.port))
    assert (await client.exactly(14))[:6] == b"\x05\x02\x01\x00\x05\x00"
    file.write_text(f"alice:{hashed(b'other')}\n")
    filed.reload()
    assert await client.echoes()  # a session that stands goes on
    assert await log_in(filed, b"alice", b"correct horse") == b"\x01\x01"
    assert await log_in(filed, b"alice", b"other") == b"\x01\x00"
    file.write_text("# oops\nalice:other\n")
    filed.reload()
    assert await log_in(filed, b"alice", b"other") == b"\x01\x00"
    assert f"users {file}, line 2: " in caplog.text


async def test_a_server_without_a_file_has_nothing_to_reload(server, dial, say):
    server.reload()
    client = await dial(server)
    assert await client.ask(say.no_login, 2) == b"\x05\x00"


async def test_a_broken_file_at_the_start(serve, file):
    file.write_text("alice:secret\n")
    before = open_descriptors()
    with pytest.raises(fastsocks.ConfigError, match="line 1"):
        async with serve(users_file=file):
            pass
    assert open_descriptors() == before


# -- who guesses -----------------------------------------------------------------


async def test_who_guesses_waits_and_nobody_else(serve, file, dial, say, log_in, monkeypatch):
    waiting, may_go_on = asyncio.Event(), asyncio.Event()

    async def sleep(seconds):
        waiting.set()
        await may_go_on.wait()

    monkeypatch.setattr(servers, "Users", functools.partial(Users, sleep=sleep))
    async with serve(users_file=file) as filed:
        for guess in (b"1", b"2", b"3"):
            assert await log_in(filed, b"alice", guess) == b"\x01\x01"
        assert not waiting.is_set()
        culprit = await dial(filed)
        await culprit.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
        assert await culprit.exactly(2) == b"\x05\x02"
        await asyncio.wait_for(waiting.wait(), 10)
        assert await log_in(filed, b"alice", b"correct horse", "127.0.0.2") == b"\x01\x00"
        may_go_on.set()
        assert await culprit.exactly(2) == b"\x01\x00"
        assert await log_in(filed, b"alice", b"correct horse") == b"\x01\x00"


@pytest.mark.parametrize("kind", ["file", "clear"])
async def test_nobody_waits_beyond_the_handshake(
    serve, dial, say, log_in, file, monkeypatch, books, kind
):
    monkeypatch.setattr(backoff, "FIRST_WAIT", 5.0)
    users = {"users_file": file} if kind == "file" else {"users": USERS}
    async with serve(**users, handshake_timeout=0.3) as server:
        ledger = books(server)
        for guess in (b"1", b"2", b"3"):
            assert await log_in(server, b"alice", guess) == b"\x01\x01"
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
        assert await client.to_end() == b"\x05\x02\x01\x01"
        client.close()
        assert await ledger.outstanding() == {}
