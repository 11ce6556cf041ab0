"""Limits on a session's waits for anything but its engine: a time, and a client still there
to be answered.

It must not know who answers, nor what is done with the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastsocks.engine import Conn
from fastsocks.errors import AuthError, ClientGone

LOOK_INTERVAL = 0.2  # seconds between two looks at a client that is not read

Found = TypeVar("Found")


@contextlib.asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """asyncio.timeout() for what may run in a visit (see engine.Visit), and inside of it a
    Task, which others (an authenticator's libraries) ask for as well. ``seconds`` is None
    for no limit; raises TimeoutError."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)  # a visit that waits for the loop becomes a Task
    async with asyncio.timeout(seconds) as limit:
        yield limit


@contextlib.asynccontextmanager
async def while_there(client: Conn) -> AsyncIterator[None]:
    """For what others decide about a client: no longer than until its deadline, nor than
    until it resets its connection. Raises AuthError, so that it is told, and ClientGone."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal timer
        if limit.expired():
            return  # cancelled already; it may need a moment to end
        if client.was_reset():
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(LOOK_INTERVAL, look)

    try:
        async with within(client.time_left()) as limit:
            timer = loop.call_later(LOOK_INTERVAL, look)
            yield
            # The body may have swallowed its cancellation; and the engine has another clock.
            if limit.expired() or client.time_left() == 0:
                raise TimeoutError
    except TimeoutError:
        if client.was_reset():
            raise ClientGone("reset its connection while it was waiting to be let in") from None
        raise AuthError("not decided within the time of a handshake") from None
    finally:
        if timer is not None:
            timer.cancel()


async def unless_reset(client: Conn, search: Coroutine[Any, Any, Found], meanwhile: str) -> Found:
    """Given up, with ClientGone, when the client resets its connection, ``meanwhile`` in its
    reason. One that has sent FIN may be waiting for its answer, so it is waited for."""
    found = asyncio.ensure_future(search)
    try:
        while not (await asyncio.wait((found,), timeout=LOOK_INTERVAL))[0]:
            if client.was_reset():
                raise ClientGone(f"reset its connection while {meanwhile}")
        return found.result()
    finally:
        found.cancel()
