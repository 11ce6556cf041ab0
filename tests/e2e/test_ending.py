# How the program ends when it is told to in the middle of its work: it stops accepting, lets
# the sessions it has run to their ends, and exits with 0. The end that every other test of
# this directory expects, on SIGTERM with nothing to do, is in conftest.py.

from __future__ import annotations

import signal
import socket
import threading

import pytest

from support.programs import wait_until
from support.system import refuses

SECONDS = 30


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_session_may_finish(start_proxy, need_module, remote, late_data, sign) -> None:
    socks = need_module("socks")
    stopping = threading.Event()

    def script(connection: socket.socket, peer: str) -> None:
        connection.sendall(b"before")
        assert stopping.wait(SECONDS)
        connection.sendall(late_data)

    server = remote(script)
    started = start_proxy()
    address = started.host, started.port
    with socks.socksocket() as client:
        client.settimeout(SECONDS)
        client.set_proxy(socks.SOCKS5, started.host, started.port)
        client.connect((server.host, server.port))
        received = client.recv(6)
        started.process.send_signal(sign)
        wait_until(lambda: refuses(address), "the proxy has stopped accepting")
        stopping.set()
        while piece := client.recv(1 << 16):
            received += piece
    assert received == b"before" + late_data
    started.assert_good_end()


def test_idle_proxy_ends_on_interrupt(start_proxy) -> None:
    started = start_proxy()
    started.process.send_signal(signal.SIGINT)
    started.assert_good_end()
