# Names: resolved at the proxy, within one budget of time, once for all who ask; and a
# resolver that hangs is the trouble of those who asked for that name only.

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading

import pytest

from fastsocks import resolve


async def reply_to(client, say, host: str, port: int = 80) -> bytes:
    await client.send(say.no_login + say.socks5(host, port))
    return (await client.to_end())[2:]


@pytest.mark.parametrize(
    "answer",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"),
        UnicodeError("label too long"),
        [],
    ],
    ids=repr,
)
async def test_name_without_an_address(server, dial, say, names, books, answer):
    names.answers["nowhere.example"] = answer
    ledger = books(server)
    client = await dial(server)
    assert await reply_to(client, say, "nowhere.example") == say.failed(4)
    assert names.asked == ["nowhere.example"]
    client.close()
    assert await ledger.outstanding() == {}


async def test_out_of_descriptors_is_our_own_trouble(server, dial, say, names):
    """Nothing is known of the name then: the client may try it elsewhere."""
    names.answers["fine.example"] = OSError(24, "Too many open files")
    client = await dial(server)
    assert await reply_to(client, say, "fine.example") == say.failed(1)


async def test_resolver_that_fails_in_a_way_nobody_thought_of(serve, dial, say, echo, names):
    """It may cost that client its session, but no later one its names."""
    names.answers["broken.example"] = RuntimeError("bug")
    names.answers["fine.example"] = ["127.0.0.1"]
    async with serve(connect_timeout=1) as server:
        client = await dial(server)
        await client.send(say.no_login + say.socks5("broken.example", 80))
        assert await client.ended()
        client = await dial(server)
        assert (await client.connect("fine.example", echo.port))[1] == 0


async def test_address_that_belongs_to_a_link(server, dial, say, names, caplog):
    """Whether there is such a link is another thing; but without its zone fe80::1 would be
    no address to the kernel, and the failure a general one."""
    names.answers["link.example"] = ["fe80::1%1"]
    client = await dial(server)
    reply = await reply_to(client, say, "link.example")
    assert reply in [say.failed(code) for code in (3, 4, 5)]
    assert "Traceback" not in caplog.text


async def test_socks4a_name_without_an_address(server, dial, say, names):
    names.answers["nowhere.example"] = socket.gaierror(socket.EAI_NONAME, "not known")
    client = await dial(server)
    await client.send(say.socks4("nowhere.example", 80))
    assert await client.to_end() == say.failed4


async def test_names_are_asked_in_lower_case(server, dial, echo, names):
    names.answers["www.example"] = ["127.0.0.1"]
    client = await dial(server)
    await client.connect("WWW.Example", echo.port)
    assert await client.echoes()
    assert names.asked == ["www.example"]


async def test_a_last_dot_is_for_the_resolver(server, dial, echo, names):
    """It says that the name is whole: without it, the resolver's search list may find another."""
    names.answers |= {"www.example.": ["127.0.0.1"], "www.example": ["192.0.2.1"]}
    client = await dial(server)
    await client.connect("www.example.", echo.port)
    assert await client.echoes()
    assert names.asked == ["www.example."]


async def test_an_address_is_never_looked_up(server, dial, echo, monkeypatch):
    asked = []

    async def record(self, name, budget, client_host):
        asked.append(name)
        raise AssertionError

    monkeypatch.setattr(resolve.Resolver, "resolve", record)
    for host in ("127.0.0.1", "::ffff:127.0.0.1"):
        client = await dial(server)
        await client.connect(host, echo.port)
        assert await client.echoes()
    assert asked == []


# -- a resolver that hangs ---------------------------------------------------


async def test_no_answer_within_the_connect_timeout(serve, dial, say, names, books):
    names.hang("slow.example")
    async with serve(connect_timeout=0.3) as server:
        ledger = books(server)
        client = await dial(server)
        assert await reply_to(client, say, "slow.example") == say.failed(4)
        client.close()
        assert await ledger.outstanding() == {}


async def test_dozens_of_hanging_names_are_nobody_elses_trouble(
    serve, dial, say, echo, names, books
):
    hanging = [f"slow-{number}.example" for number in range(48)]
    names.hang(*hanging)
    async with serve(connect_timeout=1.0) as server:
        standing = await dial(server)
        await standing.connect("127.0.0.1", echo.port)
        ledger = books(server)
        clients = [await dial(server) for _ in hanging]
        waiting = [
            asyncio.ensure_future(reply_to(client, say, name))
            for client, name in zip(clients, hanging, strict=True)
        ]
        for _ in range(20):
            assert await standing.echoes()
            client = await dial(server)
            await client.connect("127.0.0.1", echo.port)
            assert await client.echoes()
            client.finish()
            assert await client.to_end() == b""
            client.close()
        assert set(await asyncio.gather(*waiting)) == {say.failed(4)}
        assert await standing.echoes()
        for client in clients:
            client.close()
        assert await ledger.outstanding() == {}


async def test_names_are_resolved_beside_a_few_that_hang(serve, dial, say, echo, names, until):
    hanging = [f"slow-{number}.example" for number in range(resolve.THREADS_MAX // 2 - 1)]
    names.hang(*hanging)
    names.answers["fine.example"] = ["127.0.0.1"]
    async with serve(connect_timeout=5.0) as server:
        for name in hanging:
            client = await dial(server)
            await client.send(say.no_login + say.socks5(name, 80))
        await until(lambda: set(hanging) <= set(names.asked), "all of them are being asked for")
        client = await dial(server)
        assert (await client.connect("fine.example", echo.port))[1] == 0
        assert await client.echoes()
        names.release()


async def test_names_are_resolved_after_one_that_still_hangs(serve, dial, say, echo, names):
    """Nobody waits for that answer any more, but its thread does: another has to be
    there for the next name."""
    names.hang("slow.example")
    names.answers["fine.example"] = ["127.0.0.1"]
    async with serve(connect_timeout=0.5) as server:
        client = await dial(server)
        assert await reply_to(client, say, "slow.example") == say.failed(4)
        client = await dial(server)
        assert (await client.connect("fine.example", echo.port))[1] == 0
        assert await client.echoes()


async def test_names_are_resolved_again_when_hanging_ones_have_ended(
    serve, dial, say, echo, names, monkeypatch
):
    monkeypatch.setattr(resolve, "THREADS_MAX", 8)
    hanging = [f"slow-{number}.example" for number in range(resolve.THREADS_MAX + 4)]
    names.hang(*hanging)
    names.answers["fine.example"] = ["127.0.0.1"]
    async with serve(connect_timeout=0.3) as server:
        clients = [await dial(server) for _ in hanging]
        replies = await asyncio.gather(
            *(reply_to(client, say, name) for client, name in zip(clients, hanging, strict=True))
        )
        assert set(replies) == {say.failed(4)}
        names.release()
        client = await dial(server)
        assert (await client.connect("fine.example", echo.port))[1] == 0
        assert await client.echoes()


async def test_too_many_questions_are_refused_at_once(
    serve, dial, say, names, until, monkeypatch, books
):
    monkeypatch.setattr(resolve, "QUEUE_LIMIT", 8)  # of which one client gets half
    slow = [f"slow-{number}.example" for number in range(4)]
    names.hang(*slow)
    async with serve(connect_timeout=30) as server:
        ledger = books(server)
        waiting = [await dial(server) for _ in slow]
        for client, name in zip(waiting, slow, strict=True):
            await client.send(say.no_login + say.socks5(name, 80))
        await until(lambda: len(names.asked) == 4, "four are waiting")
        client = await dial(server)
        assert await reply_to(client, say, "another.example") == say.failed(1)
        names.release()
        for one in (*waiting, client):
            await one.ended()
            one.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], socket.gaierror(socket.EAI_NONAME, "not known")], ids=["there", "not"]
)
async def test_stop_does_not_wait_for_a_resolver(serve, dial, say, names, until, caplog, answer):
    """Nor does its answer trouble anyone when it comes at last."""
    gc.collect()
    caplog.clear()
    names.hang("slow.example")
    names.answers["slow.example"] = answer
    async with serve(connect_timeout=0) as server:
        client = await dial(server)
        await client.send(say.no_login + say.socks5("slow.example", 80))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
    assert await client.ended()
    names.release()
    await until(
        lambda: not any(thread.name == "fastsocks-dns" for thread in threading.enumerate()),
        "its threads end",
    )
    await client.seen()
    gc.collect()  # an error that nobody took is told by the garbage collector
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
