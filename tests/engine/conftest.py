# What the tests of the engine contract share: an engine with what it has reported, the far
# ends of its connections, and the measures of "exact" and "calm".
#
# Must not know: SOCKS, or how an engine does what the contract in engine.py promises.

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import fastsocks
from fastsocks import engine as contract
from support.ends import PATIENCE, Far, Relayed, reset
from support.holes import black_hole
from support.system import open_descriptors

MIB = 1 << 20

# Coverage traces the loop's thread only, and a relay thread that is traced would wait for
# the interpreter that waits for its end: so there the loop's thread relays.
INLINE = {"relay_threads": 0} if os.environ.get("FASTSOCKS_TEST_INLINE") else {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Programs of their own choose how they relay: with threads."""
    if INLINE:
        alone = [item for item in items if "program" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=alone)
        items[:] = [item for item in items if item not in alone]


# The engines with each way of relaying that they have, and what sets it. With auto and copy
# a session begins on the loop's thread, and a short one ends there; to splice, on a thread.
WAYS: dict[str, dict[str, Any]] = {
    "native-auto": {"relay": "auto"},
    "native-copy": {"relay": "copy"},
    "native-splice": {"relay": "splice"},
    "native-pipeless": {"relay": "splice", "max_pipes": 0},  # copies on a thread
    "python-copy": {"relay": "copy"},
}


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class Rig:
    """An engine under test, and all that it has reported."""

    def __init__(self, name: str, settings: contract.Settings, until: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = name
        self.settings = settings
        self.ends: list[contract.End] = []
        self.engine = contract.choose(name, self.loop, settings, self._on_closed)
        self.until = until
        self._open: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def _on_closed(self, ended: Sequence[contract.End]) -> None:
        assert ended, "an empty batch was reported"
        self.ends.extend(ended)

    def hold(self, sock: socket.socket) -> socket.socket:
        """Closes a socket of the test's when the test is over."""
        self._open.append(sock)
        return sock

    def pair(self, kind: str = "tcp", buffers: int = 0) -> tuple[socket.socket, socket.socket]:
        """Two connected sockets; ``buffers`` bounds what the kernel holds between them."""
        if kind == "unix":
            near, accepted = socket.socketpair()
            return self.hold(near), self.hold(accepted)
        near = self.hold(socket.socket())
        with socket.socket() as listener:
            if buffers:
                for sock in (listener, near):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            near.connect(listener.getsockname())
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return near, self.hold(listener.accept()[0])

    def connected(self, kind: str = "tcp", buffers: int = 0) -> tuple[Far, Any]:
        """A connection of the engine and its far end."""
        ours, its = self.pair(kind, buffers)
        return Far(ours), self.engine.adopt(its)

    def relay(self, kind: str = "tcp", early: bytes = b"", buffers: int = 0) -> Relayed:
        client, near = self.connected(kind, buffers)
        remote, far = self.connected(kind, buffers)
        flow = object()
        return Relayed(client, remote, flow, self.engine.relay(near, far, flow, early))

    def listen(
        self, serve: Callable[[Any], Awaitable[None]], host: str = "127.0.0.1"
    ) -> tuple[str, int]:
        """Listens, with ``serve(conn)`` in a task of its own for each client."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=1024)
        address = listener.getsockname()[:2]

        def on_client(conn: Any) -> None:
            task = self.loop.create_task(serve(conn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.engine.listen(listener, on_client)
        return address

    def connect(self, address: tuple[str, int]) -> Far:
        return Far(self.hold(socket.create_connection(address)))

    def listener(self, host: str = "127.0.0.1", backlog: int = 128) -> socket.socket:
        """A listening socket of the test's, for the engine to dial."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return self.hold(socket.create_server((host, 0), family=family, backlog=backlog))

    async def ended(self, count: int = 1) -> contract.End:
        """Waits for so many ends, of which there may be no more; returns the last."""
        await self.until(lambda: len(self.ends) >= count, f"{count} ends reported", PATIENCE)
        assert len(self.ends) == count, f"reported too often: {self.ends}"
        return self.ends[-1]

    async def over(self, client: Far, remote: Far) -> None:
        """Ends a session from both sides. Only then is all counted: octets arrive first."""
        client.close()
        remote.close()
        await self.ended()

    async def at_rest(self, slots: int = 0) -> None:
        """Waits until nothing is left of the sessions."""
        await self.until(
            lambda: self.engine.sessions == 0 and self.engine.counters()["slots"] == slots,
            f"all sessions freed; {self.engine.sessions=} {self.engine.counters()=}",
            PATIENCE,
        )

    def descriptors(self) -> int:
        """Those of this process, without the pipes that the engine keeps for later."""
        return open_descriptors() - 2 * self.engine.counters()["pipes"]

    def moved(self) -> int:
        counters = self.engine.counters()
        return counters["copied"] + counters["spliced"]

    async def stuck(self, *fars: Far) -> list[int]:
        """Has each of ``fars`` send until no octet moves any more, neither into its socket
        nor through the engine; returns what each has sent."""
        sent = [0] * len(fars)
        moved, still = -1, 0
        deadline = self.loop.time() + PATIENCE
        while still < 6:
            assert self.loop.time() < deadline, f"never stuck: {sent} octets sent"
            took = [far.fill(4 * MIB) for far in fars]
            sent = [total + more for total, more in zip(sent, took, strict=True)]
            still = 0 if any(took) or self.moved() != moved else still + 1
            moved = self.moved()
            await asyncio.sleep(0.02)
        return sent

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.engine.close()
        for sock in self._open:
            sock.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For tests that hold more than the 1,024 which are usual; comes before the engine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def start_engine(until: Any) -> AsyncIterator[Callable[..., Rig]]:
    """start_engine(name, **settings): for tests that choose the engine themselves. When the
    test is over no descriptor and no task may be left."""
    rigs: list[Rig] = []
    # Counted from within the running loop, which opens some when it begins to run.
    descriptors, tasks = open_descriptors(), len(asyncio.all_tasks())

    def start(name: str, **settings: Any) -> Rig:
        rigs.append(Rig(name, contract.Settings(**settings | INLINE), until))
        return rigs[-1]

    yield start
    for rig in rigs:
        await rig.close()
    await until(lambda: len(asyncio.all_tasks()) <= tasks, "all tasks gone")
    if open_descriptors() > descriptors:
        gc.collect()  # takes too long to be done without need
    assert open_descriptors() <= descriptors, "descriptors were left open"


@pytest.fixture
def make_engine(engine_name: str, start_engine: Callable[..., Rig]) -> Callable[..., Rig]:
    """make_engine(**settings): runs the test once on each engine."""
    return lambda **settings: start_engine(engine_name, **settings)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_way(way: str, start_engine: Callable[..., Rig]) -> Callable[..., Rig]:
    """make_way(**settings): runs the test once for each way of relaying of each engine."""
    return lambda **settings: start_engine(way.split("-")[0], **settings | WAYS[way])


@pytest.fixture
def calm() -> Callable[..., Awaitable[None]]:
    """await calm(seconds): nothing goes on in the engine's threads nor in ours. A spin would
    take all of a processor; the test's own waiting is given a fifth of one."""

    async def look(seconds: float = 0.3) -> None:
        before = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - before
        assert used < seconds / 5, f"{used:.3f} s of CPU in {seconds} s without work"

    return look


@pytest.fixture(name="payload")
def payload_fixture() -> Callable[..., bytes]:
    """payload(size, seed=0): octets that repeat nowhere."""
    return payload


@pytest.fixture(name="reset")
def reset_fixture() -> Callable[[socket.socket], None]:
    return reset


@pytest.fixture(name="black_hole")
def black_hole_fixture() -> Iterator[tuple[str, int]]:
    """The address of a listener whose queue is full: connecting to it takes for ever."""
    with black_hole() as hole:
        yield hole.address


# -- bulk, in threads, where the loop's own Python would be what is measured --


class Bulk:
    """A stream too long to hold: made and checked block by block, in a thread."""

    @staticmethod
    def _block(seed: int) -> bytearray:
        return bytearray(payload(MIB, seed))

    @classmethod
    def _pour(cls, sock: socket.socket, size: int, seed: int) -> str:
        block = cls._block(seed)
        digest = hashlib.sha256()
        sock.settimeout(PATIENCE)
        for number in range(size // MIB):
            block[:8] = number.to_bytes(8)  # so that no two blocks are alike
            digest.update(block)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    @classmethod
    def _catch(cls, sock: socket.socket) -> tuple[int, str]:
        buffer = memoryview(bytearray(MIB))
        digest = hashlib.sha256()
        size = 0
        sock.settimeout(PATIENCE)
        while got := sock.recv_into(buffer):
            digest.update(buffer[:got])
            size += got
        return size, digest.hexdigest()

    @classmethod
    async def exchange(cls, relayed: Relayed, up: int, down: int) -> None:
        """Sends ``up`` and ``down`` octets at once, whole MiB, and checks every one."""
        sent_up, sent_down, got_up, got_down = await asyncio.gather(
            asyncio.to_thread(cls._pour, relayed.client.sock, up, 1),
            asyncio.to_thread(cls._pour, relayed.remote.sock, down, 2),
            asyncio.to_thread(cls._catch, relayed.remote.sock),
            asyncio.to_thread(cls._catch, relayed.client.sock),
        )
        assert got_up == (up, sent_up)
        assert got_down == (down, sent_down)


@pytest.fixture
def bulk() -> type[Bulk]:
    return Bulk


# -- programs: what needs a process of its own --------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """program(name, *arguments, prefix=(), **environment): one of programs/, with stdin and stdout
    as pipes and stderr in the file ``process.log``; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []
    package = Path(fastsocks.__file__).parent.parent

    def start(
        name: str, *arguments: str, prefix: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        script = Path(__file__).parent / "programs" / f"{name}.py"
        log = tmp_path / f"stderr-{len(started)}"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env={**os.environ, "PYTHONPATH": str(package), **environment},
            )
        process.log = log  # type: ignore[attr-defined]
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            process.communicate(timeout=PATIENCE)
