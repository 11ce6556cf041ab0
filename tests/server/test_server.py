# A server inside a program: start, several in one loop, errors of the program in one session,
# and nothing left behind by any of it. How it stops is in test_stop.py.

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import os
import socket
import sys
import threading

import pytest
import uvloop

import fastsocks
from fastsocks import dial as dialing
from fastsocks import session as sessions
from support.system import refuses

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def runner(request, descriptors_balance):
    """A loop of the embedding program's own."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as running:
        yield running


async def echo_over(proxy: tuple[str, int], data: bytes) -> bytes:
    """A remote, a client and a session, all with plain asyncio streams."""

    async def serve(reader, writer):
        writer.write(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as remote:
        port = remote.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(*proxy)
        writer.write(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
        replies = await reader.readexactly(12)
        assert replies[:6] == b"\x05\x00\x05\x00\x00\x01"
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


# -- embedding ---------------------------------------------------------------


def test_on_the_programs_own_loop(runner, serve):
    data = os.urandom(300_000)

    async def program() -> bytes:
        async with serve() as server:
            return await echo_over(server.addresses[0], data)

    assert runner.run(program()) == data
    assert runner.run(program()) == data


def test_program_that_is_cancelled(runner, serve):
    """Not polite, but a program that is told to exit does it: its sessions in whatever
    state are cancelled with it."""

    async def program() -> None:
        async with serve() as server:
            writers = []
            for first in (b"", b"\x05", b"\x05\x01\x00", b"\x04\x01\x00"):
                _, writer = await asyncio.open_connection(*server.addresses[0])
                writer.write(first)
                writers.append(writer)
            while server.sessions < len(writers):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                task.cancel()
            try:
                await asyncio.Event().wait()
            finally:
                for writer in writers:
                    writer.close()

    with pytest.raises(asyncio.CancelledError):
        runner.run(program())


def test_in_a_thread_that_is_not_the_main_one(serve, descriptors_balance):
    answers = []

    async def program() -> None:
        async with serve() as server:
            answers.append(await echo_over(server.addresses[0], b"from a thread"))

    thread = threading.Thread(target=lambda: asyncio.run(program()))
    thread.start()
    thread.join(20)
    assert answers == [b"from a thread"]


async def test_two_servers_in_one_loop(serve, dial, echo, say):
    async with serve() as one, serve(users={"u": "p"}) as other:
        assert one.addresses != other.addresses
        client = await dial(one)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
        locked_out = await dial(other)
        await locked_out.send(b"\x05\x01\x00")
        assert await locked_out.to_end() == b"\x05\xff"
        through_both = await dial(other)
        await through_both.send(b"\x05\x01\x02" + say.login(b"u", b"p"))
        assert await through_both.exactly(4) == b"\x05\x02\x01\x00"
        assert (await through_both.ask(say.socks5(*one.addresses[0]), 10))[1] == 0
        assert (await through_both.connect("127.0.0.1", echo.port))[1] == 0
        assert await through_both.echoes()


async def test_one_server_ends_and_the_other_goes_on(serve, dial, echo):
    async with serve() as staying:
        client = await dial(staying)
        await client.connect("127.0.0.1", echo.port)
        async with serve() as leaving:
            other = await dial(leaving)
            await other.connect("127.0.0.1", echo.port)
        assert await other.ended()
        assert await client.echoes()
        again = await dial(staying)
        await again.connect("localhost", echo.port)
        assert await again.echoes()


async def test_body_that_raises(serve, dial, echo, until, descriptors_balance):
    tasks = len(asyncio.all_tasks())
    server = serve()

    async def program():
        async with server:
            client = await dial(server)
            await client.connect("127.0.0.1", echo.port)
            raise ZeroDivisionError(client)

    with pytest.raises(ZeroDivisionError) as raised:
        await program()
    (client,) = raised.value.args
    assert refuses(server.addresses[0])
    with pytest.raises(ConnectionResetError):
        await client.to_end()
    client.close()
    await until(lambda: len(asyncio.all_tasks()) == tasks, "no Task is left")
    await echo.stop()
    gc.collect()


async def test_stop_twice(serve):
    async with serve() as server:
        await server.stop()
        await server.stop(0)
    assert refuses(server.addresses[0])


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [(("127.0.0.1:0",), {}), (({},), {}), ((fastsocks.config.Config(),), {"grace": 1})],
    ids=str,
)
def test_settings_without_a_keyword(arguments, settings):
    with pytest.raises(fastsocks.ConfigError, match="by keyword"):
        fastsocks.Server(*arguments, **settings)


async def test_a_source_that_is_not_ours_is_warned_of(serve, caplog):
    async with serve(source="192.0.2.9"):
        assert "source address 192.0.2.9 (-b): " in caplog.text
    caplog.clear()
    async with serve(source="127.0.0.1"):
        assert "source" not in caplog.text


async def test_a_grace_that_is_no_number_stops_nothing(serve, dial, echo):
    async with serve() as server:
        with pytest.raises(TypeError):
            await server.stop("5")
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()


async def test_started_twice(serve, dial, echo):
    """It would hold what it had, and serve on without anybody to stop it."""
    async with serve() as server:
        with pytest.raises(RuntimeError, match="already"):
            server.start()
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
    assert refuses(server.addresses[0])


async def test_the_same_port_again_at_once(serve, dial, echo):
    """Connections of the one before may still linger in the kernel."""
    place = "127.0.0.1:0"
    for _ in range(3):
        async with serve(listen=[place]) as server:
            place = "{}:{}".format(*server.addresses[0])
            client = await dial(server)
            await client.connect("127.0.0.1", echo.port)
            assert await client.echoes()


async def test_a_stopped_server_starts_again(serve, dial, names, echo):
    names.answers["fine.example"] = ["127.0.0.1"]
    server = serve(connect_timeout=5)
    for _ in range(2):
        async with server:
            client = await dial(server)
            assert (await client.connect("fine.example", echo.port))[1] == 0
            assert await client.echoes()


# -- what stands --------------------------------------------------------------


@pytest.mark.parametrize("engine_name", ["native"])
async def test_no_coroutine_belongs_to_a_session_that_stands(serve, dial, echo):
    """No Task and no coroutine, however many: the native engine alone has them."""
    package = os.path.dirname(fastsocks.__file__)

    def ours() -> int:
        coroutines = (found for found in gc.get_objects() if inspect.iscoroutine(found))
        return sum(found.cr_code.co_filename.startswith(package) for found in coroutines)

    async with serve() as server:
        gc.collect()  # what an earlier test has left
        before = ours()
        clients = [await dial(server) for _ in range(20)]
        for client in clients:
            assert (await client.connect(echo.host, echo.port))[1] == 0
        assert ours() == before
        for client in clients:
            client.close()


@pytest.mark.parametrize("engine_name", ["auto"])
@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ModuleNotFoundError("nowhere", name="fastsocks._front"), False),
        (ImportError("undefined symbol: fs_nothing"), True),
    ],
    ids=["not built", "broken"],
)
async def test_native_engine_that_cannot_be_loaded_is_told_of_unless_it_was_never_built(
    serve, dial, echo, monkeypatch, caplog, failure, told
):
    class Broken:
        def find_spec(self, name, path, target=None):
            if name == "fastsocks._front":
                raise failure

    monkeypatch.delitem(sys.modules, "fastsocks._front", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    async with serve() as server:
        assert "engine python" in server.describe()
        client = await dial(server)
        await client.connect(echo.host, echo.port)
        assert await client.echoes()
    assert ("cannot be loaded: undefined symbol" in caplog.text) is told


# -- what cannot start -------------------------------------------------------


async def test_port_taken(serve, descriptors_balance):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        with pytest.raises(OSError, match=f"cannot listen on {host}:{port}: ") as caught:
            async with serve(listen=["127.0.0.1:0", f"{host}:{port}"]):
                pytest.fail("it runs")
    assert caught.value.errno


async def test_address_of_another_machine(serve, descriptors_balance):
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:1080: "):
        async with serve(listen=["192.0.2.1:1080"], open=True):
            pytest.fail("it runs")


async def test_port_that_one_may_not_have(serve, monkeypatch, descriptors_balance):
    """As for a user and the ports below 1024. Containers often allow those, so it is played."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:80: Permission denied"):
        async with serve(listen=["127.0.0.1:80"]):
            pytest.fail("it runs")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"engine": "warp"}, "engine warp"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"listen": ["127.0.0.1"]}, "listen 127.0.0.1"),
        ({"handshake_timeout": -1}, "handshake_timeout -1"),
    ],
)
def test_wrong_setting(settings, named):
    with pytest.raises(fastsocks.ConfigError, match=named):
        fastsocks.Server(**settings)


# -- errors of the program ---------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), AssertionError("bug")])
async def test_exception_ends_its_session_only(
    server, dial, say, echo, books, monkeypatch, caplog, error
):
    caplog.set_level("DEBUG", "fastsocks")
    real = dialing.Dialer.dial

    async def fail_for_one(self, client, client_host, host, port, is_name):
        if host == "broken.example":
            raise error
        return await real(self, client, client_host, host, port, is_name)

    monkeypatch.setattr(dialing.Dialer, "dial", fail_for_one)
    standing = await dial(server)
    await standing.connect("127.0.0.1", echo.port)
    ledger = books(server)
    client = await dial(server)
    await client.send(say.no_login + say.socks5("broken.example", 80))
    assert await client.ended()
    client.close()
    assert await ledger.outstanding() == {}
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 1
    assert told[0].exc_info[1] is error
    assert standing.name != client.name
    assert f"127.0.0.1:{client.name[1]}" in told[0].getMessage()
    assert await standing.echoes()
    other = await dial(server)
    await other.connect("127.0.0.1", echo.port)
    assert await other.echoes()


async def test_exception_after_the_remote_was_reached(
    server, dial, say, echo, books, monkeypatch, caplog
):
    """The remote's connection must not outlive the session that made it."""
    ledger = books(server)

    def broken(self, host, port):
        raise RuntimeError("bug")

    monkeypatch.setattr(sessions.MACHINES[5], "granted", broken)
    client = await dial(server)
    await client.send(say.no_login + say.socks5("127.0.0.1", echo.port))
    assert await client.ended()
    client.close()
    assert await ledger.outstanding() == {}
    assert len([record for record in caplog.records if record.exc_info]) == 1


# -- limits ------------------------------------------------------------------


async def test_max_sessions_pauses_accepting(serve, dial, echo):
    async with serve(max_sessions=3) as server:
        standing = [await dial(server) for _ in range(3)]
        for client in standing:
            await client.connect("127.0.0.1", echo.port)
        waiting = await dial(server)
        await waiting.send(b"\x05\x01\x00")
        assert await standing[0].echoes()
        assert server.sessions == 3
        assert waiting.has_come_in(0)
        standing[1].close()
        assert await waiting.exactly(2) == b"\x05\x00"
        assert server.sessions <= 3
