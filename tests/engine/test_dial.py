# Shows what dial promises: a connection with its addresses, the errno of connect() when there
# is none, an end in time, and no descriptor left however it went.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from fastsocks.errors import ClientGone


@pytest.fixture
def refusing(refused_port):
    return "127.0.0.1", refused_port


async def test_both_addresses_of_a_connection(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    listener = rig.listener()
    remote = await rig.engine.dial(conn, listener.getsockname(), None, 10)
    accepted, peer = listener.accept()
    rig.hold(accepted)
    assert remote.peer == listener.getsockname()
    assert remote.sockname == peer
    await remote.send(b"hello")
    assert accepted.recv(5) == b"hello"
    remote.close()
    conn.close()


async def test_a_dialled_connection_is_relayed(make_engine):
    rig = make_engine()
    client, conn = rig.connected()
    listener = rig.listener()
    remote = await rig.engine.dial(conn, listener.getsockname(), None, 10)
    accepted = rig.hold(listener.accept()[0])
    accepted.settimeout(10)
    rig.engine.relay(conn, remote, "flow", b"first ")
    await client.send(b"second")
    client.finish()
    got = b""
    while piece := await asyncio.to_thread(accepted.recv, 100):
        got += piece
    assert got == b"first second"


async def test_a_dial_that_is_refused_says_so_and_leaves_nothing(make_engine, refusing):
    rig = make_engine()
    _client, conn = rig.connected()
    before = rig.descriptors()
    for _ in range(50):
        with pytest.raises(OSError) as raised:
            await rig.engine.dial(conn, refusing, None, 10)
        assert raised.value.errno == errno.ECONNREFUSED
    assert rig.descriptors() == before
    conn.close()
    await rig.at_rest()


async def test_a_dial_that_nobody_answers_ends_in_time(make_engine, black_hole):
    rig = make_engine()
    _client, conn = rig.connected()
    before = rig.descriptors()
    with pytest.raises(OSError) as raised:
        await rig.engine.dial(conn, black_hole, None, 0.3)
    assert raised.value.errno == errno.ETIMEDOUT
    assert rig.descriptors() == before
    conn.close()
    await rig.at_rest()


async def test_the_client_can_be_answered_after_a_failed_dial(make_engine, black_hole, refusing):
    rig = make_engine()
    client, conn = rig.connected()
    for address in (black_hole, refusing, black_hole):
        with pytest.raises(OSError):
            await rig.engine.dial(conn, address, None, 0.2)
    await client.send(b"early payload")
    assert await conn.recv() == b"early payload"
    await conn.send(b"sorry")
    assert await client.read(5) == b"sorry"
    conn.close()


@pytest.mark.parametrize("pending", [b"", b"x" * 1000], ids=["silent", "with unread input"])
async def test_a_client_that_resets_meanwhile(make_engine, black_hole, pending):
    rig = make_engine()
    before = rig.descriptors()
    client, conn = rig.connected()
    dialling = asyncio.ensure_future(
        asyncio.wait_for(rig.engine.dial(conn, black_hole, None, 20), 20)
    )
    await asyncio.sleep(0)
    if pending:
        await client.send(pending)
    client.reset()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(dialling, 5)
    conn.close()
    assert rig.descriptors() == before


async def test_a_client_that_resets_while_it_is_read_too(make_engine, black_hole):
    """Both who read and who dial hear of it."""
    rig = make_engine()
    client, conn = rig.connected()
    before = rig.descriptors()
    waiting = [
        asyncio.ensure_future(asyncio.wait_for(under_way, 5))
        for under_way in (conn.recv(), rig.engine.dial(conn, black_hole, None, 20))
    ]
    await rig.until(lambda: rig.descriptors() > before, "it is dialled for")
    client.reset()
    read, dialled = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(read, ConnectionResetError)
    assert isinstance(dialled, ClientGone)
    conn.close()
    await rig.at_rest()


async def test_a_client_that_resets_after_its_fin(make_engine, black_hole):
    rig = make_engine()
    client, conn = rig.connected()
    client.finish()
    assert await conn.recv() == b""
    dialling = asyncio.ensure_future(
        asyncio.wait_for(rig.engine.dial(conn, black_hole, None, 20), 20)
    )
    await asyncio.sleep(0)
    client.reset()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(dialling, 5)
    conn.close()
    await rig.at_rest()


async def test_a_fin_of_the_client_is_no_reason_to_abort(make_engine, black_hole):
    rig = make_engine()
    client, conn = rig.connected()
    await client.send(b"request, and that is all")
    client.finish()
    with pytest.raises(OSError) as raised:
        await rig.engine.dial(conn, black_hole, None, 0.8)
    assert raised.value.errno == errno.ETIMEDOUT
    assert await conn.recv() == b"request, and that is all"
    assert await conn.recv() == b""
    conn.close()


async def test_a_client_that_finished_before_is_relayed(make_engine):
    rig = make_engine()
    client, conn = rig.connected()
    client.finish()
    listener = rig.listener()
    remote = await rig.engine.dial(conn, listener.getsockname(), None, 10)
    accepted = rig.hold(listener.accept()[0])
    rig.engine.relay(conn, remote, "flow", b"GET")
    accepted.settimeout(10)
    assert await asyncio.to_thread(accepted.recv, 3, socket.MSG_WAITALL) == b"GET"
    assert await asyncio.to_thread(accepted.recv, 1) == b""
    accepted.sendall(b"answer")
    assert await client.read(6) == b"answer"


async def test_many_dials_at_once(make_engine, black_hole, refusing):
    rig = make_engine()
    listener = rig.listener()
    pairs = [rig.connected() for _ in range(60)]
    addresses = [listener.getsockname(), refusing, black_hole]
    results = await asyncio.gather(
        *(
            rig.engine.dial(conn, addresses[number % 3], None, 0.5)
            for number, (_, conn) in enumerate(pairs)
        ),
        return_exceptions=True,
    )
    assert {error.errno for error in results[1::3]} == {errno.ECONNREFUSED}
    assert {error.errno for error in results[2::3]} == {errno.ETIMEDOUT}
    for remote in results[::3]:
        assert remote.peer == listener.getsockname()
        remote.close()
    for _, conn in pairs:
        conn.close()
    await rig.at_rest()


async def test_cancelling_a_dial_leaves_nothing(make_engine, until, black_hole):
    rig = make_engine()
    _client, conn = rig.connected()
    before = rig.descriptors()

    async def dial() -> None:
        await rig.engine.dial(conn, black_hole, None, 20)

    dialling = asyncio.ensure_future(dial())
    await asyncio.sleep(0)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert rig.descriptors() == before
    conn.close()  # what a session does when it is cancelled
    await until(lambda: rig.descriptors() == before - 1, "both descriptors closed")


async def test_several_dials_for_one_client(make_engine, until, black_hole, refusing):
    """Each has its own end, and none of them is the end of another."""
    rig = make_engine()
    client, conn = rig.connected()
    listener = rig.listener()
    before = rig.descriptors()
    cancelled, patient, late, refused, standing = (
        asyncio.ensure_future(rig.engine.dial(conn, address, None, seconds))
        for address, seconds in (
            (black_hole, 20),
            (black_hole, 20),
            (black_hole, 0.2),
            (refusing, 20),
            (listener.getsockname(), 20),
        )
    )
    remote = await standing
    rig.hold(listener.accept()[0])
    with pytest.raises(ConnectionRefusedError):
        await refused
    assert not patient.done()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await until(lambda: rig.descriptors() == before + 4, "its socket is closed")
    with pytest.raises(TimeoutError):
        await late
    assert not patient.done()
    await client.send(b"still here")
    assert await conn.recv() == b"still here"
    patient.cancel()
    await asyncio.wait([patient])
    await conn.send(b"and so are we")
    assert await client.read(13) == b"and so are we"
    remote.close()
    conn.close()
    await rig.at_rest()


@pytest.mark.parametrize("dropped", range(4))
async def test_dials_end_in_any_order(make_engine, until, black_hole, dropped):
    rig = make_engine()
    client, conn = rig.connected()
    before = rig.descriptors()
    dials = [asyncio.ensure_future(rig.engine.dial(conn, black_hole, None, 20)) for _ in range(4)]
    await until(lambda: rig.descriptors() == before + 4, "all are under way")
    first = dials.pop(dropped)
    first.cancel()
    await asyncio.wait([first])
    await until(lambda: rig.descriptors() == before + 3, "its socket is closed, and no other")
    client.reset()
    for one in dials:
        with pytest.raises(ClientGone):
            await asyncio.wait_for(one, 5)
    conn.close()
    assert rig.descriptors() == before - 2
    await rig.at_rest()


async def test_who_takes_the_first_end_may_give_up_the_others(make_engine, until, black_hole):
    """In the very turn in which all of them end."""
    rig = make_engine()
    client, conn = rig.connected()
    before = rig.descriptors()

    async def race() -> None:
        dials = [
            asyncio.ensure_future(rig.engine.dial(conn, black_hole, None, 20)) for _ in range(5)
        ]
        try:
            ended, _ = await asyncio.wait(dials, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                one.result()
        finally:
            for one in dials:
                if one.done():
                    one.exception()
                one.cancel()
            conn.close()

    racing = asyncio.ensure_future(race())
    await until(lambda: rig.descriptors() == before + 5, "all are under way")
    client.reset()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(racing, 5)
    await until(lambda: rig.descriptors() == before - 2, "all are closed")


async def test_cancelling_what_is_over_changes_nothing(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    listener = rig.listener()
    dialling = asyncio.ensure_future(rig.engine.dial(conn, listener.getsockname(), None, 10))
    remote = await dialling
    rig.hold(listener.accept()[0])
    assert not dialling.cancel()
    await remote.send(b"open")
    remote.close()
    conn.close()
