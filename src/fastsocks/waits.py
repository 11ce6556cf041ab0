"""Time limits for what a session waits for elsewhere than at its engine.

It must not know what is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """asyncio.timeout() for what may run in a visit (see engine.Visit), and inside of it a
    Task, which others (an authenticator's libraries) ask for as well. ``seconds`` is None
    for no limit; raises TimeoutError."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)  # a visit that waits for the loop becomes a Task
    async with asyncio.timeout(seconds):
        yield
