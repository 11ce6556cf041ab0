# A process with few descriptors: relays each client to an echo of its own, prints its port, logs
# to stderr one line for each record, prints for each line of its input how often accepting has
# paused, and ends at the end of its input.
#
#     starved_of_descriptors.py ENGINE
#
# Must not know: what the test makes of it.

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from typing import Any

import uvloop

from fastsocks import engine as contract

SPARE = 30  # descriptors, of which a session takes four here


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def main(engine_name: str) -> None:
    loop = asyncio.get_running_loop()
    ends: list[contract.End] = []
    engine = contract.choose(engine_name, loop, contract.Settings(), ends.extend)
    tasks = set()

    async def serve(client: contract.Conn) -> None:
        first = await client.recv()
        try:
            near, far = socket.socketpair()
        except OSError:
            client.close()
            return
        await loop.create_unix_connection(Echo, sock=far)
        engine.relay(client, engine.adopt(near), object(), first)

    def on_client(client: contract.Conn) -> None:
        task = loop.create_task(serve(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = socket.create_server(("127.0.0.1", 0), backlog=500)
    port = listener.getsockname()[1]
    engine.listen(listener, on_client)
    lowest = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + SPARE, lowest + SPARE))
    print(port, flush=True)
    finished = asyncio.Event()

    def on_input() -> None:
        if os.read(sys.stdin.fileno(), 1):
            print(engine.counters()["accept_pauses"], flush=True)
        else:
            finished.set()

    loop.add_reader(sys.stdin.fileno(), on_input)
    await finished.wait()
    loop.remove_reader(sys.stdin.fileno())
    engine.close()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
