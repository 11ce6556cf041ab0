# The embedding program decides who may use the proxy: what it is asked, what of its answers
# lets in, and what its mistakes and its delays do to a client.

from __future__ import annotations

import asyncio
import contextlib

import pytest

import fastsocks
from fastsocks import session
from fastsocks.errors import AuthError
from fastsocks.waits import while_there
from support.logins import WRONG

PATIENCE = 20.0


@pytest.fixture
async def decided(serve):
    """A server whose authenticator remembers what it was asked, and answers from a list."""
    asked, answers = [], []

    async def authenticator(client, method, credentials):
        asked.append((client[0], method, credentials))
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async with serve(authenticator=authenticator) as server:
        server.asked, server.answers = asked, answers
        yield server


async def test_a_program_lets_in_by_password(decided, dial, say, echo, caplog):
    decided.answers += [True]
    client = await dial(decided)
    await client.send(b"\x05\x01\x02" + say.login(b"al\xffice", b""))
    await client.send(say.socks5("127.0.0.1", echo.port))
    assert (await client.exactly(14))[:6] == b"\x05\x02\x01\x00\x05\x00"
    assert decided.asked == [("127.0.0.1", 2, fastsocks.Credentials(b"al\xffice", b""))]
    assert "al\ufffdice@" in caplog.text


async def test_a_program_lets_in_without_a_login(decided, dial, say, echo):
    decided.answers += [True, True]
    client = await dial(decided)
    assert (await client.ask(b"\x05\x02\x02\x00", 2)) == b"\x05\x00"
    assert (await client.ask(say.socks5("127.0.0.1", echo.port), 10))[1] == 0
    client = await dial(decided)
    assert (await client.ask(say.socks4("127.0.0.1", echo.port, b"me"), 8))[1] == 90
    assert await client.echoes()
    assert decided.asked == [("127.0.0.1", 0, None)] * 2


async def test_a_login_nobody_asked_for_is_not_judged(decided, dial, say):
    decided.answers += [True]
    client = await dial(decided)
    await client.send(say.no_login + say.login(b"isolate", b"stream"))
    assert await client.exactly(4) == b"\x05\x00\x01\x00"


class Own(BaseException):
    """As the outcomes of pytest are."""


@pytest.mark.parametrize(
    "answer",
    [
        *(False, None, 1, "yes"),
        *(ValueError("p4ss"), TimeoutError(), asyncio.CancelledError("p4ss"), Own("p4ss")),
    ],
)
async def test_a_program_refuses(decided, dial, say, echo, caplog, answer):
    """Only True lets in; what a program forgot to await or to return does not."""
    caplog.set_level("INFO")
    decided.answers += [answer] * 4
    client = await dial(decided)
    await client.send(b"\x05\x02\x00\x02" + say.login(b"alice", WRONG))
    assert await client.to_end() == b"\x05\x02\x01\x01"
    client = await dial(decided)
    await client.send(say.no_login + say.socks5("127.0.0.1", echo.port))
    assert await client.to_end() == b"\x05\xff"
    client = await dial(decided)
    await client.send(say.socks4("127.0.0.1", echo.port, b"alice"))
    assert await client.to_end() == say.failed4
    assert echo.peers == []
    assert "Traceback" not in caplog.text
    if isinstance(answer, BaseException):
        told = [line for line in caplog.messages if "authenticator raised" in line]
        assert len(told) == 1
        assert f"{type(answer).__name__} ({__file__}, line " in told[0]
        assert "p4ss" not in caplog.text


async def test_a_program_that_is_no_coroutine_is_refused(serve, dial, say, caplog):
    async with serve(authenticator=lambda client, method, credentials: True) as server:
        client = await dial(server)
        await client.send(b"\x05\x02\x00\x02" + say.login(b"alice", WRONG))
        assert await client.to_end() == b"\x05\x02\x01\x01"
    assert "must be an async function, and returned an object of type bool" in caplog.text


async def test_a_program_that_hangs_has_the_time_of_a_handshake(serve, dial, say, books):
    async def never(client, method, credentials):
        await asyncio.Event().wait()

    async with serve(authenticator=never, handshake_timeout=0.2) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.exactly(2) == b"\x05\x02"
        assert await client.ended()
        client.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("methods", [b"\x05\x01\x02", b"\x05\x02\x00\x02"])
async def test_what_the_client_has_used_up_is_not_given_again(serve, dial, say, until, methods):
    """Or a slow client and a slow program would have the time of two handshakes. Of two clients
    it is up first for the one that came first, though the program was asked for it last."""
    asked, over = [], []

    async def never(client, method, credentials):
        asked.append(client)
        try:
            await asyncio.Event().wait()
        finally:
            over.append(client)

    login = say.login(b"alice", WRONG)
    async with serve(authenticator=never, handshake_timeout=2) as server:
        slow = await dial(server)
        await slow.send(methods[:1])
        await asyncio.sleep(0.2)  # it is time that is used up
        quick = await dial(server)
        await quick.send(methods + login)
        await until(lambda: asked == [quick.name], "the program is asked")
        await slow.send(methods[1:] + login)
        await until(lambda: len(over) == 2, "their time is up")
    assert over == [slow.name, quick.name]


async def test_a_program_that_will_not_be_cancelled_lets_nobody_in(serve, dial, say, echo):
    async def stubborn(client, method, credentials):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return True

    async with serve(authenticator=stubborn, handshake_timeout=1) as server:
        client = await dial(server)
        await client.send(say.socks4("127.0.0.1", echo.port, b"me"))
        assert await client.to_end() == say.failed4
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.to_end() == b"\x05\x02\x01\x01"
    assert echo.peers == []


async def test_nor_does_one_that_is_cancelled_before_the_engines_clock_has_run_out():
    """By less than either clock tells."""

    class Client:
        left = 0.01

        def time_left(self) -> float:
            now, self.left = self.left, 0.001
            return now

        def was_reset(self) -> bool:
            return False

    with pytest.raises(AuthError):
        async with while_there(Client()):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


async def test_a_program_is_not_asked_about_whom_ident_refuses(serve, dial, say):
    asked = []

    async def anyone(client, method, credentials):
        asked.append(method)
        return True

    async with serve(authenticator=anyone, ident=["10."]) as server:
        client = await dial(server)
        await client.send(say.no_login)
        assert await client.to_end() == b"\x05\xff"
        client = await dial(server)
        await client.send(say.socks4("127.0.0.1", 9, b"me"))
        assert await client.to_end() == say.failed4
    assert asked == []


async def test_a_client_that_resets_a_waiting_login_gives_its_place_back(
    serve, dial, say, books, until
):
    waiting = []

    async def never(client, method, credentials):
        waiting.append(client)
        await asyncio.Event().wait()

    async with serve(authenticator=never, handshake_timeout=60) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        await until(lambda: waiting, "the program is asked")
        client.reset()
        assert await ledger.outstanding() == {}


async def test_a_client_that_leaves_a_hanging_program(serve, dial, say, books):
    release = asyncio.Event()

    async def later(client, method, credentials):
        await release.wait()
        return True

    async with serve(authenticator=later) as server:
        ledger = books(server)
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        assert await client.exactly(2) == b"\x05\x02"
        client.reset()
        await client.seen()
        release.set()
        assert await ledger.outstanding() == {}


@pytest.fixture
async def hanging(serve, dial, say):
    """hanging(authenticator): a server whose only client waits for its answer."""

    async def start(authenticator):
        began = asyncio.Event()

        async def first_told(client, method, credentials):
            began.set()
            return await authenticator(server)

        server = serve(authenticator=first_told)
        server.start()
        client = await dial(server)
        await client.send(b"\x05\x01\x02" + say.login(b"alice", WRONG))
        await asyncio.wait_for(began.wait(), PATIENCE)
        return server, client

    return start


async def test_a_program_that_stops_its_server(hanging, caplog):
    async def stops(server):
        await asyncio.sleep(0)
        await server.stop(0)
        return True

    server, client = await hanging(stops)
    assert await client.ended()
    await server.stop(0)
    assert server.engine is None
    assert "Traceback" not in caplog.text


async def test_a_program_that_will_not_be_cancelled(hanging, monkeypatch):
    monkeypatch.setattr(session, "CANCEL_PATIENCE", 0.1)
    release = asyncio.Event()

    async def goes_on(_):
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    server, _ = await hanging(goes_on)
    await asyncio.wait_for(server.stop(0), PATIENCE)
    assert server.engine is None
    release.set()


async def test_a_stop_that_is_cancelled_while_a_program_cleans_up(hanging):
    cleaning, release = asyncio.Event(), asyncio.Event()

    async def cleans_up(_):
        try:
            await release.wait()
        finally:
            cleaning.set()
            await release.wait()

    server, _ = await hanging(cleans_up)
    stopping = asyncio.ensure_future(server.stop(0))
    await asyncio.wait_for(cleaning.wait(), PATIENCE)
    stopping.cancel()
    await asyncio.wait((stopping,))
    assert stopping.cancelled()
    assert server.engine is None
    release.set()
