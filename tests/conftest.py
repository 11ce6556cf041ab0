# What every test shares: both engines, on uvloop, the books of the process (descriptors,
# Tasks) that must balance after each session, and a port that refuses.

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import resource
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import uvloop

from support.system import open_descriptors

ENGINES = ["native", "python"] if sys.platform == "linux" else ["python"]

# The first loop of a process opens a pipe for signals that libuv keeps for good: open
# it before anybody counts descriptors.
uvloop.new_event_loop().close()

# Some tests have hundreds of connections. Linux gives a process 1,024 descriptors, macOS 256.
USUAL_DESCRIPTORS = 1024
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if 0 < soft < USUAL_DESCRIPTORS:
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_DESCRIPTORS, hard))


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Elsewhere what is about Linux is no test at all, rather than one that skips."""
    if sys.platform == "linux":
        return
    about_linux = [item for item in items if item.get_closest_marker("linux")]
    config.hook.pytest_deselected(items=about_linux)
    items[:] = [item for item in items if not item.get_closest_marker("linux")]


# With CI=true everything is there that the tests need (.ci/run), so whatever skips there,
# for whatever reason, is a test that was lost.

NOTHING_MAY_SKIP = os.environ.get("CI") == "true"


def failed_if_skipped(report: Any) -> Any:
    if NOTHING_MAY_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_if_skipped((yield))


# Only pytest-timeout's thread ends a test that hangs under uvloop, which keeps signals to
# itself. It ends pytest as well, and knows neither the test nor its Tasks: so they are told
# a moment before.

LAST_WORDS = pytest.StashKey[threading.Timer]()


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    timer = threading.Timer(settings.timeout * 0.95, tell_where_it_hangs, [item.nodeid])
    timer.daemon = True
    timer.start()
    item.stash[LAST_WORDS] = timer


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if LAST_WORDS in item.stash:
        item.stash[LAST_WORDS].cancel()
        # Tests count threads, and an ending one may still be there.
        item.stash[LAST_WORDS].join()


def tell_where_it_hangs(name: str) -> None:
    print(f"this test hangs: {name}", file=sys.stderr)
    for found in gc.get_objects():
        if isinstance(found, asyncio.Task) and not found.done():
            found.print_stack(file=sys.stderr)


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """The name of an engine; a test that takes it runs once on each."""
    return request.param


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


# Below what Linux (32,768) and macOS (49,152) begin with to give ports to clients.
NOT_GIVEN = range(20_000, 32_000)


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses, and is held so that nobody else begins to listen; none
    of those that the kernel gives to clients, as tests listen there on other addresses."""
    with socket.socket() as held:
        for port in random.sample(NOT_GIVEN, len(NOT_GIVEN)):
            with contextlib.suppress(OSError):
                held.bind(("127.0.0.1", port))
                break
        else:
            pytest.fail("no port of that range is free")
        yield held.getsockname()[1]


@pytest.fixture
def descriptors_balance() -> Iterator[None]:
    """Fails the test that leaves a descriptor open."""
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() <= before, "descriptors were left open"
