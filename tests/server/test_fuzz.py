# Thousands of hostile clients at a server that is up: whatever they send, and however they
# leave, nobody gets to a remote without the login that is needed, nothing is logged as an
# error, every session ends, every descriptor comes back, and the next client is served as if
# nothing had been.

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from fuzz import messages
from support.ends import reset_on_close

CLIENTS = 2500
AT_ONCE = 50
SEED = 1929
PATIENCE = 10.0


# Of the right login, as it has to be somewhere in what is sent.
RIGHT = b"\1%c%b%c%b" % (
    len(messages.USER),
    messages.USER,
    len(messages.PASSWORD),
    messages.PASSWORD,
)


def redirected(stream: bytes, where: Any) -> bytes:
    """With this remote where an undamaged request has any other address."""
    host, port = socket.inet_aton(where.host), where.port.to_bytes(2)
    if stream.startswith(b"\4\1"):
        stream = stream[:2] + port + host + stream[8:]
    for kind in (b"\5\1\0\1", b"\5\2\0\1"):
        at = stream.find(kind)
        if at >= 0 and len(stream) >= at + 10:
            stream = stream[: at + 4] + host + port + stream[at + 10 :]
    return stream


real_getaddrinfo = socket.getaddrinfo


def only_this_machine(host, *arguments, **settings):
    if isinstance(host, str) and host.strip("0123456789abcdef:.") and host != "localhost":
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    return real_getaddrinfo(host, *arguments, **settings)


async def hostile(number: int, address: tuple[str, int], for_users: Any, for_others: Any) -> None:
    """Who has the right login asks for the one remote, whoever has not for the other."""
    rng = Random(SEED << 32 | number)
    stream = messages.conversation(rng)
    stream = redirected(stream, for_users if RIGHT in stream else for_others)
    # From an address of its own, or a few wrong logins would hold up those of all others.
    own = f"127.1.{number >> 8}.{number & 255}"
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(*address, local_addr=(own, 0))
        try:
            for segment in messages.cut(rng, stream):
                if writer.transport.is_closing():
                    break  # the server has reset it
                writer.write(segment)
                if rng.randrange(2):
                    await asyncio.sleep(0)
            match rng.randrange(4):
                case 0 if not writer.transport.is_closing():
                    with suppress(OSError):  # ENOTCONN: it has reset it this moment
                        writer.write_eof()
                    async with asyncio.timeout(PATIENCE):
                        await reader.read()
                case 1 if not writer.transport.is_closing():
                    with suppress(OSError):  # EINVAL of macOS, for the same
                        reset_on_close(writer.get_extra_info("socket"))
                case 2:
                    await asyncio.sleep(0.001)
        finally:
            writer.transport.abort() if rng.randrange(2) else writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.timeout(300)
@pytest.mark.linux  # where each client can have an address of its own
@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
async def test_thousands_of_hostile_clients(
    serve, monkeypatch, echo, remote, dial, say, books, caplog, login
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(socket, "getaddrinfo", only_this_machine)
    users = {messages.USER.decode(): messages.PASSWORD.decode()} if login else {}
    settings = {
        "users": users,
        # From here Linux connects to nowhere but this machine, whatever address was hit on.
        "source": ["127.0.0.1", "::1"],
        "allow_bind": True,
        "bind_anyone": True,
        "connect_timeout": 1.0,
        "bind_timeout": 1.0,
        "handshake_timeout": 2.0,
    }
    forbidden = await remote(host="127.0.0.77")  # which no client hits on by itself
    async with serve(**settings) as server:
        ledger = books(server)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                await hostile(number, server.addresses[0], echo, forbidden)

        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(one(number))
        assert await ledger.outstanding() == {}
        assert echo.peers, "no login was right"
        client = await dial(server)
        if login:
            assert not forbidden.peers, "somebody was let in without the right login"
            assert await client.ask(b"\5\1\2" + RIGHT, 4) == b"\5\2\1\0"
            assert (await client.ask(say.socks5(echo.host, echo.port), 10))[1] == 0
        else:
            assert forbidden.peers, "it is not the login that keeps them away"
            assert (await client.connect(echo.host, echo.port))[1] == 0
        assert await client.echoes()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]
