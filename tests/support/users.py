# Users without a server: who asks from where, what for, and the clock, the sleep and the hash
# that are the test's.

from __future__ import annotations

import asyncio
import threading

from fastsocks import passwords

HERE, THERE = ("192.0.2.1", 1234), ("198.51.100.1", 1234)
RIGHT, WRONG = b"correct horse", b"battery staple"


class World:
    """The time, those who sleep, and the hashes that were worked out."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.awake = asyncio.Event()
        self.awake.set()
        self.checked: list[tuple[str, bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.awake.wait()

    def check(self, stored: str, secret: bytes) -> bool:
        self.checked.append((stored, secret))
        assert self.go_on.wait(30)
        return passwords.check(stored, secret)
