# Which addresses a client may reach: every row of the table by its first and last address
# and the ones beside, every spelling that hides another address, what the operator allows.

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks import addresses
from fastsocks.addresses import TABLE, Judge, Use, reading_of
from support.denials import LOCAL, STRANGER, denied

# The registries as they are published, written down a second time and otherwise than in
# the table: what one of them loses or mistypes, the other has.
REGISTRY = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.0.0.170/32",
    "192.0.0.171/32",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.88.99.2/32",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "::/128",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001::/32",
    "2001:1::1/128",
    "2001:1::2/128",
    "2001:1::3/128",
    "2001:2::/48",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
]
MORE = ["224.0.0.0/4", "ff00::/8", "fec0::/10", "::/96", "::ffff:0:0:0/96", "0.0.0.0/32"]


def edges(network: str) -> tuple[str, str]:
    parsed = ipaddress.ip_network(network)
    return str(parsed[0]), str(parsed[-1])


def row_of(host: str) -> addresses.Range | None:
    """The narrowest row, found the slow way."""
    address = ipaddress.ip_address(host)
    networks = [(ipaddress.ip_network(row.network), row) for row in TABLE]
    holding = [one for one in networks if one[0].version == address.version and address in one[0]]
    return max(holding, key=lambda one: one[0].prefixlen)[1] if holding else None


# -- the table -----------------------------------------------------------------


@pytest.mark.parametrize("network", REGISTRY + MORE)
def test_what_is_registered_is_in_the_table(network):
    assert network in [row.network for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.network)
def test_a_stranger_reaches_a_special_network_only_where_it_is_allowed(row):
    # Python 3.13 and newer write ::ffff:0:0 as ::ffff:0.0.0.0.
    shortest = str(ipaddress.ip_network(row.network)).replace(":0.0.0.0/", ":0:0/")
    assert shortest == row.network, "not in its shortest form"
    assert row.source.startswith("RFC ")
    for host in edges(row.network):
        found = row_of(host)
        if found.use is Use.ALIAS:  # of the address inside, which decides
            inside = row_of(str(ipaddress.IPv4Address(ipaddress.ip_address(host).packed[-4:])))
            assert f"{inside.name} ({inside.network}" in denied(host)
            continue
        assert f"{found.name} ({found.network}" in denied(host)
        allowed_here = found.use is Use.SPECIAL and not found.inside
        assert bool(denied(host, LOCAL)) is not allowed_here or found.inside
        if allowed_here:
            assert denied(host).endswith(f"; needs --allow {found.name}")
            assert not denied(host, allowed=[found.name])
            assert not denied(host, allowed=[found.network])
            assert not denied(host, allowed=["all"])


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.network)
def test_just_outside_a_row(row):
    """The neighbours are judged by what they are themselves."""
    first, last = (ipaddress.ip_address(edge) for edge in edges(row.network))
    highest = 2**first.max_prefixlen - 1
    for number in (int(first) - 1, int(last) + 1):
        if not 0 <= number <= highest:
            continue
        neighbour = str(type(first)(number))
        found = row_of(neighbour)
        if found is None:
            assert denied(neighbour) == ""
        elif found.use is not Use.ALIAS:
            assert f"{found.name} ({found.network}" in denied(neighbour)


ANYWHERE = st.one_of(
    st.ip_addresses(),
    *(st.ip_addresses(network=row.network) for row in TABLE),
)


@given(ANYWHERE)
def test_the_narrowest_row_decides(address):
    """Found by index and mask as it is by trying all of them."""
    expected = row_of(str(address))
    reading = reading_of(str(address))
    assert reading.spellings[0] == address.packed
    if expected is None or expected.use is Use.ALIAS:
        assert all(octets != address.packed for _, octets in reading.ranges)
    else:
        assert reading.ranges[0] == (expected, address.packed)


@given(ANYWHERE, ANYWHERE)
def test_an_address_means_the_same_however_it_is_written(client, address):
    spellings = [str(address), address.exploded, address.exploded.upper()]
    if address.version == 4:
        spellings.append(f"::ffff:{address}")
    for who in (str(client), LOCAL):
        assert len({bool(denied(spelling, who)) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    "host",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2400::",
        "2a00:1450:4001:800::200e",
        "2003::",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_the_rest_of_the_internet_is_open(host):
    assert denied(host) == ""
    assert denied(host, LOCAL) == ""


@pytest.mark.parametrize("host", ["200::1", "4000::1", "fbff::1", "fe00::1", "1fff::1"])
def test_what_was_never_assigned_is_not(host):
    assert "reserved" in denied(host)


# -- spellings -----------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "0:0:0:0:0:FFFF:127.0.0.1",
        "::127.0.0.1",
        "::7f00:2",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:808:808::80ff:fffe",
        "2001:0:7f00:1::f7f7:f7f7",
        "2001:4860::5efe:127.0.0.1",
        "2001:4860::200:5efe:10.0.0.1",
        "fe80::5efe:10.0.0.1",
        "fec0::1",
        "fe80::1%2",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "64:ff9b::",
    ],
)
def test_no_spelling_hides_what_it_reaches(host):
    assert denied(host)


@pytest.mark.parametrize(
    ("host", "outer", "inner"),
    [
        ("2002:7f00:1::", "6to4", "loopback"),
        ("2002:e000:1::", "6to4", "multicast"),
        ("64:ff9b:1::10.0.0.1", "nat64-local", "private"),
        ("::10.0.0.1", "ipv4-compatible", "private"),
        ("::ffff:0:10.0.0.1", "ipv4-translated", "private"),
        # Teredo: the server in clear, the client with every bit turned.
        ("2001:0:808:808::f5ff:fffe", "teredo", "private"),
        ("2001:0:a00:1::f7f7:f7f7", "teredo", "private"),
    ],
)
def test_to_allow_the_wrapping_is_not_to_allow_what_is_wrapped(host, outer, inner):
    assert f" {outer} " in denied(host)
    assert f" {inner} " in denied(host, allowed=[outer])
    both = denied(host, allowed=[outer, inner])
    assert ("multicast" in both) if inner == "multicast" else not both


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1 ",
        "127.0.0.1%1",
        "localhost",
        "",
        "::1::",
        "[::1]",
        "127.0.0.1\0",
        "::1\0",
        "1.2.3.4\u0660",
    ],
)
@pytest.mark.parametrize("client", [STRANGER, LOCAL])
def test_what_is_no_address_is_reached_by_nobody(host, client):
    assert denied(host, client)


# -- clients -------------------------------------------------------------------


@pytest.mark.parametrize("client", ["127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.1", "fe80::1%2", "169.254.169.254"])
def test_a_client_on_loopback_reaches_what_it_could_reach_itself(client, host):
    assert denied(host, client) == ""


@pytest.mark.parametrize(
    "client",
    [
        "10.0.0.1",
        "192.168.1.1",
        "fe80::1%2",
        "::2",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "",
    ],
)
def test_no_other_client_does(client):
    for host in ("127.0.0.1", "::1", "10.0.0.1", "192.168.1.1"):
        assert denied(host, client)


@pytest.mark.parametrize("client", [STRANGER, LOCAL])
@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "64:ff9b::0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1%2",
    ],
)
def test_nobody_reaches_what_is_no_one_host(client, host):
    assert denied(host, client)
    assert denied(host, client, allowed=["all", "0.0.0.0/0", "::/0"])


# -- UDP -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["224.0.0.251", "ff02::fb%2"])
@pytest.mark.parametrize("client", [STRANGER, LOCAL])
def test_groups_by_udp_for_those_the_operator_allows(client, host):
    assert denied(host, client, datagram=True)
    assert not denied(host, client, datagram=True, allowed=["multicast"])
    assert denied(host, client, allowed=["multicast"]), "never by TCP"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "255.255.255.255"])
def test_nobody_by_udp_either(host):
    assert denied(host, LOCAL, datagram=True, allowed=["all"])


def test_a_listener_is_a_tcp_port():
    listeners = [("127.0.0.1", 1080)]
    assert denied("127.0.0.1", LOCAL, 1080, listeners=listeners)
    assert not denied("127.0.0.1", LOCAL, 1080, listeners=listeners, datagram=True)


# -- what the operator allows ----------------------------------------------------


def test_a_network_allows_itself_only():
    allowed = ["10.1.0.0/16", "fd00:1::/32"]
    assert not denied("10.1.2.3", allowed=allowed)
    assert not denied("::ffff:10.1.2.3", allowed=allowed)
    assert not denied("64:ff9b::10.1.2.3", allowed=allowed)
    assert not denied("fd00:1::1", allowed=allowed)
    for host in ("10.2.0.1", "fd00:2::1", "127.0.0.1", "192.168.1.1"):
        assert denied(host, allowed=allowed)


def test_a_single_address():
    assert not denied("10.1.2.3", allowed=["10.1.2.3"])
    assert denied("10.1.2.4", allowed=["10.1.2.3"])


def test_a_name_allows_all_its_rows():
    for host in ("10.0.0.1", "172.16.0.1", "192.168.0.1"):
        assert not denied(host, allowed=["private"])
    assert denied("fd00::1", allowed=["private"])
    assert denied("127.0.0.1", allowed=["private"])


@pytest.mark.parametrize("entry", ["privat", "", "10.0.0.0/33", "unspecified", "::x"])
def test_a_wrong_entry_is_named_with_what_would_be_right(entry):
    with pytest.raises(ValueError, match="must be a network such as") as raised:
        Judge(["private", entry], [])
    assert str(raised.value).startswith(f"allow {entry}: ")
    assert "link-local" in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "meant"), [("10.0.0.1/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32")]
)
def test_a_network_that_begins_in_its_middle_is_told_where_it_begins(entry, meant):
    with pytest.raises(ValueError, match=f"write {meant}$"):
        Judge([entry], [])


# -- memory --------------------------------------------------------------------


def test_strangers_do_not_grow_the_memory():
    for number in range(20_000):
        reading_of(f"8.{number >> 8}.{number & 255}.1")
    assert reading_of.cache_info().currsize <= 4096
