# The proxy never connects to itself, by whatever address it is asked for: it would be its
# own client for ever. Nor does a client from elsewhere get at what listens beside it.

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastsocks import addresses, routes
from fastsocks.addresses import Judge
from fastsocks.errors import Reply, RuleDenied
from support.denials import LOCAL, STRANGER, denied
from support.namespaces import PATIENCE, own_network
from support.programs import need
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
        assert not routes.leads_here(packed, 1080)


@pytest.mark.parametrize("rest", ["0.0.1", "2.3.4", "128.0.255"])
def test_no_address_upsets_a_wildcard_listener(rest):
    """Link-local addresses of IPv6 are asked for on each link; what begins with the same octet
    in IPv4 is none."""
    for first in range(256):
        for host in (
            f"{first}.{rest}",
            str(ipaddress.ip_address(bytes([first, 0x80, *range(14)]))),
        ):
            why = denied(host, STRANGER, 1080, listeners=[("::", 1080)], allowed=["all"])
            assert ("itself" in why) is (first == 127 and ":" not in host)


OWN = "198.51.100.4/24 198.51.100.5/24 203.0.113.9/32 2001:db8:1::4/64 2001:db8:1::5/64"
LOCAL_PREFIX = "2001:db8:2::/64"
ASK = """
import sys
from fastsocks import addresses, routes
for host in sys.argv[1:]:
    print(host, routes.leads_here(addresses.packed_address(host), 1080))
"""


@pytest.mark.linux  # for its network
def test_addresses_that_the_machine_would_not_send_from_are_its_own_too():
    """The second of a subnet, and all of a prefix that is local as a whole: through those a
    client could nest connections of the proxy to itself, or become one from loopback."""
    ip = need("ip")
    with own_network() as enter:
        for command in (
            *(f"address add {one} dev lo" for one in OWN.split()),
            f"-6 route add local {LOCAL_PREFIX} dev lo",
        ):
            subprocess.run([*enter, ip, *command.split()], check=True, timeout=PATIENCE)
        own = [*(one.partition("/")[0] for one in OWN.split()), "2001:db8:2::77"]
        others = ["198.41.0.4", "2001:db8:3::1"]
        source = str(Path(addresses.__file__).parents[1])
        told = subprocess.run(
            [*enter, "env", f"PYTHONPATH={source}", sys.executable, "-c", ASK, *own, *others],
            check=True,
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
    assert told == [f"{host} {host in own}" for host in (*own, *others)]


CARELESS = """
import sys
from fastsocks.addresses import Judge
from fastsocks.errors import RuleDenied
allowed, client, *hosts = sys.argv[1:]
for host in hosts:
    for datagram in (False, True):
        try:
            Judge(allowed.split(), ()).judge(client, host, 80, datagram)
        except RuleDenied as error:
            print(host, "no", error.reason)
        else:
            print(host, "yes")
"""
PUBLIC, PUBLIC_PREFIX, NEIGHBOUR = "198.41.0.4", "2001:4860:1::/64", "198.41.0.9"
PUBLIC_SPELLINGS = (PUBLIC, f"::ffff:{PUBLIC}", f"64:ff9b::{PUBLIC}", "2001:4860:1::77")


@pytest.fixture
def told():
    """``told(allowed, client, hosts)``: whether that client reaches these, on a machine with
    public addresses; twice each, by TCP and UDP."""
    ip = need("ip")
    with own_network() as enter:
        for command in (
            f"address add {PUBLIC}/24 dev lo",
            f"-6 route add local {PUBLIC_PREFIX} dev lo",
        ):
            subprocess.run([*enter, ip, *command.split()], check=True, timeout=PATIENCE)

        def ask(allowed, client, *hosts):
            source = str(Path(addresses.__file__).parents[1])
            python = [*enter, "env", f"PYTHONPATH={source}", sys.executable, "-c"]
            asked = [*python, CARELESS, allowed, client, *hosts]
            return subprocess.run(
                asked, check=True, timeout=PATIENCE, capture_output=True, text=True
            ).stdout.splitlines()

        yield ask


@pytest.mark.linux  # for its network
def test_a_client_from_elsewhere_does_not_reach_what_a_firewall_may_keep_from_it(told):
    """By the public addresses of the machine, where rules for the network outside see nothing."""
    for line, host in zip(
        told("", NEIGHBOUR, *PUBLIC_SPELLINGS),
        [host for host in PUBLIC_SPELLINGS for _ in range(2)],
        strict=True,
    ):
        assert line == f"{host} no {host} is an address of this machine; needs --allow own"
    for client, allowed in (
        ("127.0.0.1", ""),
        (NEIGHBOUR, "own"),
        (NEIGHBOUR, "all"),
        (NEIGHBOUR, f"{PUBLIC}/32 {PUBLIC_PREFIX}"),
    ):
        lines = told(allowed, client, *PUBLIC_SPELLINGS)
        assert {line.split()[1] for line in lines} == {"yes"}, (client, allowed)
    assert {line.split()[1] for line in told("", NEIGHBOUR, "198.41.1.4", "8.8.8.8")} == {"yes"}
    assert told("own", NEIGHBOUR, LOCAL)[0].startswith(f"{LOCAL} no "), "loopback is a range"


def test_an_address_that_becomes_the_machine_s_is_its_own_within_a_second(monkeypatch):
    now, kinds, asked = [0.0], {}, []
    monkeypatch.setattr(routes, "leads_here", lambda packed, _: asked.append(1) or packed in kinds)
    here = routes.Here(lambda: now[0])
    assert not here.is_led_to(b"four")
    kinds[b"four"] = True
    assert not here.is_led_to(b"four")
    assert len(asked) == 1, "not for each session"
    now[0] += routes.FRESH
    assert here.is_led_to(b"four")
    for number in range(2 * routes.ANSWERS_MAX):
        here.is_led_to(number.to_bytes(16))
        assert len(here) <= routes.ANSWERS_MAX


@pytest.mark.parametrize("client", [LOCAL, STRANGER])
def test_where_there_is_no_descriptor_to_ask_with_nothing_is_guessed(monkeypatch, client):
    def exhausted(*_):
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(routes.socket, "socket", exhausted)
    with pytest.raises(RuleDenied, match="cannot be told: Too many open files") as raised:
        Judge([], [("0.0.0.0", 1080)]).judge(client, "8.8.8.8", 1080)
    assert raised.value.reply is Reply.GENERAL_FAILURE


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
