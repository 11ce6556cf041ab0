"""Which name a client's address has, and which addresses a host's name: for rules
that speak of names. Asked once for many connections, and never for longer than a
session can wait. Clients have their turns (crew.py), so that one whose addresses belong
to a name server that hangs waits alone; and they take nothing from the names in rules.

Whoever has an address decides what name it maps to, so a name counts only if it
maps back to the address. That there is no such name is an answer; a name server that
gives none says nothing of the name, and whoever asked is told so (TimeoutError). It
must not know what the answers are good for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fastsocks import names
from fastsocks.clients import network_of
from fastsocks.crew import Crew, Full

DEADLINE = 3.0  # seconds for one question; a client is waiting
KEEP = 60.0  # seconds that an answer is good for
KEEP_NOTHING = 10.0  # and that there is no such name, or that nobody answered
LIMIT = 1024  # answers kept: the client chooses how many addresses ask
ASKING_LIMIT = 256  # questions under way; more are not worth waiting for
# A question that hangs keeps a thread longer than DEADLINE. The limits hold for what
# clients ask, and once more for what rules do.
THREADS_MAX = 64
THREAD_IDLE = 10.0

# What the C library says of a name that does not exist, and of one without an address.
# EAI_FAIL is none of them: a name server that is broken or refuses says it as well.
NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

Reverse = Callable[[str], str | None]
Forward = Callable[[str], list[str]]

V = TypeVar("V")
R = TypeVar("R")


class Crowded(OSError):
    """No place for one more question."""


class Hosts:
    """``reverse`` gives the name of an address or None, ``forward`` the addresses of
    a name; both may block, and raise OSError. By default the system is asked.

    Both questions raise TimeoutError if nobody answers in time, or at all."""

    def __init__(self, reverse: Reverse | None = None, forward: Forward | None = None) -> None:
        self._reverse = reverse or names.name_of
        self._forward = forward or system_forward
        # Two, as turns alone do not keep a place free where clients are many.
        self._for_clients, self._for_rules = (
            Crew("fastsocks-hosts", ASKING_LIMIT, THREADS_MAX, THREAD_IDLE) for _ in range(2)
        )
        self._names: Memory[str] = Memory(self._name_of, "")
        self._addresses: Memory[frozenset[str]] = Memory(self._addresses_of, frozenset())

    async def name_of(self, address: str) -> str | None:
        """In lower case, without a last dot; None if there is none that maps back."""
        return await self._names.get(address) or None

    async def addresses_of(self, name: str) -> frozenset[str]:
        """Of a name in a rule, without scopes. Empty if there are none."""
        return await self._addresses.get(name)

    def close(self) -> None:
        self._names.close()
        self._addresses.close()
        self._for_clients.close()
        self._for_rules.close()

    async def _name_of(self, address: str) -> str:
        plain = address.partition("%")[0]
        return await ask(self._for_clients, network_of(plain), self._confirmed_name, plain)

    async def _addresses_of(self, name: str) -> frozenset[str]:
        # Each name has turns of its own: one that hangs keeps no other waiting.
        return await ask(self._for_rules, name, self._all_addresses, name)

    # -- on a thread ---------------------------------------------------------

    def _confirmed_name(self, address: str) -> str:
        name = self._reverse(address)
        if name is None or address not in self._all_addresses(name):
            return ""
        return name.lower().removesuffix(".")

    def _all_addresses(self, name: str) -> frozenset[str]:
        return frozenset(address.partition("%")[0] for address in self._forward(name))


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
        """Raises TimeoutError if nobody answers."""
        until, answer = self._known.get(key, (0.0, None))
        if time.monotonic() >= until:
            task = self._asking.get(key)
            if task is None:
                # Not the loop's own way of making one, which a program may have made eager: it
                # would be over before it stands here.
                task = asyncio.Task(self._learn(key), loop=asyncio.get_running_loop())
                self._asking[key] = task
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
        except (Crowded, names.Lack):  # they say nothing of the name, and may be over at once
            return None
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


async def ask(crew: Crew, client: str, question: Callable[[str], R], key: str) -> R:
    """The answer to a question that blocks, asked in the name of ``client``. Raises
    Crowded if that has no place for it."""
    answer: concurrent.futures.Future[R] = concurrent.futures.Future()

    def work() -> None:
        if not answer.set_running_or_notify_cancel():  # whoever asked has given up
            return
        try:
            answer.set_result(question(key))
        except Exception as error:
            answer.set_exception(error)

    try:
        crew.put(client, work)
    except Full:
        raise Crowded from None
    return await asyncio.wrap_future(answer)


def system_forward(name: str) -> list[str]:
    return [str(address[0]) for address in names.addresses_of(name)]
