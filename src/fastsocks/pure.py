"""The engine in plain Python: asyncio's or uvloop's loop, any POSIX system.

It runs where nothing could be compiled, and is what the native engine is compared
with, so it keeps to the contract in engine.py and to what every event loop offers.
It must not know SOCKS (but for the header of a datagram), nor the native engine.

Here it accepts, dials and keeps account; what a connection does is in pure_conn.py, how
a pair of them is relayed in pure_relay.py, datagrams in pure_udp.py; pure_idle.py ends
what has been still for too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from fastsocks import engine as contract
from fastsocks import pure_udp
from fastsocks.errors import ClientGone
from fastsocks.pure_conn import CLOSE_AT_ONCE, WRITE, Conn, OnClient, numeric, os_error
from fastsocks.pure_relay import Pair
from fastsocks.quiet import QuietLog

CHUNK = 1 << 16  # octets that a pump moves at once
ACCEPTS = 16  # accepted before the others have a turn
ACCEPT_PAUSE_MS = 100  # when the system is out of something
PROBE_INTERVAL = 0.2  # seconds between looks at sockets that are not being read
BIND_ADDRESS_NO_PORT = 24  # Linux; the socket module has no name for it


class Visit:
    """See engine.py. Here it is a Task from its beginning."""

    task: asyncio.Task[None] | None = None

    def __init__(self, session: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop

    def begin(self) -> None:
        # create_task() would make up and format a name for each.
        self.task = asyncio.Task(self._session, loop=self._loop, name="fastsocks session")

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


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
        self.relays: dict[int, Pair] = {}
        self.associations: dict[int, pure_udp.Association] = {}
        self.udp = dict.fromkeys(("udp_associations", *contract.UDP_COUNTERS), 0)
        self.own_ports = pure_udp.OwnPorts(loop.time)
        self.questions = pure_udp.Questions(loop)
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
        self._quiet = QuietLog(contract.log)

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

    def visit(self, session: Coroutine[Any, Any, None]) -> Visit:
        return Visit(session, self.loop)

    def adopt(self, sock: socket.socket) -> Conn:
        own = socket.socket(fileno=sock.detach())
        # As its owner has set it, close() could wait, or throw away what is not sent yet.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_AT_ONCE)
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
            raise ClientGone(contract.GONE_BEFORE_DIAL)
        family, peer = numeric(*address)
        remote = Conn(self, socket.socket(family, socket.SOCK_STREAM), peer, counted=False)
        caller.dials.append(remote)
        try:
            if source is not None:
                if sys.platform == "linux":  # elsewhere the number is another option's
                    with contextlib.suppress(OSError):  # it only saves ports
                        remote.sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
                remote.sock.bind(numeric(source, 0, family)[1])
            if self.settings.needs_keepalive:
                remote.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            error = remote.sock.connect_ex(peer)
            if error in (errno.EINPROGRESS, errno.EINTR):
                remote.deadline(timeout)
                self.probe(caller, lambda _: caller.on_reset())
                await remote.ready(WRITE)
                error = remote.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise os_error(error)
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
        if far.counted:  # accepted here too, and both are one session from now on
            far.counted = False
            self.sessions -= 1
            self._resume()
        far.hand_over()
        pair = self.relays[self._relayed] = Pair(self, near, far, flow, self._relayed)
        pair.start(early)
        return pair.handle

    def open_udp(
        self,
        client: contract.Conn,
        host: str,
        sources: Sequence[str],
        on_ask: contract.OnAsk,
        is_local: bool = False,
    ) -> pure_udp.Association:
        control = cast(Conn, client)
        if control not in self.conns:
            raise os_error(errno.EBADF)
        return pure_udp.Association(self, control, host, sources, on_ask, is_local)

    def associate(self, client: contract.Conn, association: contract.Association, flow: Any) -> int:
        control, own = cast(Conn, client), cast(pure_udp.Association, association)
        if control not in self.conns or not own.is_new():
            raise os_error(errno.EBADF)
        self._take(control)
        control.keep_alive()
        self.udp["udp_associations"] += 1
        handle = -self.udp["udp_associations"]  # those of relayed pairs are positive
        self.associations[handle] = own
        own.start(control, flow, handle)
        return handle

    def kill(self, handle: int) -> None:
        ended: Pair | pure_udp.Association | None
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
            "moved_on": 0,
            "batched": 0,
            "slots": len(self.conns),
            **self.udp,
        }

    def close(self) -> None:
        self.stop_listening()
        for pair in tuple(self.relays.values()):
            pair.end(contract.KILLED)
        for association in tuple(self.associations.values()):
            association.end(contract.KILLED)
        for conn in tuple(self.conns):
            conn.shut()
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
        if not (self._ended or self.loop.is_closed()):
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
                self._quiet.warning(
                    "full", "all %d sessions are taken: not accepting more", self.sessions
                )
                self._pause()
                return
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in contract.ACCEPT_AGAIN:
                    continue
                # Mostly out of descriptors. The listener stays readable, so it must rest.
                self._quiet.warning(
                    "accept", contract.ACCEPTING_PAUSES, ACCEPT_PAUSE_MS, error.strerror
                )
                self._retry = self.loop.call_later(ACCEPT_PAUSE_MS / 1000, self._on_retry)
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
            # Each is first in its turn: one that makes accepting pause holds back the others.
            first = next(iter(self._listeners), None)
            if first is not None:
                self._listeners[first] = self._listeners.pop(first)
            for listener in self._listeners:
                self.loop.add_reader(listener.fileno(), self._on_connection, listener)

    def _on_retry(self) -> None:
        self._retry = None
        self._resume()
