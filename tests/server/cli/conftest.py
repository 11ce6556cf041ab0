# What the tests of the command line share: fastsocks as a process of its own, with the
# lines it wrote and what everyone may see of its arguments, the one line of a command that
# is refused or fails, and a remote to reach by it.

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastsocks import cli
from support.ends import exactly
from support.programs import first_line, wait_until
from support.system import asleep, refuses

# To come up or to end, on a machine that is busy elsewhere.
PATIENCE = 30.0
SOURCE = str(Path(__file__).resolve().parents[3] / "src")
# English, in UTF-8, and on every machine of its kind: of what it lacks the shell of macOS warns.
LOCALE = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name != "FASTSOCKS_PASSWORD"}
    return plain | {"PYTHONPATH": SOURCE, "LC_ALL": LOCALE} | more


def command(*arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "fastsocks", *arguments]


class Proxy:
    """A running fastsocks."""

    def __init__(self, log: Path, *arguments: str, **variables: str) -> None:
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment(**variables),
                text=True,
            )
        assert self.process.stdout is not None
        self.ready = first_line(self.process)
        if not self.ready.startswith("fastsocks listening on "):
            self.process.kill()
            self.process.communicate()
            pytest.fail(f"it is not ready, but says {self.ready!r} and {self.log()!r}")
        places = self.ready.removeprefix("fastsocks listening on ").partition(" (")[0]
        self.addresses = [
            (host.strip("[]"), int(port))
            for host, _, port in (place.rpartition(":") for place in places.split(", "))
        ]

    def log(self) -> str:
        return self._log.read_text()

    def connect(self, which: int = 0) -> socket.socket:
        return socket.create_connection(self.addresses[which], timeout=PATIENCE)

    def refuses(self) -> bool:
        return refuses(self.addresses[0])

    def arguments(self) -> list[bytes]:
        """What everyone on the machine may see of them."""
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().split(b"\0")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit status, of a program that had nothing more to say."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert "Traceback" not in self.log()
        assert output == "", "more than the one line"
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """``start("-u", "me", FASTSOCKS_PASSWORD="...")``; ended with the test, by force."""
    running: list[Proxy] = []

    def run(*arguments: str, **variables: str) -> Proxy:
        given = {argument[:2] for argument in arguments if argument != "--listen"} & {"-i", "-p"}
        place = () if given or "--listen" in arguments else ("--listen", "127.0.0.1:0")
        log = tmp_path / f"log-{len(running)}"
        running.append(Proxy(log, *place, *arguments, **variables))
        return running[-1]

    yield run
    for proxy in running:
        if proxy.process.poll() is None:
            proxy.process.kill()
            proxy.process.communicate()


@pytest.fixture
def interrupted() -> Callable[..., tuple[int, str]]:
    """``interrupted("passwd", "users", "me")``: status and standard error of a command
    that SIGINT meets in the middle of a line from standard input, a pipe."""

    def run(*arguments: str) -> tuple[int, str]:
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, b"half a l")
            process = subprocess.Popen(
                command(*arguments),
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(),
                text=True,
                # A shell starts what it puts in the background with interrupts ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                # Before it sleeps, it would notice an interrupt after the next read only.
                wait_until(
                    lambda: is_empty(read_end) and asleep(process.pid), "it waits for the rest"
                )
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
                process.communicate()
        finally:
            os.close(read_end)
            os.close(write_end)
        return process.returncode, told

    return run


def is_empty(pipe: int) -> bool:
    return not select.select([pipe], [], [], 0)[0]


def one_line(told: str) -> str:
    assert "Traceback" not in told, told
    assert told.startswith("fastsocks: ")
    assert told.count("\n") == 1, "more than one line"
    assert told.endswith("\n")
    return told


@pytest.fixture
def refused(monkeypatch, capsys) -> Callable[..., str]:
    """``refused("--engine", "warp")``: its one line. In this process, as the tables are
    long and a process takes its time; nothing is served should it be accepted."""

    async def serve(*accepted: object) -> None:
        pytest.fail("it was accepted")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(cli, "serve", serve)
        status = cli.main(arguments)
        output, told = capsys.readouterr()
        assert (status, output) == (2, "")
        return one_line(told)

    return run


@pytest.fixture
def fails(command, environment) -> Callable[..., str]:
    """``fails(1, "--listen", "192.0.2.1:80")``: the one line of a process of its own."""

    def run(status: int, *arguments: str | bytes, **variables: str) -> str:
        try:
            ended = subprocess.run(
                command(*arguments),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=environment(**variables),
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as running:
            pytest.fail(f"it took that: {running.stdout!r} {running.stderr!r}")
        told = ended.stderr.decode()
        assert (ended.returncode, ended.stdout) == (status, b""), told
        return one_line(told)

    return run


@pytest.fixture
def origin() -> Iterator[tuple[str, int, list[str]]]:
    """(host, port, who came): sends everything back."""
    peers: list[str] = []
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                if over.is_set():
                    connection.close()
                    return
                connection.settimeout(PATIENCE)
                peers.append(peer[0])
                with connection:
                    while data := connection.recv(65536):
                        connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield (*listener.getsockname(), peers)
    over.set()
    with listener, socket.create_connection(listener.getsockname()):  # wakes accept everywhere
        thread.join(PATIENCE)


def echoes(proxy: Proxy, origin, which: int = 0, login: tuple[bytes, bytes] | None = None) -> bool:
    with proxy.connect(which) as client:
        if login:
            user, password = login
            claim = b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password
            client.sendall(b"\x05\x01\x02" + claim)
            assert exactly(client, 2) == b"\x05\x02"
            assert exactly(client, 2) == b"\x01\x00"
        else:
            client.sendall(b"\x05\x01\x00")
            assert exactly(client, 2) == b"\x05\x00"
        client.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + origin[1].to_bytes(2, "big"))
        assert exactly(client, 10)[:2] == b"\x05\x00"
        client.sendall(b"are you there?")
        return exactly(client, 14) == b"are you there?"


@pytest.fixture(scope="session", name="command")
def command_fixture() -> Callable[..., list[str | bytes]]:
    return command


@pytest.fixture(scope="session", name="environment")
def environment_fixture() -> Callable[..., dict[str, str]]:
    """``environment(NAME="value")`` in which this source tree is what runs."""
    return environment


@pytest.fixture(scope="session", name="is_asleep")
def is_asleep_fixture() -> Callable[[int], bool]:
    """``is_asleep(pid)``: that process waits for something."""
    return asleep


@pytest.fixture(scope="session", name="echoes")
def echoes_fixture() -> Callable[..., bool]:
    """``echoes(proxy, origin, which, login)``: a whole session, and its data came back."""
    return echoes
