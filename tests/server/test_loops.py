# The proxy never connects to itself, by whatever address it is asked for: it would be its
# own client for ever. Nor does a client from elsewhere get at what listens beside it.

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import sys

import pytest

from fastsocks import addresses
from support.denials import LOCAL, STRANGER, denied
from support.system import said


@pytest.mark.parametrize(
    ("listener", "host", "itself"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "64:ff9b::127.0.0.1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::1", "::1", True),
        ("::1", "0:0::0:1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "127.9.9.9", True),
        ("0.0.0.0", "::1", False),
        ("::ffff:0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::", "8.8.8.8", False),
        ("0.0.0.0", "8.8.8.8", False),
    ],
)
def test_the_proxy_does_not_connect_to_itself(listener, host, itself):
    listeners = [(listener, 1080)]
    assert bool(denied(host, LOCAL, 1080, listeners=listeners)) is itself
    if itself:
        assert "this proxy itself" in denied(host, LOCAL, 1080, listeners=listeners)
        assert "this proxy itself" in denied(
            host, STRANGER, 1080, listeners=listeners, allowed=["all"]
        )
    assert not denied(host, LOCAL, 1081, listeners=listeners), "another port is another server"


def test_what_listens_in_one_family_only_is_no_server_of_the_other():
    listeners = [("127.0.0.1", 1080), ("::", 1080)]
    for host, itself in (("127.0.0.1", True), ("127.0.0.2", False), ("::1", True)):
        assert bool(denied(host, LOCAL, 1080, listeners=listeners)) is itself


def own_addresses() -> list[str]:
    """Of this machine, beyond loopback, by the tables of the kernel."""
    if sys.platform != "linux":
        # Without those of a link, which there may be one of for each tunnel that leads nowhere.
        found = set(re.findall(r"inet6? ([0-9a-f.:]+)", said("ifconfig")))
        return sorted(one for one in found if not one.startswith(("127.", "::1", "fe80:")))
    with open("/proc/net/fib_trie") as trie:
        lines = trie.read().split("\n")
    four = {
        before.split()[-1]
        for before, line in itertools.pairwise(lines)
        if "/32 host LOCAL" in line and not before.split()[-1].startswith("127.")
    }
    with contextlib.suppress(FileNotFoundError), open("/proc/net/if_inet6") as table:
        six = {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row.split()[0])) for row in table}
        return [*sorted(four), *sorted(six - {"::1"})]
    return sorted(four)


def test_every_address_of_the_machine_is_itself_to_a_wildcard_listener():
    for host in (LOCAL, *own_addresses()):
        assert "itself" in denied(host, LOCAL, 1080, listeners=[("::", 1080)])
        if ":" not in host:
            assert "itself" in denied(host, LOCAL, 1080, listeners=[("0.0.0.0", 1080)])
    for host in ("198.41.0.4", "2001:4860::1", "fe80::5:6:7:8"):
        packed = addresses.packed_address(host)
        assert packed is not None
        assert not addresses.is_of_this_machine(packed, 1080)


# -- through the server ----------------------------------------------------------


async def test_loop_through_the_server(server, dial, say):
    host, port = server.addresses[0]
    client = await dial(server)
    await client.send(say.no_login + say.socks5(host, port))
    assert (await client.to_end())[2:] == say.failed(2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"])
async def test_loop_through_a_wildcard_listener(serve, dial, say, host):
    async with serve(listen=["[::]:0"], open=True) as server:
        port = server.addresses[0][1]
        client = await dial(("127.0.0.1", port))
        await client.send(say.no_login + say.socks5(host, port))
        assert (await client.to_end())[2:] == say.failed(2)


@pytest.mark.parametrize("host", [LOCAL, *(one for one in own_addresses() if ":" not in one)])
async def test_a_client_from_elsewhere_does_not_reach_this_machine(
    serve, dial, say, echo, monkeypatch, host
):
    """Its address need not be far away: any but loopback is elsewhere. As not every
    machine has another one, the judge is made to think so of loopback too."""
    if host == LOCAL:
        monkeypatch.setattr(addresses, "is_loopback", lambda host: False)
    async with serve(listen=["0.0.0.0:0"], open=True) as server:
        client = await dial((host, server.addresses[0][1]))
        await client.send(say.no_login + say.socks5("127.0.0.1", echo.port))
        assert (await client.to_end())[2:] == say.failed(2)
        assert echo.peers == []
