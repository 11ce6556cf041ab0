# The resolver by itself: one lookup for all who ask, a memory that strangers cannot wash out,
# which addresses and in which order, and threads that come and go.

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from fastsocks import resolve
from fastsocks.errors import DialError, Reply

CLIENT = "192.0.2.99"

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
    asking = [asyncio.ensure_future(one.resolve("busy.example", 10, CLIENT)) for _ in range(50)]
    await until(lambda: names.asked, "the lookup is under way")
    late = asyncio.ensure_future(one.resolve("busy.example", 10, CLIENT))
    await asyncio.sleep(0)
    names.release()
    assert set(await asyncio.gather(*asking, late)) == {("192.0.2.1",)}
    assert names.asked == ["busy.example"]


async def test_one_that_gives_up_takes_the_answer_from_nobody(resolver, names, until):
    names.hang("busy.example")
    names.answers["busy.example"] = ["192.0.2.1"]
    one = resolver()
    cancelled, late, patient = (
        asyncio.ensure_future(one.resolve("busy.example", budget, CLIENT))
        for budget in (10, 0.05, 10)
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
    first = asyncio.ensure_future(one.resolve("slow.example", 10, CLIENT))
    await until(lambda: names.asked, "the only thread is busy")
    dropped = asyncio.ensure_future(one.resolve("dropped.example", 10, CLIENT))
    await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.sleep(0)
    again = asyncio.ensure_future(one.resolve("dropped.example", 10, CLIENT))
    names.release()
    assert await first == ("192.0.2.2",)
    assert await again == ("192.0.2.1",), "a later one is not tied to what was given up"
    assert names.asked == ["slow.example", "dropped.example"]


async def test_an_answer_is_remembered_for_a_minute(resolver, names, clock):
    names.answers["found.example"] = ["192.0.2.1"]
    one = resolver()
    assert one.remembered("found.example") is None
    for clock.now in (1000.0, 1001.0, 1059.0):
        assert await one.resolve("found.example", 1, CLIENT) == ("192.0.2.1",)
    assert one.remembered("found.example") == ("192.0.2.1",)
    assert names.asked == ["found.example"]
    clock.now = 1061.0
    names.answers["found.example"] = ["192.0.2.2"]
    assert await one.resolve("found.example", 1, CLIENT) == ("192.0.2.2",)


async def test_that_there_is_none_is_remembered_for_a_moment(resolver, names, clock):
    names.answers["nowhere.example"] = socket.gaierror(socket.EAI_NONAME, "not known")
    one = resolver()
    for clock.now in (1000.0, 1004.0):
        with pytest.raises(DialError, match="not known") as raised:
            await one.resolve("nowhere.example", 1, CLIENT)
        assert raised.value.reply is Reply.HOST_UNREACHABLE
    assert names.asked == ["nowhere.example"]
    clock.now = 1006.0
    names.answers["nowhere.example"] = ["192.0.2.1"]
    assert await one.resolve("nowhere.example", 1, CLIENT) == ("192.0.2.1",)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(OSError(24, "Too many open files"), "Too many open files"), (MemoryError(), "MemoryError")],
    ids=["descriptors", "memory"],
)
async def test_our_own_trouble_is_not_remembered(resolver, names, trouble, told):
    names.answers["found.example"] = trouble
    one = resolver()
    with pytest.raises(DialError, match=told) as raised:
        await one.resolve("found.example", 1, CLIENT)
    assert raised.value.reply is Reply.GENERAL_FAILURE
    names.answers["found.example"] = ["192.0.2.1"]
    assert await one.resolve("found.example", 1, CLIENT) == ("192.0.2.1",)


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
    assert await resolver(prefer).resolve("both.example", 1, CLIENT) == expected


@pytest.mark.parametrize(("prefer", "other"), [("ipv4-only", "::1"), ("ipv6-only", "127.0.0.1")])
async def test_no_address_of_the_only_family_wanted(resolver, names, prefer, other):
    names.answers["other.example"] = [other]
    with pytest.raises(DialError, match=prefer) as raised:
        await resolver(prefer).resolve("other.example", 1, CLIENT)
    assert raised.value.reply is Reply.HOST_UNREACHABLE


async def test_an_address_of_a_link_keeps_its_scope(resolver, names):
    """fe80::1 alone is nowhere. Linux gives loopback the number 1."""
    names.answers["link.example"] = ["fe80::1%1", "2001:db8::1"]
    found = await resolver().resolve("link.example", 1, CLIENT)
    assert found == ("fe80::1%1", "2001:db8::1")


async def test_thousands_of_addresses_are_not_kept(resolver, names):
    names.answers["huge.example"] = [
        *(f"192.0.2.{number}" for number in range(256)),
        *(f"2001:db8::{number:x}" for number in range(256)),
    ]
    found = await resolver().resolve("huge.example", 5, CLIENT)
    assert len(found) == 2 * resolve.ADDRESSES_MAX
    assert found[0] == "192.0.2.0"


async def test_a_system_without_another_thread(resolver, names, monkeypatch):
    one = resolver()
    names.answers |= {"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]}

    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(DialError):
        await one.resolve("a.example", 0.05, CLIENT)
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    assert await one.resolve("b.example", 5, CLIENT) == ("192.0.2.2",)


async def test_idle_threads_end(resolver, names, monkeypatch, until):
    monkeypatch.setattr(resolve, "THREAD_IDLE", 0.05)
    names.answers["found.example"] = ["192.0.2.1"]
    one = resolver()
    assert await one.resolve("found.example", 5, CLIENT) == ("192.0.2.1",)
    await until(
        lambda: not any(thread.name == "fastsocks-dns" for thread in threading.enumerate()),
        "its thread ends",
    )
    names.answers["later.example"] = ["192.0.2.2"]
    assert await one.resolve("later.example", 5, CLIENT) == ("192.0.2.2",)
