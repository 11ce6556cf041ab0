# CONNECT that succeeds: every kind of address, the true local address in the reply, a
# reply that comes in one segment and not before the connection stands.

from __future__ import annotations

import asyncio
import socket

import pytest

from support.ends import reset_on_close
from support.system import option_of, refuses

FAMILIES = {1: socket.AF_INET, 4: socket.AF_INET6}  # by ATYP


def bound(reply: bytes) -> tuple[str, int]:
    """BND of a SOCKS5 reply; its address type must fit its length."""
    assert reply[:3] == b"\x05\x00\x00"
    assert (reply[3], len(reply)) in ((1, 10), (4, 22))
    return socket.inet_ntop(FAMILIES[reply[3]], reply[4:-2]), int.from_bytes(reply[-2:], "big")


@pytest.mark.parametrize(
    ("listening", "asked", "told"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.2", "127.0.0.2", None),
        ("127.0.0.1", "localhost", None),
        ("::1", "::1", None),
        # The family of the reply is the request's: an address that does not fit is zero, or
        # IPv4-mapped, and the port is true all the same.
        ("::1", "six.example", "0.0.0.0"),
        ("127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
async def test_reply_names_the_true_local_address(
    server, dial, remote, names, listening, asked, told
):
    names.answers["six.example"] = ["::1"]
    origin = await remote(host=listening)
    client = await dial(server)
    host, port = bound(await client.connect(asked, origin.port))
    assert await client.echoes()
    seen_host, seen_port = origin.peers[0]
    assert port == seen_port
    assert host == (told or seen_host)


@pytest.mark.parametrize("literal", [b"127.0.0.1", b"::1", b"[::1]", b"::ffff:127.0.0.1"])
async def test_address_in_the_name_field(server, dial, remote, literal):
    origin = await remote(host="::1" if literal.strip(b"[]") == b"::1" else "127.0.0.1")
    client = await dial(server)
    request = b"\x05\x01\x00\x03" + bytes((len(literal),)) + literal
    await client.send(b"\x05\x01\x00" + request + origin.port.to_bytes(2, "big"))
    assert (await client.exactly(12))[:6] == b"\x05\x00\x05\x00\x00\x01"
    assert await client.echoes()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_socks4_reply_names_the_true_local_address(server, dial, echo, say, host):
    client = await dial(server)
    reply = await client.ask(say.socks4(host, echo.port, b"somebody"), 8)
    assert reply[:2] == b"\x00\x5a"
    assert await client.echoes()
    assert (socket.inet_ntoa(reply[4:]), int.from_bytes(reply[2:4], "big")) == echo.peers[0]


async def test_source_address(serve, dial, echo):
    async with serve(source="127.0.0.3") as server:
        client = await dial(server)
        reply = await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
        assert bound(reply) == echo.peers[0]
        assert echo.peers[0][0] == "127.0.0.3"


async def test_source_address_of_the_other_family_is_refused(serve, dial, remote, say):
    origin = await remote(host="::1")
    async with serve(source="127.0.0.1") as server:
        client = await dial(server)
        reply = await client.ask(say.no_login + say.socks5("::1", origin.port), 12)
        assert reply == b"\x05\x00" + say.failed(8)
        assert await client.to_end() == b""


@pytest.mark.parametrize("listen", ["[::1]:0", "127.0.0.1:0", "localhost:0"])
async def test_listeners_of_both_families(serve, dial, echo, listen):
    async with serve(listen=[listen]) as server:
        client = await dial(server)
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()


async def test_ipv4_client_of_a_listener_for_both(serve, dial, echo, caplog):
    """[::]:port serves IPv4 too, and calls the client what he is."""
    caplog.set_level("DEBUG", "fastsocks")
    async with serve(listen=["[::]:0"], open=True) as server:
        port = server.addresses[0][1]
        client = await dial(("127.0.0.1", port))
        await client.connect("127.0.0.1", echo.port)
        assert await client.echoes()
    assert f"127.0.0.1:{client.name[1]}" in caplog.text
    assert "::ffff:" not in caplog.text


@pytest.mark.parametrize("ipv4", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("first", ["ipv4", "ipv6"])
async def test_listener_for_both_beside_one_for_ipv4(serve, dial, echo, ipv4, first):
    """On one port, each of its own family; nothing is served that was not asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listen = [f"{ipv4}:{port}", f"[::]:{port}"]
    async with serve(listen=listen if first == "ipv4" else listen[::-1], open=True):
        for host in ("127.0.0.1", "::1"):
            client = await dial((host, port))
            await client.connect("127.0.0.1", echo.port)
            assert await client.echoes()
        assert refuses(("127.0.0.2", port)) is (ipv4 == "127.0.0.1")


async def test_several_listeners(serve, dial, echo):
    async with serve(listen=["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]) as server:
        assert [host for host, _ in server.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
        for which in range(3):
            client = await dial(server, which)
            await client.connect("127.0.0.1", echo.port)
            assert await client.echoes()


async def test_each_reply_is_one_segment(serve, dial, echo, say):
    async with serve(users={"u": "p"}) as server:
        client = await dial(server)
        steps = [
            (b"\x05\x01\x02", 2),
            (say.login(b"u", b"p"), 2),
            (say.socks5("127.0.0.1", echo.port), 10),
        ]
        for number, (message, size) in enumerate(steps, 1):
            await client.send(message)
            assert len(await client.receive()) == size
            assert client.has_come_in(number)


@pytest.mark.parametrize(("host", "size"), [("127.0.0.1", 10), ("::1", 22)])
async def test_the_longest_replies_are_one_segment_too(server, dial, remote, say, host, size):
    origin = await remote(host=host)
    client = await dial(server)
    await client.ask(b"\x05\x01\x00", 2)
    await client.send(say.socks5(host, origin.port))
    assert len(await client.receive()) == size
    assert client.has_come_in(2)


async def test_socks4_reply_is_one_segment(server, dial, echo, say):
    client = await dial(server)
    await client.send(say.socks4("127.0.0.1", echo.port))
    assert len(await client.receive()) == 8
    assert client.has_come_in(1)


async def test_small_replies_are_not_held_back(server, dial):
    """As Nagle's algorithm would, until what went before is acknowledged."""
    client = await dial(server)
    await client.ask(b"\x05\x01\x00", 2)
    between = server.addresses[0], client.name
    assert option_of(*between, socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_no_success_before_the_connection_stands(server, dial, black_hole, say, until):
    client = await dial(server)
    await client.ask(b"\x05\x01\x00", 2)
    await client.send(say.socks5(black_hole.host, black_hole.port))
    await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
    assert client.has_come_in(1)
    black_hole.admit()
    assert (await client.exactly(10))[:4] == b"\x05\x00\x00\x01"


async def test_no_socks4_success_before_the_connection_stands(server, dial, black_hole, say, until):
    client = await dial(server)
    await client.send(say.socks4(black_hole.host, black_hole.port))
    await until(lambda: black_hole.waiting() == 1, "the proxy is connecting")
    assert client.has_come_in(0)
    black_hole.admit()
    assert (await client.exactly(8))[:2] == b"\x00\x5a"


async def test_remote_that_speaks_first(server, dial, remote):
    async def greet(reader, writer):
        writer.write(b"220 welcome\r\n")
        await reader.read()

    origin = await remote(greet)
    client = await dial(server)
    await client.connect("127.0.0.1", origin.port)
    assert await client.exactly(13) == b"220 welcome\r\n"


async def test_remote_that_finishes_at_once(server, dial, remote, books):
    async def leave(reader, writer):
        pass

    origin = await remote(leave)
    ledger = books(server)
    client = await dial(server)
    await client.connect("127.0.0.1", origin.port)
    assert await client.to_end() == b""
    client.close()
    assert await ledger.outstanding() == {}


async def test_remote_that_resets_at_once(server, dial, remote, books):
    async def reset(reader, writer):
        reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()

    origin = await remote(reset)
    ledger = books(server)
    client = await dial(server)
    await client.send(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\1" + origin.port.to_bytes(2, "big"))
    # The reply may be overtaken by the reset, but nothing else may come in its place.
    with pytest.raises(ConnectionResetError):
        await client.to_end()
    client.close()
    assert await ledger.outstanding() == {}


async def test_many_at_once(server, dial, echo, books):
    ledger = books(server)

    async def one(number: int) -> None:
        client = await dial(server)
        await client.connect("127.0.0.1" if number % 2 else "localhost", echo.port)
        assert await client.echoes(b"session %d" % number)
        client.finish()
        assert await client.to_end() == b""
        client.close()

    await asyncio.gather(*map(one, range(100)))
    assert len(echo.peers) == 100
    assert await ledger.outstanding() == {}
