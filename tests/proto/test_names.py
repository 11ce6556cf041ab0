# The host of a request: what is a name, what is an address in a name's clothes, and what
# is neither. Two readers of one address (this program and the C library) must never
# disagree on what it means.

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fastsocks.errors import ProtocolError, Reply
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import Socks5
from fastsocks.proto.wire import UDP_ASSOCIATE, Request, parse_name

LABEL_63 = b"a" * 63
NAME_253 = b".".join([LABEL_63, LABEL_63, LABEL_63, b"d" * 61])


def through_socks5(raw: bytes) -> tuple[Socks5, bytes]:
    return Socks5(), b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(raw),)) + raw + b"\x00\x50"


def through_socks4a(raw: bytes) -> tuple[Socks4, bytes]:
    return Socks4(), b"\x04\x01\x00\x50\x00\x00\x00\x07\x00" + raw + b"\x00"


every_way = pytest.mark.parametrize(
    "through", [through_socks5, through_socks4a], ids=["socks5", "socks4a"]
)


@every_way
@pytest.mark.parametrize(
    ("raw", "host", "is_name"),
    [
        (b"example.com", "example.com", True),
        (b"localhost", "localhost", True),
        (b"x", "x", True),
        (b"EXAMPLE.Com", "example.com", True),
        (b"Example.com.", "example.com.", True),  # not to be looked for in other domains
        (b"db.", "db.", True),
        (b"LocalHost.", "localhost", True),  # as hosts files have it
        (b"a_b.example", "a_b.example", True),  # not a host name by the book, but in use
        (b"xn--bcher-kva.example", "xn--bcher-kva.example", True),
        (b"1and1.example", "1and1.example", True),
        (b"4.3.2.1.in-addr.arpa", "4.3.2.1.in-addr.arpa", True),
        (LABEL_63 + b".example", LABEL_63.decode() + ".example", True),
        (NAME_253, NAME_253.decode(), True),
        (NAME_253 + b".", NAME_253.decode() + ".", True),
        # Browsers send every host as a name.
        (b"127.0.0.1", "127.0.0.1", False),
        (b"255.255.255.255", "255.255.255.255", False),
        (b"::1", "::1", False),
        (b"[::1]", "::1", False),
        (b"2001:DB8:0:0::1", "2001:db8::1", False),
        (b"[2001:db8::1]", "2001:db8::1", False),
        (b"::ffff:192.0.2.7", "192.0.2.7", False),
        (b"[::FFFF:C000:207]", "192.0.2.7", False),
    ],
    ids=repr,
)
def test_a_host_is_the_name_or_the_address_that_was_meant(
    drive, requested, through, raw, host, is_name
):
    machine, stream = through(raw)
    request = requested(drive(machine, [stream]))
    assert (request.host, request.is_name, request.port) == (host, is_name, 80)


@every_way
@pytest.mark.parametrize(
    "raw",
    [
        # Other spellings of 127.0.0.1, which the C library knows.
        b"127.1",
        b"127.0.1",
        b"0x7f.1",
        b"0x7f.0x0.0x0.0x1",
        b"0X7F000001",
        b"2130706433",
        b"0177.0.0.1",
        b"017700000001",
        b"127.0.0.1.",
        b"127.0.0.01",
        b"0",
        # And what nobody knows.
        b"127.0.0.256",
        b"1.2.3.4.5",
        b"127.0.0.",
        b"",
        b".",
        b"..",
        b".example",
        b"a..b",
        b"example.com..",
        b"a" * 64,
        b"x." + b"a" * 64 + b".example",
        NAME_253[:-1] + b"dd",
        NAME_253 + b"..",
        b"x" * 255,
        b"exa mple",
        b" example",
        b"example ",
        b"example\t",
        b"example\r\nX: y",
        b"\x1b[2J",
        b"example/path",
        b"b\xc3\xbccher.example",
        b"\xff",
        b"\x7f",
        # Not quite IPv6.
        b":",
        b":::",
        b"::1::",
        b"12345::",
        b"1:2:3:4:5:6:7",
        b"1:2:3:4:5:6:7:8:9",
        b"example:80",
        b"127.0.0.1:80",
        b"::ffff:127.1",
        b"[::1]:80",
        b"[::1",
        b"::1]",
        b"[[::1]]",
        b"]::1[",
    ],
    ids=repr,
)
def test_a_host_that_others_would_read_otherwise_is_refused(drive, through, raw):
    machine, stream = through(raw)
    trace = drive(machine, [stream])
    assert trace.error is not None, trace.events[-1]
    assert trace.error[1] is Reply.GENERAL_FAILURE


@pytest.mark.parametrize("raw", [b"evil\0.example", b"\0", b"example\0", b"127.0.0.1\0.example"])
def test_nul_ends_no_name_in_socks5(drive, raw):
    # In a C string it would, and make another name of it.
    machine, stream = through_socks5(raw)
    assert drive(machine, [stream]).error is not None


@pytest.mark.parametrize("raw", [b"fe80::1%eth0", b"[fe80::1%2]", b"::1%lo"])
def test_a_zone_is_not_dropped(raw):
    """fe80::1 without its zone is another address."""
    with pytest.raises(ProtocolError, match="malformed IPv6 address"):
        parse_name(raw)


@given(st.ip_addresses(v=4))
def test_ipv4_means_the_same_in_a_name_as_in_an_address(drive, requested, address):
    plain, greeting = b"\x01" + address.packed + b"\x00\x50", b"\x05\x01\x00\x05\x01\x00"
    machine, stream = through_socks5(str(address).encode())
    by_address = requested(drive(Socks5(), [greeting + plain]))
    assert requested(drive(machine, [stream])) == by_address
    assert by_address.host == str(address)


@given(st.ip_addresses(v=6))
@example(ipaddress.IPv6Address("::"))
@example(ipaddress.IPv6Address("::ffff:127.0.0.1"))
@example(ipaddress.IPv6Address("::127.0.0.1"))
@example(ipaddress.IPv6Address("64:ff9b::7f00:1"))
def test_ipv6_means_the_same_in_a_name_as_in_an_address(drive, requested, address):
    plain, greeting = b"\x04" + address.packed + b"\x00\x50", b"\x05\x01\x00\x05\x01\x00"
    machine, stream = through_socks5(str(address).encode())
    by_address = requested(drive(Socks5(), [greeting + plain]))
    assert requested(drive(machine, [stream])) == by_address
    assert by_address.host == str(address.ipv4_mapped or address)
    exploded, stream = through_socks5(address.exploded.encode())
    assert requested(drive(exploded, [stream])) == by_address


def judged(raw: bytes) -> tuple[str, str]:
    """How a host is read: "name", "address" or "refused", and its text."""
    try:
        host, is_name = parse_name(raw)
    except ProtocolError:
        return "refused", ""
    return "name" if is_name else "address", host


def is_number_to_the_c_library(text: str) -> bool:
    try:
        socket.inet_aton(text)
    except OSError:
        return False
    return True


SPELLINGS = st.sampled_from(["{}", "{:#x}", "{:#X}", "0{:o}"])
PARTS = st.builds(str.format, SPELLINGS, st.integers(0, 255) | st.integers(0, (1 << 32) - 1))
NUMBERS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@given(NUMBERS.filter(is_number_to_the_c_library))
@example("0x0")
@example("0x7f.1")
@example("127.1")
@example("0177.0.0.1")
@example("127.0.0.1")
def test_a_number_to_the_c_library_is_no_name(text):
    # The one spelling that both read in the same way is an address, all others are refused.
    plain = text == socket.inet_ntoa(socket.inet_aton(text))
    assert judged(text.encode()) == (("address", text) if plain else ("refused", ""))


@given(st.text(alphabet="0123456789abcdefxX.-", min_size=1, max_size=40))
@example("0x.0x")
@example("1.0x")
@example("08.1")
@example("0x7f.1.")
@example("1.a")
@example("0x7f")
def test_no_name_is_a_number_to_the_c_library(text):
    kind, host = judged(text.encode())
    assume(kind == "name")
    assert not any(map(is_number_to_the_c_library, (host, host + ".", text)))


@given(st.text(alphabet="0123456789abcdef.:[]", min_size=1, max_size=20))
@example("::1")
@example("[2001:db8::7F]")
def test_an_address_is_written_in_one_way(text):
    kind, host = judged(text.encode())
    assert kind != "address" or host == str(ipaddress.ip_address(host))


@given(st.binary(max_size=300) | st.text(alphabet="ab1.:[]", max_size=20).map(str.encode))
def test_any_octets_are_a_host_or_a_protocol_error(raw):
    kind, host = judged(raw)
    assert kind == "refused" or judged(host.encode()) == (kind, host), "read again it must be it"


@pytest.mark.parametrize(
    "raw", [b"0", b"", b"127.1", b"evil\0.example", b"x" * 255, b"example.com", b"\xff"], ids=repr
)
def test_the_host_of_udp_associate_is_not_judged(drive, requested, raw):
    """Where a client says that it will send from; nothing is done with it, and PySocks
    has a "0" there, as a name."""
    stream = b"\x05\x01\x00\x05\x03\x00\x03" + bytes((len(raw),)) + raw + b"\x04\xd2"
    for cut in range(len(stream)):
        trace = drive(Socks5(), [stream[:cut], stream[cut:]] if cut else [stream])
        assert requested(trace) == Request(UDP_ASSOCIATE, "", 1234, False)


@pytest.mark.parametrize("command", [1, 2])
def test_the_host_of_other_commands_is(drive, command):
    machine, stream = through_socks5(b"0")
    assert drive(machine, [stream[:4] + bytes((command,)) + stream[5:]]).error is not None
