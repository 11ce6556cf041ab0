# The memory of host names: asked once for many, for a limited time, and never so much that
# clients, who choose how many addresses ask, could fill it. No such name is one thing, and no
# answer another.

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import pytest

from fastsocks import hosts
from fastsocks.hosts import Hosts, Memory, Threads


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


async def test_questions_under_way_are_bounded(memory, asked, monkeypatch, until):
    """One too many gets no answer, at once, and that is not remembered."""
    monkeypatch.setattr(hosts, "ASKING_LIMIT", 3)
    asked.may.clear()
    waiting = [asyncio.ensure_future(memory.get(str(number))) for number in range(3)]
    await until(lambda: len(asked.keys) == 3, "all three are asked")
    with pytest.raises(TimeoutError):
        await memory.get("one too many")
    joined = asyncio.ensure_future(memory.get("2"))
    asked.may.set()
    assert await asyncio.gather(*waiting, joined) == [f"answer for {n}" for n in (0, 1, 2, 2)]
    assert await memory.get("one too many") == "answer for one too many"


async def test_answers_kept_are_bounded(memory, asked, monkeypatch):
    monkeypatch.setattr(hosts, "LIMIT", 3)
    for number in range(10):
        await memory.get(str(number))
    assert list(memory._known) == ["7", "8", "9"]
    await memory.get("0")
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
        socket.gaierror(socket.EAI_NODATA, "no address"),
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
        OSError(24, "Too many open files"),
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


async def test_call_that_hangs_keeps_one_place_only(until):
    """Nor does it keep whoever asked, who may give up."""
    threads, go = Threads(2), threading.Event()
    hanging = asyncio.ensure_future(threads.run(lambda key: go.wait(30), "hangs"))
    await asyncio.sleep(0)
    assert await threads.run(str.upper, "one") == "ONE"
    hanging.cancel()
    await asyncio.wait((hanging,))
    second = asyncio.ensure_future(threads.run(str.upper, "two"))
    assert await second == "TWO"
    go.set()
    # With both places free, two calls can be under way at the same time.
    both = threading.Barrier(2, timeout=10)
    await asyncio.gather(*(threads.run(lambda key: both.wait(), "x") for _ in range(2)))


async def test_no_thread_is_to_be_had(monkeypatch):
    """No answer, and the place is not lost."""
    threads = Threads(1)

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match="new thread"):
            await threads.run(str.upper, "one")
    async with asyncio.timeout(5):
        assert await threads.run(str.upper, "one") == "ONE"


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
    async def reverse(address):
        return name

    async def forward(host):
        return addresses

    book = Hosts(reverse, forward)
    assert await book.name_of("192.0.2.1") == expected
    book.close()
