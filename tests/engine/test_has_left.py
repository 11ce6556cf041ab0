# Shows that a connection which nobody reads tells that its far end has left, and loses
# nothing of what was sent before.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio

import pytest

SAID = b"something that nobody wants yet" * 1000


@pytest.fixture(params=["tcp", "unix"])
def kind(request):
    return request.param


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_far_end_that_is_there(make_engine, kind):
    rig = make_engine()
    far, conn = rig.connected(kind)
    for said in (b"", SAID):
        await far.send(said)
        assert not conn.has_left()
        await turns()
        assert not conn.has_left()
    conn.close()


@pytest.mark.parametrize("said", [b"", SAID], ids=["silent", "unread"])
async def test_end_behind_what_is_unread(make_engine, kind, said, until):
    rig = make_engine()
    far, conn = rig.connected(kind)
    await far.send(said)
    far.finish()
    await until(conn.has_left, "the end is noticed")
    assert not conn.was_reset(), "it may still be answered"
    read = b""
    while data := await conn.recv():
        read += data
    assert read == said
    await conn.send(b"it may still be answered")
    assert await far.recv() == b"it may still be answered"
    conn.close()


async def test_end_after_something_was_read(make_engine, kind, until):
    rig = make_engine()
    far, conn = rig.connected(kind)
    await far.send(b"first")
    assert await conn.recv() == b"first"
    await far.send(b"second")
    await turns()
    assert not conn.has_left()
    far.finish()
    await until(conn.has_left, "the end is noticed")
    assert await conn.recv() == b"second"
    conn.close()


async def test_a_reset_is_told_from_an_end(make_engine, until):
    rig = make_engine()
    far, conn = rig.connected()
    await far.send(SAID)
    far.reset()
    await until(conn.has_left, "the reset is noticed")
    assert conn.was_reset()
    with pytest.raises(ConnectionResetError):
        while await conn.recv():
            pass
    conn.close()


async def test_relayed_after_it_was_asked(make_engine):
    rig = make_engine()
    client, near = rig.connected()
    remote, far = rig.connected()
    assert not near.has_left()
    await client.send(b"in between")
    assert not near.has_left()
    rig.engine.relay(near, far, "flow", b"early, ")
    assert await remote.read(17) == b"early, in between"
    client.finish()
    remote.finish()
    await rig.ended()


async def test_a_connection_that_was_closed_has_left(make_engine):
    rig = make_engine()
    _, conn = rig.connected()
    conn.close()
    assert conn.has_left()
