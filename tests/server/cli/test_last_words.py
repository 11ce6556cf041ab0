# What a remote has said before its reset, when the proxy hears of both at the same time and of
# more that the client has sent: a server that has seen enough of an upload says so and closes.

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import termios

import pytest

from support.ends import exactly, reset
from support.programs import wait_until

pytestmark = pytest.mark.linux  # for TIOCOUTQ

WAYS = {
    "splice": ("--engine", "native", "--relay", "splice", "--pipe-size", "65536"),
    "copy": ("--engine", "native", "--relay", "copy"),
    "inline": ("--engine", "native", "--relay-threads", "0", "--pipe-size", "65536"),
    "python": ("--engine", "python"),
}
STREAM = 8 << 20  # after which it is spliced, and the kernel's buffers are large
WORDS = 200_000  # more than such a pipe holds


def unsent(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("way", WAYS)
def test_they_arrive_whole(start, way):
    proxy = start(*WAYS[way])
    words = os.urandom(WORDS)
    with socket.create_server(("127.0.0.1", 0)) as listener, proxy.connect() as client:
        port = listener.getsockname()[1].to_bytes(2, "big")
        client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port)
        remote = listener.accept()[0]
        remote.settimeout(client.gettimeout())
        assert exactly(client, 12)[:4] == b"\x05\x00\x05\x00"
        for _ in range(STREAM >> 16):
            remote.sendall(bytes(1 << 16))
            assert len(exactly(client, 1 << 16)) == 1 << 16
        client.sendall(b"an upload")
        proxy.process.send_signal(signal.SIGSTOP)
        remote.sendall(words)
        wait_until(lambda: not unsent(remote), "all is with the proxy")
        reset(remote)
        client.sendall(b", and more of it")
        proxy.process.send_signal(signal.SIGCONT)
        assert exactly(client, WORDS) == words
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.stop() == 0
