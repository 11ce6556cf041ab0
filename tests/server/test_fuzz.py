# Thousands of hostile clients at a server that is up: whatever they send, and however they
# leave, nothing is logged as an error, every session ends, every descriptor comes back, and
# the next client is served as if nothing had been.

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from random import Random
from socket import SO_LINGER, SOL_SOCKET

import pytest

from fuzz import messages

CLIENTS = 5000
AT_ONCE = 50
SEED = 1929
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
PATIENCE = 10.0


def redirected(stream: bytes, port: int) -> bytes:
    """With the address of the echo server where an undamaged request has any other."""
    target = port.to_bytes(2)
    for kind in (b"\5\1\0\1", b"\5\2\0\1"):
        at = stream.find(kind)
        if at >= 0 and len(stream) >= at + 10:
            stream = stream[: at + 4] + b"\x7f\0\0\1" + target + stream[at + 10 :]
    return stream


real_getaddrinfo = socket.getaddrinfo


def only_this_machine(host, *arguments, **settings):
    if isinstance(host, str) and host.strip("0123456789abcdef:.") and host != "localhost":
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    return real_getaddrinfo(host, *arguments, **settings)


async def hostile(rng: Random, address: tuple[str, int], port: int) -> None:
    stream = redirected(messages.conversation(rng), port)
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(*address)
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
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
                case 2:
                    await asyncio.sleep(0.001)
        finally:
            writer.transport.abort() if rng.randrange(2) else writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
async def test_thousands_of_hostile_clients(
    serve, monkeypatch, echo, dial, books, caplog, login
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
    async with serve(**settings) as server:
        ledger = books(server)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                await hostile(Random(SEED << 32 | number), server.addresses[0], echo.port)

        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS // 2):
                group.create_task(one(number))
        assert await ledger.outstanding() == {}
        if not login:
            client = await dial(server)
            assert (await client.connect(echo.host, echo.port))[1] == 0
            assert await client.echoes()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]
