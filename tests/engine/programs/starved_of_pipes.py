# A process of an unprivileged user who has used up his pipes: relays some streams, checks every
# octet, and prints as JSON what happened.
#
#     starved_of_pipes.py ENGINE RELAY
#
# Must not know: what the test makes of it.

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import os
import random
import socket
import sys

import uvloop

from fastsocks import engine as contract

MIB = 1 << 20
NOBODY = 65534
SESSIONS = 6


def become_nobody() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def use_up_the_quota() -> int:
    """Returns the size of the last pipe that the kernel granted."""
    while True:
        try:
            _, end = os.pipe()
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, MIB)
        except PermissionError:
            break
    while (size := fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ)) >= 1 << 16:
        pass
    return size


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


async def receive(sock: socket.socket) -> bytes:
    got = bytearray()
    while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 18):
        got += piece
    return bytes(got)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    return near, far


async def one(engine: contract.Engine, seed: int) -> bool:
    up, down = (random.Random(number).randbytes(8 * MIB) for number in (seed, -seed))
    client, near = tcp_pair()
    remote, far = tcp_pair()
    engine.relay(engine.adopt(near), engine.adopt(far), seed, b"")
    with client, remote:
        got = await asyncio.gather(
            receive(remote), receive(client), send(client, up), send(remote, down)
        )
    return got[:2] == [up, down]


async def main(engine_name: str, relay: str) -> None:
    ends: list[contract.End] = []
    granted = use_up_the_quota()
    settings = contract.Settings(relay=relay)
    loop = asyncio.get_running_loop()
    engine = contract.choose(engine_name, loop, settings, ends.extend)
    right = await asyncio.gather(*(one(engine, seed) for seed in range(1, SESSIONS + 1)))
    while len(ends) < SESSIONS:
        await asyncio.sleep(0.01)
    result = {
        "uid": os.getuid(),
        "granted": granted,
        "sessions": SESSIONS,
        "wrong": right.count(False),
        "finished": sum(end[3] == contract.FINISHED for end in ends),
        "counters": engine.counters(),
    }
    engine.close()
    print(json.dumps(result))


if __name__ == "__main__":
    # An interpreter in somebody's home cannot be read any more by nobody.
    "localhost".encode("idna")  # an encoding that is loaded late
    importlib.import_module("fastsocks._front" if sys.argv[1] == "native" else "fastsocks.pure")
    become_nobody()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
