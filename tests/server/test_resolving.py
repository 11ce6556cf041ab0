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
from fastsocks.errors import DialError, Reply


async def reply_to(client, say, host: str, port: int = 80) -> bytes:
    await client.send(say.no_login + say.socks5(host, port))
    return (await client.to_end())[2:]


@pytest.mark.parametrize(
    "answer",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"),
        OSError(24, "Too many open files"),
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


async def test_address_that_belongs_to_a_link(server, dial, say, names, until, caplog):
    """fe80::1 is nothing without its zone; whether there is such a link is another thing."""
    names.answers["link.example"] = ["fe80::1%1"]
    client = await dial(server)
    reply = await reply_to(client, say, "link.example")
    assert reply in [say.failed(code) for code in (1, 3, 4, 5)]
    assert "Traceback" not in caplog.text


async def test_socks4a_name_without_an_address(server, dial, say, names):
    names.answers["nowhere.example"] = socket.gaierror(socket.EAI_NONAME, "not known")
    client = await dial(server)
    await client.send(say.socks4("nowhere.example", 80))
    assert await client.to_end() == say.failed4


async def test_names_are_asked_in_lower_case_and_without_the_dot(server, dial, echo, names):
    names.answers["www.example"] = ["127.0.0.1"]
    client = await dial(server)
    await client.connect("WWW.Example.", echo.port)
    assert await client.echoes()
    assert names.asked == ["www.example"]


async def test_an_address_is_never_looked_up(server, dial, echo, names, monkeypatch):
    asked = []

    async def record(self, name, budget):
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
    hanging = [f"slow-{number}.example" for number in range(resolve.THREADS_MAX - 1)]
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
    monkeypatch.setattr(resolve, "QUEUE_LIMIT", 4)
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


# -- one lookup for all, and its memory ----------------------------------------


@pytest.fixture
async def resolver(names, until):
    """make(prefer): a resolver whose threads end with the test."""
    made = []

    def make(prefer: str = "") -> resolve.Resolver:
        made.append(resolve.Resolver(prefer))
        return made[-1]

    yield make
    names.release()
    for one in made:
        one.close()
    await until(
        lambda: not any(thread.name == "fastsocks-dns" for thread in threading.enumerate()),
        "all threads end",
    )


@pytest.fixture
def clock(monkeypatch):
    """Time as the cache sees it; ``clock.now`` is a test's to set."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(resolve, "time", clock)
    return clock


async def test_many_that_ask_at_once_are_one_lookup(resolver, names, until):
    names.hang("busy.example")
    names.answers["busy.example"] = ["192.0.2.1"]
    one = resolver()
    asking = [asyncio.ensure_future(one.resolve("busy.example", 10)) for _ in range(50)]
    await until(lambda: names.asked, "the lookup is under way")
    late = asyncio.ensure_future(one.resolve("busy.example", 10))
    await asyncio.sleep(0)
    names.release()
    assert set(await asyncio.gather(*asking, late)) == {("192.0.2.1",)}
    assert names.asked == ["busy.example"]


async def test_one_that_gives_up_takes_the_answer_from_nobody(resolver, names, until):
    names.hang("busy.example")
    names.answers["busy.example"] = ["192.0.2.1"]
    one = resolver()
    cancelled, late, patient = (
        asyncio.ensure_future(one.resolve("busy.example", budget)) for budget in (10, 0.05, 10)
    )
    await until(lambda: names.asked, "the lookup is under way")
    cancelled.cancel()
    with pytest.raises(DialError) as raised:
        await late
    assert raised.value.reply is Reply.HOST_UNREACHABLE
    names.release()
    assert await patient == ("192.0.2.1",)
    assert cancelled.cancelled()
    assert names.asked == ["busy.example"]


async def test_a_name_that_nobody_waits_for_is_not_looked_up(resolver, names, until, monkeypatch):
    monkeypatch.setattr(resolve, "THREADS_MAX", 1)
    names.hang("slow.example")
    names.answers |= {"dropped.example": ["192.0.2.1"], "slow.example": ["192.0.2.2"]}
    one = resolver()
    first = asyncio.ensure_future(one.resolve("slow.example", 10))
    await until(lambda: names.asked, "the only thread is busy")
    dropped = asyncio.ensure_future(one.resolve("dropped.example", 10))
    await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.sleep(0)
    again = asyncio.ensure_future(one.resolve("dropped.example", 10))
    names.release()
    assert await first == ("192.0.2.2",)
    assert await again == ("192.0.2.1",), "a later one is not tied to what was given up"
    assert names.asked == ["slow.example", "dropped.example"]


async def test_an_answer_is_remembered_for_a_minute(resolver, names, clock):
    names.answers["found.example"] = ["192.0.2.1"]
    one = resolver()
    assert one.remembered("found.example") is None
    for clock.now in (1000.0, 1001.0, 1059.0):
        assert await one.resolve("found.example", 1) == ("192.0.2.1",)
    assert one.remembered("found.example") == ("192.0.2.1",)
    assert names.asked == ["found.example"]
    clock.now = 1061.0
    names.answers["found.example"] = ["192.0.2.2"]
    assert await one.resolve("found.example", 1) == ("192.0.2.2",)


async def test_that_there_is_none_is_remembered_for_a_moment(resolver, names, clock):
    names.answers["nowhere.example"] = socket.gaierror(socket.EAI_NONAME, "not known")
    one = resolver()
    for clock.now in (1000.0, 1004.0):
        with pytest.raises(DialError, match="not known") as raised:
            await one.resolve("nowhere.example", 1)
        assert raised.value.reply is Reply.HOST_UNREACHABLE
    assert names.asked == ["nowhere.example"]
    clock.now = 1006.0
    names.answers["nowhere.example"] = ["192.0.2.1"]
    assert await one.resolve("nowhere.example", 1) == ("192.0.2.1",)


async def test_our_own_trouble_is_not_remembered(resolver, names):
    names.answers["found.example"] = OSError(24, "Too many open files")
    one = resolver()
    with pytest.raises(DialError, match="Too many open files"):
        await one.resolve("found.example", 1)
    names.answers["found.example"] = ["192.0.2.1"]
    assert await one.resolve("found.example", 1) == ("192.0.2.1",)


def test_random_names_neither_grow_the_memory_nor_wash_out_what_is_in_use():
    cache = resolve.Cache(64)
    cache.put("popular.example", ("192.0.2.1",), 60)
    assert cache.get("popular.example") == ("192.0.2.1",)
    for number in range(10_000):
        cache.put(f"{number}.hostile.example", ("192.0.2.6",), 60)
    assert len(cache) <= 64
    assert cache.get("popular.example") == ("192.0.2.1",)
    for number in range(10_000):  # each asked for twice, which is the better attack
        cache.put(f"{number}.hostile.example", ("192.0.2.6",), 60)
        cache.get(f"{number}.hostile.example")
    assert len(cache) <= 64


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("", ("2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2")),
        ("ipv4", ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")),
        ("ipv6", ("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2")),
        ("ipv4-only", ("192.0.2.1", "192.0.2.2")),
        ("ipv6-only", ("2001:db8::1", "2001:db8::2")),
    ],
)
async def test_order_and_families(resolver, names, prefer, expected):
    names.answers["both.example"] = [
        "2001:db8::1",
        "192.0.2.1",
        "::ffff:192.0.2.1",
        "2001:db8::2",
        "192.0.2.2",
        "2001:db8::1",
    ]
    assert await resolver(prefer).resolve("both.example", 1) == expected


@pytest.mark.parametrize(("prefer", "other"), [("ipv4-only", "::1"), ("ipv6-only", "127.0.0.1")])
async def test_no_address_of_the_only_family_wanted(resolver, names, prefer, other):
    names.answers["other.example"] = [other]
    with pytest.raises(DialError, match=prefer) as raised:
        await resolver(prefer).resolve("other.example", 1)
    assert raised.value.reply is Reply.HOST_UNREACHABLE


async def test_thousands_of_addresses_are_not_kept(resolver, names):
    names.answers["huge.example"] = [
        *(f"192.0.2.{number}" for number in range(256)),
        *(f"2001:db8::{number:x}" for number in range(256)),
    ]
    found = await resolver().resolve("huge.example", 5)
    assert len(found) == 2 * resolve.ADDRESSES_MAX
    assert found[0] == "192.0.2.0"


async def test_a_system_without_another_thread(resolver, names, monkeypatch, until):
    one = resolver()
    names.answers |= {"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]}

    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(DialError):
        await one.resolve("a.example", 0.05)
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    assert await one.resolve("b.example", 5) == ("192.0.2.2",)


async def test_idle_threads_end(resolver, names, monkeypatch, until):
    monkeypatch.setattr(resolve, "THREAD_IDLE", 0.05)
    names.answers["found.example"] = ["192.0.2.1"]
    one = resolver()
    assert await one.resolve("found.example", 5) == ("192.0.2.1",)
    await until(
        lambda: not any(thread.name == "fastsocks-dns" for thread in threading.enumerate()),
        "its thread ends",
    )
    names.answers["later.example"] = ["192.0.2.2"]
    assert await one.resolve("later.example", 5) == ("192.0.2.2",)
