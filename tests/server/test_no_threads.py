# Where the system gives this process no thread, whoever needs one is refused at once and the log
# says why; whoever needs none is served.
#
# Must not know: which engine it is.

from __future__ import annotations

import logging
import threading

import pytest

from fastsocks import passwords, users_file


@pytest.fixture
def no_threads(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


async def test_a_name_cannot_be_looked_up(server, dial, say, echo, caplog, no_threads):
    client = await dial(server)
    with caplog.at_level(logging.INFO):
        await client.send(say.no_login + say.socks5("some.example", 80))
        assert (await client.to_end())[2:] == say.failed(1)
    assert "some.example cannot be looked up: no thread can be started" in caplog.text
    client = await dial(server)
    assert (await client.connect("127.0.0.1", echo.port))[1] == 0


async def test_a_password_cannot_be_checked(serve, dial, say, caplog, no_threads, tmp_path):
    path = str(tmp_path / "users")
    users_file.put(path, "me", passwords.hash_password(b"right"))
    async with serve(users_file=path) as server:
        client = await dial(server)
        with caplog.at_level(logging.INFO):
            await client.send(b"\x05\x01\x02" + say.login(b"me", b"right"))
            assert await client.to_end() == b"\x05\x02\x01\x01"
        assert "the password cannot be checked: no thread can be started" in caplog.text
