# Makes sessions and connections, takes all memory that it may have (RLIMIT_AS), lets them end
# then, and prints as JSON what is left of them when there is memory again.
#
#     short_of_memory.py

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import socket
from typing import Any

from fastsocks import engine as contract

COUNT = 600  # more than the numbers that Python has made beforehand
PAGE = resource.getpagesize()
anyhow = contextlib.suppress(MemoryError)  # made while there is memory for it


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def limit_memory(octets: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (octets, resource.RLIM_INFINITY))


def take_all(hoard: list[Any]) -> None:
    """In large pieces, and then in the small ones of which Python keeps a store."""
    for piece in (lambda number: bytearray(3000), lambda number: (number, 1 << 20 | number)):
        number = 1000
        with anyhow:
            while True:
                hoard.append(piece(number))
                number += 1


async def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    loop = asyncio.get_running_loop()
    told: list[int] = []
    settings = contract.Settings(relay="splice")  # on a thread from the beginning
    engine = contract.choose("native", loop, settings, lambda ends: told.append(len(ends)))
    before = descriptors()
    clients = []
    for number in range(COUNT):
        (client, near), (remote, far) = socket.socketpair(), socket.socketpair()
        engine.relay(engine.adopt(near), engine.adopt(far), number, b"")
        clients += [client, remote]
    conns = []
    for _ in range(COUNT):
        client, near = socket.socketpair()
        conns.append(engine.adopt(near))
        clients.append(client)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * PAGE
    hoard: list[Any] = []
    limit_memory(size)
    take_all(hoard)
    for sock in clients:
        sock.close()
    for conn in conns:
        with anyhow:
            conn.close()
    for _ in range(50):
        with anyhow:
            engine.run_once()
    limit_memory(resource.RLIM_INFINITY)
    hoard.clear()
    gc.collect()
    async with asyncio.timeout(20):
        while engine.sessions:
            await asyncio.sleep(0.01)
    left = descriptors() - before - 2 * engine.counters()["pipes"]
    print(json.dumps({"told": sum(told), "slots": engine.counters()["slots"], "descriptors": left}))
    engine.close()


asyncio.run(main())
