# How a server stops: with grace and without, whatever its clients are at, and nothing troubles
# anybody afterwards.

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket

import pytest

from support.system import refuses

PATIENCE = 10.0


@pytest.fixture
def begin_to_stop(until):
    """``stopping = await begin_to_stop(server)``: with a minute's grace; no new ones come in."""

    async def begin(server):
        stopping = asyncio.ensure_future(server.stop(60))
        await until(lambda: refuses(server.addresses[0]), "the port is closed")
        return stopping

    return begin


async def returns(stopping: asyncio.Future[None]) -> bool:
    """Whether it does long before the 60 s that it is given."""
    done, _ = await asyncio.wait((stopping,), timeout=PATIENCE)
    for one in done:
        one.result()
    return bool(done)


async def test_stop_lets_sessions_finish_and_takes_no_new_ones(serve, dial, remote, begin_to_stop):
    go_on = asyncio.Event()

    async def late(reader, writer):
        await go_on.wait()
        writer.write(b"late data")

    origin = await remote(late)
    async with serve() as server:
        client = await dial(server)
        await client.connect("127.0.0.1", origin.port)
        stopping = await begin_to_stop(server)
        assert not stopping.done()
        go_on.set()
        assert await client.to_end() == b"late data"
        client.finish()
        assert await returns(stopping)


async def test_stop_lets_a_handshake_finish(serve, dial, remote, say, begin_to_stop):
    origin = await remote()
    async with serve() as server:
        client = await dial(server)
        await client.ask(say.no_login, 2)
        stopping = await begin_to_stop(server)
        assert (await client.ask(say.socks5("127.0.0.1", origin.port), 10))[1] == 0
        assert await client.echoes()
        client.finish()
        assert await client.to_end() == b""
        assert await returns(stopping)


@pytest.mark.parametrize(
    "first", [b"", b"\x05", b"\x05\x01\x00"], ids=["silent", "half", "greeted"]
)
async def test_stop_returns_when_the_last_client_has_left(serve, dial, until, first, begin_to_stop):
    """Whatever state that one was in: there is nothing to wait for any more."""
    async with serve() as server:
        client = await dial(server)
        if first:
            await client.send(first)
        await until(lambda: server.sessions == 1, "the client is accepted")
        stopping = await begin_to_stop(server)
        assert not stopping.done(), "the client could still finish"
        client.close()
        assert await returns(stopping)


async def test_stop_returns_when_the_last_refused_one_has_left(
    serve, dial, say, refused_port, begin_to_stop
):
    async with serve() as server:
        client = await dial(server)
        await client.send(say.no_login + say.socks5("127.0.0.1", refused_port))
        assert await client.to_end()
        stopping = await begin_to_stop(server)
        client.close()
        assert await returns(stopping)


async def test_stop_kills_what_has_not_finished_in_time(
    serve, dial, echo, names, say, black_hole, until, caplog
):
    """Whatever it waits for: and what it waited for troubles nobody afterwards."""
    gc.collect()
    caplog.clear()
    names.hang("slow.example")
    async with serve() as server:
        relayed = await dial(server)
        await relayed.connect("127.0.0.1", echo.port)
        assert await relayed.echoes()
        others = [await dial(server) for _ in range(5)]
        await others[1].send(b"\x05")
        await others[2].ask(b"\x05\x01\x00", 2)
        await others[3].send(say.no_login + say.socks5(black_hole.host, black_hole.port))
        await others[4].send(say.no_login + say.socks5("slow.example", 80))
        await until(lambda: names.asked == ["slow.example"], "the resolver is asked")
        await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
        await until(lambda: server.sessions == 6, "all are accepted")
        await server.stop(0.2)
        with pytest.raises(ConnectionResetError):
            await relayed.to_end()
        for client in others:
            assert await client.ended()
    assert black_hole.waiting() == 0
    await relayed.seen()
    gc.collect()  # an error that nobody took is told by the garbage collector
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_stop_that_others_overtake_leaves_what_they_started(serve, dial, echo, begin_to_stop):
    async with serve() as server:
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        patient = await begin_to_stop(server)
        await server.stop(0)
        server.start()
        assert await returns(patient)
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
        await server.stop(0)
        assert refuses(server.addresses[0])


async def test_stop_that_is_cancelled_ends_everything(serve, dial, echo, books):
    """As by a time limit around it: half stopped it would keep what it has for good."""
    async with serve() as server:
        ledger = books(server)
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.stop(60), 0.1)
        with pytest.raises(ConnectionResetError):
            await client.to_end()
        assert server.engine is None
        client.close()
        server.start()
        assert await ledger.outstanding() == {}


async def test_stop_by_an_authenticator_does_not_wait_for_its_own_session(serve, dial, say):
    async def stop(client, method, credentials):
        await server.stop(60)
        return False

    async with serve(authenticator=stop) as server:
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"u", b"p"))
        assert await client.ended()


async def test_stop_on_another_loop_is_refused(serve, dial, echo):
    """There the engine would be closed below the feet of the loop that runs it."""
    async with serve() as server:
        with pytest.raises(RuntimeError, match="the event loop it was started on"):
            await asyncio.to_thread(asyncio.run, server.stop(0))
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()


def test_stop_after_the_loop_is_closed(serve, until, descriptors_balance):
    """By a program that has forgotten it: nothing stays open."""
    loop = asyncio.new_event_loop()

    async def start():
        server = serve()
        server.start()
        clients = [socket.create_connection(server.addresses[0]) for _ in range(3)]
        clients[0].send(b"\x05")
        await until(lambda: server.sessions == 3, "three sessions")
        return server, clients

    server, clients = loop.run_until_complete(start())
    loop.close()
    asyncio.run(server.stop(0))
    for client in clients:
        client.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
        client.close()
    gc.collect()


async def test_nothing_of_it_runs_after_stop(serve, dial, echo, say):
    before = asyncio.all_tasks()
    async with serve() as server:
        silent, greeted, relayed = [await dial(server) for _ in range(3)]
        await greeted.ask(say.no_login, 2)
        await relayed.connect("127.0.0.1", echo.port)
    ours = {task for task in asyncio.all_tasks() - before if "fastsocks" in repr(task)}
    assert not ours
    for client in (silent, greeted, relayed):
        client.close()


async def test_stop_can_be_cancelled_and_repeated(serve, dial, echo, begin_to_stop):
    """A second signal cuts the grace short."""
    async with serve() as server:
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        stopping = await begin_to_stop(server)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await server.stop(0)
        with pytest.raises(ConnectionResetError):
            await client.to_end()
