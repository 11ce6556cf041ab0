# Prints the codes of the replies that the proxy on this port of loopback gives to a request of
# SOCKS5 (in hexadecimal digits), each once: on so many connections, one after the other, or all
# held until the last has its reply. Each goes to another address, so that few ports suffice.
#
#     replies.py PORT REQUEST COUNT once|held

from __future__ import annotations

import contextlib
import socket
import sys

SECONDS = 30
GREETING, GREETED = b"\5\1\0", b"\5\0"


def ask(address: tuple[str, int], request: bytes, stack: contextlib.ExitStack) -> int:
    client = stack.enter_context(socket.create_connection(address, SECONDS))
    client.sendall(GREETING + request)
    said = stack.enter_context(client.makefile("rb")).read(12)
    assert said.startswith(GREETED), said
    return said[3]


def main(proxy: str, request: str, count: str, how: str) -> None:
    codes = set()
    with contextlib.ExitStack() as held:
        for number in range(int(count)):
            address = f"127.{number // 256}.{number % 256}.1", int(proxy)
            with contextlib.ExitStack() as once:
                stack = held if how == "held" else once
                codes.add(ask(address, bytes.fromhex(request), stack))
    print(*sorted(codes))


main(*sys.argv[1:])
