"""A program that embeds the server decides itself who may use it.

    Authenticator   what the program passes
    Custom          asks it, in the place of auth.Users

Whatever the program does refuses at most one client. It must not know sockets or messages.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Protocol

from fastsocks.engine import Address
from fastsocks.proto.wire import NO_AUTH, USER_PASSWORD, Credentials
from fastsocks.quiet import QuietLog


class Authenticator(Protocol):
    """What a program passes to ``Server(authenticator=...)`` to decide by itself.

        async def by_database(client, method, credentials):
            if credentials is None:
                return client[0] == "192.0.2.7"
            return await database.is_right(credentials.user, credentials.password)

    It is asked with ``method`` 0 and no credentials whether the client at ``client``
    (host, port) may go on without a login: SOCKS4, and SOCKS5 where method 0 is among
    those offered. If not, SOCKS4 is refused; SOCKS5 has to log in, and it is asked with
    method 2 and the credentials as the client sent them: octets, each 0 to 255, which
    are anything.

    Only ``True`` lets a client in. An exception refuses it, and the log says where it
    was raised but not its text, which might hold a password. The call is cancelled
    when the handshake has taken its time (``handshake_timeout``).
    """

    def __call__(
        self, client: Address, method: int, credentials: Credentials | None, /
    ) -> Awaitable[bool]: ...


class Custom:
    """An Authenticator in the place of Users."""

    def __init__(self, authenticator: Authenticator, quiet: QuietLog) -> None:
        self._authenticator = authenticator
        self._quiet = quiet

    def __bool__(self) -> bool:
        """It is asked of everybody."""
        return True

    def check_now(self, client: Address, user: bytes, password: bytes) -> bool:
        return False

    async def verify(self, client: Address, user: bytes, password: bytes) -> bool:
        return await self._ask(client, USER_PASSWORD, Credentials(user, password))

    def reload(self) -> bool:
        """Nothing to read."""
        return True

    def close(self) -> None:
        """Nothing to give up."""

    async def admits(self, client: Address) -> bool:
        """Whether this client need not log in."""
        return await self._ask(client, NO_AUTH, None)

    async def _ask(self, client: Address, method: int, credentials: Credentials | None) -> bool:
        try:
            answer = self._authenticator(client, method, credentials)
            if not inspect.isawaitable(answer):
                self._quiet.warning(
                    "authenticator",
                    "the authenticator must be an async function, and returned an object of type"
                    " %s; the client is refused",
                    type(answer).__name__,
                )
                return False
            # Nothing that is merely true will do: a coroutine nobody awaited is.
            return await answer is True
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # or asyncio would log it, text and all
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise  # it is this session that is cancelled, not something of the program's
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}" if trace else "-"
            self._quiet.warning(
                "authenticator",
                "the authenticator raised %s (%s); the client is refused",
                type(error).__name__,
                place,
            )
            return False
