"""Names to addresses, on threads of its own and with a deadline.

Neither asyncio's executor (6 threads on 2 cores, shared with the embedding
program) nor uvloop's getaddrinfo (4 threads for the whole process) will do: a few
dead names would stall every session. The threads are daemons, so that a resolver
that hangs cannot keep the program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading

from fastsocks.errors import DialError, Reply

THREADS = 16
# Waiting longer than this is waiting for nothing: refuse while it is cheap.
QUEUE_LIMIT = 1024

Address = tuple[str, int]


class Resolver:
    """``resolve`` from one event loop; the threads start when first needed."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._threads: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._pending = 0
        # Questions put and finished, to know whether a thread is free. One that hangs
        # stays busy long after its session has given up.
        self._asked = 0
        self._finished = 0
        self._lock = threading.Lock()

    async def resolve(self, name: str, port: int, budget: float) -> list[Address]:
        """Every address of ``name``, in the resolver's order, as IP literals.

        Raises DialError (host unreachable) for no address, no answer within
        ``budget`` seconds, or too many questions waiting.
        """
        if self._pending >= QUEUE_LIMIT:
            raise DialError("too many names waiting to be resolved", Reply.GENERAL_FAILURE)
        if self._asked - self._finished >= len(self._threads) < self._limit:
            thread = threading.Thread(target=self._work, name="fastsocks-dns", daemon=True)
            self._threads.append(thread)
            thread.start()
        question = _Question(name, port)
        self._pending += 1
        self._asked += 1
        self._waiting.put(question)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(budget, question.expire) if budget else None
        try:
            return await question.answer
        except TimeoutError:
            raise DialError(
                f"no answer for {name} in {budget:g} s", Reply.HOST_UNREACHABLE
            ) from None
        except OSError as error:
            raise DialError(f"{name}: {error.strerror}", Reply.HOST_UNREACHABLE) from None
        finally:
            if timer is not None:
                timer.cancel()
            question.answer.cancel()  # nobody waits for it any more; done ones do not mind
            self._pending -= 1

    def close(self) -> None:
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self) -> None:
        while (question := self._waiting.get()) is not None:
            question.ask()
            with self._lock:
                self._finished += 1


class _Question:
    """One name on its way through a resolver thread and back to its loop."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[list[Address]] = self._loop.create_future()

    def expire(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(TimeoutError())

    def ask(self) -> None:
        """On a resolver thread. A name nobody waits for any more is not looked up."""
        if self.answer.done():
            return
        try:
            found = socket.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
            addresses = [(_literal(sockaddr), self._port) for *_, sockaddr in found]
            self._tell(addresses, None)
        except OSError as error:
            self._tell([], error)
        except Exception as error:
            # The IDNA codec has errors of its own; and nothing may end this thread.
            self._tell([], OSError(0, f"cannot be resolved ({type(error).__name__})"))

    def _tell(self, addresses: list[Address], error: OSError | None) -> None:
        def deliver() -> None:
            if self.answer.done():
                return
            if error is not None:
                self.answer.set_exception(error)
            else:
                self.answer.set_result(addresses)

        # RuntimeError: the loop is closed, so nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(deliver)


def _literal(sockaddr: tuple[object, ...]) -> str:
    """The address of a getaddrinfo entry, with the scope that a link-local one needs."""
    host = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host
