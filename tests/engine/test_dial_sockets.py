# Shows what socket dial() makes: from which address, to which, with which options.
#
# Must not know: which engine it is.

from __future__ import annotations

import errno
import socket

import pytest

from support.system import option_of

IP_BIND_ADDRESS_NO_PORT = 24  # Linux; the socket module has no name for it


async def test_small_writes_are_not_held_back(make_engine):
    """As Nagle's algorithm would, until the one before is acknowledged."""
    rig = make_engine()
    _client, conn = rig.connected()
    remote = await rig.engine.dial(conn, rig.listener().getsockname(), None, 10)
    assert option_of(remote.sockname, remote.peer, socket.IPPROTO_TCP, socket.TCP_NODELAY)
    remote.close()
    conn.close()


@pytest.mark.linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_source_address_uses_up_no_port(make_engine, host):
    """The kernel chooses the port at connect(), when it knows the remote: reserved by
    bind(), it would be taken for every remote, and there are 28,000."""
    rig = make_engine()
    _client, conn = rig.connected()
    listener = rig.listener(host)
    remote = await rig.engine.dial(conn, listener.getsockname()[:2], host, 10)
    assert option_of(remote.sockname, remote.peer, socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT)
    remote.close()
    conn.close()


@pytest.mark.parametrize(
    ("source", "reason"),
    [("192.0.2.1", errno.EADDRNOTAVAIL), ("::1", errno.EAFNOSUPPORT)],
)
async def test_a_source_address_that_cannot_be_used(make_engine, source, reason):
    rig = make_engine()
    _client, conn = rig.connected()
    listener = rig.listener()
    with pytest.raises(OSError) as raised:
        await rig.engine.dial(conn, listener.getsockname(), source, 10)
    assert raised.value.errno == reason
    conn.close()
    await rig.at_rest()


async def test_ipv6(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    listener = rig.listener("::1")
    address = listener.getsockname()[:2]
    remote = await rig.engine.dial(conn, address, None, 10)
    accepted, peer = listener.accept()
    rig.hold(accepted)
    assert remote.peer == address
    assert remote.sockname == peer[:2]
    remote.close()


@pytest.mark.linux  # whose kernel takes one for ::1
async def test_the_scope_is_part_of_an_address(make_engine):
    """As a number."""
    rig = make_engine()
    _client, conn = rig.connected()
    port = rig.listener("::1").getsockname()[1]
    remote = await rig.engine.dial(conn, ("::1%1", port), None, 10)
    assert remote.peer == ("::1%1", port)
    assert remote.sockname[0] == "::1"
    remote.close()
    conn.close()


async def test_a_scope_that_does_not_exist_is_an_oserror(make_engine):
    rig = make_engine()
    _client, conn = rig.connected()
    with pytest.raises(OSError):
        await rig.engine.dial(conn, ("fe80::1%no-such-if", 9), None, 1)
    conn.close()
    await rig.at_rest()


@pytest.mark.parametrize("scope", ["99999999999", "\u00b2", "\udc80", "no-such-interface", "0"])
async def test_scope_that_is_none_is_an_error_and_leaks_nothing(make_engine, scope):
    rig = make_engine()
    _client, conn = rig.connected()
    before = rig.descriptors()
    for address, source in ((f"fe80::1%{scope}", None), ("::1", f"fe80::1%{scope}")):
        with pytest.raises(OSError):
            await rig.engine.dial(conn, (address, 9), source, 10)
    assert rig.descriptors() == before
    conn.close()
