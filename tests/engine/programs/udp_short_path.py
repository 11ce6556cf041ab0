# In a network whose packets hold 1,500 octets, on both ends of one association: runs of datagrams
# that fit, then of some that do not (UDP_SEGMENT is refused), then of such that fit again. Prints
# as JSON what came and how often several datagrams left in one send.
#
#     udp_short_path.py
#
# Must be started in a network namespace of its own, of which it sets up the loopback.

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
from typing import Any

import uvloop

from fastsocks import engine as contract

MTU = 1500
SIOCSIFFLAGS, SIOCSIFMTU, IFF_UP = 0x8914, 0x8922, 1
SIZES = [1000, 3000, 3000, 1000, 2500, 1400]
COUNT = 20


def bring_up_loopback() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFMTU, struct.pack("16si12x", b"lo", MTU))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def bound() -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def receive(sock: socket.socket) -> tuple[bytes, Any]:
    for _ in range(5000):
        try:
            return sock.recvfrom(1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    raise TimeoutError("nothing came")


async def main() -> None:
    bring_up_loopback()
    loop = asyncio.get_running_loop()
    settings = contract.Settings(relay_threads=0)  # all is queued before the engine looks
    engine = contract.choose("native", loop, settings, lambda ended: None)
    listener = socket.create_server(("127.0.0.1", 0))
    control = socket.create_connection(listener.getsockname())
    conn = engine.adopt(listener.accept()[0])

    def judge(association: Any, atyp: int, raw: bytes, port: int, _: Any) -> None:
        association.answer(atyp, raw, port, ("127.0.0.1", port), 0)

    association = engine.open_udp(conn, "127.0.0.1", (), judge)
    engine.associate(conn, association, None)
    client, target = bound(), bound()
    head = b"\0\0\0\x01\x7f\0\0\x01" + target.getsockname()[1].to_bytes(2)
    client.sendto(head + b"first", association.sockname)
    _, outside = await receive(target)
    rounds = []
    for size in SIZES:
        before = engine.counters()["udp_gso_sends"]
        sent = [bytes([number]) * size for number in range(COUNT)]
        for payload in sent:
            client.sendto(head + payload, association.sockname)
        up = [(await receive(target))[0] for _ in sent]
        for payload in sent:
            target.sendto(payload, outside)
        down = [(await receive(client))[0][len(head) :] for _ in sent]
        sends = engine.counters()["udp_gso_sends"] - before
        rounds.append({"size": size, "intact": up == sent and down == sent, "sends": sends})
    counters = engine.counters()
    engine.close()
    for sock in (listener, control, client, target):
        sock.close()
    print(json.dumps({"rounds": rounds, "failed": counters["udp_dropped_failed"]}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
