# From addresses to a connection: families take turns, a dead address costs a quarter of a
# second, the first that stands wins and the others are closed.

from __future__ import annotations

import asyncio
import errno
import os
import socket
from types import SimpleNamespace

import pytest

from fastsocks import dial as dialling
from fastsocks.dial import interleaved
from fastsocks.errors import ClientGone
from support.ends import reset
from support.holes import black_hole
from support.system import connecting_to, open_descriptors

LOCAL = "127.0.0.1"

# -- order ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        (["::1", "::2", "1.1.1.1", "1.1.1.2"], ["::1", "1.1.1.1", "::2", "1.1.1.2"]),
        (["1.1.1.1", "::1", "::2", "::3"], ["1.1.1.1", "::1", "::2", "::3"]),
        (["1.1.1.1", "1.1.1.2"], ["1.1.1.1", "1.1.1.2"]),
    ],
)
def test_families_take_turns(given, dialled):
    assert interleaved(given) == dialled


# -- one address ---------------------------------------------------------------


async def test_one_address_makes_no_task(rig, listening):
    port = listening().getsockname()[1]
    dialer = rig.dialer()
    dialer._resolver.known["host"] = ("127.0.0.1",)
    tasks = len(asyncio.all_tasks())
    for host, is_name in (("127.0.0.1", False), ("host", True)):
        begun = dialer.dial(rig.client, LOCAL, host, port, is_name)
        assert len(asyncio.all_tasks()) == tasks
        (await begun).close()
    assert dialer._resolver.asked == 0


@pytest.mark.parametrize("is_name", [True, False])
async def test_its_error_is_that_of_connect(rig, refused_port, is_name):
    dialer = rig.dialer("127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        host = "host" if is_name else "127.0.0.1"
        await dialer.dial(rig.client, LOCAL, host, refused_port, is_name)


# -- several addresses ---------------------------------------------------------


async def test_the_next_one_at_once_when_one_refuses(rig, listening, monkeypatch):
    monkeypatch.setattr(dialling, "STAGGER", 60.0)  # who waited for it would be found out
    port = listening("127.0.0.5").getsockname()[1]
    remote = await rig.dial(port, "127.0.0.6", "::1", "127.0.0.5", "127.0.0.7")
    assert remote.peer == ("127.0.0.5", port)
    assert rig.engine.dialled == ["127.0.0.6", "::1", "127.0.0.5"]
    remote.close()


@pytest.mark.parametrize(("dead", "alive"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
async def test_a_family_that_is_dead_costs_one_stagger(rig, listening, hole, dead, alive, until):
    port = hole(dead)
    listening(alive, port)
    before = connecting_to(port)
    remote = await rig.dial(port, dead, alive, timeout=60.0)
    assert remote.peer == (alive, port)
    await until(lambda: connecting_to(port) == before, "the loser is closed")
    remote.close()


async def test_the_next_one_begins_a_moment_after_one_that_is_silent(rig, hole, until):
    """Not at once, which is rude to the host, nor when people think that nothing happens:
    RFC 8305, 8 wants it between 0.1 and 2 seconds."""
    port = hole("127.0.0.1")
    hole("127.0.0.2", port)
    waits = []
    for _ in range(3):  # the machine may be busy elsewhere in one of them
        rig.engine.times.clear()
        begun = asyncio.ensure_future(rig.dial(port, "127.0.0.1", "127.0.0.2", timeout=60.0))
        await until(lambda: len(rig.engine.times) == 2, "both are under way", 30)
        begun.cancel()
        await asyncio.wait([begun])
        waits.append(rig.engine.times[1] - rig.engine.times[0])
    assert 0.1 <= min(waits) <= 2.0


async def test_losers_are_closed_at_once(rig, listening, hole, until):
    port = hole("127.0.0.1")
    for host in ("127.0.0.2", "127.0.0.3"):
        hole(host, port)
    listening("127.0.0.5", port)
    descriptors = open_descriptors()
    holes = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    remote = await rig.dial(port, *holes, "127.0.0.5", timeout=60.0)
    assert rig.engine.dialled == [*holes, "127.0.0.5"]
    await until(lambda: open_descriptors() == descriptors + 1, "only the winner is open")
    remote.close()


@pytest.mark.linux  # whose loopback is all of 127.0.0.0/8
async def test_a_name_with_many_dead_addresses_takes_few_descriptors(
    rig, listening, hole, monkeypatch, until
):
    """Who owns the name says how many it has, and a session must not take them all."""
    monkeypatch.setattr(dialling, "STAGGER", 0.02)
    port = hole("127.0.0.1")
    holes = [f"127.0.0.{number}" for number in range(1, 17)]
    for host in holes[1:]:
        hole(host, port)
    listening("127.0.0.77", port)
    descriptors = open_descriptors()
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, open_descriptors() - descriptors)
        return begun.done()

    begun = asyncio.ensure_future(rig.dial(port, *holes, "127.0.0.77", timeout=60.0))
    await until(look, "it is over")
    remote = await begun
    assert remote.peer == ("127.0.0.77", port)
    assert most <= dialling.ATTEMPTS_MAX + 1, "one is being closed while the next is opened"
    remote.close()


async def test_the_last_addresses_have_all_the_time(rig, hole, monkeypatch, until):
    monkeypatch.setattr(dialling, "STAGGER", 0.01)
    port = hole("127.0.0.1")
    holes = [f"127.0.0.{number}" for number in range(1, 7)]
    for host in holes[1:]:
        hole(host, port)
    before = connecting_to(port)
    begun = asyncio.ensure_future(rig.dial(port, *holes, timeout=0.5))
    await until(lambda: len(rig.engine.dialled) == len(holes), "all have been begun")
    assert connecting_to(port) == before + dialling.ATTEMPTS_MAX
    with pytest.raises(OSError) as raised:
        await begun
    assert raised.value.errno == errno.ETIMEDOUT


async def test_one_that_answers_late_still_wins(rig, free_everywhere, monkeypatch, until):
    """While others were begun after it: nobody is given up for being slow."""
    monkeypatch.setattr(dialling, "STAGGER", 0.01)
    with black_hole(port=free_everywhere()) as hole:
        begun = asyncio.ensure_future(rig.dial(hole.port, "127.0.0.1", "127.0.0.6"))
        await until(lambda: len(rig.engine.dialled) == 2, "both are under way")
        hole.admit()
        remote = await asyncio.wait_for(begun, 30)
    assert remote.peer == hole.address
    remote.close()


async def test_all_dead_is_over_when_the_budget_is(rig, hole):
    port = hole("127.0.0.1")
    hole("127.0.0.2", port)
    with pytest.raises(OSError) as raised:
        await rig.dial(port, "127.0.0.1", "127.0.0.2", "127.0.0.1", timeout=0.4)
    assert raised.value.errno == errno.ETIMEDOUT


async def test_a_look_up_that_leaves_no_time(rig, monkeypatch):
    """Not even for a first attempt, as on a machine that was asleep meanwhile."""
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(dialling, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(OSError) as raised:
        await rig.dial(80, "192.0.2.1", "192.0.2.2", timeout=10.0)
    assert raised.value.errno == errno.ETIMEDOUT
    assert rig.engine.dialled == []


async def test_a_client_that_leaves_ends_all_attempts(rig, hole, until):
    port = hole("127.0.0.1")
    hole("127.0.0.2", port)
    near = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(near.getsockname())
    rig.client = rig.engine.real.adopt(near.accept()[0])
    near.close()
    begun = asyncio.ensure_future(rig.dial(port, "127.0.0.1", "127.0.0.2", timeout=60.0))
    await until(lambda: len(rig.engine.dialled) == 2, "both are under way")
    reset(client)
    with pytest.raises(ClientGone):
        await asyncio.wait_for(begun, 10)
    rig.client.close()


async def test_a_session_that_is_cancelled_leaves_nothing(rig, hole, until):
    port = hole("127.0.0.1")
    hole("127.0.0.2", port)
    descriptors = open_descriptors()
    begun = asyncio.ensure_future(rig.dial(port, "127.0.0.1", "127.0.0.2", timeout=60.0))
    await until(lambda: len(rig.engine.dialled) == 2, "both are under way")
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    await until(lambda: open_descriptors() == descriptors, "both are closed")


# -- what is told --------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT], errno.ECONNREFUSED),
        ([errno.ETIMEDOUT, errno.EPERM], errno.EPERM),
        ([errno.ENETUNREACH, errno.ETIMEDOUT], errno.ETIMEDOUT),
        ([errno.EMFILE, errno.EHOSTUNREACH], errno.EHOSTUNREACH),
        ([errno.ENETUNREACH, errno.EMFILE], errno.EMFILE),
        ([errno.EAFNOSUPPORT, errno.ENETUNREACH], errno.ENETUNREACH),
    ],
)
async def test_the_most_telling_error(rig, monkeypatch, errors, told):
    answers = iter(errors)

    async def fail(*_: object) -> None:
        number = next(answers)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rig.engine, "dial", fail)
    with pytest.raises(OSError) as raised:
        await rig.dial(80, *(f"192.0.2.{number}" for number, _ in enumerate(errors)))
    assert raised.value.errno == told


# -- through the server ----------------------------------------------------------


async def test_a_name_with_a_dead_address_through_the_server(
    serve, dial, names, remote, black_hole, books
):
    names.answers["many.example"] = [black_hole.host, "127.0.0.5"]
    origin = await remote(host="127.0.0.5", port=black_hole.port)
    async with serve(connect_timeout=60) as server:
        ledger = books(server)
        client = await dial(server)
        assert (await client.connect("many.example", origin.port))[1] == 0
        assert await client.echoes()
        assert black_hole.waiting() == 0, "the loser is closed"
        client.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("prefer", "answers", "family"),
    [
        ("ipv4", ["::1", "127.0.0.1"], "ipv4"),
        ("ipv6", ["127.0.0.1", "::1"], "ipv6"),
        ("ipv4-only", ["::1", "127.0.0.1"], "ipv4"),
        ("ipv6-only", ["127.0.0.1", "::1"], "ipv6"),
    ],
)
async def test_the_family_that_is_preferred(
    serve, dial, names, remote, free_everywhere, prefer, answers, family
):
    """Against the resolver's order; both would answer."""
    names.answers["both.example"] = answers
    port = free_everywhere()
    origins = {"ipv4": await remote(port=port), "ipv6": await remote(host="::1", port=port)}
    async with serve(prefer=prefer) as server:
        client = await dial(server)
        assert (await client.connect("both.example", port))[1] == 0
        assert await client.echoes()
    assert {name for name, origin in origins.items() if origin.peers} == {family}
