# What the tests of dialling share: a dialer at the engine under test, names that are a table, a
# record of what was dialled, and listeners that answer or do not.

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fastsocks import engine as contract
from fastsocks.addresses import Judge
from fastsocks.dial import Dialer
from support.holes import black_hole
from support.system import open_descriptors

LOCAL = "127.0.0.1"


class Table:
    """A resolver that answers from a table, and remembers nothing unless told."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self.answers = {name: tuple(addresses) for name, addresses in answers.items()}
        self.known: dict[str, tuple[str, ...]] = {}
        self.asked = 0

    def remembered(self, name: str) -> tuple[str, ...] | None:
        return self.known.get(name)

    async def resolve(self, name: str, budget: float, client_host: str) -> tuple[str, ...]:
        self.asked += 1
        await asyncio.sleep(0)
        return self.answers[name]


class Engine:
    """The engine under test, and a record of what it was asked to dial."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.dialled: list[str] = []
        self.times: list[float] = []

    def dial(self, client: Any, address: tuple[str, int], source: str | None, timeout: float):
        self.dialled.append(address[0])
        self.times.append(time.monotonic())
        return self.real.dial(client, address, source, timeout)


class Rig:
    def __init__(self, engine: Engine, client: Any, far: socket.socket) -> None:
        self.engine = engine
        self.client = client
        self.far = far

    def dialer(self, *answer: str, timeout: float = 10.0, **more: Any) -> Dialer:
        judge = Judge(more.pop("allowed", ()), (), more.pop("families", ("ipv4", "ipv6")))
        sources = more.pop("sources", {})
        return Dialer(self.engine, Table(host=answer), judge, timeout, sources, **more)

    async def dial(self, port: int, *answer: str, who: str = LOCAL, **more: Any) -> Any:
        return await self.dialer(*answer, **more).dial(self.client, who, "host", port, True)


@pytest.fixture
async def rig(engine_name: str, until: Any):
    descriptors = open_descriptors()
    tasks = len(asyncio.all_tasks())
    loop = asyncio.get_running_loop()
    real = contract.choose(engine_name, loop, contract.Settings(), lambda ended: None)
    ours, theirs = socket.socketpair()
    yield Rig(Engine(real), real.adopt(theirs), ours)
    ours.close()
    real.close()
    await until(lambda: len(asyncio.all_tasks()) <= tasks, "all attempts are over")
    assert open_descriptors() <= descriptors, "a loser was left open"


@pytest.fixture
def listening():
    """listen(host, port): a listener; ``port`` of one that other families share."""
    with contextlib.ExitStack() as stack:

        def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            address = host, port or free_everywhere()
            sock = socket.create_server(address, family=family)
            return stack.enter_context(sock)

        yield listen


@pytest.fixture
def hole():
    """hole(host): the port of a listener that answers no SYN, its queue being full."""
    with contextlib.ExitStack() as stack:

        def dig(host: str = "127.0.0.1", port: int = 0) -> int:
            return stack.enter_context(black_hole(host, port or free_everywhere())).port

        yield dig


def free_everywhere() -> int:
    """A port for listeners on several addresses: one that the kernel gave would be free on
    one of them only, and to any connection meanwhile. It gives out those from 32,768 on."""
    for port in random.sample(range(10_000, 30_000), 100):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True),
        ):
            return port
    raise AssertionError("no port is free in both families")


@pytest.fixture(name="free_everywhere")
def free_everywhere_fixture() -> Callable[[], int]:
    return free_everywhere
