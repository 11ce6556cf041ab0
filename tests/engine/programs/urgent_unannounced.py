# Sends a relayed session an urgent octet that the receiving kernel announces to nobody: its
# segment, without the URG flag, comes before the one that points at it. Prints as JSON what
# reached the remote, and whether the kernel did announce it after all.
#
#     urgent_unannounced.py
#
# Must be started in a network namespace of its own, of which it sets up the loopback.

from __future__ import annotations

import asyncio
import fcntl
import json
import select
import socket
import struct

import uvloop

from fastsocks import engine as contract

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
REPAIR_ON, REPAIR_OFF = 1, -1
RECEIVED, SENT = 1, 2
ACK, URG = 0x10, 0x20


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def sequence_numbers(sock: socket.socket) -> tuple[int, int]:
    """Of what it would send next, and of what it expects."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_ON)
    numbers = []
    for queue in (SENT, RECEIVED):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        numbers.append(sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)
    return numbers[0], numbers[1]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Forger:
    """Sends segments in the name of a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._from, self._to = sock.getsockname(), sock.getpeername()
        self._sequence, self._expected = sequence_numbers(sock)
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)

    def send(self, offset: int, data: bytes, urgent: int = 0) -> None:
        """``offset`` is from where the stream goes on; ``urgent`` that of the octet after
        the one that is, from the start of the segment."""
        head = struct.pack(
            "!HHIIBBHHH",
            *(self._from[1], self._to[1]),
            *(self._sequence + offset & 0xFFFFFFFF, self._expected),
            *(5 << 4, ACK | (URG if urgent else 0), 512, 0, urgent),
        )
        hosts = socket.inet_aton(self._from[0]) + socket.inet_aton(self._to[0])
        pseudo = hosts + struct.pack("!HH", socket.IPPROTO_TCP, len(head) + len(data))
        check = checksum(pseudo + head + data + b"\0" * (len(data) % 2))
        segment = head[:16] + check.to_bytes(2) + head[18:] + data
        self._raw.sendto(segment, (self._to[0], 0))


async def main() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    loop = asyncio.get_running_loop()
    settings = contract.Settings(relay_threads=0, relay="splice")
    engine = contract.choose("native", loop, settings, lambda ended: None)
    (client, near), (remote, far) = connected(), connected()
    look = select.poll()
    with near.dup() as same:
        look.register(same, select.POLLPRI)
        engine.relay(engine.adopt(near), engine.adopt(far), "flow", b"AAAA")
        remote.setblocking(False)
        got = b""

        async def reach(size: int) -> None:
            nonlocal got
            while len(got) < size:
                got += await asyncio.wait_for(loop.sock_recv(remote, 100), 10)

        await reach(4)
        forger = Forger(client)
        # Longer than a header: of what follows within that the kernel looks for the urgent
        # octet in the header, and announces one of its octets.
        forger.send(4, b"!" + b"C" * 40)
        forger.send(0, b"BBBB", urgent=5)
        await reach(8)
        announced = bool(look.poll(0))
        forger.send(45, b"DDDD")
        await reach(52)
    print(json.dumps({"got": got.decode(), "announced": announced}))
    engine.close()


uvloop.run(main())
