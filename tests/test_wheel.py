# Is what was installed whole? Starts the installed proxy as a user would, moves a few MB through
# it, and stops it. Runs by itself, with nothing but the standard library, where a wheel is tried:
#
#     python -I tests/test_wheel.py [native|python]
#
# with the engine that has to be in there. Must not know the sources, nor any other test.

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30
SIZE = 8 << 20
LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+) .*engine (\w+)")


def has_extensions() -> bool:
    import fastsocks

    return any(Path(fastsocks.__file__).parent.glob("_front*.so"))


@contextlib.contextmanager
def proxy(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """The program, its port, and the engine that it says it has."""
    command = [sys.executable, "-m", "fastsocks", "--listen", "127.0.0.1:0", *flags]
    # Away from the sources, which are no part of what was installed.
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=elsewhere
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            found = LISTENING.search(line)
            assert found, f"{line!r}: {process.stderr.read() if not line else ''}"
            yield process, int(found[1]), found[2]
        finally:
            process.kill()


def exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = sock.recv(size - len(got))
        assert piece, f"the stream ended after {got!r}"
        got += piece
    return got


def echo(listener: socket.socket) -> None:
    """One client; its FIN is answered when everything has gone back."""
    conn, _ = listener.accept()
    with conn:
        conn.settimeout(PATIENCE)
        while piece := conn.recv(1 << 16):
            conn.sendall(piece)


def through(port: int, host: str, target: int, data: bytes) -> str:
    """Sends ``data`` through SOCKS5 CONNECT to an echo; the SHA-256 of what came back."""
    name = host.encode()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(b"\5\1\0")
        assert exactly(sock, 2) == b"\5\0"
        sock.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + target.to_bytes(2))
        assert exactly(sock, 10)[:4] == b"\5\0\0\1"

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest = hashlib.sha256()
        while piece := sock.recv(1 << 16):
            digest.update(piece)
        sender.join(PATIENCE)
        return digest.hexdigest()


def relay_and_stop(*flags: str) -> tuple[str, bool, int, str]:
    """The engine that it said it has, whether all came back through it as it was, and how it
    ended on SIGTERM: its exit code, and what it wrote to stderr from a traceback on."""
    data = os.urandom(SIZE)
    with proxy(*flags) as (process, port, engine), socket.create_server(("127.0.0.1", 0)) as origin:
        origin.settimeout(PATIENCE)
        server = threading.Thread(target=echo, args=(origin,))
        server.start()
        back = through(port, "127.0.0.1", origin.getsockname()[1], data)
        server.join(PATIENCE)
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
        traceback = "".join(process.stderr.read().partition("Traceback")[1:])
    return engine, back == hashlib.sha256(data).hexdigest(), status, traceback


def best_engine() -> str:
    return "native" if has_extensions() else "python"


def test_the_engine_chosen_by_itself_relays_and_stops():
    assert relay_and_stop() == (best_engine(), True, 0, "")


def test_the_python_engine_is_always_there():
    assert relay_and_stop("--engine", "python") == ("python", True, 0, "")


def test_the_command_says_the_version_that_was_installed():
    said = subprocess.run(
        [sys.executable, "-m", "fastsocks", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert said.stdout == f"fastsocks {importlib.metadata.version('fastsocks')}\n"


if __name__ == "__main__":
    wanted = sys.argv[1] if sys.argv[1:] else best_engine()
    assert best_engine() == wanted, f"engine {best_engine()}, not {wanted}"
    test_the_engine_chosen_by_itself_relays_and_stops()
    test_the_python_engine_is_always_there()
    test_the_command_says_the_version_that_was_installed()
    print(f"{wanted} engine: 3 passed, 0 failed")
