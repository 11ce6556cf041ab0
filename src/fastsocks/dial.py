"""To the remote: each address of a host in turn, within one budget of time.

Tried one after the other with an equal share of what is left of the budget, so
that a first address that swallows packets leaves time for the second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable

from fastsocks.engine import Conn, Engine
from fastsocks.errors import DialError, Reply, reply_for
from fastsocks.resolve import Address, Resolver


class Dialer:
    """Connects for sessions. ``timeout`` is in seconds, for names and connecting
    together; ``source`` is the address to connect from, or None."""

    def __init__(
        self, engine: Engine, resolver: Resolver, timeout: float, source: str | None
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._timeout = timeout
        self._source = source

    def dial(self, client: Conn, host: str, port: int, is_name: bool) -> Awaitable[Conn]:
        """Raises DialError with the reply code of the last attempt."""
        if is_name:
            return self._try_all(client, host, port)
        return self._try(client, (host, port), self._timeout)

    async def _try_all(self, client: Conn, host: str, port: int) -> Conn:
        began = time.monotonic()
        addresses = await self._resolver.resolve(host, port, self._timeout)
        failure = DialError(f"{host} has no address", Reply.HOST_UNREACHABLE)
        for tried, address in enumerate(addresses):
            left = began + self._timeout - time.monotonic() if self._timeout else 0.0
            if self._timeout and left <= 0:
                break
            try:
                return await self._try(client, address, left / (len(addresses) - tried))
            except DialError as error:
                failure = error
        raise failure

    async def _try(self, client: Conn, address: Address, budget: float) -> Conn:
        try:
            return await self._engine.dial(client, address, self._source, budget)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise DialError(f"connect: {reason}", reply_for(error)) from None
