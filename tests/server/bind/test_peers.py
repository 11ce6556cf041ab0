# BIND as a client, the peer it waits for, and strangers see it: two replies to the octet,
# and a port that only the right peer gets into.

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys

import pytest

from fastsocks import addresses
from fastsocks import bind as binding
from support.bind import GREETED, STRANGER, relays, second
from support.namespaces import bare_network
from support.programs import need
from support.system import refuses

LINK_LOCAL = """
import subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "-6", "addr", "add", "fe80::7/64", "dev", "lo"], check=True)
from fastsocks.routes import source_towards
print(source_towards("fe80::7%lo"))
"""

# -- the two replies -------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_socks5(offer, dial, say, books, host):
    async with offer(listen=["127.0.0.1:0", "[::1]:0"]) as server:
        ledger = books(server)
        client = await dial(server, 1 if ":" in host else 0)
        assert await client.ask(say.no_login, 2) == GREETED
        size = 22 if ":" in host else 10
        reply = await client.ask(say.socks5(host, 1, command=2), size)
        assert client.has_come_in(2)
        port = int.from_bytes(reply[-2:])
        assert reply == say.socks5(host, port, command=0)
        assert port not in (0, server.addresses[0][1])
        peer = await dial((host, port))
        assert await client.exactly(size) == say.socks5(*peer.name, command=0)
        assert client.has_come_in(3)
        await relays(client, peer)
        client.close()
        peer.close()
        assert await ledger.outstanding() == {}


@pytest.mark.linux  # for its namespace
def test_the_address_towards_a_link_local_peer_has_its_scope():
    """Without it nothing can listen there."""
    need("ip")
    script = [sys.executable, "-c", LINK_LOCAL]
    told = subprocess.run([*bare_network(), *script], check=True, capture_output=True, timeout=60)
    assert told.stdout == b"fe80::7%1\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "peer.test"], ids=["4", "4a"])
async def test_socks4(server, dial, say, names, books, host):
    names.answers["peer.test"] = ["::1", "127.0.0.1"]
    ledger = books(server)
    client = await dial(server)
    reply = await client.ask(say.socks4(host, 1, b"me", command=2), 8)
    assert client.has_come_in(1)
    port = int.from_bytes(reply[2:4])
    assert reply == b"\x00\x5a" + port.to_bytes(2) + b"\x7f\x00\x00\x01"
    peer = await dial(("127.0.0.1", port))
    second_reply = b"\x00\x5a" + peer.name[1].to_bytes(2) + b"\x7f\x00\x00\x01"
    assert await client.exactly(8) == second_reply
    assert client.has_come_in(2)
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
        (["::1", "127.0.0.1"], "::1"),  # the one that CONNECT would take
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


async def test_peer_with_an_address_it_may_not_have(offer, bind5, dial, names, monkeypatch):
    """That one is left out, as for CONNECT."""
    monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    names.answers["peer.test"] = ["127.0.0.7", "::1", "fd00::1"]
    async with offer(allow=["::1/128"]) as server:
        client, place = await bind5(server, "peer.test")
        peer = await dial(place)
        assert place[0] == "::1"
        assert await second(client) == peer.name


@pytest.mark.parametrize("settings", [{"source": "127.0.0.1"}, {"prefer": "ipv4-only"}], ids=str)
async def test_peer_of_a_family_that_is_not_used(offer, dial, say, settings):
    async with offer(**settings) as server:
        client = await dial(server)
        await client.send(say.no_login + say.socks5("::1", 1, command=2))
        assert (await client.to_end())[:4] == GREETED + b"\x05\x08"


@pytest.mark.linux  # elsewhere 127.0.0.4 is an alias, which is reached from itself
async def test_it_listens_where_its_peer_reaches_it(offer, bind5, dial):
    """That need not be where the client does, as on a host with two networks: here the
    kernel goes to all of loopback from 127.0.0.1, and the client came to 127.0.0.3."""
    async with offer(listen=["127.0.0.3:0"]) as server:
        client, place = await bind5(server, "127.0.0.4")
        assert place[0] == "127.0.0.1"
        peer = await dial(place, source="127.0.0.4")
        assert await second(client) == peer.name
        await relays(client, peer)


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
    assert refuses(place)
    await peer.send(b"still here")
    assert await client.receive() == b"still here"


async def test_strangers_take_nothing_of_the_time(offer, bind5, dial):
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


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize(
    ("settings", "own"),
    [({"source": "127.0.0.3"}, "127.0.0.3"), ({"source": "::1"}, "::1")],
    ids=["-b ipv4", "-b ipv6"],
)
async def test_anyone_comes_by_a_family_that_is_used(
    offer, bind5, dial, say, settings, own, host, listen
):
    """Whatever family the client's connection has, and whatever it asks for."""
    async with offer(bind_anyone=True, listen=[listen], **settings) as server:
        client, place = await bind5(server, host)
        assert place[0] == own
        peer = await dial(place)
        assert await second(client) == peer.name
        four = await dial(server)
        granted = (await four.ask(say.socks4("0.0.0.0", 0, command=2), 8))[:2] == b"\x00\x5a"
        assert granted == (":" not in own)


async def test_anyone_with_both_families_comes_by_the_one_asked_for(offer, bind5):
    async with offer(bind_anyone=True, source=["127.0.0.3", "::1"]) as server:
        for host, own in (("0.0.0.0", "127.0.0.3"), ("::", "::1")):
            _, place = await bind5(server, host)
            assert place[0] == own


async def test_anyone_where_no_family_is_to_be_had(offer, dial, say):
    async with offer(bind_anyone=True, listen=["[::1]:0"], prefer="ipv4-only") as server:
        client = await dial(server)
        assert await client.ask(say.no_login, 2) == GREETED
        await client.send(say.socks5("0.0.0.0", 1, command=2))
        assert await client.to_end() == say.failed(8)


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
