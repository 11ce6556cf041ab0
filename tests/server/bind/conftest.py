# What the tests of BIND share: a server that offers it, and a client that has the first
# of its two replies.

from __future__ import annotations

import functools

import pytest

from support.bind import GREETED, address


@pytest.fixture
def offer(serve):
    """A server that offers BIND. Copying, as spliced pipes are kept for the next."""
    return functools.partial(serve, allow_bind=True, relay="copy")


@pytest.fixture
async def server(offer):
    async with offer() as running:
        yield running


@pytest.fixture
def bind5(dial, say):
    """``await bind5(server, host)``: (client, where its peer has to connect to)."""

    async def ask(server, host, port=1, which=0, more=b""):
        client = await dial(server, which)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5(host, port, command=2) + more)
        head = await client.exactly(4)
        assert head[:3] == b"\x05\x00\x00", head
        return client, await address(client, head[3])

    return ask
