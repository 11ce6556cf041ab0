# Clients take turns where names are resolved: who asks for hundreds that hang waits for them
# alone, also where others ask for the same names.

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastsocks import resolve
from fastsocks.clients import network_of
from fastsocks.turns import Turns

GREEDY, MODEST = "127.0.0.1", "127.0.0.2"


def taken(turns: Turns, count: int) -> list:
    return [turns.take(0)[1] for _ in range(count)]


# -- whose turn it is --------------------------------------------------------


def test_each_client_in_turn():
    turns = Turns(100, 100)
    for job in ("a1", "a2", "a3", "b1", "b2", "c1"):
        assert turns.put(job[0], job)
    assert taken(turns, 6) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert turns.take(0) is None


def test_one_client_alone_gets_half_of_the_workers():
    turns = Turns(100, 8)
    for job in range(10):
        turns.put("a", job)
    assert taken(turns, 4) == [0, 1, 2, 3]
    assert turns.take(0) is None
    turns.done("a")
    assert taken(turns, 1) == [4]
    assert turns.take(0) is None


def test_a_site_leaves_one_of_few():
    turns = Turns(64, 3)
    for number in range(3):
        assert turns.put(network_of(f"2001:db8:1:{number:x}::1"), number)
    assert taken(turns, 2) == [0, 1]
    assert turns.take(0) is None
    assert turns.put("192.0.2.1", "job")
    assert turns.take(0) == ("192.0.2.1", "job")


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_a_newcomer_finds_places_where_others_have_taken_all_they_could(clients):
    turns = Turns(1000, 100)
    for client in map(str, range(clients)):
        while turns.put(client, client):
            pass
    while turns.take(0):
        pass
    assert turns.put("newcomer", "job")
    assert turns.take(0) == ("newcomer", "job")


def test_a_site_with_all_its_networks_leaves_places_to_others():
    """Whoever has a /48 has 65,536 networks, and each would be a newcomer."""
    turns = Turns(1000, 100)
    for number in range(100):
        while turns.put(network_of(f"2001:db8:1:{number:x}::1"), number):
            pass
    working = 0
    while turns.take(0):
        working += 1
    assert turns.unfinished <= 750
    assert working <= 75
    for client in (network_of("2001:db8:2::1"), "192.0.2.1"):
        assert turns.put(client, "job")
        assert turns.take(0) == (client, "job")


def test_one_network_of_a_site_leaves_places_to_the_next():
    turns = Turns(1000, 100)
    while turns.put(network_of("2001:db8:1:1::1"), "job"):
        pass
    while turns.take(0):
        pass
    neighbour = network_of("2001:db8:1:2::1")
    assert turns.put(neighbour, "job")
    assert turns.take(0) == (neighbour, "job")


def test_a_site_is_one_in_the_row():
    turns = Turns(100, 100)
    for number in range(5):
        turns.put(network_of(f"2001:db8:1:{number:x}::1"), number)
    turns.put("192.0.2.1", "other")
    assert taken(turns, 3) == [0, "other", 1]


def calls_beside(waiting: int) -> int:
    """Of a job that comes and begins, beside so many who may not begin."""
    turns, calls = Turns(2 * waiting, 16), 0
    for number in range(2 * waiting):
        turns.put(network_of(f"2001:db8:1:{number:x}::1"), number)
    while turns.take(0):
        pass
    assert turns.unfinished > waiting

    def count(*call: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        assert turns.put("192.0.2.1", "job")
        assert turns.take(0) == ("192.0.2.1", "job")
    finally:
        sys.setprofile(None)
    return calls


def test_who_waits_by_the_thousand_keeps_nobody_looking():
    """For a job that may begin, among all that may not: on the loop's thread others wait for
    the one who looks."""
    assert calls_beside(1000) < 2 * calls_beside(50)


def test_a_worker_who_is_free_lets_two_begin():
    """The next job of the client whose job is done, and one that waited for a worker: who
    waits for that is woken too."""
    turns = Turns(100, 3)
    for client in ("a", "b"):
        turns.put(client, "first")
        assert turns.take(0) == (client, "first")
    for client in ("a", "b"):
        turns.put(client, "second")
    assert turns.take(0) is None
    with ThreadPoolExecutor(1) as thread:
        asleep = threading.Event()
        real = turns._changed.wait

        def wait(timeout: float) -> bool:
            asleep.set()
            return real(timeout)

        turns._changed.wait = wait
        waiting = thread.submit(turns.take, 60)
        assert asleep.wait(20)
        turns.done("b")
        assert turns.take(0) == ("a", "second")
        assert waiting.result(20) == ("b", "second")


def test_a_place_is_free_again_when_its_job_is_done():
    turns = Turns(2, 2)
    assert turns.put("a", 1)
    assert not turns.put("a", 2)
    assert turns.take(0) == ("a", 1)
    assert not turns.put("a", 2)
    turns.done("a")
    assert turns.unfinished == 0
    assert turns.put("a", 2)


def test_who_waits_is_woken_by_a_job_and_by_the_end():
    turns = Turns(10, 10)
    begun = threading.Event()

    def wait() -> tuple[str, int] | None:
        begun.set()
        return turns.take(60)

    with ThreadPoolExecutor(1) as thread:
        for job in range(20):
            waiting = thread.submit(wait)
            assert begun.wait(20)
            turns.put("a", job)
            assert waiting.result(20) == ("a", job)
            turns.done("a")
            begun.clear()
        waiting = thread.submit(wait)
        assert begun.wait(20)
        turns.close()
        assert waiting.result(20) is None
    assert turns.take(60) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%1", "fe80::2%1", True),
    ],
)
def test_what_is_one_client(one, other, same):
    assert (network_of(one) == network_of(other)) is same


# -- at the resolver ---------------------------------------------------------


async def test_who_asks_for_hanging_names_waits_alone(serve, dial, say, echo, names, until):
    hanging = [f"slow-{number}.example" for number in range(resolve.THREADS_MAX)]
    names.hang(*hanging)
    names.answers["fine.example"] = ["127.0.0.1"]
    async with serve(connect_timeout=10) as server:
        for name in hanging:
            client = await dial(server, source=GREEDY)
            await client.send(say.no_login + say.socks5(name, 80))
        await until(lambda: len(names.asked) == len(hanging) // 2, "its share is asked for")
        client = await dial(server, source=MODEST)
        assert (await client.connect("fine.example", echo.port))[1] == 0
        assert await client.echoes()
        assert len(names.asked) == len(hanging) // 2 + 1
        names.release()


async def test_a_name_that_waits_for_anothers_turn(serve, dial, say, echo, names, until):
    """The greedy one has put it behind its own; the modest one need not wait for that."""
    hanging = [f"slow-{number}.example" for number in range(resolve.THREADS_MAX // 2)]
    names.hang(*hanging)
    names.answers |= {"popular.example": ["127.0.0.1"], "last.example": ["127.0.0.1"]}
    async with serve(connect_timeout=10) as server:
        greedy = [await dial(server, source=GREEDY) for _ in range(len(hanging) + 1)]
        for client, name in zip(greedy, [*hanging, "popular.example"], strict=True):
            await client.send(say.no_login + say.socks5(name, echo.port))
        await until(lambda: len(names.asked) == len(hanging), "its share is asked for")
        client = await dial(server, source=MODEST)
        assert (await client.connect("popular.example", echo.port))[1] == 0
        assert await client.echoes()
        # And with it the greedy one, whose turn comes later and finds nothing left to do.
        assert (await greedy[-1].exactly(2 + 10))[3] == 0
        names.release()
        client = await dial(server, source=GREEDY)
        assert (await client.connect("last.example", echo.port))[1] == 0
        assert names.asked.count("popular.example") == 1
