# Sessions that are handed over, killed, aborted and finished at random, by the thousand, between
# the loop and two relay threads: work for a tool that looks for races. Prints as JSON how many
# there were and how many ends were told.
#
#     handed_over.py SECONDS
#
# Must not know: which tool is watching.

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import socket
import struct
import sys
from collections.abc import Sequence

import uvloop

from fastsocks import engine as contract

ALIVE = 40  # sessions at once
MOST = 20_000
SETTINGS = contract.Settings(
    relay_threads=2, max_pipes=16, pipe_size=1 << 16, idle_timeout=0.3, half_closed_timeout=0.2
)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Stress:
    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(1)
        self.until = self.loop.time() + seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.engine = contract.choose("native", self.loop, SETTINGS, self.on_closed)
        self.alive: dict[int, tuple[socket.socket, socket.socket, int]] = {}
        self.reasons: collections.Counter[str] = collections.Counter()
        self.started = 0

    def on_closed(self, ended: Sequence[contract.End]) -> None:
        for flow, _, _, reason, _ in ended:
            self.reasons[reason] += 1
            for sock in self.alive.pop(flow)[:2]:
                sock.close()

    def connected(self) -> tuple[socket.socket, socket.socket]:
        if self.random.random() < 0.5:
            near, far = socket.socketpair()
        else:
            near = socket.create_connection(self.listener.getsockname())
            far, _ = self.listener.accept()
        near.setblocking(False)
        return near, far

    def start(self) -> None:
        client, near = self.connected()
        remote, far = self.connected()
        self.started += 1
        flow = self.started
        early = bytes(self.random.choice([0, 0, 100, 300_000]))
        with contextlib.suppress(OSError):
            client.send(bytes(self.random.choice([1, 1000, 500_000])))
        handle = self.engine.relay(self.engine.adopt(near), self.engine.adopt(far), flow, early)
        self.alive[flow] = client, remote, handle
        if self.random.random() < 0.1:
            self.engine.kill(handle)

    def disturb(self, flow: int) -> None:
        client, remote, handle = self.alive[flow]
        what = self.random.randrange(10)
        end = self.random.choice([client, remote])
        with contextlib.suppress(OSError):
            if what == 0:
                self.engine.kill(handle)
            elif what == 1:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                end.close()
            elif what == 2:
                client.shutdown(socket.SHUT_WR)
                remote.shutdown(socket.SHUT_WR)
            elif what == 3:
                end.shutdown(socket.SHUT_WR)
            elif what < 7:
                end.send(bytes(self.random.choice([1, 100_000])))
            else:
                end.recv(300_000)

    async def run(self) -> None:
        while self.loop.time() < self.until and self.started < MOST:
            while len(self.alive) < ALIVE:
                self.start()
            for flow in self.random.sample(list(self.alive), 20):
                self.disturb(flow)
            self.engine.counters()
            await asyncio.sleep(self.random.choice([0, 0, 0, 0.001]))
        while len(self.alive) > ALIVE // 2:
            self.engine.kill(next(iter(self.alive.values()))[2])
            await asyncio.sleep(0.001)
        self.engine.close()
        self.listener.close()
        assert not self.alive, f"{len(self.alive)} ends were never told"
        print(json.dumps({"started": self.started, "reasons": self.reasons}))


async def main(seconds: str) -> None:
    await Stress(float(seconds)).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
