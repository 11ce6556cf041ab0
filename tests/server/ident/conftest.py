# What the tests of ident share: a scripted identd on the client's own loopback address, and a
# client from there.

from __future__ import annotations

import asyncio
import functools
import socket

import pytest

from fastsocks import server as servers
from fastsocks.ident import Ident
from support.ident import HOST


@pytest.fixture
async def identd(remote, monkeypatch):
    """``await identd(b" : USERID : UNIX : me\\r\\n")``: what it says after the ports;
    None is silence. ``queries`` are what it was asked, ``peers`` from where. On ``port`` it
    comes where there was none."""
    queries = []

    async def start(says=None, ports=None, host=HOST, port=0):
        async def script(reader, writer):
            queries.append(await reader.readline())
            if says is None:
                await reader.read()
                return
            writer.write((queries[-1].strip() if ports is None else ports) + says)
            await writer.drain()

        one = await remote(script, host, port)
        one.queries = queries
        monkeypatch.setattr(servers, "Ident", functools.partial(Ident, port=one.port))
        return one

    return start


@pytest.fixture
def come(dial):
    """A client from HOST."""

    async def connect(server):
        sock = socket.socket()
        sock.bind((HOST, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.addresses[0])
        client = await dial(server)
        client.sock.close()
        client.sock = sock
        return client

    return connect
