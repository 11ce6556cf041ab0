# Relays sessions whose clients never pause for long, and is itself stopped for longer than the
# idle timeout, as when a machine sleeps. Prints as JSON how many are alive when all that came
# meanwhile has been relayed, and how the others ended.
#
#     stopped.py ENGINE SESSIONS

from __future__ import annotations

import asyncio
import collections
import json
import os
import resource
import signal
import socket
import sys
import time

from fastsocks import engine as contract

IDLE = 1.0
BEFORE = 0.5  # the stop
STOPPED = 2.0
PAUSE = 0.1  # between two octets of a client
REST = 0.6  # after the stop: less than IDLE


def talk(clients: list[socket.socket], proxy: int) -> None:
    """Every client says something all the time, while the proxy is stopped and after it."""
    stopped = time.monotonic() + BEFORE
    continued = stopped + STOPPED
    steps = [(continued, signal.SIGCONT), (stopped, signal.SIGSTOP)]
    while time.monotonic() < continued + REST:
        if steps and time.monotonic() >= steps[-1][0]:
            os.kill(proxy, steps.pop()[1])
        for client in clients:
            client.send(b"x")
        time.sleep(PAUSE)


async def relay(name: str, sessions: list[tuple[socket.socket, socket.socket]]) -> str:
    loop = asyncio.get_running_loop()
    ends: list[contract.End] = []
    settings = contract.Settings(idle_timeout=IDLE, max_pipes=0)
    engine = contract.choose(name, loop, settings, ends.extend)
    for number, (near, far) in enumerate(sessions):
        engine.relay(engine.adopt(near), engine.adopt(far), number, b"")
    await asyncio.sleep(BEFORE + STOPPED + REST / 2)
    alive = engine.sessions
    engine.close()
    reasons = collections.Counter(end[3] for end in ends if end[3] != contract.KILLED)
    return json.dumps({"alive": alive, "ends": reasons})


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    count = int(sys.argv[2])
    clients, remotes = ([socket.socketpair() for _ in range(count)] for _ in range(2))
    proxy = os.getpid()
    talking = os.fork()
    if not talking:
        talk([client for client, _ in clients], proxy)
        os._exit(0)
    sessions = [(near, far) for (_, near), (_, far) in zip(clients, remotes, strict=True)]
    print(asyncio.run(relay(sys.argv[1], sessions)))
    os.waitpid(talking, 0)


main()
