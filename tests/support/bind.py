# The client of a BIND and those who connect for it, as the tests need them: what it is told
# in the second reply, and that the two get through to each other.

from __future__ import annotations

import asyncio
import socket

STRANGER = "127.0.0.2"
GREETED = b"\x05\x00"
# More than a client may send ahead, so that it has to wait in the sockets.
LONG = bytes(range(256)) * 800


async def address(client, atyp: int) -> tuple[str, int]:
    size, family = {1: (4, socket.AF_INET), 4: (16, socket.AF_INET6)}[atyp]
    rest = await client.exactly(size + 2)
    return socket.inet_ntop(family, rest[:size]), int.from_bytes(rest[size:])


async def second(client) -> tuple[str, int]:
    """Who has come, as the second reply says."""
    head = await client.exactly(4)
    assert head[:3] == b"\x05\x00\x00", head
    return await address(client, head[3])


async def relays(client, peer) -> None:
    """Byte-exact each way, and half-closed each way."""
    await client.send(b"hello")
    assert await peer.exactly(5) == b"hello"
    await asyncio.gather(client.send(LONG), peer.send(LONG[::-1]))
    assert await peer.exactly(len(LONG)) == LONG
    client.finish()
    assert await client.exactly(len(LONG)) == LONG[::-1]
    assert await peer.receive() == b""
    await peer.send(b"after your end")
    peer.finish()
    assert await client.to_end() == b"after your end"
