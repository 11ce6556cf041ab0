# The memory of host names: asked once for many, for a limited time, and never so much that
# clients, who choose how many addresses ask, could fill it. No such name is one thing, and no
# answer another.

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import pytest

from fastsocks import hosts, names
from fastsocks.hosts import THREADS_MAX, Crowded, Hosts, Memory


class Asked:
    """Who was asked about, and the answer, when the test lets it go."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.may = asyncio.Event()
        self.may.set()
        self.error: Exception | None = None

    async def __call__(self, key: str) -> str:
        self.keys.append(key)
        await self.may.wait()
        if self.error is not None:
            raise self.error
        return f"answer for {key}" if key != "nobody" else ""


@pytest.fixture
async def asked():
    return Asked()


@pytest.fixture
async def memory(asked):
    made = Memory(asked, "")
    yield made
    made.close()


async def test_asked_once(memory, asked):
    assert await memory.get("one") == "answer for one"
    assert await memory.get("one") == "answer for one"
    assert asked.keys == ["one"]


async def test_those_who_ask_at_once_wait_for_one_answer(memory, asked):
    """And one of them leaving does not take it from the others."""
    asked.may.clear()
    first, second = (asyncio.ensure_future(memory.get("one")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    asked.may.set()
    assert await second == "answer for one"
    assert asked.keys == ["one"]


async def test_on_a_loop_whose_tasks_begin_at_once(memory, asked):
    """As those of a program may; one that finds no place is over before it is known."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))  # none before Python 3.12
    try:
        asked.error = Crowded()
        with pytest.raises(TimeoutError):
            await memory.get("one")
        asked.error = None
        assert await memory.get("one") == "answer for one"
        assert await memory.get("two") == "answer for two"
    finally:
        loop.set_task_factory(None)


@pytest.mark.parametrize("error", [Crowded(), names.Lack(24, "Too many open files")], ids=repr)
async def test_one_too_many_is_not_remembered(memory, asked, error):
    """It gets no answer, at once, which says nothing of the name."""
    asked.error = error
    with pytest.raises(TimeoutError):
        await memory.get("one too many")
    asked.error = None
    assert await memory.get("one too many") == "answer for one too many"


async def test_answers_kept_are_bounded(memory, asked, monkeypatch):
    monkeypatch.setattr(hosts, "LIMIT", 3)
    for number in range(10):
        await memory.get(str(number))
    for number in (9, 8, 7, 0):
        await memory.get(str(number))
    assert asked.keys == [*map(str, range(10)), "0"]


@pytest.mark.parametrize(
    ("key", "kept"), [("one", "KEEP"), ("nobody", "KEEP_NOTHING")], ids=["found", "nothing"]
)
async def test_asked_again_when_it_is_too_old(memory, asked, monkeypatch, key, kept):
    monkeypatch.setattr(hosts, kept, 0.0)
    await memory.get(key)
    await memory.get(key)
    assert asked.keys == [key, key]


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "not known"),
        socket.gaierror(getattr(socket, "EAI_NODATA", socket.EAI_NONAME), "no address"),
        UnicodeError("no codec takes it"),
    ],
    ids=repr,
)
async def test_no_such_name(memory, asked, error):
    asked.error = error
    assert await memory.get("one") == ""
    assert await memory.get("one") == ""
    assert asked.keys == ["one"]


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "temporary failure"),
        socket.gaierror(socket.EAI_FAIL, "permanent failure"),
        OSError(5, "Input/output error"),
        OSError("can't start new thread"),
    ],
    ids=repr,
)
async def test_no_answer(memory, asked, monkeypatch, error):
    """Which is not that there is no such name, and is remembered for as long."""
    asked.error = error
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await memory.get("one")
    assert asked.keys == ["one"]
    monkeypatch.setattr(hosts, "KEEP_NOTHING", 0.0)
    with pytest.raises(TimeoutError):
        await memory.get("another")
    asked.error = None
    assert await memory.get("another") == "answer for another"


async def test_no_answer_in_time(memory, asked, monkeypatch):
    monkeypatch.setattr(hosts, "DEADLINE", 0.05)
    asked.may.clear()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await memory.get("one")
    assert asked.keys == ["one"]


async def test_no_answer_that_nobody_waits_for_is_no_error(memory, asked, until, caplog):
    asked.may.clear()
    asked.error = OSError("no answer")
    waiting = asyncio.ensure_future(memory.get("one"))
    await until(lambda: asked.keys, "it is asked")
    waiting.cancel()
    await asyncio.wait((waiting,))
    asked.may.set()
    await until(lambda: not memory._asking, "nobody answers")
    gc.collect()  # an error that nobody took is told by the garbage collector
    assert not caplog.records


async def test_mistake_in_asking_leaves_nothing_behind(memory, asked):
    asked.error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError):
        await memory.get("one")
    asked.error = None
    assert await memory.get("one") == "answer for one"


@pytest.mark.parametrize(
    ("name", "addresses", "expected"),
    [
        ("Host.Example.", ["192.0.2.1"], "host.example"),
        ("host.example", ["192.0.2.9"], None),  # whoever owns an address can name it so
        ("host.example", [], None),
        (None, ["192.0.2.1"], None),
    ],
)
async def test_name_counts_if_it_maps_back(name, addresses, expected):
    book = Hosts(lambda address: name, lambda host: addresses)
    assert await book.name_of("192.0.2.1") == expected
    book.close()


# -- name servers that hang --------------------------------------------------


class Slow:
    """Hosts whose name servers do not answer for ``dead`` addresses and names before
    ``go``; then, as for all others, the name is the address with .test behind it."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr(hosts, "DEADLINE", 20.0)
        self.go = threading.Event()
        self.dead: set[str] = set()
        self.asked: list[str] = []
        self.hosts = Hosts(self._reverse, self._forward)

    def begin(self, *dead: str) -> list[asyncio.Future]:
        """Questions about those that hang."""
        self.dead.update(dead)
        of = (
            self.hosts.addresses_of(one) if one.endswith(".test") else self.hosts.name_of(one)
            for one in dead
        )
        return [asyncio.ensure_future(one) for one in of]

    def _reverse(self, address):
        self._wait(address)
        return f"{address}.test"

    def _forward(self, name):
        self._wait(name)
        return [name.removesuffix(".test")]

    def _wait(self, key):
        self.asked.append(key)
        if key in self.dead:
            self.go.wait(30)


@pytest.fixture
async def slow(monkeypatch, until):
    made = Slow(monkeypatch)
    yield made
    made.hosts.close()
    made.go.set()
    await until(
        lambda: not any(thread.name == "fastsocks-hosts" for thread in threading.enumerate()),
        "all threads end",
    )


@pytest.mark.parametrize("what", ["{}", "{}.test"], ids=["addresses", "names"])
async def test_one_client_that_has_it_hang_waits_alone(slow, until, what):
    """However many addresses of its network ask, and whichever name server hangs."""
    addresses = [f"2001:db8::{number:x}" for number in range(2 * hosts.ASKING_LIMIT)]
    slow.dead.update(map(what.format, addresses))
    waiting = [asyncio.ensure_future(slow.hosts.name_of(one)) for one in addresses]
    await until(
        lambda: len(slow.dead & set(slow.asked)) == THREADS_MAX // 2, "its share is asked for"
    )
    async with asyncio.timeout(5):
        assert await slow.hosts.name_of("192.0.2.1") == "192.0.2.1.test"
        assert await slow.hosts.addresses_of("192.0.2.2.test") == {"192.0.2.2"}
    refused = [one for one in waiting if one.done()]
    assert len(refused) >= len(addresses) // 2
    assert {type(one.exception()) for one in refused} == {TimeoutError}


async def test_a_few_that_hang_are_nobodys_trouble(slow, until):
    dead = [f"192.0.2.{number}" for number in range(48)]
    waiting = slow.begin(*dead)
    await until(lambda: set(dead) <= set(slow.asked), "all of them are being asked for")
    async with asyncio.timeout(5):
        assert await slow.hosts.name_of("198.51.100.1") == "198.51.100.1.test"
    slow.go.set()
    assert await asyncio.gather(*waiting) == [f"{one}.test" for one in dead]


async def test_many_clients_take_nothing_from_the_names_in_rules(slow, until):
    """Though they have taken all threads that clients can have."""
    dead = [f"192.0.2.{number}" for number in range(THREADS_MAX + 1)]
    slow.begin(*dead)
    await until(lambda: len(slow.asked) == THREADS_MAX, "all threads are busy")
    async with asyncio.timeout(5):
        assert await slow.hosts.addresses_of("198.51.100.1.test") == {"198.51.100.1"}


async def test_names_in_rules_that_hang_take_nothing_from_each_other(slow, until):
    dead = [f"192.0.2.{number}.test" for number in range(48)]
    slow.begin(*dead)
    await until(lambda: set(dead) <= set(slow.asked), "all of them are being asked for")
    async with asyncio.timeout(5):
        assert await slow.hosts.addresses_of("198.51.100.1.test") == {"198.51.100.1"}


async def test_question_that_was_given_up_is_not_asked(slow, monkeypatch, until):
    dead = [f"2001:db8::{number:x}" for number in range(THREADS_MAX // 2)]
    slow.begin(*dead)
    await until(lambda: set(dead) <= set(slow.asked), "its share is asked for")
    monkeypatch.setattr(hosts, "DEADLINE", 0.05)
    with pytest.raises(TimeoutError):
        await slow.hosts.name_of("2001:db8::ffff")
    slow.go.set()
    monkeypatch.setattr(hosts, "DEADLINE", 20.0)
    assert await slow.hosts.name_of("2001:db8::fffe") == "2001:db8::fffe.test"
    assert "2001:db8::ffff" not in slow.asked


async def test_no_thread_is_to_be_had(slow, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(hosts, "DEADLINE", 0.05)
        with pytest.raises(TimeoutError):
            await slow.hosts.name_of("192.0.2.1")
    assert await slow.hosts.name_of("192.0.2.2") == "192.0.2.2.test"
