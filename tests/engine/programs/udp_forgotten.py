# Sends one datagram to a destination and, in the same batch, so many to others that it is the one
# to be forgotten when a new one comes: all before the engine sends anything. Prints as JSON what
# came, and how many destinations were asked for.
#
#     udp_forgotten.py
#
# Wants GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.perturb=165, so that freed memory
# is not what it was.

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import uvloop

from fastsocks import engine as contract

SOL_UDP, UDP_SEGMENT = 17, 103
REMEMBERED = 1024
RUN = 128  # datagrams in one send; kernels before 6.10 cut up 64, too few for one batch


def bound() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def main() -> None:
    loop = asyncio.get_running_loop()
    settings = contract.Settings(relay_threads=0)  # all is queued before the engine looks
    engine: Any = contract.choose("native", loop, settings, lambda ended: None)
    listener = socket.create_server(("127.0.0.1", 0))
    control = socket.create_connection(listener.getsockname())
    conn = engine.adopt(listener.accept()[0])
    target, client = bound(), bound()
    asked = 0

    def judge(association: Any, atyp: int, raw: bytes, port: int, _: Any) -> None:
        nonlocal asked
        asked += 1
        allowed = port == target.getsockname()[1]
        association.answer(atyp, raw, port, ("127.0.0.1", port) if allowed else None, 0)

    association = engine.open_udp(conn, "127.0.0.1", (), judge)
    engine.associate(conn, association, "flow")

    def to(port: int) -> bytes:
        return b"\0\0\0\1\x7f\0\0\1" + port.to_bytes(2)

    def turn() -> None:
        for _ in range(3):
            engine.run_once()
            engine.run_once()

    wanted = to(target.getsockname()[1])
    others = [to(port) for port in range(1, REMEMBERED)]  # with the one wanted, all
    for one in (wanted, *others):
        client.sendto(one, association.sockname)
        turn()
    target.recv(100)
    cut = [(SOL_UDP, UDP_SEGMENT, len(wanted).to_bytes(2, "little"))]
    run = [wanted, *others, to(REMEMBERED)]
    while run:
        try:
            client.sendmsg([b"".join(run[:RUN])], cut, 0, association.sockname)
        except OSError:
            client.sendmsg([b"".join(run[: RUN // 2])], cut, 0, association.sockname)
            del run[: RUN // 2]
        else:
            del run[:RUN]
    turn()
    try:
        came = len(target.recvfrom(100)[0]) == 0
    except BlockingIOError:
        came = False
    print(json.dumps({"came": came, "asked": asked}))
    control.close()
    engine.close()


uvloop.run(main())
