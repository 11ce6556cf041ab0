# Relays streams to clients that reset while octets are held for them, in a program that has
# given SIGPIPE its default action, which is to end it. Prints as JSON how the sessions ended.
#
#     broken_pipes.py RELAY_THREADS SESSIONS

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
from collections.abc import Sequence

import uvloop

from fastsocks import engine as contract

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        near.connect(listener.getsockname())
        near.setblocking(False)
        return near, listener.accept()[0]


async def main(threads: str, sessions: str) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    ends: list[contract.End] = []

    def on_closed(ended: Sequence[contract.End]) -> None:
        ends.extend(ended)

    loop = asyncio.get_running_loop()
    settings = contract.Settings(relay_threads=int(threads))
    engine = contract.choose("native", loop, settings, on_closed)
    for number in range(int(sessions)):
        client, near = connected()
        remote, far = connected()
        engine.relay(engine.adopt(near), engine.adopt(far), number, b"")
        sent = 0
        while sent < 16 << 20:
            try:
                sent += remote.send(bytes(1 << 20))
            except BlockingIOError:
                before = engine.counters()["spliced"]
                for _ in range(5):
                    await asyncio.sleep(0)
                if engine.counters()["spliced"] == before:
                    break
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        while len(ends) <= number:
            await asyncio.sleep(0.001)
        remote.close()
    spliced = engine.counters()["spliced"]
    engine.close()
    print(json.dumps({"reasons": sorted({end[3] for end in ends}), "spliced": spliced}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
