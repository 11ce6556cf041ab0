# The two ends of a session as its client and its remote hold them, and how they break off.
#
# Must not know: which engine, or which server, is in between.

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import NamedTuple

import pytest

PATIENCE = 30.0  # seconds for what should come at once, on a machine busy elsewhere
# Made once: a sanitizer holds what is freed, and would show it where memory is measured.
CHUNK = bytes(1 << 16)
# macOS takes no option any more once both ends are through.
TOO_LATE = () if sys.platform == "linux" else (OSError,)


def reset_on_close(sock: socket.socket) -> None:
    """Whoever closes it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(sock: socket.socket) -> None:
    """Closes with a reset."""
    with contextlib.suppress(*TOO_LATE):
        reset_on_close(sock)
    sock.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many octets, or fewer at the end of the stream; of a socket that blocks."""
    got = b""
    while len(got) < size and (piece := sock.recv(size - len(got))):
        got += piece
    return got


class Far:
    """The far end of a connection of the engine: what a client or a remote holds."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(self._loop.sock_sendall(self.sock, data), PATIENCE)

    async def recv(self, size: int = 1 << 18) -> bytes:
        return await asyncio.wait_for(self._loop.sock_recv(self.sock, size), PATIENCE)

    async def read(self, size: int) -> bytes:
        """Exactly ``size`` octets, or fewer at the end of the stream."""
        got = bytearray()
        while len(got) < size and (piece := await self.recv(min(size - len(got), 1 << 18))):
            got += piece
        return bytes(got)

    async def read_to_end(self) -> bytes:
        got = bytearray()
        while piece := await self.recv():
            got += piece
        return bytes(got)

    async def expect_reset(self) -> None:
        """Reads what is there; then a reset has to come, not an end."""
        with pytest.raises(ConnectionResetError):
            await self.read_to_end()

    def fill(self, limit: int = 1 << 40) -> int:
        """Sends until the socket takes no more at the moment; returns how much it took."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < limit:
                sent += self.sock.send(CHUNK[: limit - sent])
        return sent

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        reset(self.sock)

    def close(self) -> None:
        self.sock.close()


class Relayed(NamedTuple):
    client: Far
    remote: Far
    flow: object
    handle: int

    async def talk(self, up: bytes, down: bytes) -> tuple[bytes, bytes]:
        """Both ends send and finish while they read to the end; what has arrived."""
        got_up, got_down, *_ = await asyncio.gather(
            self.remote.read_to_end(),
            self.client.read_to_end(),
            say(self.client, up),
            say(self.remote, down),
        )
        return got_up, got_down


async def say(end: Far, data: bytes) -> None:
    await end.send(data)
    end.finish()
