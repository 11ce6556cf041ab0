# Times: a handshake has one deadline from accept to request, which no octet prolongs and
# which ends with the handshake; a client that never stops talking keeps nobody waiting.

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

HANDSHAKE = b"\x05\x01\x00\x05\x01\x00\x03\xff" + b"a" * 255
SOCKS4_HANDSHAKE = b"\x04\x01\x00\x50\x7f\x00\x00\x01" + b"u" * 255


async def lasted(client, began: float) -> float:
    """Seconds until the server has ended it."""
    assert await client.ended()
    return time.monotonic() - began


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x05",
        b"\x05\x01",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x03\x05loca",
        b"\x04",
        b"\x04\x01\0\x50\x7f\0\0\1u",
    ],
    ids=lambda sent: sent.hex() or "silent",
)
async def test_a_client_that_falls_silent(serve, dial, books, sent):
    async with serve(handshake_timeout=0.4) as server:
        ledger = books(server)
        began = time.monotonic()
        client = await dial(server)
        if sent:
            await client.send(sent)
        assert await lasted(client, began) > 0.36
        client.close()
        assert await ledger.outstanding() == {}


async def test_silence_after_the_login_was_asked_for(serve, dial, books, say):
    async with serve(handshake_timeout=0.4, users={"u": "p"}) as server:
        ledger = books(server)
        began = time.monotonic()
        client = await dial(server)
        assert await client.ask(b"\x05\x01\x02", 2) == b"\x05\x02"
        assert await client.ask(say.login(b"u", b"p"), 2) == b"\x01\x00"
        assert await lasted(client, began) > 0.36
        client.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("stream", [HANDSHAKE, SOCKS4_HANDSHAKE], ids=["socks5", "socks4"])
async def test_dribbling_does_not_prolong_it(serve, dial, books, stream):
    """At this pace the handshake would take 25 times its deadline."""
    async with serve(handshake_timeout=0.5) as server:
        ledger = books(server)
        began = time.monotonic()
        client = await dial(server)
        watching = asyncio.ensure_future(client.ended())
        sent = 0
        with contextlib.suppress(ConnectionError):
            for octet in stream:
                await client.send(bytes((octet,)))
                sent += 1
                done, _ = await asyncio.wait((watching,), timeout=0.05)
                if done:
                    break
        assert await watching
        assert sent < len(stream)
        assert time.monotonic() - began > 0.45
        client.close()
        assert await ledger.outstanding() == {}


async def test_many_silent_clients_all_end(serve, dial, books, echo):
    async with serve(handshake_timeout=0.5) as server:
        ledger = books(server)
        silent = [await dial(server) for _ in range(100)]
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
        for one in silent:
            assert await one.ended()
            one.close()
        client.close()
        assert await ledger.outstanding() == {}


async def test_timeouts_are_logged_as_what_they_are(serve, dial, caplog):
    caplog.set_level("INFO", "fastsocks")
    async with serve(handshake_timeout=0.2) as server:
        client = await dial(server)
        await client.send(b"\x05\x01")
        assert await client.ended()
        messages = [record.getMessage() for record in caplog.records]
    assert any("handshake" in one and "in time" in one for one in messages), messages
    assert "Traceback" not in caplog.text


async def test_a_session_outlives_the_deadline_of_its_handshake(serve, dial, echo):
    async with serve(handshake_timeout=0.3) as server:
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        await asyncio.sleep(0.5)
        assert await client.echoes()


async def test_connecting_may_take_longer_than_the_handshake(serve, dial, say, names, echo, until):
    names.hang("slow.example")
    names.answers["slow.example"] = ["127.0.0.1"]
    async with serve(handshake_timeout=0.3, connect_timeout=8) as server:
        client = await dial(server)
        await client.send(say.no_login + say.socks5("slow.example", echo.port))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        await asyncio.sleep(0.5)
        names.release()
        assert (await client.exactly(12))[2:4] == b"\x05\x00"
        assert await client.echoes()


@pytest.mark.parametrize("seconds", [0, 1e9])
async def test_no_limit_and_the_longest_ones(serve, dial, echo, seconds):
    settings = dict.fromkeys(
        ("handshake_timeout", "connect_timeout", "idle_timeout", "half_closed_timeout"), seconds
    )
    async with serve(**settings) as server:
        client = await dial(server)
        await client.connect("localhost", echo.port)
        assert await client.echoes()
        client.finish()
        assert await client.to_end() == b""


async def test_idle_session_ends(serve, dial, echo, books):
    async with serve(idle_timeout=0.5) as server:
        ledger = books(server)
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        began = time.monotonic()
        assert await client.echoes()
        assert await lasted(client, began) > 0.45
        client.close()
        assert await ledger.outstanding() == {}


async def test_half_closed_session_ends(serve, dial, remote, books):
    async def never_finish(reader, writer):
        await asyncio.Event().wait()

    origin = await remote(never_finish)
    async with serve(half_closed_timeout=0.5) as server:
        ledger = books(server)
        client = await dial(server)
        await client.connect("127.0.0.1", origin.port)
        began = time.monotonic()
        client.finish()
        assert await lasted(client, began) > 0.45
        client.close()
        await origin.stop()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("method", [b"\x00", b"\x02"])
async def test_endless_logins_neither_stall_others_nor_outlast_the_deadline(
    serve, dial, echo, books, method
):
    """A client that always has the next octets ready never makes the proxy wait, so
    nothing but fairness gives the others a turn."""
    stop = asyncio.Event()

    async with serve(handshake_timeout=1.0) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01" + method)

        async def talk() -> None:
            while not stop.is_set():
                await client.send(b"\x01\x00\x00" * 5000)

        talking = [asyncio.ensure_future(talk()), asyncio.ensure_future(client.ended())]
        for _ in range(3):
            other = await dial(server)
            await other.connect("127.0.0.1", echo.port)
            assert await other.echoes()
            other.close()
        await talking[1]
        stop.set()
        with contextlib.suppress(ConnectionError):
            await talking[0]
        client.close()
        assert await ledger.outstanding() == {}
