# Shows that the header of a UDP datagram is read to the octet, and nothing is taken for one that
# is none.

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks.proto import udp, wire

V4 = b"\0\0\0\x01\xc0\0\x02\x01\0\x35"
V6 = b"\0\0\0\x04" + ipaddress.ip_address("2001:db8::1").packed + b"\x01\xbb"
NAMED = b"\0\0\0\x03\x0bexample.org\x1f\x90"


@pytest.mark.parametrize(
    ("head", "atyp", "raw", "port"),
    [
        (V4, wire.ATYP_IPV4, b"\xc0\0\x02\x01", 53),
        (V6, wire.ATYP_IPV6, ipaddress.ip_address("2001:db8::1").packed, 443),
        (NAMED, wire.ATYP_NAME, b"example.org", 8080),
    ],
)
@pytest.mark.parametrize("payload", [b"", b"x", bytes(65_000)])
def test_sound_headers(head, atyp, raw, port, payload):
    parsed = udp.parse(head + payload)
    assert parsed == udp.Datagram(atyp, raw, port, len(head))
    assert (head + payload)[parsed.payload :] == payload


@pytest.mark.parametrize("head", [V4, V6, NAMED])
def test_every_cut_is_malformed(head):
    for end in range(len(head)):
        assert udp.parse(head[:end]) is udp.Fault.MALFORMED


@pytest.mark.parametrize("atyp", sorted(set(range(256)) - {1, 3, 4}))
def test_an_unknown_type_of_address_is_not_guessed_at(atyp):
    assert udp.parse(b"\0\0\0" + bytes([atyp]) + bytes(range(1, 64))) is udp.Fault.MALFORMED


def test_a_name_of_no_octets():
    assert udp.parse(b"\0\0\0\x03\0\0\x35payload") is udp.Fault.MALFORMED


def test_port_0_is_nobodys():
    assert udp.parse(V4[:-2] + b"\0\0" + b"payload") is udp.Fault.MALFORMED


@pytest.mark.parametrize("frag", range(1, 256))
def test_a_fragment_is_taken_for_no_datagram(frag):
    assert udp.parse(b"\0\0" + bytes([frag]) + V4[3:] + b"payload") is udp.Fault.FRAGMENT


def test_a_malformed_fragment_is_malformed():
    assert udp.parse(b"\0\0\x01\x09" + bytes(20)) is udp.Fault.MALFORMED


@pytest.mark.parametrize("rsv", [b"\xff\xff", b"\0\x01", b"\x01\0"])
def test_rsv_is_not_looked_at(rsv):
    assert isinstance(udp.parse(rsv + V4[2:]), udp.Datagram)


@given(st.sampled_from([b"", V4[:4], V4[:3] + b"\3", V4[:3] + b"\4"]), st.binary(max_size=600))
def test_no_octets_raise_or_point_outside(start, rest):
    data = start + rest
    parsed = udp.parse(data)
    inside = not isinstance(parsed, udp.Datagram) or data[: parsed.payload].endswith(
        parsed.raw + parsed.port.to_bytes(2)
    )
    assert inside, parsed


@given(st.ip_addresses(), st.integers(1, 65535), st.binary(max_size=50))
def test_a_reply_reads_back(address, port, payload):
    mapped = getattr(address, "ipv4_mapped", None)
    parsed = udp.parse(udp.header(str(address), port) + payload)
    assert isinstance(parsed, udp.Datagram)
    assert parsed.port == port
    assert ipaddress.ip_address(parsed.raw) in (address, mapped)


def test_scopes_do_not_go_out():
    assert udp.header("fe80::1%2", 1) == udp.header("fe80::1", 1)


@pytest.mark.parametrize("host", ["example.org", "", "1.2.3", "127.1"])
def test_only_addresses_in_replies(host):
    with pytest.raises(ValueError):
        udp.header(host, 53)
