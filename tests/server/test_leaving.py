# Clients that leave, by FIN and by reset, wherever in their session: nothing of theirs
# stays behind, and there is no traceback in the log.

from __future__ import annotations

import asyncio
import logging

import pytest

GREETING = b"\x05\x01\x02"
LOGIN = b"\x01\x05alice\x06secret"
STREAM = GREETING + LOGIN + b"\x05\x01\x00\x03\x0bexample.com\x00\x50"


def leave(client, how: str) -> None:
    {"close": client.close, "reset": client.reset, "finish": client.finish}[how]()


async def over(client, how: str) -> None:
    """A client that only half-closed sees the server close, and does the same."""
    if how == "finish":
        await client.ended()
        client.close()


async def greeted(client, say) -> None:
    """With the answer read: to close with something unread would be a reset."""
    assert await client.ask(say.no_login, 2) == b"\x05\x00"


every_way = pytest.mark.parametrize("how", ["close", "reset", "finish"])


@pytest.fixture
def errors(caplog):
    """``errors()`` in the log: whatever a client does, it is none of the program."""
    caplog.set_level("DEBUG")

    def told() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]

    return told


@every_way
async def test_clients_that_leave_without_a_word_leave_nothing(server, dial, books, how, errors):
    ledger = books(server)
    for _ in range(20):
        client = await dial(server)
        leave(client, how)
        await over(client, how)
    assert await ledger.outstanding() == {}
    assert errors() == []


@every_way
@pytest.mark.parametrize("position", [1, 2, 3, 4, 9, 15, 16, 17, 20, 30, len(STREAM) - 1])
async def test_in_the_middle_of_the_handshake(serve, dial, books, position, how, errors):
    async with serve(users={"alice": "secret"}) as server:
        ledger = books(server)
        for pause in (False, True):
            client = await dial(server)
            await client.send(STREAM[:position])
            if pause:
                await client.seen()
            leave(client, how)
            await over(client, how)
        assert await ledger.outstanding() == {}
    assert errors() == []


@every_way
@pytest.mark.parametrize(
    "stream", [b"\x04", b"\x04\x01\x00\x50\x7f\x00\x00\x01user", b"G", b"\x16"]
)
async def test_others_in_the_middle(server, dial, books, stream, how, errors):
    ledger = books(server)
    client = await dial(server)
    await client.send(stream)
    leave(client, how)
    await over(client, how)
    assert await ledger.outstanding() == {}
    assert errors() == []


@every_way
async def test_while_its_name_is_resolved(serve, dial, say, echo, names, until, books, how, errors):
    """When the answer is there at last, the client is gone; so is all else."""
    names.hang("slow.example")
    names.answers["slow.example"] = ["127.0.0.1"]
    async with serve() as server:
        ledger = books(server)
        client = await dial(server)
        await greeted(client, say)
        await client.send(say.socks5("slow.example", echo.port))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        leave(client, how)
        await client.seen()
        names.release()
        await over(client, how)
        assert await ledger.outstanding() == {}
    assert errors() == []


async def test_reset_while_its_name_hangs(serve, dial, say, names, until, books, errors):
    """With no time limit at all: the reset alone ends it."""
    names.hang("slow.example")
    async with serve(connect_timeout=0) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(say.no_login + say.socks5("slow.example", 80))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        client.reset()
        assert await ledger.outstanding() == {}
    assert errors() == []


async def test_reset_while_the_name_of_a_peer_hangs(serve, dial, say, names, until, books, errors):
    """The same of BIND."""
    names.hang("slow.example")
    async with serve(connect_timeout=0, allow_bind=True) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(say.no_login + say.socks5("slow.example", 80, command=2))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        client.reset()
        assert await ledger.outstanding() == {}
    assert errors() == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_while_its_name_hangs(serve, dial, say, names, until, books, how, errors):
    names.hang("slow.example")
    async with serve(connect_timeout=0.5) as server:
        ledger = books(server)
        client = await dial(server)
        await greeted(client, say)
        await client.send(say.socks5("slow.example", 80))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        leave(client, how)
        assert await ledger.outstanding() == {}
    assert errors() == []


async def test_reset_while_connecting_ends_the_attempt(
    serve, dial, say, black_hole, until, books, errors
):
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(say.no_login + say.socks5(black_hole.host, black_hole.port))
        await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
        client.reset()
        assert await ledger.outstanding() == {}
        assert black_hole.waiting() == 0
    assert errors() == []


@pytest.mark.parametrize("how", ["close", "finish"])
async def test_fin_while_connecting_leaves_nothing(
    serve, dial, say, black_hole, until, books, how, errors
):
    # A FIN may be a half-close of a client that waits for its answer: the attempt goes on.
    async with serve(connect_timeout=0.5) as server:
        ledger = books(server)
        client = await dial(server)
        await greeted(client, say)
        await client.send(say.socks5(black_hole.host, black_hole.port))
        await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
        leave(client, how)
        await over(client, how)
        assert await ledger.outstanding() == {}
        assert black_hole.waiting() == 0
    assert errors() == []


async def test_half_closed_client_still_gets_its_connection(
    server, dial, say, black_hole, until, errors
):
    client = await dial(server)
    await client.send(say.no_login + say.socks5(black_hole.host, black_hole.port))
    client.finish()
    await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
    black_hole.admit()
    assert (await client.exactly(12))[2:4] == b"\x05\x00"
    assert errors() == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_right_after_the_request(server, dial, say, echo, books, how, errors):
    """Between connect and reply, or just after: wherever it happens to hit."""
    ledger = books(server)
    for turns in range(12):
        client = await dial(server)
        await client.send(say.no_login + say.socks5("127.0.0.1", echo.port) + b"x" * 64)
        for _ in range(turns):
            await asyncio.sleep(0)
        leave(client, how)
    assert await ledger.outstanding() == {}
    assert errors() == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_in_the_relay(server, dial, echo, books, how, errors):
    ledger = books(server)
    clients = []
    for _ in range(20):
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
        clients.append(client)
    assert server.sessions == 20
    for client in clients:
        leave(client, how)
    assert await ledger.outstanding() == {}
    assert errors() == []


async def test_reset_of_a_refused_client(server, dial, say, refused_port, books, errors):
    ledger = books(server)
    for _ in range(10):
        client = await dial(server)
        await client.send(say.no_login + say.socks5("127.0.0.1", refused_port) + b"x" * 4096)
        assert (await client.exactly(12))[2:] == say.failed(5)
        client.reset()
    assert await ledger.outstanding() == {}
    assert errors() == []


async def test_two_hundred_at_random_points(server, dial, say, echo, books, errors):
    """Every point and way there is, all mixed and at once."""
    ledger = books(server)
    stream = say.no_login + say.socks5("127.0.0.1", echo.port) + b"payload"

    async def one(number: int) -> None:
        client = await dial(server)
        await client.send(stream[: number % (len(stream) + 1)])
        for _ in range(number % 5):
            await asyncio.sleep(0)
        leave(client, ("close", "reset")[number % 2])

    await asyncio.gather(*map(one, range(200)))
    assert await ledger.outstanding() == {}
    client = await dial(server)
    await client.connect("127.0.0.1", echo.port)
    assert await client.echoes()
    assert errors() == []
