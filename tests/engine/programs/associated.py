# UDP associations that are handed over, asked about, answered, killed and left at random, by the
# thousand, between the loop and two relay threads: work for a tool that looks for races. Prints
# as JSON how many there were and how many ends were told.
#
#     associated.py SECONDS
#
# Must not know: which tool is watching.

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import uvloop

from fastsocks import engine as contract

ALIVE = 30  # associations at once
MOST = 20_000
SETTINGS = contract.Settings(relay_threads=2, udp_timeout=0.3)


class Client(NamedTuple):
    control: socket.socket
    datagrams: socket.socket
    relay: tuple[str, int]
    handle: int


class Stress:
    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(1)
        self.until = self.loop.time() + seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.targets = [self.bound() for _ in range(3)]
        self.engine = contract.choose("native", self.loop, SETTINGS, self.on_closed)
        self.alive: dict[int, Client] = {}
        self.reasons: collections.Counter[str] = collections.Counter()
        self.late: list[tuple[Any, tuple[Any, ...]]] = []
        self.started = self.asked = 0

    @staticmethod
    def bound() -> socket.socket:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    def on_closed(self, ended: Sequence[contract.End]) -> None:
        for flow, _, _, reason, _ in ended:
            self.reasons[reason] += 1
            client = self.alive.pop(flow)
            client.control.close()
            client.datagrams.close()

    def on_ask(self, association: Any, *question: Any) -> None:
        *what, _ = question
        self.asked += 1
        if self.random.random() < 0.5:
            self.answer(association, tuple(what))
        else:
            self.late.append((association, tuple(what)))

    def answer(self, association: Any, what: tuple[Any, ...]) -> None:
        address = ("127.0.0.1", what[2]) if self.random.random() < 0.9 else None
        association.answer(*what, address, self.random.choice([0, 0.001, 60]))

    def start(self) -> None:
        control = socket.create_connection(self.listener.getsockname())
        control.setblocking(False)
        conn = self.engine.adopt(self.listener.accept()[0])
        association = self.engine.open_udp(conn, "127.0.0.1", (), self.on_ask)
        datagrams = self.bound()
        self.started += 1
        handle = self.engine.associate(conn, association, self.started)
        self.alive[self.started] = Client(control, datagrams, association.sockname, handle)
        if self.random.random() < 0.1:
            self.engine.kill(handle)

    def disturb(self, flow: int) -> None:
        client = self.alive[flow]
        what = self.random.randrange(12)
        with contextlib.suppress(OSError):
            if what == 0:
                self.engine.kill(client.handle)
            elif what == 1:
                client.control.close()
            elif what == 2:
                client.control.send(b"what?")
            elif what == 3:
                client.datagrams.sendto(b"what?", client.relay)
            elif what < 9:
                to = self.random.choice(self.targets).getsockname()[1]
                head = b"\0\0\0\x01\x7f\0\0\x01" + to.to_bytes(2)
                for _ in range(self.random.choice([1, 1, 40])):
                    client.datagrams.sendto(head + bytes(100), client.relay)
            else:
                while True:
                    client.datagrams.recv(2000)

    def echo(self) -> None:
        for target in self.targets:
            with contextlib.suppress(OSError):
                for _ in range(50):
                    data, sender = target.recvfrom(2000)
                    target.sendto(data, sender)

    async def run(self) -> None:
        while self.loop.time() < self.until and self.started < MOST:
            while len(self.alive) < ALIVE:
                self.start()
            for flow in self.random.sample(list(self.alive), 15):
                self.disturb(flow)
            self.echo()
            while len(self.late) > 20:
                self.answer(*self.late.pop(0))
            self.engine.counters()
            await asyncio.sleep(self.random.choice([0, 0, 0, 0.001]))
        counters = self.engine.counters()
        self.engine.close()
        assert not self.alive, f"{len(self.alive)} ends were never told"
        result = {"started": self.started, "asked": self.asked, "reasons": self.reasons}
        print(json.dumps(result | {"down": counters["datagrams_down"]}))


async def main(seconds: str) -> None:
    await Stress(float(seconds)).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
