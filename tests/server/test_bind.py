# BIND as a client, the peer it waits for, and strangers see it: two replies to the octet,
# a port that only the right peer gets into, and nothing that is left open when one of
# them leaves, whenever that is.

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import socket

import pytest

from fastsocks import addresses
from fastsocks import bind as binding
from fastsocks import server as servers

STRANGER = "127.0.0.2"
GREETED = b"\x05\x00"
# More than a client may send ahead, so that it has to wait in the sockets.
LONG = bytes(range(256)) * 800


@pytest.fixture
def offer(serve):
    """A server that offers BIND. Copying, as spliced pipes are kept for the next."""
    return functools.partial(serve, allow_bind=True, relay="copy")


@pytest.fixture
async def server(offer):
    async with offer() as running:
        yield running


@pytest.fixture
def bind5(dial, say):
    """``await bind5(server, host)``: (client, where its peer has to connect to)."""

    async def ask(server, host, port=1, which=0, more=b""):
        client = await dial(server, which)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5(host, port, command=2) + more)
        head = await client.exactly(4)
        assert head[:3] == b"\x05\x00\x00", head
        return client, await address(client, head[3])

    return ask


async def address(client, atyp: int) -> tuple[str, int]:
    size, family = {1: (4, socket.AF_INET), 4: (16, socket.AF_INET6)}[atyp]
    rest = await client.exactly(size + 2)
    return socket.inet_ntop(family, rest[:size]), int.from_bytes(rest[size:])


async def second(client) -> tuple[str, int]:
    """Who has come, as the second reply says."""
    head = await client.exactly(4)
    assert head[:3] == b"\x05\x00\x00", head
    return await address(client, head[3])


async def refuses(dial, place) -> bool:
    try:
        knock = await dial(place)
    except ConnectionRefusedError:
        return True
    knock.close()
    return False


async def relays(client, peer) -> None:
    """Byte-exact each way, and half-closed each way."""
    await client.send(b"hello")
    assert await peer.exactly(5) == b"hello"
    await asyncio.gather(client.send(LONG), peer.send(LONG[::-1]))
    assert await peer.exactly(len(LONG)) == LONG
    client.finish()
    assert await client.exactly(len(LONG)) == LONG[::-1]
    assert await peer.receive() == b""
    await peer.send(b"after your end")
    peer.finish()
    assert await client.to_end() == b"after your end"


# -- the two replies -------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_socks5(offer, dial, say, books, host):
    async with offer(listen=["127.0.0.1:0", "[::1]:0"]) as server:
        ledger = books(server)
        client = await dial(server, 1 if ":" in host else 0)
        assert await client.ask(say.no_login, 2) == GREETED
        size = 22 if ":" in host else 10
        reply = await client.ask(say.socks5(host, 1, command=2), size)
        assert client.data_segments() == 2
        port = int.from_bytes(reply[-2:])
        assert reply == say.socks5(host, port, command=0)
        assert port not in (0, server.addresses[0][1])
        peer = await dial((host, port))
        assert await client.exactly(size) == say.socks5(*peer.name, command=0)
        assert client.data_segments() == 3
        await relays(client, peer)
        client.close()
        peer.close()
        assert await ledger.outstanding() == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "peer.test"], ids=["4", "4a"])
async def test_socks4(server, dial, say, names, books, host):
    names.answers["peer.test"] = ["::1", "127.0.0.1"]
    ledger = books(server)
    client = await dial(server)
    reply = await client.ask(say.socks4(host, 1, b"me", command=2), 8)
    assert client.data_segments() == 1
    port = int.from_bytes(reply[2:4])
    assert reply == b"\x00\x5a" + port.to_bytes(2) + b"\x7f\x00\x00\x01"
    peer = await dial(("127.0.0.1", port))
    second_reply = b"\x00\x5a" + peer.name[1].to_bytes(2) + b"\x7f\x00\x00\x01"
    assert await client.exactly(8) == second_reply
    assert client.data_segments() == 2
    await relays(client, peer)
    client.close()
    peer.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("found", "source"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.7", "127.0.0.8", "::1"], "127.0.0.8"),
        (["::1"], "::1"),  # and the reply is in this family, although a name has none
    ],
)
async def test_peer_by_name(server, bind5, dial, names, found, source):
    names.answers["peer.test"] = found
    client, place = await bind5(server, "peer.test")
    peer = await dial(place, source=source)
    assert await second(client) == peer.name
    await relays(client, peer)


async def test_peer_that_is_written_as_ipv4_in_ipv6(server, bind5, dial):
    client, place = await bind5(server, "::ffff:127.0.0.1")
    assert place[0] == "127.0.0.1"
    peer = await dial(place)
    assert await second(client) == peer.name


async def test_client_of_a_listener_for_both_families(offer, bind5, dial):
    """To whom the kernel gives an IPv4-mapped address, on both ends."""
    async with offer(bind_anyone=True, listen=["[::]:0"], open=True) as server:
        server.addresses[0] = ("127.0.0.1", server.addresses[0][1])
        for host in ("127.0.0.1", "0.0.0.0"):
            client, place = await bind5(server, host)
            assert place[0] == "127.0.0.1"
            peer = await dial(place)
            assert await second(client) == peer.name


async def test_socks4_cannot_tell_an_ipv6_address(server, dial, say, names, books):
    """0.0.0.0 would send the peer to where nobody listens."""
    names.answers["peer.test"] = ["::1"]
    ledger = books(server)
    client = await dial(server)
    await client.send(say.socks4("peer.test", 1, command=2))
    assert await client.to_end() == say.failed4
    client.close()
    assert await ledger.outstanding() == {}


async def test_source_address_is_where_it_listens(offer, bind5, dial):
    async with offer(source="127.0.0.9") as server:
        client, place = await bind5(server, "127.0.0.1")
        assert place[0] == "127.0.0.9"
        peer = await dial(place, source="127.0.0.1")
        assert await second(client) == peer.name


@pytest.mark.parametrize("source", ["0.0.0.0", "::"])
async def test_source_address_that_is_none(offer, bind5, dial, source):
    """Nobody can connect to it, so it is not told to anybody."""
    async with offer(source=source) as server:
        client, place = await bind5(server, "::1" if ":" in source else "127.0.0.1")
        assert place[0] == ("::1" if ":" in source else "127.0.0.1")
        peer = await dial(place)
        assert await second(client) == peer.name


async def test_two_at_once_have_two_ports(server, bind5, dial):
    both = [await bind5(server, "127.0.0.1") for _ in range(2)]
    assert both[0][1] != both[1][1]
    for client, place in reversed(both):
        peer = await dial(place)
        assert await second(client) == peer.name
        await peer.send(b"for you")
        assert await client.receive() == b"for you"


# -- who may connect -------------------------------------------------------------


async def test_strangers_are_dropped_and_the_peer_gets_in(server, bind5, dial):
    client, place = await bind5(server, "127.0.0.1")
    for _ in range(binding.BACKLOG * 2):
        stranger = await dial(place, source=STRANGER)
        await stranger.send(b"let me in")
        assert await stranger.ended()
    peer = await dial(place)
    assert await second(client) == peer.name
    await peer.send(b"it is me")
    assert await client.receive() == b"it is me"


async def test_only_the_first_connection_of_the_peer_counts(server, bind5, dial):
    client, place = await bind5(server, "127.0.0.1")
    peer = await dial(place)
    assert await second(client) == peer.name
    assert await refuses(dial, place)
    await peer.send(b"still here")
    assert await client.receive() == b"still here"


async def test_strangers_take_nothing_of_the_time(offer, bind5, dial, until):
    """Nor do they add to it: they keep coming, and it ends all the same."""
    async with offer(bind_timeout=0.5) as server:
        client, place = await bind5(server, "127.0.0.1")
        strangers = asyncio.ensure_future(knock_from(dial, place))
        assert await client.to_end() == b"\x05\x04\x00\x01" + bytes(6)
        assert await strangers > 1


async def knock_from(dial, place) -> int:
    """How many strangers came, until nobody listened any more."""
    for count in itertools.count():
        try:
            stranger = await dial(place, source=STRANGER)
        except ConnectionRefusedError:
            return count
        assert await stranger.ended()
        stranger.close()
        await asyncio.sleep(0.01)
    raise AssertionError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "nowhere.test"])
async def test_no_peer_named(server, dial, say, names, host):
    names.answers["nowhere.test"] = ["0.0.0.0"]
    client = await dial(server)
    assert await client.ask(say.no_login, 2) == GREETED
    await client.send(say.socks5(host, 1, command=2))
    assert await client.to_end() == say.failed(2)
    if ":" not in host:
        four = await dial(server)
        await four.send(say.socks4(host, 1, command=2))
        assert await four.to_end() == say.failed4


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("which", [0, 1], ids=["from ipv4", "from ipv6"])
async def test_anyone_may_come_where_the_operator_says_so(offer, bind5, dial, host, which):
    """To the address that the client came to, whose family need not be the request's."""
    listen = ["127.0.0.3:0", "[::1]:0"]
    async with offer(bind_anyone=True, listen=listen) as server:
        client, place = await bind5(server, host, which=which)
        assert place[0] == ("127.0.0.3", "::1")[which]
        peer = await dial(place, source=("127.0.0.4", "::1")[which])
        assert await second(client) == peer.name
        await relays(client, peer)


async def test_anyone_may_come_to_a_client_of_socks4(offer, dial, say):
    async with offer(bind_anyone=True) as server:
        client = await dial(server)
        reply = await client.ask(say.socks4("0.0.0.0", 0, command=2), 8)
        assert (reply[:2], reply[4:]) == (b"\x00\x5a", b"\x7f\x00\x00\x01")
        peer = await dial(("127.0.0.1", int.from_bytes(reply[2:4])), source="127.0.0.4")
        assert await client.exactly(8) == b"\x00\x5a" + peer.name[1].to_bytes(2) + b"\x7f\0\0\x04"


async def test_off_unless_it_is_allowed(serve, dial, say):
    async with serve() as server:
        client = await dial(server)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5("127.0.0.1", 1, command=2))
        assert await client.to_end() == say.failed(7)
        four = await dial(server)
        await four.send(say.socks4("127.0.0.1", 1, command=2))
        assert await four.to_end() == say.failed4


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "::1", "peer.test"])
async def test_peer_that_the_client_may_not_have(server, dial, say, names, monkeypatch, host):
    """From elsewhere than loopback, which the judge is made to think."""
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    names.answers["peer.test"] = ["192.88.99.1", "10.1.2.3"]
    client = await dial(server)
    assert await client.ask(say.no_login, 2) == GREETED
    await client.send(say.socks5(host, 1, command=2))
    assert await client.to_end() == say.failed(2)


async def test_peer_in_a_range_that_is_allowed(offer, bind5, dial, monkeypatch):
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    async with offer(allow=["loopback"]) as server:
        client, place = await bind5(server, "127.0.0.1")
        peer = await dial(place)
        assert await second(client) == peer.name


async def test_peer_whose_name_does_not_exist(server, dial, say, names):
    names.answers["peer.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
    client = await dial(server)
    assert await client.ask(say.no_login, 2) == GREETED
    await client.send(say.socks5("peer.test", 1, command=2))
    assert await client.to_end() == say.failed(4)


async def test_peer_whose_name_gets_no_answer(offer, dial, say, names, books):
    """It is given the time that every look-up has, not that of waiting for a peer."""
    names.hang("slow.test")
    async with offer(connect_timeout=0.1, bind_timeout=0) as server:
        ledger = books(server)
        client = await dial(server)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5("slow.test", 1, command=2))
        assert await client.to_end() == say.failed(4)
        client.close()
        names.release()
        assert await ledger.outstanding() == {}


# -- while it waits --------------------------------------------------------------


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
        assert await refuses(dial, place)
        client.close()
        assert await ledger.outstanding() == {}


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
        assert await refuses(dial, place)
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
async def test_client_leaves_in_the_turn_in_which_the_peer_comes(server, bind5, dial, books, how):
    ledger = books(server)
    for _ in range(20):
        client, place = await bind5(server, "127.0.0.1")
        with socket.socket() as knock:
            knock.setblocking(False)
            with pytest.raises(BlockingIOError):
                knock.connect(place)
            getattr(client, how)()
            await asyncio.sleep(0.01)
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


async def test_octets_in_the_turn_in_which_the_peer_comes(server, bind5, dial):
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


async def test_more_octets_than_are_kept(server, bind5, dial, until, books):
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


async def test_server_stops(offer, bind5, dial, descriptors_balance):
    server = offer(bind_timeout=0)
    server.start()
    client, place = await bind5(server, "127.0.0.1")
    await client.send(LONG[:1000])
    before = asyncio.all_tasks()
    async with asyncio.timeout(5):
        await server.stop(0)
    assert len(asyncio.all_tasks()) < len(before)
    assert await refuses(dial, place)
    assert await client.ended()
    client.close()


async def test_nothing_can_listen(server, dial, say, monkeypatch, books):
    """Its own trouble is general failure, and harms nobody else."""
    ledger = books(server)

    def fail(host):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(binding, "address_towards", fail)
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
        taken.append(arrival.result().getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    monkeypatch.setattr(binding.Waiting, "_on_connection", look)
    async with offer(idle_timeout=0) as server:
        client, place = await bind5(server, "127.0.0.1")
        peer = await dial(place)
        assert await second(client) == peer.name
    assert taken == [1]


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
