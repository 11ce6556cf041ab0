"""The engine in plain Python: asyncio's or uvloop's loop, any POSIX system.

It runs where nothing could be compiled, and is what the native engine is compared
with, so it keeps to the contract in engine.py and to what every event loop offers.
It must not know SOCKS, nor the native engine.

A connection belongs to the session's coroutine until it is relayed (two pumps own
it) or refused (its input is drained); from then on ``Conn.close()`` is void.

A level-triggered loop cannot tell a reset from input that nobody wants yet, so
sockets that are not being read (the other end is blocked, or they have sent FIN,
or a dial is under way) are looked at a few times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from fastsocks import engine as contract
from fastsocks import pure_udp
from fastsocks.errors import ClientGone
from fastsocks.quiet import QuietLog

READ, WRITE = 0, 1
UP, DOWN = 0, 1
CHUNK = 1 << 16  # octets that a pump moves at once
HANDSHAKE_CHUNK = 1 << 14
BUDGET = 4  # chunks that one pump moves before the others have a turn
ACCEPTS = 16  # the same for accept
ACCEPT_RETRY = 0.1  # seconds without accepting when the system is out of something
PROBE_INTERVAL = 0.2  # seconds between looks at sockets that are not being read
CLOCK_GRAIN = 0.002  # uvloop's clock stands still within a turn
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
RDHUP = getattr(select, "POLLRDHUP", 0)  # not everywhere; then a FIN has to be read
BIND_ADDRESS_NO_PORT = 24  # Linux; the socket module has no name for it

OnClient = Callable[[contract.Conn], None]
log = logging.getLogger("fastsocks.engine")


class Conn:
    """One connected socket, with at most one waiter each for reading and writing."""

    def __init__(self, engine: Engine, sock: socket.socket, peer: Any, counted: bool) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # not TCP, or reset already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.engine = engine
        self.sock = sock
        self.peer = _endpoint(peer)
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
        return _endpoint(self.sock.getsockname())

    def recv_now(self) -> bytes | None:
        self._check_deadline()
        try:
            return self.sock.recv(HANDSHAKE_CHUNK)
        except BlockingIOError:
            return None

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
        return self._is_over(RDHUP)

    def was_reset(self) -> bool:
        return self._is_over(0)

    def _is_over(self, sign: int) -> bool:
        """Whether there is that sign of an end, or of a reset, which comes unasked."""
        if self._fd < 0:
            return True
        look = select.poll()
        look.register(self.sock, sign)
        return bool(look.poll(0))

    def deadline(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expired = False
        loop = self.engine.loop
        self._timer = loop.call_later(seconds, self._on_deadline) if seconds else None

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
        (loop.add_writer if mode else loop.add_reader)(self._fd, self._on_ready, mode)
        try:
            await waiter
        finally:
            if self._waiters[mode] is waiter:
                self._unwatch(mode)

    def fail(self, error: Exception) -> None:
        """Raises ``error`` in those who wait."""
        for mode, waiter in enumerate(self._waiters):
            if waiter is not None:
                self._unwatch(mode)
                if not waiter.done():
                    waiter.set_exception(error)

    def on_reset(self, _error: int) -> None:
        """While remotes are dialled for this client: ends all attempts."""
        for remote in tuple(self.dials):
            remote.fail(ClientGone("reset its connection while the remote was dialled"))

    def shut(self, reset: bool = False) -> None:
        """Closes the descriptor, whoever owns the connection; once."""
        if self._fd < 0:
            return
        self.hand_over()
        self.fail(_os_error(errno.ECONNABORTED))
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
        if first:
            on_client(self)
        else:
            self.shut()

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

    def _on_ready(self, mode: int) -> None:
        waiter = self._waiters[mode]
        self._unwatch(mode)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _unwatch(self, mode: int) -> None:
        loop = self.engine.loop
        (loop.remove_writer if mode else loop.remove_reader)(self._fd)
        self._waiters[mode] = None

    def _on_deadline(self) -> None:
        self._expired = True
        self.fail(_os_error(errno.ETIMEDOUT))

    def _check_deadline(self) -> None:
        if self._expired:
            raise _os_error(errno.ETIMEDOUT)


class Session:
    """A relayed pair: one pump for each direction, one timer for both."""

    def __init__(self, engine: Engine, client: Conn, remote: Conn, flow: Any, handle: int) -> None:
        self.engine = engine
        self.client = client
        self.remote = remote
        self.flow = flow
        self.handle = handle
        self._moved = [0, 0]
        self._open_ways = 2
        self._stamp = engine.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def start(self, early: bytes) -> None:
        self.engine.spawn(self._pump(UP, self.client, self.remote, early))
        self.engine.spawn(self._pump(DOWN, self.remote, self.client, b""))

    def end(self, reason: str, error: int = 0) -> None:
        """Closes both ends, which is what stops the pumps; once."""
        if self.engine.relays.pop(self.handle, None) is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.client.shut(reset=reason != contract.FINISHED)
        self.remote.shut(reset=reason != contract.FINISHED)
        self.engine.report((self.flow, *self._moved, reason, error))

    async def _pump(self, way: int, source: Conn, sink: Conn, early: bytes) -> None:
        scratch = self.engine.scratch
        rounds = 0
        culprit = sink
        try:
            await self._deliver(way, source, sink, memoryview(early))
            while True:
                culprit = source
                try:
                    size = source.sock.recv_into(scratch)
                except BlockingIOError:
                    rounds = 0
                    await source.ready(READ)
                    continue
                culprit = sink
                if not size:
                    break
                await self._deliver(way, source, sink, scratch[:size])
                rounds += 1
                if rounds == BUDGET:
                    rounds = 0
                    await asyncio.sleep(0)
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._on_broken(culprit, error.errno or 0)
        else:
            self._on_fin(source)

    async def _deliver(self, way: int, source: Conn, sink: Conn, data: memoryview) -> None:
        while data:
            try:
                sent = sink.sock.send(data)
            except BlockingIOError:
                if data.obj is self.engine.scratch.obj:
                    data = memoryview(bytes(data))  # others use the scratch buffer meanwhile
                self.engine.probe(source, lambda error: self._on_broken(source, error))
                try:
                    await sink.ready(WRITE)
                finally:
                    self.engine.stop_probing(source)
                continue
            self._moved[way] += sent
            self.engine.copied += sent
            self._stamp = self.engine.loop.time()
            data = data[sent:]

    def _on_fin(self, source: Conn) -> None:
        self._open_ways -= 1
        if not self._open_ways:
            self.end(contract.FINISHED)
        elif self.handle in self.engine.relays:
            self.engine.probe(source, lambda error: self._on_broken(source, error))
            self._stamp = self.engine.loop.time()
            self._arm()

    def _on_broken(self, culprit: Conn, error: int) -> None:
        self.end(contract.CLIENT_RESET if culprit is self.client else contract.REMOTE_RESET, error)

    def _limit(self) -> float:
        settings = self.engine.settings
        return settings.idle_timeout if self._open_ways == 2 else settings.half_closed_timeout

    def _arm(self) -> None:
        # Not moved at each octet: when it fires, it is set for what is left.
        if self._timer is not None:
            self._timer.cancel()
        due = self._stamp + self._limit()
        self._timer = self.engine.loop.call_at(due, self._on_timer) if self._limit() else None

    def _on_timer(self) -> None:
        if self.engine.loop.time() + CLOCK_GRAIN < self._stamp + self._limit():
            self._arm()
        else:
            reason = contract.IDLE if self._open_ways == 2 else contract.HALF_CLOSED
            self.end(reason, errno.ETIMEDOUT)


class Engine:
    """See engine.py."""

    name = "python"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: contract.Settings,
        on_closed: contract.OnClosed,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.sessions = 0
        self.scratch = memoryview(bytearray(CHUNK))  # of all pumps: an idle session has none
        self.conns: set[Conn] = set()
        self.relays: dict[int, Session] = {}
        self.associations: dict[int, pure_udp.Association] = {}
        self.udp = dict.fromkeys(pure_udp.COUNTERS, 0)
        self.copied = 0
        self._accepted = self._accept_pauses = self._relayed = 0
        self._on_closed = on_closed
        self._ended: list[contract.End] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[socket.socket, OnClient] = {}
        self._paused = False
        self._retry: asyncio.TimerHandle | None = None
        self._probed: dict[Conn, Callable[[int], None]] = {}
        self._prober: asyncio.TimerHandle | None = None
        self._quiet = QuietLog(log)

    def describe(self) -> str:
        return "relay copy on the event loop, no pipes"

    def listen(self, sock: socket.socket, on_client: OnClient) -> None:
        listener = socket.socket(fileno=sock.detach())
        listener.setblocking(False)
        self._listeners[listener] = on_client
        if not self._paused:
            self.loop.add_reader(listener.fileno(), self._on_connection, listener)

    def stop_listening(self) -> None:
        for listener in self._listeners:
            self.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    def adopt(self, sock: socket.socket) -> Conn:
        own = socket.socket(fileno=sock.detach())
        peer = None
        with contextlib.suppress(OSError):  # reset already, as the first recv will tell
            peer = own.getpeername()
        return Conn(self, own, peer, counted=False)

    async def dial(
        self,
        client: contract.Conn,
        address: tuple[str, int],
        source: str | None,
        timeout: float,  # noqa: ASYNC109 -- the contract's
    ) -> Conn:
        caller = cast(Conn, client)
        if caller not in self.conns:
            raise ClientGone("reset its connection before the remote was dialled")
        family, peer = _numeric(*address)
        remote = Conn(self, socket.socket(family, socket.SOCK_STREAM), peer, counted=False)
        caller.dials.append(remote)
        try:
            if source is not None:
                with contextlib.suppress(OSError):  # Linux only; it saves ports
                    remote.sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
                remote.sock.bind(_numeric(source, 0, family)[1])
            if self.settings.needs_keepalive:
                remote.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            error = remote.sock.connect_ex(peer)
            if error in (errno.EINPROGRESS, errno.EINTR):
                remote.deadline(timeout)
                self.probe(caller, caller.on_reset)
                await remote.ready(WRITE)
                error = remote.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise _os_error(error)
        except BaseException:
            remote.shut()
            raise
        finally:
            caller.dials.remove(remote)
            if not caller.dials:
                self.stop_probing(caller)
        remote.deadline(0)
        return remote

    def relay(self, client: contract.Conn, remote: contract.Conn, flow: Any, early: bytes) -> int:
        self._relayed += 1
        near, far = cast(Conn, client), cast(Conn, remote)
        self._take(near)
        far.hand_over()
        session = self.relays[self._relayed] = Session(self, near, far, flow, self._relayed)
        session.start(early)
        return session.handle

    def open_udp(
        self, client: contract.Conn, host: str, sources: Sequence[str], on_ask: contract.OnAsk
    ) -> pure_udp.Association:
        control = cast(Conn, client)
        if control not in self.conns:
            raise _os_error(errno.EBADF)
        return pure_udp.Association(self, control, host, sources, on_ask)

    def associate(self, client: contract.Conn, association: contract.Association, flow: Any) -> int:
        control, own = cast(Conn, client), cast(pure_udp.Association, association)
        if control not in self.conns or not own.is_new():
            raise _os_error(errno.EBADF)
        self._take(control)
        self.udp["udp_associations"] += 1
        handle = -self.udp["udp_associations"]  # those of relayed pairs are positive
        self.associations[handle] = own
        own.start(control, flow, handle)
        return handle

    def kill(self, handle: int) -> None:
        ended: Session | pure_udp.Association | None
        ended = self.relays.get(handle) or self.associations.get(handle)
        if ended is not None:
            ended.end(contract.KILLED)

    def counters(self) -> dict[str, int]:
        return {
            "spliced": 0,
            "copied": self.copied,
            "pipes": 0,
            "pipes_refused": 0,
            "accepted": self._accepted,
            "accept_pauses": self._accept_pauses,
            "relayed": self._relayed,
            "slots": len(self.conns),
            **self.udp,
        }

    def close(self) -> None:
        self.stop_listening()
        for session in tuple(self.relays.values()):
            session.end(contract.KILLED)
        for association in tuple(self.associations.values()):
            association.end(contract.KILLED)
        for conn in tuple(self.conns):
            conn.shut(reset=True)
        for timer in (self._retry, self._prober):
            if timer is not None:
                timer.cancel()
        self._report_ended()

    def _take(self, client: Conn) -> None:
        """From its coroutine; an adopted one becomes a session only now."""
        client.hand_over()
        if not client.counted:
            client.counted = True
            self.sessions += 1

    # -- for connections and sessions ----------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    def forget(self, conn: Conn) -> None:
        self.conns.discard(conn)
        self.stop_probing(conn)
        if conn.counted:
            self.sessions -= 1
            self._resume()

    def report(self, end: contract.End) -> None:
        if not self._ended:
            self.loop.call_soon(self._report_ended)
        self._ended.append(end)

    def probe(self, conn: Conn, on_broken: Callable[[int], None]) -> None:
        """Calls ``on_broken`` with an errno if the connection breaks unread."""
        self._probed[conn] = on_broken
        if self._prober is None:
            self._prober = self.loop.call_later(PROBE_INTERVAL, self._on_probe)

    def stop_probing(self, conn: Conn) -> None:
        self._probed.pop(conn, None)

    # -- events --------------------------------------------------------------

    def _on_probe(self) -> None:
        for conn, on_broken in tuple(self._probed.items()):
            if conn in self._probed and (error := conn.breakage()):
                on_broken(error)
        more = bool(self._probed)
        self._prober = self.loop.call_later(PROBE_INTERVAL, self._on_probe) if more else None

    def _report_ended(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, []
            self._on_closed(ended)

    def _on_connection(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if self._is_full():
                self._pause()
                return
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Mostly out of descriptors. The listener stays readable, so it must rest.
                self._quiet.warning("accept", "cannot accept: %s", error.strerror)
                self._retry = self.loop.call_later(ACCEPT_RETRY, self._on_retry)
                self._pause()
                return
            self._accepted += 1
            self.sessions += 1
            conn = Conn(self, sock, peer, counted=True)
            self.spawn(conn.introduce(self._listeners[listener]))

    def _is_full(self) -> bool:
        return 0 < self.settings.max_sessions <= self.sessions

    def _pause(self) -> None:
        self._accept_pauses += 1
        self._paused = True
        for listener in self._listeners:
            self.loop.remove_reader(listener.fileno())

    def _resume(self) -> None:
        if self._paused and self._retry is None and not self._is_full():
            self._paused = False
            for listener in self._listeners:
                self.loop.add_reader(listener.fileno(), self._on_connection, listener)

    def _on_retry(self) -> None:
        self._retry = None
        self._resume()


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _endpoint(address: Any) -> tuple[str, int]:
    """(host, port) of a socket address; a Unix socket has neither."""
    if not isinstance(address, tuple):
        return "", 0
    host, port = address[:2]
    return host.removeprefix("::ffff:") if "." in host else host, port


def _numeric(host: str, port: int, family: int = 0) -> tuple[int, Any]:
    """Family and socket address of an IP literal, looking nothing up."""
    try:
        found = socket.getaddrinfo(
            host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror:  # an address of the other family, or a scope we do not have
        raise _os_error(errno.EAFNOSUPPORT) from None
    return found[0][0], found[0][4]
