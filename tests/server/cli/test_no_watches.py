# A machine on which epoll has no room for one more connection: whom nothing would be heard of
# is let go, accepting waits a moment, and the log has a line and not a traceback for each.

from __future__ import annotations

import functools
import signal
import subprocess
from pathlib import Path

import pytest

from support.ends import exactly

SOURCE = Path(__file__).parent / "preload" / "no_watches.c"

pytestmark = pytest.mark.linux


@pytest.fixture
def start_proxy(start, tmp_path):
    library = tmp_path / "no_watches.so"
    command = ["gcc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    # The log tells of each, rather than of one in a second.
    told = ("--engine", "native", "--log-level", "debug")
    return functools.partial(start, *told, LD_PRELOAD=str(library))


@pytest.fixture
def proxy(start_proxy):
    return start_proxy()


def test_who_is_refused_is_told_so(proxy, refused_port):
    proxy.process.send_signal(signal.SIGSTOP)  # or it would look for octets before they come
    client = proxy.connect()
    request = b"\x05\x01\x00\x01\x7f\x00\x00\x01" + refused_port.to_bytes(2, "big")
    client.sendall(b"\x05\x01\x00" + request)
    proxy.process.send_signal(signal.SIGCONT)
    with client:
        assert exactly(client, 12)[:4] == b"\x05\x00\x05\x05"
        assert client.recv(1) == b""
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log()


def test_who_has_to_wait_to_be_let_in(start_proxy, refused_port):
    """After failed logins for half a second, in which it cannot be told whether it is there."""
    proxy = start_proxy("-u", "me", "-P", "secret")
    request = b"\x05\x01\x00\x01\x7f\x00\x00\x01" + refused_port.to_bytes(2, "big")
    for password, answer in (
        *[(b"wrong!", b"\x05\x02\x01\x01")] * 3,
        (b"secret", b"\x05\x02\x01\x00\x05\x05"),
    ):
        proxy.process.send_signal(signal.SIGSTOP)
        client = proxy.connect()
        client.sendall(b"\x05\x01\x02\x01\x02me\x06" + password + request)
        proxy.process.send_signal(signal.SIGCONT)
        with client:
            assert exactly(client, len(answer)) == answer
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log()


def test_who_says_nothing_is_let_go(proxy):
    for _ in range(3):
        with proxy.connect() as client:
            assert client.recv(1) == b""
    assert proxy.stop() == 0
    assert proxy.log().count("accepting pauses for 100 ms: No space left on device\n") == 3
    assert "Traceback" not in proxy.log()
