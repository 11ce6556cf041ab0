# What the tests of logins share: a users file, and that none of them, whatever it is about,
# leaves a password in the log.

from __future__ import annotations

import pytest

from support.logins import USERS, WRONG


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
