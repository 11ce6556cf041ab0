# Shows that a stream whose sender uses Nagle's algorithm does not wait for acknowledgements
# that the kernel puts off: each costs its user 40 ms.

from __future__ import annotations

import socket
from pathlib import Path

import pytest

TIMES = 40
# Less than a segment on loopback, as is what follows: of those only one is sent at a time.
PART, REST = bytes(40 * 1024), b"rest"


def delayed_acknowledgements() -> int:
    """Sent by a timer, on all of this machine's connections; where it is counted."""
    try:
        text = Path("/proc/self/net/netstat").read_text()
    except FileNotFoundError:
        return 0
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(values[names.index("DelayedACKs")])


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_at_once(make_way, direction):
    rig = make_way()
    session = rig.relay()
    sender, receiver = session.client, session.remote
    if direction == "down":
        sender, receiver = receiver, sender
    sender.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    before = delayed_acknowledgements()
    for _ in range(TIMES):
        # Who has asked is taken to have something to say soon, for an acknowledgement to go with.
        await receiver.send(b"?")
        assert await sender.read(1) == b"?"
        await sender.send(PART)
        await sender.send(REST)
        assert await receiver.read(len(PART + REST)) == PART + REST
    assert delayed_acknowledgements() - before < TIMES // 4
    await rig.over(session.client, session.remote)
