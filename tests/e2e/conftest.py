# What the end-to-end tests share: the proxy as a process of its own, with each engine; the
# servers behind it (a foreign program, or a script of the test's own in a thread); and what
# is asserted of every proxy without asking: no socket left behind by its sessions, exit code
# 0 on SIGTERM, no traceback and no password in the log.
#
# Must not know: anything of fastsocks but its command line and the line it prints when ready.

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

MIB = 1 << 20
READY_SECONDS = 60.0  # for a program to come up or to end, on a machine that is busy elsewhere
CALM_SECONDS = 30.0  # for a proxy whose clients have all gone to let go of their sockets
READY_LINE = re.compile(r"^fastsocks listening on (\S+):(\d+) ")
PACKAGES = {
    "curl": "curl",
    "git": "git",
    "nc": "netcat-openbsd",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "oidentd": "oidentd",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}


# --- programs and libraries that may be missing ---------------------------------------------


def _missing(what: str, remedy: str) -> None:
    # CI installs everything these tests drive, so there a gap would be a silently lost test.
    text = f"{what} is missing: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _need(program: str) -> str:
    # sshd and nginx live in sbin, which an ordinary user's PATH leaves out.
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found and program == "nc":
        usage = subprocess.run([found, "-h"], capture_output=True, timeout=READY_SECONDS)
        if b"-X proto" not in usage.stdout + usage.stderr:
            found = None  # another netcat, which cannot use a proxy
    if not found:
        _missing(program, f"apt-get install {PACKAGES[program]}")
    return str(found)


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """need("nginx") is the program's path; it skips (in CI: fails) when there is none."""
    return _need


@pytest.fixture(scope="session")
def need_module() -> Callable[[str], ModuleType]:
    """need_module("socks") is the module; it skips (in CI: fails) when there is none."""

    def load(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError:
            _missing(f"the module {name}", "install the dependency group `test`")
            raise

    return load


def _plain_environment() -> dict[str, str]:
    # A proxy configured on the developer's machine must not get between client and proxy.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("FASTSOCKS_", "GIT_"))
    }
    return kept | {"LC_ALL": "C", "PYTHONFAULTHANDLER": "1"}


@pytest.fixture(scope="session")
def plain_environment() -> dict[str, str]:
    return _plain_environment()


def _wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds:g} s have passed, and still not: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], float, str], None]:
    return _wait_until


# --- the proxy ------------------------------------------------------------------------------


@dataclass(slots=True)
class Proxy:
    process: subprocess.Popen[bytes]
    host: str
    port: int
    banner: str
    log: Path
    secrets: tuple[str, ...]
    resting_sockets: int = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def stderr(self) -> str:
        return self.log.read_text(errors="replace")

    def sockets(self) -> int:
        count = 0
        directory = f"/proc/{self.process.pid}/fd"
        with contextlib.suppress(FileNotFoundError):  # the process itself has gone
            for entry in os.listdir(directory):
                with contextlib.suppress(OSError):  # closed between the listing and the look
                    count += os.readlink(f"{directory}/{entry}").startswith("socket:")
        return count

    def resident_memory(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=READY_SECONDS)

    def finish(self) -> None:
        """SIGTERM to a proxy at rest, unless the test has ended it already."""
        if self.process.returncode is not None:
            return
        assert self.process.poll() is None, f"it ended by itself; its log:\n{self.stderr()}"
        _wait_until(
            lambda: self.sockets() <= self.resting_sockets,
            CALM_SECONDS,
            "all sockets of sessions that are over are closed",
        )
        self.process.send_signal(signal.SIGTERM)
        self.assert_good_end()

    def assert_good_end(self) -> None:
        """The end that is expected of every proxy of these tests, once it has its signal."""
        try:
            output = self.process.communicate(timeout=READY_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            pytest.fail(f"the proxy did not end on its signal; its log:\n{self.stderr()}")
        log = self.stderr()
        assert self.process.returncode == 0, log
        for trouble in ("Traceback", "Fatal Python error", "Sanitizer"):
            assert trouble not in log, log
        for secret in self.secrets:
            assert secret not in log + output, f"a password is in the log:\n{log}"


def _read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(process.stdout.fileno(), 1)  # one at a time: the rest is communicate's
        if not piece:
            break
        line += piece
    return line.decode(errors="replace")


@contextlib.contextmanager
def _running_proxy(
    engine: str,
    log: Path,
    *options: str,
    environment: dict[str, str] | None = None,
    secrets: tuple[str, ...] = (),
) -> Iterator[Proxy]:
    command = [sys.executable, "-m", "fastsocks", "--listen", "127.0.0.1:0", "--engine", engine]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=_plain_environment() | (environment or {}),
        )
    try:
        banner = _read_line(process)
        ready = READY_LINE.match(banner)
        assert ready, f"no line that says ready, but {banner!r}; its log:\n{log.read_text()}"
        assert engine in banner, banner  # no engine may quietly stand in for the other
        proxy = Proxy(process, ready[1], int(ready[2]), banner, log, secrets)
        proxy.resting_sockets = proxy.sockets()
        yield proxy
        proxy.finish()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=["native", "python"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def proxy(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy open to everyone on loopback."""
    with _running_proxy(engine, tmp_path_factory.mktemp("proxy") / "stderr") as running:
        yield running


@pytest.fixture(scope="session")
def login() -> SimpleNamespace:
    """The one user of `locked_proxy`; the signs in the password need quoting in a URL."""
    return SimpleNamespace(user="alice", password="s3cret:@/%41 &x", wrong="n0t-th3-p4ssword")


@pytest.fixture(scope="module")
def locked_proxy(
    engine: str, login: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy that wants user and password."""
    log = tmp_path_factory.mktemp("locked") / "stderr"
    options = ("-u", login.user, "-P", login.password)
    secrets = (login.password, login.wrong)
    with _running_proxy(engine, log, *options, secrets=secrets) as running:
        yield running


@pytest.fixture
def start_proxy(engine: str, tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """start_proxy(*options, environment=..., secrets=...): a proxy for this test alone."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, **settings: object) -> Proxy:
            log = tmp_path / f"stderr-{len(list(tmp_path.glob('stderr-*')))}"
            running = _running_proxy(engine, log, *options, **settings)  # type: ignore[arg-type]
            return stack.enter_context(running)

        yield start


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


@pytest.fixture(scope="module")
def echo(remote: Callable[..., Remote], late_data: bytes) -> Remote:
    """Sends everything back, and `late_data` once the other side has half-closed."""

    def script(connection: socket.socket, peer: str) -> None:
        while data := connection.recv(1 << 16):
            connection.sendall(data)
        connection.sendall(late_data)

    return remote(script)


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
        _missing("the IPv6 loopback address", "enable IPv6 on lo")
    return "::1"


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses, and is held so that nobody else begins to listen."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def _running_daemon(command: Callable[[int], list[str]], log: Path) -> Iterator[int]:
    # Neither nginx nor sshd can be asked which port it got, so a free one is picked for it,
    # and another one where somebody was quicker.
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with log.open("ab") as sink:
            process = subprocess.Popen(
                command(port), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )

        def answers(process: subprocess.Popen[bytes] = process, port: int = port) -> bool:
            if process.poll() is not None:
                return True
            with socket.socket() as knock:
                return knock.connect_ex(("127.0.0.1", port)) == 0

        try:
            _wait_until(answers, READY_SECONDS, f"{process.args!r} listens")
            if process.poll() is None:
                yield port
                return
        finally:
            process.terminate()
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def running_daemon() -> Callable[..., contextlib.AbstractContextManager[int]]:
    """running_daemon(command, log): the port of the server `command(port)` starts."""
    return _running_daemon


# --- the client that more than one file drives -----------------------------------------------


@pytest.fixture(scope="session")
def curl() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """curl(*arguments): the finished curl, its output and its errors."""
    program = _need("curl")

    def run(*arguments: str, seconds: int = 30) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, "-q", "-sS", "--max-time", str(seconds), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds + 30,
            env=_plain_environment(),
        )

    return run
