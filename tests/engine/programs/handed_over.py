# Sessions that are handed over, killed, aborted and finished at random, by the thousand, between
# the loop and two relay threads: work for a tool that looks for races. Prints as JSON how many
# there were and how many ends were told.
#
#     handed_over.py RELAY SECONDS
#
# With "splice" they begin on a relay thread; with "auto" on the loop's, and most of them are let
# be for about a second, by which they move on.
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

ALIVE = 100  # sessions at once
MOST = 20_000
IDLE = {"splice": 0.3, "auto": 1.5}
LET_BE = {"splice": [(0, 0)], "auto": [(0, 0), (0.95, 1.25), (0.95, 1.25)]}  # seconds, at random
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Stress:
    def __init__(self, relay: str, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(1)
        self.until = self.loop.time() + seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        settings = contract.Settings(
            relay=relay,
            relay_threads=2,
            max_pipes=16,
            pipe_size=1 << 16,
            idle_timeout=IDLE[relay],
            half_closed_timeout=0.2,
        )
        self.engine = contract.choose("native", self.loop, settings, self.on_closed)
        self.let_be = LET_BE[relay]
        self.alive: dict[int, tuple[socket.socket, socket.socket, int]] = {}
        self.begins: dict[int, float] = {}  # when it may be disturbed
        self.reasons: collections.Counter[str] = collections.Counter()
        self.started = 0

    def on_closed(self, ended: Sequence[contract.End]) -> None:
        for flow, _, _, reason, _ in ended:
            self.reasons[reason] += 1
            del self.begins[flow]
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
        self.begins[flow] = self.loop.time() + self.random.uniform(*self.random.choice(self.let_be))
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
            due = [flow for flow, begin in self.begins.items() if begin <= self.loop.time()]
            for flow in self.random.sample(due, min(20, len(due))):
                self.disturb(flow)
            self.engine.counters()
            await asyncio.sleep(self.random.choice([0, 0, 0, 0.001]))
        while len(self.alive) > ALIVE // 2:
            self.engine.kill(next(iter(self.alive.values()))[2])
            await asyncio.sleep(0.001)
        moved_on = self.engine.counters()["moved_on"]
        self.engine.close()
        self.listener.close()
        assert not self.alive, f"{len(self.alive)} ends were never told"
        told = {"started": self.started, "reasons": self.reasons, "moved_on": moved_on}
        print(json.dumps(told))


async def main(relay: str, seconds: str) -> None:
    await Stress(relay, float(seconds)).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
