# Clients that do not speak SOCKS: HTTP gets an answer it understands, all else a close,
# the log says what it was, and no number of them can flood it.

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from fastsocks import quiet
from fastsocks.dial import Dialer
from fastsocks.quiet import QuietLog

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: proxy\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    b"POST http://example.com/ HTTP/1.0\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    b"G",
]
GARBAGE = [b"\x00", b"\x06\x01\x00", b"\xff" * 5000, b"get / http/1.1\r\n\r\n", b"\n", b"\x80\x2e"]
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level("INFO", "fastsocks")
    return caplog


def lines(log, word: str) -> list[str]:
    return [record.getMessage() for record in log.records if word in record.getMessage()]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request[:7].decode())
async def test_http(server, dial, books, log, request_):
    ledger = books(server)
    client = await dial(server)
    await client.send(request_)
    answer = await client.to_end()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Content-Length: %d" % len(body) in head.split(b"\r\n")
    assert client.has_come_in(1)
    (line,) = lines(log, "HTTP client")
    assert f"127.0.0.1:{client.name[1]}" in line
    client.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("first", "what"),
    [(HELLO, "a TLS client"), *((octets, "no SOCKS client") for octets in GARBAGE)],
    ids=lambda value: value[:3].hex() if isinstance(value, bytes) else None,
)
async def test_others_are_closed_without_a_word(server, dial, books, log, first, what):
    ledger = books(server)
    client = await dial(server)
    await client.send(first)
    with contextlib.suppress(ConnectionResetError):  # good as well: no reply can be lost
        assert await client.to_end() == b""
    (line,) = lines(log, what)
    assert f"127.0.0.1:{client.name[1]}" in line
    assert f"octet 0x{first[0]:02x})" in line
    assert line.isprintable()
    client.close()
    assert await ledger.outstanding() == {}


async def test_what_they_sent_is_not_logged(server, dial, log):
    log.set_level("DEBUG")
    for first in (b"GET /secret HTTP/1.1\r\n\r\n", b"\x16secret", b"\x00secret"):
        client = await dial(server)
        await client.send(first)
        assert await client.ended()
    assert log.records
    assert "secret" not in log.text


async def crowd(server, dial, first_segments) -> None:
    async def one(first: bytes) -> None:
        client = await dial(server)
        await client.send(first)
        await client.ended()
        client.close()

    await asyncio.gather(*map(one, first_segments))


@pytest.fixture
def standing_clock(monkeypatch):
    """The log's clock stands still: all that follows is in the same second."""
    now = [1000.0]
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("first", "what"),
    [(REQUESTS[0], "HTTP"), (HELLO, "TLS"), (b"\x00", "no SOCKS"), (b"\x05\0", "#")],
)
async def test_a_crowd_gets_one_line_a_second(
    server, dial, log, books, standing_clock, first, what
):
    ledger = books(server)
    await crowd(server, dial, [first] * 60)
    assert len(lines(log, what)) == 1
    standing_clock[0] += 1.5
    await crowd(server, dial, [first])
    last = lines(log, what)[1:]
    assert len(last) == 1
    assert "59 more" in last[0]
    assert await ledger.outstanding() == {}


async def test_a_crowd_for_which_there_is_no_memory(
    server, dial, log, books, say, echo, standing_clock, monkeypatch
):
    def dial_remote(*_):
        raise MemoryError

    monkeypatch.setattr(Dialer, "dial", dial_remote)
    ledger = books(server)
    await crowd(server, dial, [say.no_login + say.socks5("127.0.0.1", echo.port)] * 60)
    assert len(lines(log, "want of memory")) == 1
    assert "Traceback" not in log.text
    assert await ledger.outstanding() == {}


async def test_garbage_of_every_kind_does_not_flood_the_log(server, dial, log, standing_clock):
    """Kinds are what the program tells apart, not what a stranger can invent."""
    others = [bytes((octet,)) for octet in range(256) if octet not in (4, 5)]
    await crowd(server, dial, others)
    told = len(log.records)
    log.clear()  # a failure need not show them all
    assert told <= 6, f"{told} lines in one second"


async def test_others_are_served_meanwhile(server, dial, echo):
    crowds = asyncio.ensure_future(crowd(server, dial, [*REQUESTS, *GARBAGE, HELLO] * 5))
    for _ in range(10):
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
    await crowds


# -- the log itself ----------------------------------------------------------


def test_quiet_log_counts_what_it_leaves_out(log, standing_clock):
    calm = QuietLog(logging.getLogger("fastsocks"))
    for _ in range(3):
        calm.info("kind", "%s happened", "this")
        calm.warning("other kind", "%s happened", "that")
        standing_clock[0] += 0.3
    standing_clock[0] += 0.3
    calm.info("kind", "%s happened", "this")
    assert [(record.levelname, record.getMessage()) for record in log.records] == [
        ("INFO", "this happened"),
        ("WARNING", "that happened"),
        ("INFO", "this happened (and 2 more like it)"),
    ]


def test_quiet_log_tells_all_where_debug_is_asked_for(log, standing_clock):
    log.set_level("DEBUG", "fastsocks")
    calm = QuietLog(logging.getLogger("fastsocks"))
    for number in range(3):
        calm.info("kind", "number %d", number)
    assert [record.getMessage() for record in log.records] == ["number 0", "number 1", "number 2"]


def test_quiet_log_costs_nothing_below_its_level(log, standing_clock):
    logger = logging.getLogger("fastsocks")
    log.set_level("WARNING", "fastsocks")
    calm = QuietLog(logger)
    calm.info("kind", "left out")
    log.set_level("INFO", "fastsocks")
    calm.info("kind", "told")
    assert [record.getMessage() for record in log.records] == ["told"]
