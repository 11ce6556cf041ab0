# Who may use the proxy: user and password as RFC 1929 has them, nothing else where users
# are configured, and no password in any log line whatever the level.

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import pytest

import fastsocks
from fastsocks import auth, backoff, passwords

USERS = {"alice": "correct horse", "bob": "p\u00e4ssword", "long": "p" * 255}
WRONG = b"battery staple"


@pytest.fixture(autouse=True)
def secrets_stay_secret(caplog):
    caplog.set_level("DEBUG")
    yield
    for record in caplog.get_records("call"):
        line = f"{record.getMessage()} {record.exc_info}"
        for secret in (*USERS.values(), WRONG.decode()):
            assert secret not in line
            assert repr(secret.encode())[2:-1] not in line


@pytest.fixture
async def locked(serve):
    async with serve(users=USERS) as running:
        yield running


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", b"correct horse"),
        (b"bob", "p\u00e4ssword".encode()),
        (b"long", b"p" * 255),
    ],
)
async def test_right(locked, dial, say, echo, user, password, caplog):
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
async def test_wrong(locked, dial, say, books, user, password):
    ledger = books(locked)
    client = await dial(locked)
    assert await client.ask(b"\x05\x01\x02", 2) == b"\x05\x02"
    await client.send(say.login(user, password))
    assert await client.to_end() == b"\x01\x01"
    assert client.data_segments() == 2
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


async def test_a_second_login_is_judged_like_the_first(locked, dial, say, echo):
    """Or refused for being there at all; what it may not do is weaken the first."""
    client = await dial(locked)
    await client.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
    assert await client.exactly(4) == b"\x05\x02\x01\x00"
    await client.send(say.login(b"alice", WRONG) + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() in (b"\x01\x01", say.failed(1))
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


def test_nothing_shows_the_passwords_of_a_server(serve):
    server = serve(users=USERS)
    for shown in (repr(server), repr(server.config), str(server.config)):
        for secret in USERS.values():
            assert secret not in shown


# -- a users file ----------------------------------------------------------------


@pytest.fixture
def file(tmp_path, hashed):
    path = tmp_path / "users"
    path.write_text("".join(f"{user}:{hashed(pw.encode())}\n" for user, pw in USERS.items()))
    path.chmod(0o600)
    return path


@pytest.fixture
async def filed(serve, file):
    async with serve(users_file=file) as running:
        yield running


@pytest.fixture
def log_in(dial, say):
    """``await log_in(server, user, password)``: all that comes, to the end if refused."""

    async def attempt(server, user, password, source=""):
        client = await dial(server, source=source)
        assert await client.ask(b"\x05\x02\x00\x02", 2) == b"\x05\x02"
        told = await client.ask(say.login(user, password), 2)
        if told != b"\x01\x00":
            assert await client.ended()
        client.close()
        return told

    return attempt


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", b"correct horse"),
        (b"bob", "p\u00e4ssword".encode()),
        (b"long", b"p" * 255),
    ],
)
async def test_right_by_file(filed, dial, say, echo, books, user, password):
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
async def test_wrong_by_file(filed, dial, say, echo, books, user, password):
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


async def test_a_broken_file_at_the_start(serve, file, books):
    file.write_text("alice:secret\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(fastsocks.ConfigError, match="line 1"):
        async with serve(users_file=file):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# -- who guesses -----------------------------------------------------------------


async def test_who_guesses_waits_and_nobody_else(filed, dial, say, log_in, monkeypatch):
    for guess in (b"1", b"2", b"3"):
        assert await log_in(filed, b"alice", guess) == b"\x01\x01"
    waiting, sleep = asyncio.Event(), asyncio.Event()

    async def stand_in(seconds):
        waiting.set()
        await sleep.wait()

    monkeypatch.setattr(filed._users, "_sleep", stand_in)
    culprit = await dial(filed)
    await culprit.send(b"\x05\x01\x02" + say.login(b"alice", b"correct horse"))
    assert await culprit.exactly(2) == b"\x05\x02"
    await asyncio.wait_for(waiting.wait(), 10)
    assert await log_in(filed, b"alice", b"correct horse", "127.0.0.2") == b"\x01\x00"
    sleep.set()
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
        assert await client.exactly(2) == b"\x05\x02"
        with contextlib.suppress(ConnectionResetError):
            assert await client.to_end() == b""
        client.close()
        assert await ledger.outstanding() == {}


# -- methods ---------------------------------------------------------------------


async def test_strict_methods_turn_away_who_can_only_log_in(serve, dial, say):
    async with serve(strict_methods=True) as server:
        client = await dial(server)
        await client.send(b"\x05\x01\x02")
        assert await client.to_end() == b"\x05\xff"
        client = await dial(server)
        assert await client.ask(b"\x05\x02\x02\x00", 2) == b"\x05\x00"


# -- a program decides -----------------------------------------------------------


@pytest.fixture
async def decided(serve):
    """A server whose authenticator remembers what it was asked, and answers from a list."""
    asked, answers = [], []

    async def authenticator(client, method, credentials):
        asked.append((client[0], method, credentials))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with serve(authenticator=authenticator) as server:
        server.asked, server.answers = asked, answers
        yield server


async def test_a_program_lets_in_by_password(decided, dial, say, echo, caplog):
    decided.answers += [True]
    client = await dial(decided)
    await client.send(b"\x05\x01\x02" + say.login(b"al\xffice", b""))
    await client.send(say.socks5("127.0.0.1", echo.port))
    assert (await client.exactly(14))[:6] == b"\x05\x02\x01\x00\x05\x00"
    assert decided.asked == [("127.0.0.1", 2, fastsocks.Credentials(b"al\xffice", b""))]
    assert "al\ufffdice@" in caplog.text


async def test_a_program_lets_in_without_a_login(decided, dial, say, echo):
    decided.answers += [True, True]
    client = await dial(decided)
    assert (await client.ask(b"\x05\x02\x02\x00", 2)) == b"\x05\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    client = await dial(decided)
    assert (await client.ask(say.socks4("127.0.0.1", echo.port, b"me"), 8))[1] == 90
    assert await client.echoes()
    assert decided.asked == [("127.0.0.1", 0, None)] * 2


async def test_a_login_nobody_asked_for_is_not_judged(decided, dial, say, echo):
    decided.answers += [True]
    client = await dial(decided)
    await client.send(say.no_login + say.login(b"isolate", b"stream"))
    assert await client.exactly(4) == b"\x05\x00\x01\x00"


@pytest.mark.parametrize("answer", [False, None, 1, "yes", ValueError("p4ss"), TimeoutError()])
async def test_a_program_refuses(decided, dial, say, echo, caplog, answer):
    """Only True lets in; what a program forgot to await or to return does not."""
    decided.answers += [answer] * 4
    client = await dial(decided)
    await client.send(b"\x05\x02\x00\x02" + say.login(b"alice", WRONG))
    assert await client.to_end() == b"\x05\x02\x01\x01"
    client = await dial(decided)
    await client.send(say.no_login + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() == b"\x05\xff"
    client = await dial(decided)
    await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
    assert await client.to_end() == say.failed4
    assert echo.peers == []
    assert "Traceback" not in caplog.text
    if isinstance(answer, Exception):
        told = [line for line in caplog.messages if "authenticator raised" in line]
        assert len(told) == 1
        assert f"{type(answer).__name__} ({__file__}, line " in told[0]
        assert "p4ss" not in caplog.text


async def test_a_program_that_is_no_coroutine_is_refused(serve, dial, say):
    async with serve(authenticator=lambda client, method, credentials: True) as server:
        client = await dial(server)
        await client.send(b"\x05\x02\x00\x02" + say.login(b"alice", WRONG))
        assert await client.to_end() == b"\x05\x02\x01\x01"


async def test_a_program_that_hangs_has_the_time_of_a_handshake(serve, dial, say, books):
    async def never(client, method, credentials):
        await asyncio.Event().wait()

    async with serve(authenticator=never, handshake_timeout=0.2) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.exactly(2) == b"\x05\x02"
        assert await client.ended()
        client.close()
        assert await ledger.outstanding() == {}


async def test_a_client_that_leaves_a_hanging_program(serve, dial, say, books, until):
    release = asyncio.Event()

    async def later(client, method, credentials):
        await release.wait()
        return True

    async with serve(authenticator=later) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.exactly(2) == b"\x05\x02"
        client.reset()
        await client.seen()
        release.set()
        assert await ledger.outstanding() == {}
