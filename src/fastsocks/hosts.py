"""Which name a client's address has, and which addresses a host's name: for rules
that speak of names. Asked once for many connections, and never for longer than a
session can wait.

Whoever has an address decides what name it maps to, so a name counts only if it
maps back to the address. That there is no such name is an answer; a name server that
gives none says nothing of the name, and whoever asked is told so (TimeoutError). It
must not know what the answers are good for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

DEADLINE = 3.0  # seconds for one question; a client is waiting
KEEP = 60.0  # seconds that an answer is good for
KEEP_NOTHING = 10.0  # and that there is no such name, or that nobody answered
LIMIT = 1024  # answers kept: the client chooses how many addresses ask
ASKING_LIMIT = 256  # questions under way; more are not worth waiting for
THREADS = 8

# What the C library says of a name that does not exist, and of one without an address.
# EAI_FAIL is none of them: a name server that is broken or refuses says it as well.
NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

Reverse = Callable[[str], Awaitable[str | None]]
Forward = Callable[[str], Awaitable[list[str]]]

V = TypeVar("V")
R = TypeVar("R")


class Hosts:
    """``reverse`` gives the name of an address or None, ``forward`` the addresses of
    a name; both may raise OSError. By default the system is asked.

    Both questions raise TimeoutError if nobody answers in time, or at all."""

    def __init__(self, reverse: Reverse | None = None, forward: Forward | None = None) -> None:
        threads = Threads(THREADS)
        self._reverse = reverse or (lambda address: threads.run(system_reverse, address))
        self._forward = forward or (lambda name: threads.run(system_forward, name))
        self._names: Memory[str] = Memory(self._confirmed_name, "")
        self._addresses: Memory[frozenset[str]] = Memory(self._all_addresses, frozenset())

    async def name_of(self, address: str) -> str | None:
        """In lower case, without a last dot; None if there is none that maps back."""
        return await self._names.get(address) or None

    async def addresses_of(self, name: str) -> frozenset[str]:
        """Without scopes. Empty if there are none."""
        return await self._addresses.get(name)

    def close(self) -> None:
        self._names.close()
        self._addresses.close()

    async def _confirmed_name(self, address: str) -> str:
        plain = address.partition("%")[0]
        name = await self._reverse(plain)
        if name is None or plain not in await self._all_addresses(name):
            return ""
        return name.lower().removesuffix(".")

    async def _all_addresses(self, name: str) -> frozenset[str]:
        found = await self._forward(name)
        return frozenset(address.partition("%")[0] for address in found)


class Memory(Generic[V]):
    """Answers to one kind of question, ``nothing`` where there is no such name. Those
    who ask the same at the same time wait for the same answer; one of them leaving does
    not take it from the others."""

    def __init__(self, ask: Callable[[str], Awaitable[V]], nothing: V) -> None:
        self._ask = ask
        self._nothing = nothing
        self._known: dict[str, tuple[float, V | None]] = {}  # None: nobody answered
        self._asking: dict[str, asyncio.Task[V | None]] = {}

    async def get(self, key: str) -> V:
        """Raises TimeoutError if nobody answers, or too many questions are under way."""
        until, answer = self._known.get(key, (0.0, None))
        if time.monotonic() >= until:
            task = self._asking.get(key)
            if task is None:
                if len(self._asking) >= ASKING_LIMIT:
                    raise TimeoutError
                task = self._asking[key] = asyncio.get_running_loop().create_task(self._learn(key))
            answer = await asyncio.shield(task)
        if answer is None:
            raise TimeoutError
        return answer

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()

    async def _learn(self, key: str) -> V | None:
        """Does not raise that nobody answered: if all who asked have left, nobody would
        fetch it, and asyncio would log it as an error."""
        answer: V | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                answer = await self._ask(key)
        except ValueError:  # a name that no codec takes
            answer = self._nothing
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno in NO_SUCH_NAME:
                answer = self._nothing
        finally:
            del self._asking[key]
        self._known.pop(key, None)
        if len(self._known) >= LIMIT:
            del self._known[next(iter(self._known))]
        self._known[key] = time.monotonic() + (KEEP if answer else KEEP_NOTHING), answer
        return answer


class Threads:
    """Blocking calls on daemon threads, ``limit`` at a time. A call that hangs keeps
    its place, but neither its caller nor the program from ending."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[[str], R], argument: str) -> R:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        def finish(result: R | None, error: Exception | None) -> None:
            self._free.release()
            if done.done():  # whoever asked has given up
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, failure = None, None
            try:
                result = function(argument)
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, result, failure)

        try:
            threading.Thread(target=work, name="fastsocks-hosts", daemon=True).start()
        except RuntimeError as error:  # the system has none left
            self._free.release()
            raise OSError(str(error)) from None
        return await done


def system_reverse(address: str) -> str | None:
    name, _ = socket.getnameinfo((address, 0), socket.NI_NAMEREQD)
    return name


def system_forward(name: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)]
