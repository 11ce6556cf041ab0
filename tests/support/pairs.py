"""Pairs of connected sockets, and what goes through them within a time."""

from __future__ import annotations

import asyncio
import socket

import fastsocks

PATIENCE = 20.0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def tcp6_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    return near, far


PAIRS = {"tcp": tcp_pair, "tcp6": tcp6_pair, "unix": socket.socketpair}


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(PATIENCE):
        while len(data) < size:
            more = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
            if not more:
                break
            data += more
    return data


async def result(relaying: asyncio.Future[fastsocks.Outcome]) -> fastsocks.Outcome:
    return await asyncio.wait_for(relaying, PATIENCE)
