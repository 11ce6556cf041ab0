"""The relay as a function: two connected sockets in, what happened out.

It must not know SOCKS.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import ssl
from collections.abc import Sequence
from typing import NamedTuple

from fastsocks import engine as engines
from fastsocks.capacity import default_max_pipes
from fastsocks.engine import Conn, End, Engine, Settings

# One engine for each loop that relays, for as long as it does.
_engines: dict[asyncio.AbstractEventLoop, Engine] = {}


class Outcome(NamedTuple):
    """``up`` octets went from the first socket to the second, ``down`` back;
    ``reason`` is one of the texts in fastsocks.engine, ``errno`` 0 or why."""

    up: int
    down: int
    reason: str
    errno: int


async def relay(client: socket.socket, remote: socket.socket) -> Outcome:
    """Moves bytes between two connected stream sockets, TCP or Unix, until both
    ends are done, with the engine that the server uses.

    The sockets are taken over: detached from their objects, and closed at the
    end. A FIN is passed on as a FIN after the last byte, a reset as a reset.
    Cancelling resets both. Raises TypeError for anything but connected stream
    sockets, which are then left alone.
    """
    for sock in (client, remote):
        _check(sock)
    if client.fileno() == remote.fileno():
        raise TypeError("relay() takes two sockets, not one twice")
    loop = asyncio.get_running_loop()
    engine = _engines.get(loop)
    if engine is None:
        _close_orphaned()
        pipes = default_max_pipes(Settings().pipe_size)
        settings = Settings(idle_timeout=0, half_closed_timeout=0, max_pipes=pipes)
        engine = _engines[loop] = engines.choose("auto", loop, settings, _on_closed)
    done: asyncio.Future[Outcome] = loop.create_future()
    adopted: list[Conn] = []
    try:
        adopted.append(engine.adopt(client))
        adopted.append(engine.adopt(remote))
        handle = engine.relay(adopted[0], adopted[1], done, b"")
    except BaseException:
        for conn in adopted:
            conn.close()
        _close_unused(loop, engine)
        raise
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        engine.kill(handle)
        await asyncio.shield(done)
        raise
    finally:
        if done.done():
            _close_unused(loop, engine)
        else:  # cancelled twice: what has been killed ends a moment later
            done.add_done_callback(lambda _: _close_unused(loop, engine))


def _close_unused(loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
    if not engine.sessions and _engines.get(loop) is engine:
        del _engines[loop]
        engine.close()


def _close_orphaned() -> None:
    """Those of loops that were closed before what they relayed was over."""
    for loop in tuple(_engines):  # another thread may do the same
        if loop.is_closed() and (engine := _engines.pop(loop, None)) is not None:
            engine.close()


def _check(sock: socket.socket) -> None:
    if not isinstance(sock, socket.socket) or sock.fileno() < 0:
        raise TypeError(f"relay() takes two open sockets of the socket module, not {sock!r}")
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"relay() moves what is on the wire, which of {sock!r} is ciphertext")
    if sock.type != socket.SOCK_STREAM:
        raise TypeError(f"relay() takes stream sockets, not {sock!r}")
    try:
        sock.getpeername()
    except OSError as error:
        # To macOS a socket that was connected is an invalid one (EINVAL), and poll() tells
        # nothing of it.
        if error.errno != errno.EINVAL and not (was_reset(sock) or has_ended(sock)):
            raise TypeError(f"relay() takes connected sockets, not {sock!r}") from None


def was_reset(sock: socket.socket) -> bool:
    """Whether it was connected until a moment ago, which is for the outcome to tell."""
    return bool(_state(sock) & select.POLLERR)


def has_ended(sock: socket.socket) -> bool:
    """Whether it was connected, and FIN has come and gone: one that never was has nothing
    to read, and one that listens has not hung up."""
    return _state(sock) & (select.POLLIN | select.POLLHUP) == select.POLLIN | select.POLLHUP


def _state(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return sum(events for _, events in poll.poll(0))


def _on_closed(ended: Sequence[End]) -> None:
    for done, up, down, reason, error in ended:
        if not done.done() and not done.get_loop().is_closed():
            done.set_result(Outcome(up, down, reason, error))
