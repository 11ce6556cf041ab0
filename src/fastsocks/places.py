"""A semaphore for each client: so many at once; more of the same client's wait, and no
other's for them.

It must not know what they do in their place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class _Room:
    __slots__ = ("here", "semaphore")

    def __init__(self, places: int) -> None:
        self.semaphore = asyncio.Semaphore(places)
        self.here = 0
        """who is in, and who waits"""


class Places:
    """For one event loop. ``places`` and ``waiting`` are for each client."""

    def __init__(self, places: int, waiting: int) -> None:
        self._places = places
        self._most = places + waiting
        self._rooms: dict[str, _Room] = {}

    def is_full(self, client: str) -> bool:
        """Whether not even one more may wait."""
        room = self._rooms.get(client)
        return room is not None and room.here >= self._most

    @contextlib.asynccontextmanager
    async def one(self, client: str) -> AsyncIterator[None]:
        """Waits for a place, and holds it."""
        room = self._rooms.setdefault(client, _Room(self._places))
        room.here += 1
        try:
            async with room.semaphore:
                yield
        finally:
            room.here -= 1
            if not room.here:
                del self._rooms[client]
