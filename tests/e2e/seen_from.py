# Prints from which addresses two servers on ::1 see a client of the proxy on this port of
# 127.0.0.1: one of streams, one of datagrams.

from __future__ import annotations

import socket
import sys

import socks

SECONDS = 30


def through(proxy: int, kind: socket.SocketKind) -> socket.socket:
    client = socks.socksocket(socket.AF_INET, kind)
    client.settimeout(SECONDS)
    client.set_proxy(socks.SOCKS5, "127.0.0.1", proxy)
    return client


def stream(proxy: int) -> str:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        through(proxy, socket.SOCK_STREAM) as client,
    ):
        client.connect(listener.getsockname()[:2])
        connection, peer = listener.accept()
        connection.close()
        return peer[0]


def datagram(proxy: int) -> str:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as target,
        through(proxy, socket.SOCK_DGRAM) as client,
    ):
        target.bind(("::1", 0))
        target.settimeout(SECONDS)
        client.bind(("127.0.0.1", 0))
        client.sendto(b"x", target.getsockname()[:2])
        return target.recvfrom(1)[1][0]


if __name__ == "__main__":
    print(stream(int(sys.argv[1])), datagram(int(sys.argv[1])))
