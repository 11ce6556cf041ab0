# The command line as its users have it: a process with its flags, the line it prints
# when it is ready, where its password may be seen, and how it ends on a signal.

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastsocks import __version__

# To come up or to end, on a machine that is busy elsewhere.
PATIENCE = 30.0
SOURCE = str(Path(__file__).resolve().parents[2] / "src")
SECRET = "s3cret-w0rd"
FLAGS = [
    *("--listen", "-i", "-p", "-u", "-P", "-b", "-q", "--open", "--password-file", "--version"),
    *("--engine", "--relay", "--relay-threads", "--pipe-size", "--max-pipes", "--max-sessions"),
    *("--handshake-timeout", "--connect-timeout", "--idle-timeout", "--half-closed-timeout"),
    *("--grace", "--log-level"),
]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": SOURCE, "LC_ALL": "C.UTF-8"} | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastsocks", *arguments]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


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
        self.ready = self.process.stdout.readline()
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
        with socket.socket() as knock:
            return knock.connect_ex(self.addresses[0]) != 0

    def arguments(self) -> list[bytes]:
        """What everyone on the machine may see of them."""
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().split(b"\0")

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.ended()

    def ended(self) -> None:
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, self.log()
        assert output == "", "more than the one line"
        assert "Traceback" not in self.log()


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
def origin() -> Iterator[tuple[str, int, list[str]]]:
    """(host, port, who came): sends everything back."""
    peers: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                peers.append(peer[0])
                with connection:
                    while data := connection.recv(65536):
                        connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield (*listener.getsockname(), peers)
    listener.shutdown(socket.SHUT_RDWR)  # wakes accept, as close would not
    listener.close()
    thread.join(PATIENCE)


def exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


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


# -- what works --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--relay", "auto"],
        ["--relay", "copy"],
        ["--relay", "splice"],
        ["--relay-threads", "0"],
        ["--relay-threads", "2"],
        ["--relay-threads", "auto"],
        ["--pipe-size", "65536", "--max-pipes", "3"],
        ["--pipe-size", "256k", "--max-pipes", "0"],
        ["--pipe-size", "1M"],
        ["--handshake-timeout", "2.5", "--connect-timeout", "3", "--idle-timeout", "0"],
        ["--half-closed-timeout", "1e3", "--grace", "1"],
        ["--max-sessions", "10"],
        ["--log-level", "warning"],
        ["-q"],
        ["--open"],
    ],
    ids=" ".join,
)
def test_flags(start, origin, engine_name, arguments):
    proxy = start("--engine", engine_name, *arguments)
    assert echoes(proxy, origin)
    proxy.stop()


def test_ready_line_says_it_all(start, engine_name):
    proxy = start("--engine", engine_name, "--pipe-size", "128k", "--relay", "splice")
    host, port = proxy.addresses[0]
    assert proxy.ready.startswith(f"fastsocks listening on {host}:{port} (")
    assert f"engine {engine_name}" in proxy.ready
    assert "loop uvloop" in proxy.ready
    assert f"curl -x socks5h://{host}:{port} " in proxy.ready
    if engine_name == "native":
        assert "splice" in proxy.ready
        assert "128" in proxy.ready or str(128 << 10) in proxy.ready
    else:
        assert "copy" in proxy.ready
    proxy.stop()


def test_auto_is_an_engine_that_runs(start, origin):
    proxy = start()
    assert echoes(proxy, origin)
    proxy.stop()


def test_several_listeners(start, origin, engine_name):
    places = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", "localhost:0"]
    proxy = start("--engine", engine_name, *places)
    assert [host for host, _ in proxy.addresses] == ["127.0.0.1", "::1", "127.0.0.1"]
    assert all(echoes(proxy, origin, which) for which in range(3))
    proxy.stop()


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        (["-i", "127.0.0.2", "-p", "0"], "127.0.0.2"),
        (["-p", "0"], "127.0.0.1"),
        (["-i", "::1", "-p", "0"], "::1"),
        (["-i", "0.0.0.0", "-p", "0", "--open"], "0.0.0.0"),
        (["-i", "0.0.0.0", "-p", "0", "-u", "me", "-P", SECRET], "0.0.0.0"),
        (["-p0", "-i127.0.0.1"], "127.0.0.1"),
    ],
)
def test_microsocks_flags(start, arguments, host):
    proxy = start(*arguments)
    assert proxy.addresses[0][0] == host
    proxy.connect().close()
    proxy.stop()


def test_source_address(start, origin):
    proxy = start("-b", "127.0.0.4")
    assert echoes(proxy, origin)
    assert origin[2] == ["127.0.0.4"]
    proxy.stop()


def test_quiet_and_verbose(start, origin):
    quiet, plain, verbose = start("-q"), start(), start("--log-level", "debug")
    for proxy in (quiet, plain, verbose):
        assert echoes(proxy, origin)
        with proxy.connect() as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(8) == b"HTTP/1.1"
        proxy.stop()
    assert quiet.log() == ""
    assert "HTTP client" in plain.log()
    assert f"127.0.0.1:{origin[1]}" not in plain.log()
    assert f"127.0.0.1:{origin[1]}" in verbose.log()


def test_version():
    ended = subprocess.run(command("--version"), capture_output=True, env=environment())
    assert (ended.returncode, ended.stdout) == (0, f"fastsocks {__version__}\n".encode())


def test_help_names_every_flag():
    ended = subprocess.run(command("--help"), capture_output=True, env=environment(), text=True)
    assert ended.returncode == 0
    for flag in FLAGS:
        assert flag in ended.stdout, flag


# -- passwords ---------------------------------------------------------------


def test_password_from_a_file(start, origin, tmp_path):
    file = tmp_path / "password"
    file.write_bytes(f"{SECRET} \u00e4\r\nsecond line\n".encode())
    proxy = start("-u", "me", "--password-file", str(file))
    assert echoes(proxy, origin, login=(b"me", f"{SECRET} \u00e4".encode()))
    proxy.stop()


def test_password_from_the_environment(start, origin):
    proxy = start("-u", "me", FASTSOCKS_PASSWORD=SECRET)
    assert echoes(proxy, origin, login=(b"me", SECRET.encode()))
    proxy.stop()


def test_password_in_argv_wins(start, origin):
    proxy = start("-u", "me", "-P", SECRET, FASTSOCKS_PASSWORD="another")
    assert echoes(proxy, origin, login=(b"me", SECRET.encode()))
    proxy.stop()


def test_environment_without_a_user_means_nothing(start, origin):
    proxy = start(FASTSOCKS_PASSWORD=SECRET)
    assert echoes(proxy, origin)
    proxy.stop()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-u", "me", "-P", SECRET],
        ["-u", "me", f"-P{SECRET}"],
        ["-P", SECRET, "-u", "me"],
        ["-u", f"me-{SECRET}-too", "-P", SECRET],  # the user's name may hold the password
        ["-u", "me", f"-qP{SECRET}"],
        ["-u", "me", "-P", "fast"],  # as the program's own name does
        ["-u", "me", "-P", "p\u00e4ssword"],
    ],
    ids=" ".join,
)
def test_password_is_wiped_from_argv(start, origin, arguments):
    user = arguments[arguments.index("-u") + 1]
    secret = arguments[-1].partition("P")[2] or arguments[-1]
    secret = SECRET if SECRET in "".join(arguments) else secret
    proxy = start(*arguments)
    shown = proxy.arguments()
    assert not [one for one in shown if one in (secret.encode(), b"-P" + secret.encode())]
    assert not [one for one in shown if one.endswith(b"P" + secret.encode())]
    assert user.encode() in shown, "more than the password was wiped"
    assert b"fastsocks" in shown
    assert echoes(proxy, origin, login=(user.encode(), secret.encode()))
    proxy.stop()


# -- signals -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_proxy(start, engine_name, number):
    proxy = start("--engine", engine_name)
    proxy.stop(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_a_download_finish(start, engine_name, number):
    data, go_on = os.urandom(1 << 20), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.sendall(data)
            go_on.wait(PATIENCE)
            connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    proxy = start("--engine", engine_name, "--grace", "60")
    with proxy.connect() as client:
        client.sendall(b"\x04\x01" + listener.getsockname()[1].to_bytes(2, "big") + b"\x7f\0\0\1\0")
        assert exactly(client, 8)[:2] == b"\x00\x5a"
        assert exactly(client, len(data)) == data
        proxy.process.send_signal(number)
        wait_until(proxy.refuses, "new clients are refused")
        assert proxy.process.poll() is None
        go_on.set()
        assert exactly(client, len(data) + 1) == data
    proxy.ended()
    thread.join(PATIENCE)


@pytest.mark.parametrize("hurry", ["the grace ends", "a second signal"])
def test_what_does_not_finish_is_cut_off(start, engine_name, origin, hurry):
    proxy = start("--engine", engine_name, "--grace", "0.3" if hurry == "the grace ends" else "60")
    with proxy.connect() as client:
        client.sendall(b"\x04\x01" + origin[1].to_bytes(2, "big") + b"\x7f\0\0\1\0")
        assert client.recv(8)[:2] == b"\x00\x5a"
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(proxy.refuses, "new clients are refused")
        if hurry == "a second signal":
            proxy.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.ended()


def test_signal_while_a_name_is_resolved(start, engine_name, tmp_path):
    """A resolver that hangs keeps no program from ending."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "def hang(*arguments, **more):\n"
        "    if arguments[0] == 'slow.example': time.sleep(3600)\n"
        "    return real(*arguments, **more)\n"
        "real, socket.getaddrinfo = socket.getaddrinfo, hang\n"
    )
    path = f"{tmp_path}{os.pathsep}{SOURCE}"
    proxy = start("--engine", engine_name, "--grace", "0.2", PYTHONPATH=path)
    with proxy.connect() as client:
        client.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x0cslow.example\x00\x50")
        assert exactly(client, 2) == b"\x05\x00"
        proxy.stop()


def test_without_uvloop(start, origin, engine_name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvloop'] = None\n")
    proxy = start("--engine", engine_name, PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}")
    assert "loop asyncio" in proxy.ready
    assert echoes(proxy, origin)
    proxy.stop()


def test_a_reader_who_is_gone_is_no_reason_to_stop(origin, tmp_path):
    """fastsocks | head: standard output is a pipe that nobody reads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = probe.getsockname()
    read_end, write_end = os.pipe()
    os.close(read_end)
    with (tmp_path / "log").open("wb") as sink:
        process = subprocess.Popen(
            command("--listen", f"{place[0]}:{place[1]}"),
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=sink,
            env=environment(),
        )
    os.close(write_end)
    try:

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as knock:
                return knock.connect_ex(place) == 0

        wait_until(answers, "it listens")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert "Error" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
