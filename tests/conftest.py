# What every test shares: both engines, on uvloop, and the books of the process
# (descriptors, Tasks) that must balance after each session.

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator

import pytest
import uvloop

ENGINES = ["native", "python"] if sys.platform == "linux" else ["python"]

# The first loop of a process opens a pipe for signals that libuv keeps for good: open
# it before anybody counts descriptors.
uvloop.new_event_loop().close()


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """The name of an engine; a test that takes it runs once on each."""
    return request.param


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Waits for a condition instead of guessing a time; fails with ``what``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture():
    return until


@pytest.fixture
def descriptors_balance() -> Iterator[None]:
    """Fails the test that leaves a descriptor open."""
    before = open_descriptors()
    yield
    with contextlib.suppress(RuntimeError):
        gc.collect()
    assert open_descriptors() <= before, "descriptors were left open"
