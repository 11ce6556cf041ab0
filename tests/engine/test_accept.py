# Shows how clients get in: introduced with their first octet, held back at the limit of
# sessions, and neither lost nor the cause of a spin when the system is out of descriptors.
#
# Must not know: which engine it is.

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time

import pytest

from support.ends import PATIENCE
from support.programs import wait_until
from support.system import cpu_seconds


def listening(rig, host="127.0.0.1"):
    """An address, and the list of the connections that were introduced there."""
    introduced = []

    async def serve(conn) -> None:
        introduced.append(conn)

    return rig.listen(serve, host), introduced


async def test_introduced_with_the_first_octet_and_not_before(make_engine):
    rig = make_engine()
    address, introduced = listening(rig)
    clients = [rig.connect(address) for _ in range(10)]
    await rig.until(lambda: rig.engine.sessions == 10, "all accepted")
    assert introduced == []
    await clients[3].send(b"third")
    await rig.until(lambda: introduced, "the one that spoke introduced")
    assert await introduced[0].recv() == b"third"
    assert len(introduced) == 1
    assert introduced[0].peer == clients[3].sock.getsockname()
    assert introduced[0].sockname == address
    assert rig.engine.counters()["accepted"] == 10


async def test_all_that_came_with_the_first_octet_is_there(make_engine, payload):
    rig = make_engine()
    address, introduced = listening(rig)
    client = rig.connect(address)
    data = payload(50_000)
    await client.send(data)
    client.finish()
    await rig.until(lambda: introduced, "introduced")
    got = bytearray()
    while piece := await introduced[0].recv():
        assert len(piece) <= 16384
        got += piece
    assert got == data
    assert await introduced[0].recv() == b""


@pytest.mark.parametrize("leave", ["finish", "close", "reset"])
async def test_a_client_that_leaves_without_a_word(make_engine, leave):
    rig = make_engine()
    address, introduced = listening(rig)
    client = rig.connect(address)
    await rig.until(lambda: rig.engine.sessions == 1, "accepted")
    getattr(client, leave)()
    await rig.at_rest()
    assert introduced == []
    if leave == "finish":
        assert await client.read_to_end() == b""


async def test_who_is_in_a_handshake_when_the_engine_closes_is_told_by_a_fin(make_engine):
    rig = make_engine()
    address, introduced = listening(rig)
    silent, greeted = rig.connect(address), rig.connect(address)
    await greeted.send(b"x")
    await rig.until(lambda: introduced and rig.engine.sessions == 2, "both are accepted")
    assert await introduced[0].recv() == b"x"
    rig.engine.close()
    for client in (silent, greeted):
        assert await client.read_to_end() == b""


async def test_recv_tells_a_reset_from_an_end(make_engine):
    rig = make_engine()
    address, introduced = listening(rig)
    client = rig.connect(address)
    await client.send(b"x")
    await rig.until(lambda: introduced, "introduced")
    assert await introduced[0].recv() == b"x"
    receiving = asyncio.ensure_future(asyncio.wait_for(introduced[0].recv(), PATIENCE))
    await asyncio.sleep(0)
    client.reset()
    with pytest.raises(ConnectionResetError):
        await receiving
    introduced[0].close()
    introduced[0].close()
    await rig.at_rest()


async def test_send_waits_for_a_client_that_reads_slowly(make_engine, payload):
    rig = make_engine()
    client, conn = rig.connected(buffers=16384)
    data = payload(1 << 20)

    async def send() -> None:
        await conn.send(data)
        await conn.send(b"end")

    sending = asyncio.ensure_future(send())
    assert await client.read(len(data) + 3) == data + b"end"
    await sending
    conn.close()


async def test_closing_a_connection_wakes_up_who_waits_on_it(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()

    async def receive() -> None:
        await conn.recv()

    receiving = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    conn.close()
    with pytest.raises(OSError):
        await asyncio.wait_for(receiving, PATIENCE)
    with pytest.raises(OSError):
        await conn.recv()


async def test_a_cancelled_recv_loses_nothing(make_engine):
    rig = make_engine()
    client, conn = rig.connected()

    async def receive() -> bytes:
        return await conn.recv()

    receiving = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    await client.send(b"later")
    assert await asyncio.wait_for(receive(), 5) == b"later"
    conn.close()


async def test_a_listener_that_comes_while_all_sessions_are_taken(make_engine):
    """The others are not forgotten when there is room again."""
    rig = make_engine(max_sessions=1)
    address, introduced = listening(rig)
    first, waiting = rig.connect(address), rig.connect(address)
    await waiting.send(b"x")
    await rig.until(lambda: rig.engine.counters()["accept_pauses"] == 1, "it accepts no more")
    listening(rig)
    first.close()
    await rig.until(lambda: introduced, "the one that waited is served")
    assert await introduced[0].recv() == b"x"
    assert introduced[0].peer == waiting.sock.getsockname()
    introduced[0].close()
    await rig.at_rest()


async def test_ipv6_and_mapped_peers(make_engine):
    rig = make_engine()
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen(10)
    port = listener.getsockname()[1]
    introduced = []
    rig.engine.listen(listener, introduced.append)
    for number, host in enumerate(["127.0.0.1", "::1"]):
        client = rig.connect((host, port))
        await client.send(b"x")
        await rig.until(lambda number=number: len(introduced) > number, "introduced")
        assert introduced[number].peer == client.sock.getsockname()[:2]
        assert introduced[number].sockname == (host, port)


async def test_several_listeners(make_engine):
    rig = make_engine()
    places = [listening(rig) for _ in range(3)]
    for number, (address, introduced) in enumerate(places):
        client = rig.connect(address)
        await client.send(b"%d" % number)
        await rig.until(lambda introduced=introduced: introduced, "introduced at its listener")
        assert await introduced[0].recv() == b"%d" % number


async def test_a_client_beyond_the_limit_waits_until_there_is_room(make_engine, calm):
    rig = make_engine(max_sessions=3)
    address, introduced = listening(rig)
    clients = [rig.connect(address) for _ in range(6)]
    for client in clients:
        await client.send(b"hello")
    await rig.until(lambda: len(introduced) == 3, "three introduced")
    await rig.until(lambda: rig.engine.counters()["accept_pauses"] >= 1, "accepting paused")
    await calm()
    assert rig.engine.sessions == 3
    assert len(introduced) == 3
    for number in range(3):
        introduced[number].close()
        await rig.until(lambda number=number: len(introduced) == 4 + number, "the next one")
        assert rig.engine.sessions == 3
    assert [await conn.recv() for conn in introduced[3:]] == [b"hello"] * 3


async def test_a_relayed_session_keeps_its_place_until_it_ends(make_engine):
    rig = make_engine(max_sessions=1)
    address, introduced = listening(rig)
    first, second = rig.connect(address), rig.connect(address)
    await first.send(b"1")
    await second.send(b"2")
    await rig.until(lambda: introduced, "the first introduced")
    remote, far = rig.connected()
    rig.engine.relay(introduced[0], far, "flow", await introduced[0].recv())
    assert await remote.read(1) == b"1"
    assert rig.engine.sessions == 1
    assert len(introduced) == 1
    first.close()
    remote.close()
    await rig.until(lambda: len(introduced) == 2, "the second introduced")
    assert await introduced[1].recv() == b"2"


async def test_stop_listening_leaves_sessions_alone(make_engine):
    rig = make_engine()
    address, introduced = listening(rig)
    client = rig.connect(address)
    await client.send(b"hello")
    await rig.until(lambda: introduced, "introduced")
    rig.engine.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        rig.connect(address)
    assert await introduced[0].recv() == b"hello"
    await introduced[0].send(b"still here")
    assert await client.read(10) == b"still here"


# -- out of descriptors --------------------------------------------------------


class Starved:
    """The program that has few descriptors, and what can be seen of it from outside."""

    def __init__(self, process) -> None:
        self.process = process
        self.address = ("127.0.0.1", int(process.stdout.readline()))

    def pauses(self) -> int:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def complaints(self) -> int:
        return self.process.log.read_text().count("\n")

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)


def speak(client: socket.socket, word: bytes) -> bytes:
    """What the session behind ``client`` answers."""
    client.sendall(word)
    if not select.select([client], [], [], PATIENCE)[0]:
        pytest.fail("no answer")
    return client.recv(100)


def test_out_of_descriptors(engine_name, program):
    starved = Starved(program("starved_of_descriptors", engine_name))
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            sock = stack.enter_context(socket.create_connection(starved.address, PATIENCE))
            sock.settimeout(PATIENCE)
            return sock

        old = connect()
        assert speak(old, b"before") == b"before"
        crowd = [connect() for _ in range(100)]
        wait_until(lambda: starved.complaints() > 0, "it notices", PATIENCE)
        # It stays like this for a while: the old session is served all the time.
        began, pauses = time.monotonic(), starved.pauses()
        cpu, lines = starved.cpu_seconds(), starved.complaints()
        while time.monotonic() < began + 2.5:
            assert speak(old, b"meanwhile") == b"meanwhile"
            time.sleep(0.1)
        cpu, lines = starved.cpu_seconds() - cpu, starved.complaints() - lines
        pauses = starved.pauses() - pauses
        lasted = time.monotonic() - began
        assert pauses > lasted, "accepting rests for longer than a second"
        assert lines <= lasted + 1, starved.process.log.read_text()
        assert cpu < lasted / 5
        for sock in crowd:
            sock.close()

        def serves_again() -> bool:
            # Those who come before the crowd has left may have to go, too.
            with contextlib.suppress(ConnectionError):
                return speak(connect(), b"relief") == b"relief"
            return False

        wait_until(serves_again, "accepting goes on", PATIENCE)
        assert speak(old, b"after") == b"after"
    starved.process.communicate(timeout=PATIENCE)
    assert starved.process.returncode == 0, starved.process.log.read_text()


@pytest.mark.linux  # elsewhere one that listens cannot be shut down
async def test_a_listener_that_others_have_shut_down_is_tried_now_and_then(make_engine):
    """As who has it in common may do. It is ready for ever, and nobody is to be had; others
    have their turns."""
    rig = make_engine()
    listener = socket.create_server(("127.0.0.1", 0))
    with listener.dup() as common:
        rig.engine.listen(listener, lambda conn: None)
        common.shutdown(socket.SHUT_RDWR)
    await rig.until(lambda: rig.engine.counters()["accept_pauses"] > 3, "tried again")
    assert rig.engine.counters()["accept_pauses"] < 10
    address, introduced = listening(rig)
    client = rig.connect(address)
    await client.send(b"x")
    await rig.until(lambda: introduced, "the other listener serves")
    assert await introduced[0].recv() == b"x"


@pytest.mark.parametrize("failure", [RuntimeError("p"), asyncio.CancelledError()], ids=["", "bare"])
async def test_a_client_whose_introduction_fails_takes_no_others_along(make_engine, failure):
    """Those that were ready in the same turn, of which nothing more would be heard. It is
    closed itself, as nobody else would do it."""
    rig = make_engine()
    introduced = []

    def on_client(conn) -> None:
        introduced.append(conn)
        if len(introduced) == 1:
            raise failure

    rig.loop.set_exception_handler(lambda loop, context: None)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    rig.engine.listen(listener, on_client)
    clients = [rig.connect(address) for _ in range(6)]
    await rig.until(lambda: rig.engine.sessions == 6, "all accepted")
    for number, client in enumerate(clients):
        client.sock.send(b"%d" % number)
    await rig.until(lambda: len(introduced) == 6, "all introduced")
    said = {await conn.recv() for conn in introduced[1:]}
    assert len(said & {b"%d" % number for number in range(6)}) == 5, "each of the others is served"
    assert rig.engine.sessions == 5
    for conn in introduced:
        conn.close()
