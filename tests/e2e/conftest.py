# What the end-to-end tests share: the proxy as a process of its own, with each engine, and
# the servers behind it (a foreign program, or a script of the test's own in a thread).

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from support import programs
from support.programs import READY_SECONDS
from support.proxies import OUTSIDE, Fastsocks, Proxy, running_dante, running_fastsocks

MIB = 1 << 20


# --- programs and libraries that may be missing ---------------------------------------------


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """need("nginx") is the program's path; it skips when there is none."""
    return programs.need


@pytest.fixture(scope="session")
def need_module() -> Callable[[str], ModuleType]:
    """need_module("socks") is the module; it skips when there is none."""

    def load(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError:
            programs.missing(f"the module {name}", "install the dependency group `test`")

    return load


@pytest.fixture(scope="session")
def plain_environment() -> dict[str, str]:
    return programs.plain_environment()


# --- the proxy ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["native", "python"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def proxy(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fastsocks]:
    """A proxy open to everyone on loopback."""
    with running_fastsocks(engine, tmp_path_factory.mktemp("proxy") / "stderr") as running:
        yield running


@pytest.fixture(scope="session")
def login() -> SimpleNamespace:
    """The one user of `locked_proxy`; the signs in the password need quoting in a URL."""
    return SimpleNamespace(user="alice", password="s3cret:@/%41 &x", wrong="n0t-th3-p4ssword")


@pytest.fixture(scope="module")
def locked_proxy(
    engine: str, login: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fastsocks]:
    """A proxy that wants user and password."""
    log = tmp_path_factory.mktemp("locked") / "stderr"
    options = ("-u", login.user, "-P", login.password)
    secrets = (login.password, login.wrong)
    with running_fastsocks(engine, log, *options, secrets=secrets) as running:
        yield running


@pytest.fixture
def start_proxy(engine: str, tmp_path: Path) -> Iterator[Callable[..., Fastsocks]]:
    """start_proxy(*options, environment=..., secrets=...): a proxy for this test alone."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, **settings: object) -> Fastsocks:
            log = tmp_path / f"stderr-{len(list(tmp_path.glob('stderr-*')))}"
            running = running_fastsocks(engine, log, *options, **settings)  # type: ignore[arg-type]
            return stack.enter_context(running)

        yield start


@pytest.fixture(scope="module", params=["dante", "native", "python"])
def outside_proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy with every command, seen by servers as OUTSIDE, as no client of it is: so they
    can tell who came past it. Dante is among them to show that the test itself is right."""
    directory = tmp_path_factory.mktemp("outside")
    options = ("--allow-bind", "-b", OUTSIDE)
    with (
        running_dante(directory)
        if request.param == "dante"
        else running_fastsocks(request.param, directory / "stderr", *options)
    ) as running:
        yield running


# --- servers to aim the proxy at ------------------------------------------------------------


class Remote:
    """A listener whose every connection runs `script(connection, peer)` in its own thread."""

    def __init__(self, script: Callable[[socket.socket, str], None], host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._script = script
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(READY_SECONDS)
            self._open.add(connection)
            worker = threading.Thread(target=self._serve, args=(connection, f"{peer[0]} {peer[1]}"))
            self._threads.append(worker)
            worker.start()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        # A client that goes early is the test's business, and it sees it at its own end.
        with connection, contextlib.suppress(OSError):
            self._script(connection, peer)
        self._open.discard(connection)

    def close(self) -> None:
        for waiting in (self._listener, *tuple(self._open)):
            with contextlib.suppress(OSError):  # shutdown wakes a thread, close would not
                waiting.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(READY_SECONDS)
        self._listener.close()
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture(scope="module")
def remote() -> Iterator[Callable[..., Remote]]:
    """remote(script, host="127.0.0.1"): a server that ends with the module."""
    with contextlib.ExitStack() as stack:

        def start(script: Callable[[socket.socket, str], None], host: str = "127.0.0.1") -> Remote:
            return stack.enter_context(contextlib.closing(Remote(script, host)))

        yield start


@pytest.fixture(scope="session")
def late_data() -> bytes:
    """What the echo server sends after it has seen the end of its input."""
    return os.urandom(MIB) + b"the very last byte."


@pytest.fixture(scope="session")
def echo_script(late_data: bytes) -> Callable[[socket.socket, str], None]:
    """Sends everything back, and `late_data` once the other side has half-closed."""

    def script(connection: socket.socket, peer: str) -> None:
        while data := connection.recv(1 << 16):
            connection.sendall(data)
        connection.sendall(late_data)

    return script


@pytest.fixture(scope="module")
def echo(remote: Callable[..., Remote], echo_script) -> Remote:
    return remote(echo_script)


@pytest.fixture(scope="session")
def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def ipv6(has_ipv6: bool) -> str:
    """The IPv6 loopback address, for tests that make no sense without it."""
    if not has_ipv6:
        programs.missing("the IPv6 loopback address", "enable IPv6 on lo")
    return "::1"


@pytest.fixture(scope="session")
def running_daemon() -> Callable[..., contextlib.AbstractContextManager[int]]:
    """running_daemon(command, log): the port of the server `command(port)` starts."""
    return programs.running_daemon


# --- the client that more than one file drives -----------------------------------------------


@pytest.fixture(scope="session")
def curl() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """curl(*arguments): the finished curl, its output and its errors."""
    program = programs.need("curl")

    def run(*arguments: str, seconds: int = 30) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, "-q", "-sS", "--max-time", str(seconds), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds + 30,
            env=programs.plain_environment(),
        )

    return run
