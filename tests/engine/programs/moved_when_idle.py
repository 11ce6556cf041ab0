# Relays sessions that rest on the porch for longer than they may rest at all, beside one that
# keeps the relay's thread at work, so that each is found idle as soon as it is moved there.
# Prints as JSON how often each of the idle ones was told of.
#
#     moved_when_idle.py

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import socket

from fastsocks import engine as contract

IDLE = 0.5  # seconds; what comes to the porch stays there for one
ROUNDS = 6
AT_ONCE = 20
SECONDS = 30
BUSY = "busy"


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def ping_pong(client: socket.socket, remote: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while client.send(b"x") and remote.recv(1) and remote.send(b"y") and client.recv(1):
            pass


async def main(client_side: socket.socket, remote_side: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ended: list[contract.End] = []
    settings = contract.Settings(idle_timeout=IDLE)
    engine = contract.choose("native", loop, settings, ended.extend)
    engine.relay(engine.adopt(client_side), engine.adopt(remote_side), BUSY, b"")
    fars = []
    async with asyncio.timeout(SECONDS):
        while not engine.counters()["moved_on"]:
            await asyncio.sleep(0.01)
        for _ in range(ROUNDS):
            for _ in range(AT_ONCE):
                (client, near), (remote, far) = pair(), pair()
                fars += [client, remote]
                engine.relay(engine.adopt(near), engine.adopt(far), len(fars), b"")
            while engine.sessions > 1:
                await asyncio.sleep(0.01)
    # What is told twice is told in the same turns, or never.
    told = collections.Counter(end[0] for end in ended if end[0] != BUSY)
    print(json.dumps(sorted(told.values())))
    engine.close()
    for far in fars:
        far.close()


client, client_side = pair()
remote, remote_side = pair()
# In a process of its own: what is preloaded makes this one slow.
child = os.fork()
if child == 0:
    client_side.close()
    remote_side.close()
    ping_pong(client, remote)
    os._exit(0)
try:
    asyncio.run(main(client_side, remote_side))
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
