# CONNECT that fails, and what is not offered: the right code, in a reply of full length
# and one segment, which the client gets to read whatever it has sent meanwhile.

from __future__ import annotations

import asyncio
import contextlib

import pytest


def octets(value: object) -> str | None:
    """The name of a row."""
    return value[:16].hex() if isinstance(value, bytes) else None


async def refusal(client, stream: bytes) -> bytes:
    """All that the client is told after its method reply; ends in an orderly close."""
    await client.send(stream)
    return (await client.to_end())[2:]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\x05\x01\x00\x00\x7f\x00\x00\x01\x00\x50", 8),
        (b"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", 8),
        (b"\x05\x01\x00\xff\x7f\x00\x00\x01\x00\x50", 8),
        (b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", 7),
        (b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50", 7),
        (b"\x05\x04\x00\x01\x7f\x00\x00\x01\x00\x50", 7),
        (b"\x05\xf0\x00\x03\x0bexample.com\x00\x00", 7),  # a Tor client that asks for a name
        (b"\x05\x01\x00\x03\x00\x00\x50", 1),
        (b"\x05\x01\x00\x03\x05127.1\x00\x50", 1),
        (b"\x05\x01\x00\x03\x0a2130706433\x00\x50", 1),
        (b"\x05\x01\x00\x03\x0cevil\0.exampl\x00\x50", 1),
        (b"\x05\x01\x00\x03\x09not legal\x00\x50", 1),
        (b"\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", 1),
        # Nobody's address: broadcast, multicast, and what Linux takes for loopback.
        (b"\x05\x01\x00\x01\xff\xff\xff\xff\x00\x50", 2),
        (b"\x05\x01\x00\x01\xe0\x00\x00\x01\x00\x50", 2),
        (b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x50", 2),
        (b"\x05\x01\x00\x03\x07" + b"0.0.0.0" + b"\x00\x50", 2),
        (b"\x05\x01\x00\x04" + bytes(16) + b"\x00\x50", 2),
        (b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff" + bytes(4) + b"\x00\x50", 2),
    ],
    ids=octets,
)
async def test_code(server, dial, say, books, request_, code):
    ledger = books(server)
    client = await dial(server)
    assert await refusal(client, say.no_login + request_) == say.failed(code)
    assert client.has_come_in(2)
    client.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::ffff:127.0.0.1"])
async def test_refused_port(server, dial, say, refused_port, host):
    client = await dial(server)
    reply = await refusal(client, say.no_login + say.socks5(host, refused_port))
    assert reply == say.failed(5)


async def test_refused_port_of_ipv6(server, dial, say, remote):
    origin = await remote(host="::1")
    await origin.stop()
    client = await dial(server)
    assert await refusal(client, say.no_login + say.socks5("::1", origin.port)) == say.failed(5)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x04\x01\x00\x50\x00\x00\x00\x00\x00",
        b"\x04\x02\x00\x50\x7f\x00\x00\x01\x00",
        b"\x04\x03",
        b"\x04\x00\x00\x50\x7f\x00\x00\x01\x00",
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00127.1\x00",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01" + b"u" * 256,
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"n" * 256,
        b"\x04\x01\x00\x50\xff\xff\xff\xff\x00",
    ],
    ids=octets,
)
async def test_socks4_knows_one_code(server, dial, say, books, request_):
    ledger = books(server)
    client = await dial(server)
    await client.send(request_)
    assert await client.to_end() == say.failed4
    assert client.has_come_in(1)
    client.close()
    assert await ledger.outstanding() == {}


async def test_socks4_refused_port(server, dial, say, refused_port):
    client = await dial(server)
    await client.send(say.socks4("127.0.0.1", refused_port))
    assert await client.to_end() == say.failed4


async def test_no_answer_within_the_connect_timeout(serve, dial, say, black_hole, books):
    async with serve(connect_timeout=0.3) as server:
        ledger = books(server)
        client = await dial(server)
        request = say.socks5(black_hole.host, black_hole.port)
        assert await refusal(client, say.no_login + request) == say.failed(4)
        assert black_hole.waiting() == 0
        client.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    "offered", [b"\x01", b"\x03", b"\xff", b"\x01\x03\x80\xfe", bytes(range(3, 255))], ids=octets
)
async def test_no_acceptable_method(server, dial, offered):
    client = await dial(server)
    await client.send(b"\x05" + bytes((len(offered),)) + offered)
    assert await client.to_end() == b"\x05\xff"
    assert client.has_come_in(1)


async def test_no_method_at_all(server, dial):
    client = await dial(server)
    await client.send(b"\x05\x00")
    assert await client.to_end() == b"\x05\xff"


@pytest.mark.parametrize("size", [1, 1024, 100_000])
async def test_reply_survives_pipelined_input(server, dial, say, refused_port, size):
    """The kernel answers input that nobody has read with a reset, and a reset makes the
    client's kernel forget what it has already got."""
    for _ in range(20):
        client = await dial(server)
        request = say.socks5("127.0.0.1", refused_port)
        reply = await refusal(client, say.no_login + request + b"x" * size)
        assert reply == say.failed(5)
        client.close()


async def test_reply_survives_input_that_comes_after_it(server, dial, say, refused_port):
    client = await dial(server)
    await client.ask(say.no_login, 2)
    await client.send(say.socks5("127.0.0.1", refused_port))
    for _ in range(50):
        await client.send(b"and one more thing")
        await client.seen()
    assert await client.to_end() == say.failed(5)


async def test_a_refused_client_that_stays_is_closed(server, dial, say, refused_port, books):
    """Draining is a courtesy for a moment: neither silence nor talking prolongs it."""
    ledger = books(server)
    silent, talking = await dial(server), await dial(server)
    for client in (silent, talking):
        assert await refusal(client, say.no_login + say.socks5("127.0.0.1", refused_port))
    assert server.sessions == 2
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            await talking.send(b"still here")
            await asyncio.sleep(0.01)
        pytest.fail("ten seconds of talking, and still not closed")
    silent.close()
    talking.close()
    assert await ledger.outstanding() == {}


async def test_many_refusals_at_once(server, dial, say, refused_port, books):
    ledger = books(server)

    async def one() -> bytes:
        client = await dial(server)
        reply = await refusal(client, say.no_login + say.socks5("127.0.0.1", refused_port))
        client.close()
        return reply

    assert set(await asyncio.gather(*(one() for _ in range(100)))) == {say.failed(5)}
    assert await ledger.outstanding() == {}
