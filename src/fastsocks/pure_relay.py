"""The relay of the Python engine: two connections, a pump for each direction.

It must not know where the connections come from. A level-triggered loop cannot tell a
reset from input that nobody wants yet, so an end that is not being read (the other one
is blocked, or it has sent FIN) is given to the engine to be looked at now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any

from fastsocks import engine as contract
from fastsocks.pure_conn import READ, WRITE, Conn, os_error
from fastsocks.pure_idle import IdleTimer

if TYPE_CHECKING:
    from fastsocks.pure import Engine

UP, DOWN = 0, 1
BUDGET = 4  # chunks that one pump moves before the others have a turn
STREAM_READ = 1 << 15  # octets in one read that say it is a stream


class Pair:
    """Two connections that are relayed: one pump for each direction, one timer for both."""

    def __init__(self, engine: Engine, client: Conn, remote: Conn, flow: Any, handle: int) -> None:
        self.engine = engine
        self.client = client
        self.remote = remote
        self.flow = flow
        self.handle = handle
        self._moved = [0, 0]
        self._open_ways = 2
        self._in_kernel = [0, 0]
        self._held = [False, False]  # whether octets of that direction have been read, not sent
        self._timer = IdleTimer(
            engine.loop, engine.settings.idle_timeout, self._on_idle, self._gets_on
        )

    def start(self, early: bytes) -> None:
        self.engine.spawn(self._pump(UP, self.client, self.remote, early))
        self.engine.spawn(self._pump(DOWN, self.remote, self.client, b""))

    def end(self, reason: str, error: int = 0) -> None:
        """Closes both ends, which is what stops the pumps; once."""
        if self.engine.relays.pop(self.handle, None) is None:
            return
        self._timer.cancel()
        self.client.shut(reset=reason != contract.FINISHED)
        self.remote.shut(reset=reason != contract.FINISHED)
        self.engine.report((self.flow, *self._moved, reason, error))

    async def _pump(self, way: int, source: Conn, sink: Conn, early: bytes) -> None:
        scratch = self.engine.scratch
        rounds = size = 0
        culprit = sink
        try:
            await self._deliver(way, source, sink, memoryview(early))
            while True:
                culprit = source
                try:
                    size = source.sock.recv_into(scratch)
                except BlockingIOError:
                    if size >= STREAM_READ:
                        source.acknowledge()
                    rounds = size = 0
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
            self._finish(sink)
        except OSError as error:
            self._on_broken(culprit, error.errno or 0)
        else:
            self._on_fin(source)

    def _finish(self, sink: Conn) -> None:
        try:
            sink.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # One that had sent FIN before it was given to us, and has got one, is over.
            broken = sink.breakage()
            if broken:
                raise os_error(broken) from None
            if error.errno != errno.ENOTCONN:
                raise

    async def _deliver(self, way: int, source: Conn, sink: Conn, data: memoryview) -> None:
        while data:
            try:
                sent = sink.sock.send(data)
            except BlockingIOError:
                if data.obj is self.engine.scratch.obj:
                    data = memoryview(bytes(data))  # others use the scratch buffer meanwhile
                self.engine.probe(source, lambda error: self._on_broken(source, error))
                self._held[way] = True
                try:
                    await sink.ready(WRITE)
                finally:
                    self._held[way] = False
                    self.engine.stop_probing(source)
                continue
            self._moved[way] += sent
            self.engine.copied += sent
            self._timer.moved = self.engine.loop.time()
            data = data[sent:]

    def _on_fin(self, source: Conn) -> None:
        self._open_ways -= 1
        if not self._open_ways:
            self.end(contract.FINISHED)
        elif self.handle in self.engine.relays:
            self.engine.probe(source, lambda error: self._on_broken(source, error))
            self._timer.restart(self.engine.settings.half_closed_timeout)

    def _on_broken(self, culprit: Conn, error: int) -> None:
        if error == errno.EPIPE:
            error = errno.ECONNRESET  # which Linux calls so after a FIN
        if self.handle in self.engine.relays:
            self._pass_on_last(culprit)
        self.end(contract.CLIENT_RESET if culprit is self.client else contract.REMOTE_RESET, error)

    def _pass_on_last(self, broken: Conn) -> None:
        """What it had sent before its reset is in its queue still: a server that has seen
        enough of an upload says so and closes, and the rest of the upload is its reset."""
        way, sink = (UP, self.remote) if broken is self.client else (DOWN, self.client)
        scratch = self.engine.scratch
        with contextlib.suppress(OSError):
            while not self._held[way] and (size := broken.sock.recv_into(scratch)):
                sent = sink.sock.send(scratch[:size])
                self._moved[way] += sent
                self.engine.copied += sent
                if sent < size:
                    break

    def _gets_on(self) -> bool:
        """Whether a kernel has been sending since the last look. It may hold megabytes, which
        take a slow peer longer than any limit; closing the socket would take them from it."""
        before = self._in_kernel
        self._in_kernel = [self.client.in_kernel(), self.remote.in_kernel()]
        return any(now and now != then for now, then in zip(self._in_kernel, before, strict=True))

    def _on_idle(self) -> None:
        reason = contract.IDLE if self._open_ways == 2 else contract.HALF_CLOSED
        self.end(reason, errno.ETIMEDOUT)
