# Shows that the last words to a refused client arrive, though it is still talking, and that it
# cannot stay for longer than it may.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio

import pytest

WORDS = b"\x05\x02\x00\x01" + bytes(6)


async def test_the_last_words_and_then_the_end(make_engine):
    rig = make_engine()
    client, conn = rig.connected()
    conn.refuse(WORDS)
    conn.close()  # as a session does in any case; the words are not cut off by it
    assert await client.read_to_end() == WORDS
    client.close()
    await rig.at_rest()


@pytest.mark.parametrize("unread", [1, 10_000, 100_000])
async def test_the_last_words_survive_unread_input(make_engine, payload, unread):
    """Closing a socket with unread input resets the connection, and a reset takes away
    what the other side has not read yet."""
    rig = make_engine(linger_timeout=5)
    for _ in range(20):
        client, conn = rig.connected()
        await client.send(b"hello")
        assert await conn.recv() == b"hello"
        await client.send(payload(unread))
        conn.refuse(WORDS)
        conn.close()
        await client.send(b"and more after that")
        for _ in range(5):  # the engine has had its turns before the client reads
            await asyncio.sleep(0)
        assert await client.read_to_end() == WORDS
        client.close()
    await rig.at_rest()


async def test_nothing_to_say(make_engine):
    rig = make_engine()
    client, conn = rig.connected()
    await client.send(b"unread")
    conn.refuse(b"")
    assert await client.read_to_end() == b""
    client.close()
    await rig.at_rest()


async def introduced_client(rig):
    introduced = []

    async def serve(conn) -> None:
        introduced.append(conn)

    client = rig.connect(rig.listen(serve))
    await client.send(b"x")
    await rig.until(lambda: introduced, "introduced")
    return client, introduced[0]


async def test_a_client_that_stays_is_closed_after_a_while(make_engine):
    rig = make_engine(linger_timeout=0.3, handshake_timeout=0)
    _client, conn = await introduced_client(rig)
    conn.refuse(WORDS)
    assert rig.engine.sessions == 1
    await rig.at_rest()


async def test_a_client_that_goes_on_sending_is_closed_after_a_while(make_engine):
    rig = make_engine(linger_timeout=0.3, handshake_timeout=0)
    client, conn = await introduced_client(rig)
    conn.refuse(WORDS)

    async def flood() -> None:
        while True:
            await client.send(bytes(1 << 16))
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(), 20)
    await rig.at_rest()


async def test_a_client_that_goes_on_slowly_is_closed_after_a_while(make_engine):
    rig = make_engine(linger_timeout=0.3, handshake_timeout=0)
    client, conn = await introduced_client(rig)
    conn.refuse(WORDS)

    async def trickle() -> None:
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(trickle(), 20)
    await rig.at_rest()


async def test_refusing_who_is_gone(make_engine):
    rig = make_engine()
    client, conn = await introduced_client(rig)
    client.reset()
    conn.refuse(WORDS)
    await rig.at_rest()
    others = [rig.connected() for _ in range(3)]  # which have its place and its descriptor
    conn.refuse(WORDS)
    conn.close()
    for other, its in others:
        await other.send(b"x")
        assert await its.recv() == b"x"
        await its.send(b"for you")
        assert await other.read(7) == b"for you"
        its.close()


async def test_refusing_after_the_end_of_its_input(make_engine):
    rig = make_engine(linger_timeout=20)
    client, conn = await introduced_client(rig)
    client.finish()
    assert await conn.recv() == b"x"
    assert await conn.recv() == b""
    conn.refuse(WORDS)
    assert await client.read_to_end() == WORDS
    await rig.at_rest()


async def test_closing_the_engine_ends_who_lingers(make_engine):
    rig = make_engine(linger_timeout=60)
    client, conn = await introduced_client(rig)
    conn.refuse(WORDS)
    rig.engine.close()
    assert rig.engine.sessions == 0
    with pytest.raises(ConnectionError):
        while True:
            await client.send(b"x")
