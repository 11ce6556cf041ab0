"""Sockets to relay, closed with the test, and a relay between two of them."""

from __future__ import annotations

import asyncio
import socket

import pytest

import fastsocks
from support.pairs import PAIRS
from support.system import open_descriptors


@pytest.fixture
def pair():
    """``pair("tcp")``: (the test's end, the end to relay), closed with the test, which
    must leave no descriptor open."""
    before = open_descriptors()
    opened = []

    def make(kind: str) -> tuple[socket.socket, socket.socket]:
        near, far = PAIRS[kind]()
        near.setblocking(False)
        opened.extend((near, far))
        return near, far

    yield make
    for sock in opened:
        sock.close()
    assert open_descriptors() <= before, "descriptors were left open"


@pytest.fixture
def start(pair):
    """``start("tcp", "unix")``: the client's end, the remote's end, the relay's Task."""

    def run(client_kind: str = "tcp", remote_kind: str = "tcp"):
        client, client_side = pair(client_kind)
        remote, remote_side = pair(remote_kind)
        return client, remote, asyncio.ensure_future(fastsocks.relay(client_side, remote_side))

    return run
