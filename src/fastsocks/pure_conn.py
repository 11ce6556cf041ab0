"""A connection of the Python engine: one socket, from accept or dial to close.

It belongs to the session's coroutine until it is relayed (pure_relay.py) or refused
(its input is drained); from then on ``close()`` is void. It must not know listeners, nor
how octets are relayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastsocks import engine as contract
from fastsocks.errors import ClientGone
from fastsocks.literals import literal_of

if TYPE_CHECKING:
    from fastsocks.pure import Engine

READ, WRITE = 0, 1
HANDSHAKE_CHUNK = 1 << 14
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
CLOSE_AT_ONCE = struct.pack("ii", 0, 0)
SO_NWRITE = 0x1024  # macOS
KEEPIDLE: int = getattr(socket, "TCP_KEEPIDLE", 0x10)  # macOS has TCP_KEEPALIVE for it
# Linux has a sign for a FIN. On macOS poll() looks in the directions that it is asked about, and
# no other, and POLLHUP says that nothing can come any more, or that nothing can be sent: which
# is by a reset, as long as we have not finished.
FIN = getattr(select, "POLLRDHUP", select.POLLHUP)
RESET = select.POLLOUT
OVER = FIN | select.POLLHUP | select.POLLERR

OnClient = Callable[[contract.Conn], None]


class Conn:
    """One connected socket, with at most one waiter each for reading and writing."""

    def __init__(self, engine: Engine, sock: socket.socket, peer: Any, counted: bool) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # not TCP, or reset already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.engine = engine
        self.sock = sock
        self.peer = endpoint_of(peer)
        self.counted = counted
        self.dials: list[Conn] = []  # what is being dialled for this one
        self._handed_over = False
        self._fd = sock.fileno()
        self._waiters: list[asyncio.Future[None] | None] = [None, None]
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._unsent = b""
        engine.conns.add(self)

    @property
    def sockname(self) -> tuple[str, int]:
        return endpoint_of(self.sock.getsockname())

    def recv_now(self) -> bytes | None:
        self._check_deadline()
        try:
            return self.sock.recv(HANDSHAKE_CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            self.on_reset()  # nobody else is told: the error is taken by who reads it
            raise

    async def recv(self) -> bytes:
        while (data := self.recv_now()) is None:
            await self.ready(READ)
        return data

    def send_now(self, data: bytes) -> bool:
        self._check_deadline()
        self._unsent = data
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    async def sent(self) -> None:
        while not self.send_now(self._unsent):
            await self.ready(WRITE)

    async def send(self, data: bytes) -> None:
        self._unsent = data
        await self.sent()

    def has_left(self) -> bool:
        return self._is_over(FIN)

    def was_reset(self) -> bool:
        return self._is_over(RESET)

    def _is_over(self, asked: int) -> bool:
        """Whether the answer to that is an end; Linux tells of a reset in any case."""
        if self._fd < 0:
            return True
        look = select.poll()
        look.register(self.sock, asked)
        return any(told & OVER for _, told in look.poll(0))

    def acknowledge(self) -> None:
        """At once: a sender without TCP_NODELAY may hold a last segment back until then."""
        with contextlib.suppress(OSError, AttributeError):  # not TCP, or not Linux
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def deadline(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expired = False
        loop = self.engine.loop
        self._timer = loop.call_later(seconds, self._put_off) if seconds else None

    def time_left(self) -> float | None:
        if self._timer is None:
            return None
        return max(0.0, self._timer.when() - self.engine.loop.time())

    def keep_alive(self) -> None:
        """So that it ends some day after its client has."""
        idle, interval, probes = contract.CONTROL_KEEPALIVE
        with contextlib.suppress(OSError):  # not TCP, or reset already
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.sock.setsockopt(socket.IPPROTO_TCP, KEEPIDLE, idle)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)

    def refuse(self, last_words: bytes) -> None:
        if not self._handed_over:
            self.hand_over()
            self.engine.spawn(self._linger(last_words))

    def close(self) -> None:
        if not self._handed_over:
            self.shut()

    def hand_over(self) -> None:
        """From the session's coroutine to the engine, which closes it some day."""
        self._handed_over = True
        self.deadline(0)

    async def ready(self, mode: int) -> None:
        """Waits until the socket is readable or writable; raises what ``fail`` is told."""
        loop = self.engine.loop
        waiter = self._waiters[mode] = loop.create_future()
        try:
            (loop.add_writer if mode else loop.add_reader)(self._fd, self._on_ready, mode)
            await waiter
        finally:
            if self._waiters[mode] is waiter:
                self._unwatch(mode)

    def fail(self, error: Exception) -> None:
        """Raises ``error`` in those who wait."""
        if self.engine.loop.is_closed():
            self._waiters = [None, None]  # nobody can be woken there
            return
        for mode, waiter in enumerate(self._waiters):
            if waiter is not None:
                self._unwatch(mode)
                if not waiter.done():
                    waiter.set_exception(error)

    def on_reset(self) -> None:
        """While remotes are dialled for this client: ends all attempts."""
        for remote in tuple(self.dials):
            remote.fail(ClientGone(contract.GONE_DURING_DIAL))

    def shut(self, reset: bool = False) -> None:
        """Closes the descriptor, whoever owns the connection; once."""
        if self._fd < 0:
            return
        self.hand_over()
        self.fail(os_error(errno.ECONNABORTED))
        self._fd = -1
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()
        self.engine.forget(self)

    async def introduce(self, on_client: OnClient) -> None:
        """To ``on_client``, when the first octet is there."""
        self.deadline(self.engine.settings.handshake_timeout)
        try:
            await self.ready(READ)
            first = self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            first = b""
        if not first:
            self.shut()
            return
        try:
            on_client(self)
        except BaseException:
            self.shut()  # it has no owner
            raise

    def breakage(self) -> int:
        """The errno that broke the connection, or 0. Only one that has ended has no
        peer, and only then is its error taken away from the next recv."""
        try:
            self.sock.getpeername()
        except OSError:
            return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return 0

    async def _linger(self, last_words: bytes) -> None:
        self.deadline(self.engine.settings.linger_timeout)
        with contextlib.suppress(OSError):
            await self.send(last_words)
            self.sock.shutdown(socket.SHUT_WR)
            while await self.recv():  # noqa: ASYNC110 -- not a wait: others have a turn
                await asyncio.sleep(0)
        self.shut()

    def in_kernel(self) -> int:
        """Octets that the kernel has taken and the peer has not; 0 where it does not say."""
        try:
            if sys.platform == "darwin":
                return self.sock.getsockopt(socket.SOL_SOCKET, SO_NWRITE)
            told = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(told, sys.byteorder)

    def _on_ready(self, mode: int) -> None:
        waiter = self._waiters[mode]
        self._unwatch(mode)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _unwatch(self, mode: int) -> None:
        loop = self.engine.loop
        (loop.remove_writer if mode else loop.remove_reader)(self._fd)
        self._waiters[mode] = None

    def _put_off(self) -> None:
        self._timer = self.engine.loop.call_later(contract.SECOND_LOOK, self._on_deadline)

    def _on_deadline(self) -> None:
        self._expired = True
        self.fail(os_error(errno.ETIMEDOUT))

    def _check_deadline(self) -> None:
        if self._expired:
            raise os_error(errno.ETIMEDOUT)


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def endpoint_of(address: Any) -> tuple[str, int]:
    """(host, port) of a socket address, with the scope that a link-local one needs; a
    Unix socket has neither."""
    if not isinstance(address, tuple):
        return "", 0
    return literal_of(address), address[1]


def numeric(host: str, port: int, family: int = 0) -> tuple[int, Any]:
    """Family and socket address of an IP literal, looking nothing up. Raises OSError for one
    of another ``family`` than is asked for, or with a scope that is not this machine's."""
    try:
        found = socket.getaddrinfo(
            host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (socket.gaierror, UnicodeError):
        raise os_error(errno.EAFNOSUPPORT) from None
    return found[0][0], found[0][4]
