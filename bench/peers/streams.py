"""The SOCKS5 proxy that asyncio's streams suggest, for comparison: CONNECT, no users.

python streams.py HOST PORT [--uvloop]
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from asyncio import StreamReader, StreamWriter

CHUNK = 65536
VERSION, NO_METHOD = b"\x05", b"\x05\xff"
CONNECT, ATYP_IPV4, ATYP_NAME, ATYP_IPV6 = 1, 1, 3, 4
REFUSED, BAD_COMMAND, BAD_ATYP = 5, 7, 8


async def serve(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        target = await shake_hands(reader, writer)
        if target:
            await connect_and_relay(reader, writer, *target)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        await close(writer)


async def shake_hands(reader: StreamReader, writer: StreamWriter) -> tuple[str, int] | None:
    version, count = await reader.readexactly(2)
    methods = await reader.readexactly(count)
    if version != VERSION[0] or 0 not in methods:
        writer.write(NO_METHOD)
        return None
    writer.write(b"\x05\x00")
    _, command, _, kind = await reader.readexactly(4)
    if kind == ATYP_IPV4:
        host = socket.inet_ntop(socket.AF_INET, await reader.readexactly(4))
    elif kind == ATYP_IPV6:
        host = socket.inet_ntop(socket.AF_INET6, await reader.readexactly(16))
    elif kind == ATYP_NAME:
        (length,) = await reader.readexactly(1)
        host = (await reader.readexactly(length)).decode("ascii", "replace")
    else:
        writer.write(reply(BAD_ATYP))
        return None
    port = int.from_bytes(await reader.readexactly(2))
    if command != CONNECT:
        writer.write(reply(BAD_COMMAND))
        return None
    return host, port


def reply(code: int) -> bytes:
    return bytes((5, code, 0, ATYP_IPV4, 0, 0, 0, 0, 0, 0))


async def connect_and_relay(
    reader: StreamReader, writer: StreamWriter, host: str, port: int
) -> None:
    try:
        remote_reader, remote_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.write(reply(REFUSED))
        return
    writer.write(reply(0))
    try:
        await asyncio.gather(copy(reader, remote_writer), copy(remote_reader, writer))
    finally:
        await close(remote_writer)


async def copy(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def close(writer: StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def main(host: str, port: int) -> None:
    async with await asyncio.start_server(serve, host, port, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(sys.argv[1], int(sys.argv[2])))
    else:
        asyncio.run(main(sys.argv[1], int(sys.argv[2])))
