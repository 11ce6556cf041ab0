# While a BIND waits: whoever leaves, speaks early, is late or is never there, and whatever
# the system lacks, no octet is lost and nothing is left open.

from __future__ import annotations

import asyncio
import errno
import socket
import time

import pytest

from fastsocks import bind as binding
from fastsocks import server as servers
from support.bind import GREETED, LONG, STRANGER, second
from support.system import refuses


@pytest.mark.parametrize("version", [4, 5])
async def test_nobody_comes(offer, dial, say, books, version):
    async with offer(bind_timeout=0.2) as server:
        ledger = books(server)
        client = await dial(server)
        if version == 4:
            reply = await client.ask(say.socks4("127.0.0.1", 1, command=2), 8)
            place = ("127.0.0.1", int.from_bytes(reply[2:4]))
            assert await client.to_end() == say.failed4
        else:
            assert await client.ask(say.no_login, 2) == GREETED
            reply = await client.ask(say.socks5("127.0.0.1", 1, command=2), 10)
            place = ("127.0.0.1", int.from_bytes(reply[8:]))
            assert await client.to_end() == say.failed(4)
        assert refuses(place)
        client.close()
        assert await ledger.outstanding() == {}


async def test_peer_that_came_in_time_when_the_loop_stood_still(offer, bind5):
    async with offer(bind_timeout=0.3) as server:
        client, place = await bind5(server, "127.0.0.1")
        with socket.create_connection(place) as peer:
            time.sleep(0.6)  # it is the loop that stands still
            assert await second(client) == peer.getsockname()


async def test_longer_than_a_handshake_may_take(offer, bind5, dial):
    async with offer(handshake_timeout=0.2, bind_timeout=0) as server:
        client, place = await bind5(server, "127.0.0.1")
        await asyncio.sleep(0.4)
        peer = await dial(place)
        assert await second(client) == peer.name


@pytest.mark.parametrize("how", ["close", "finish", "reset"])
@pytest.mark.parametrize(
    "ahead",
    # Not more than its window has room for: a FIN that waits behind it is not seen.
    [b"", b"sent ahead", LONG[: binding.EARLY_LIMIT + 4096]],
    ids=["silent", "few", "many"],
)
async def test_client_leaves(offer, bind5, dial, until, books, how, ahead):
    """However much it has sent ahead, and with no limit of time that would end it."""
    async with offer(bind_timeout=0) as server:
        ledger = books(server)
        client, place = await bind5(server, "127.0.0.1")
        assert not await refuses_stranger(dial, place)
        if ahead:
            await client.send(ahead)
            await client.seen()
        getattr(client, how)()
        await until(lambda: server.sessions == 0, "the session has ended")
        assert refuses(place)
        if how == "finish":
            assert await client.ended()
        client.close()
        assert await ledger.outstanding() == {}


async def refuses_stranger(dial, place) -> bool:
    try:
        stranger = await dial(place, source=STRANGER)
    except ConnectionRefusedError:
        return True
    assert await stranger.ended()
    stranger.close()
    return False


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_client_leaves_in_the_turn_in_which_the_peer_comes(server, bind5, until, books, how):
    """And the peer, who stays, keeps nothing open."""
    ledger = books(server)
    for _ in range(20):
        client, place = await bind5(server, "127.0.0.1")
        with socket.socket() as knock:
            knock.setblocking(False)
            with pytest.raises(BlockingIOError):
                knock.connect(place)
            getattr(client, how)()
            await until(lambda: server.sessions == 0, "the session has ended")
    assert await ledger.outstanding() == {}


async def test_octets_sent_ahead_come_first(server, bind5, dial):
    client, place = await bind5(server, "127.0.0.1", more=b"with the request, ")
    await client.send(b"after the reply, ")
    await client.seen()
    await client.send(b"and later, ")
    await client.seen()
    peer = await dial(place)
    assert await second(client) == peer.name
    await client.send(b"and last.")
    said = b"with the request, after the reply, and later, and last."
    assert await peer.exactly(len(said)) == said


async def test_octets_in_the_turn_in_which_the_peer_comes(server, bind5):
    """None is lost between the one who keeps them and the one who relays them."""
    for _ in range(50):
        client, place = await bind5(server, "127.0.0.1")
        with socket.socket() as knock:
            knock.setblocking(False)
            with pytest.raises(BlockingIOError):
                knock.connect(place)
            text = b""
            for number in range(20):
                text += b"%d," % number
                client.sock.send(b"%d," % number)
                await asyncio.sleep(0)
            client.finish()
            said = b""
            async with asyncio.timeout(10):
                while more := await asyncio.get_running_loop().sock_recv(knock, 4096):
                    said += more
            assert said == text
            client.close()


async def test_more_octets_than_are_kept(server, bind5, dial, books):
    """The rest waits in the sockets, and nothing is lost or out of order."""
    ledger = books(server)
    client, place = await bind5(server, "127.0.0.1", more=LONG[:7])
    # By itself it may grow to 4 MB, and would take all of it.
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    sending = asyncio.ensure_future(client.send(LONG[7:] * 20))
    for _ in range(20):
        await client.seen()
    assert not sending.done(), "it has taken 4 MB for a peer that may never come"
    peer = await dial(place)
    assert await second(client) == peer.name
    expected = LONG[:7] + LONG[7:] * 20
    assert await peer.exactly(len(expected)) == expected
    await sending
    client.finish()
    assert await peer.receive() == b""
    client.close()
    peer.close()
    assert await ledger.outstanding() == {}


async def test_peer_that_speaks_and_finishes_at_once(server, bind5, dial, books):
    """As an FTP server in active mode that sends a short file."""
    ledger = books(server)
    client, place = await bind5(server, "127.0.0.1")
    peer = await dial(place)
    await peer.send(b"a short file")
    peer.close()
    assert await second(client) == peer.name
    assert await client.to_end() == b"a short file"
    client.close()
    assert await ledger.outstanding() == {}


async def test_peer_that_resets_at_once(server, bind5, dial, books):
    ledger = books(server)
    client, place = await bind5(server, "127.0.0.1")
    peer = await dial(place)
    name = peer.name
    peer.reset()
    assert await second(client) == name
    assert await client.ended()
    client.close()
    assert await ledger.outstanding() == {}


async def test_server_stops(offer, bind5, descriptors_balance):
    server = offer(bind_timeout=0)
    server.start()
    client, place = await bind5(server, "127.0.0.1")
    await client.send(LONG[:1000])
    before = asyncio.all_tasks()
    async with asyncio.timeout(5):
        await server.stop(0)
    assert len(asyncio.all_tasks()) < len(before)
    assert refuses(place)
    assert await client.ended()
    client.close()


async def test_nothing_can_listen(server, dial, say, monkeypatch, books):
    """Its own trouble is general failure, and harms nobody else."""
    ledger = books(server)

    def fail(host):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(binding, "source_towards", fail)
        client = await dial(server)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5("127.0.0.1", 1, command=2))
        assert await client.to_end() == say.failed(1)
        client.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("settings", "kept_alive"),
    [
        ({}, False),
        ({"allow_bind": True}, False),
        ({"bind_timeout": 0}, False),
        ({"allow_bind": True, "bind_timeout": 0}, True),
        ({"allow_bind": True, "bind_timeout": 7200}, True),
        ({"udp_timeout": 0}, True),
        ({"handshake_timeout": 0}, True),
        ({"idle_timeout": 0}, True),
        ({"half_closed_timeout": 86400}, True),
    ],
    ids=str,
)
async def test_client_that_vanishes_is_found_out(serve, monkeypatch, settings, kept_alive):
    """By the kernel, where no limit of time ends what it has begun."""
    asked = []
    real = servers.bind_all
    monkeypatch.setattr(servers, "bind_all", lambda *what: asked.append(what[1]) or real(*what))
    async with serve(**settings):
        assert asked == [kept_alive]


async def test_peer_that_vanishes_is_found_out(offer, bind5, dial, monkeypatch):
    taken = []
    real = binding.Waiting._on_connection

    def look(self, arrival):
        real(self, arrival)
        taken.append(bool(arrival.result().getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))

    monkeypatch.setattr(binding.Waiting, "_on_connection", look)
    async with offer(idle_timeout=0) as server:
        client, place = await bind5(server, "127.0.0.1")
        peer = await dial(place)
        assert await second(client) == peer.name
    assert taken == [True]


class Starved(socket.socket):
    """A listening socket of a process that has no descriptor left."""

    tries = 0
    starved = True

    def accept(self):
        Starved.tries += 1
        if Starved.starved:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_out_of_descriptors_while_accepting(server, bind5, dial, monkeypatch, until):
    """It rests in between, and goes on when there are some again."""
    monkeypatch.setattr(Starved, "tries", 0)
    monkeypatch.setattr(Starved, "starved", True)
    with monkeypatch.context() as patch:
        patch.setattr(binding.socket, "socket", Starved)
        client, place = await bind5(server, "127.0.0.1")
    peer = await dial(place)
    await until(lambda: Starved.tries >= 2, "accepting is tried again")
    assert Starved.tries < 10, "it spins"
    Starved.starved = False
    assert await second(client) == peer.name
    await peer.send(b"at last")
    assert await client.receive() == b"at last"


class Nameless(socket.socket):
    """A listening socket on macOS, whose first client has reset its connection already."""

    seen = False

    def accept(self):
        peer, address = super().accept()
        first, self.seen = not self.seen, True
        return peer, None if first else address


async def test_connection_that_was_reset_before_it_was_accepted(
    offer, bind5, dial, monkeypatch, books
):
    async with offer(bind_anyone=True) as server:
        ledger = books(server)
        with monkeypatch.context() as patch:
            patch.setattr(binding.socket, "socket", Nameless)
            client, place = await bind5(server, "0.0.0.0")
        nobody = await dial(place)
        assert await nobody.ended()
        peer = await dial(place)
        assert await second(client) == peer.name
        for one in (nobody, client, peer):
            one.close()
        assert await ledger.outstanding() == {}


async def test_connection_that_cannot_be_taken_over(server, bind5, dial, monkeypatch, books):
    """Whatever happens then, no descriptor of it is left."""
    ledger = books(server)
    monkeypatch.setattr(binding.Waiting, "accept", failing_to_adopt(binding.Waiting.accept))
    client, place = await bind5(server, "127.0.0.1")
    peer = await dial(place)
    assert await client.to_end() == b""
    assert await peer.ended()
    client.close()
    peer.close()
    assert await ledger.outstanding() == {}


def failing_to_adopt(accept):
    class Broken:
        def adopt(self, sock):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def accept_with_it(self, client):
        self._engine = Broken()
        return await accept(self, client)

    return accept_with_it
