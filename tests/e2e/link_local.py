# A host at fe80::9 of this network's one link, as a client of the proxy on fd00::1.
#
#     client PROXY_PORT               associates, prints its ports, waits for a
#                                     line, sends a datagram, prints what its target gets first
#     other PROXY_PORT PORT TARGET    associates as well, and sends to the ports of the first

from __future__ import annotations

import contextlib
import socket
import struct
import sys

LINK = "lan"
HOST, PROXY, TARGET = "fe80::9", "fd00::1", "fd00:a::9"
SECONDS = 30


def own_socket(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.settimeout(SECONDS)
    sock.bind((HOST, 0, 0, socket.if_nametoindex(LINK)))
    return sock


def associate(proxy: int) -> tuple[socket.socket, int]:
    """The connection that holds the association, and the port for its datagrams."""
    control = own_socket(socket.SOCK_STREAM)
    control.connect((PROXY, proxy))
    replies = control.makefile("rb")
    control.sendall(b"\5\1\0")
    assert replies.read(2) == b"\5\0"
    control.sendall(b"\5\3\0\4" + bytes(18))
    reply = replies.read(22)
    assert reply[:4] == b"\5\0\0\4", reply
    return control, int.from_bytes(reply[-2:])


def say(what: bytes, to: int, target: int) -> None:
    header = b"\0\0\0\4" + socket.inet_pton(socket.AF_INET6, TARGET) + struct.pack("!H", target)
    with own_socket(socket.SOCK_DGRAM) as client:
        client.sendto(header + what, (PROXY, to))


def be_client(proxy: int) -> None:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        target.settimeout(SECONDS)
        target.bind((TARGET, 0))
        control, port = associate(proxy)
        stack.enter_context(control)
        print(port, target.getsockname()[1], flush=True)
        sys.stdin.readline()
        say(b"client", port, target.getsockname()[1])
        print(target.recvfrom(100)[0].decode())


def be_other(proxy: int, port: int, target: int) -> None:
    control, _ = associate(proxy)
    with control:
        say(b"other", port, target)


if __name__ == "__main__":
    role, *numbers = sys.argv[1:]
    {"client": be_client, "other": be_other}[role](*map(int, numbers))
