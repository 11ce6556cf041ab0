# TCP keeps no message borders: every legal conversation must give the same events,
# replies and leftover however its octets are cut into segments, and whether the
# machine is asked after each segment or only after several.

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsocks.proto.machine import Credentials, Machine, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import NO_AUTH, USER_PASSWORD, Socks5
from fastsocks.proto.wire import BIND, CONNECT, UDP_ASSOCIATE, Request

NAME = b"www.example.com"
LONG_NAME = b".".join([b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61])  # 253 octets
# A payload that would itself be a handshake, were it read as one.
PAYLOAD = b"\x05\x01\x00\x05\x01\x00\x01\x04\x01\x00\x50\x00\x00\x00\x00GET / HTTP/1.1\r\n\r\n\x00"

IPV4_REQUEST = b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"
NAME_REQUEST = b"\x05\x01\x00\x03\x0f" + NAME + b"\x00\x50"
IPV6_REQUEST = b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\xff\xff"
LOGIN = b"\x01\x05alice\x06secret"


class Talk(NamedTuple):
    """One legal conversation: what is sent, what it means, what is answered."""

    name: str
    machine: type[Machine]
    stream: bytes
    events: list[tuple]
    replies: list[bytes] = []  # noqa: RUF012 -- never changed
    method: int = NO_AUTH


def socks5(name: str, request: bytes, event: Request, login: bytes = b"", *claim: bytes) -> Talk:
    """With a login: the same conversation with user and password in it."""
    if not login:
        greeting, events, replies, method = b"\x05\x01\x00", [Methods(b"\0")], [b"\x05\0"], NO_AUTH
    else:
        greeting, method = b"\x05\x02\x00\x02", USER_PASSWORD
        events = [Methods(b"\x00\x02"), Credentials(*claim)]
        replies = [b"\x05\x02", b"\x01\x00"]
    return Talk(name, Socks5, greeting + login + request, [*events, event], replies, method)


def socks4(name: str, stream: bytes, event: Request) -> Talk:
    return Talk(name, Socks4, stream, [event])


IPV4 = Request(CONNECT, "192.0.2.7", 443, False)
NAMED = Request(CONNECT, "www.example.com", 80, True)
IPV6 = Request(CONNECT, "2001:db8::1", 65535, False)
CLAIM = (b"alice", b"secret")

TALKS = [
    socks4("4", b"\x04\x01\x01\xbb\xc0\x00\x02\x07\x00", IPV4),
    socks4("4-user", b"\x04\x01\x01\xbb\xc0\x00\x02\x07alice\x00", IPV4._replace(user=b"alice")),
    socks4(
        "4-longest-user",
        b"\x04\x01\x01\xbb\xc0\x00\x02\x07" + b"u" * 255 + b"\x00",
        IPV4._replace(user=b"u" * 255),
    ),
    socks4("4-bind", b"\x04\x02\x01\xbb\xc0\x00\x02\x07\x00", IPV4._replace(command=BIND)),
    socks4(
        "4-bind-any", b"\x04\x02\x00\x00\x00\x00\x00\x00\x00", Request(BIND, "0.0.0.0", 0, False)
    ),
    socks4("4a", b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + NAME + b"\x00", NAMED),
    socks4(
        "4a-user",
        b"\x04\x01\x00\x50\x00\x00\x00\xffbob\x00" + NAME + b"\x00",
        NAMED._replace(user=b"bob"),
    ),
    socks4(
        "4a-longest",
        b"\x04\x01\x00\x50\x00\x00\x00\x01" + b"u" * 255 + b"\x00" + LONG_NAME + b".\x00",
        Request(CONNECT, LONG_NAME.decode() + ".", 80, True, b"u" * 255),
    ),
    socks4("4a-ipv4", b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00192.0.2.7\x00", IPV4),
    socks4("4a-ipv6", b"\x04\x01\xff\xff\x00\x00\x00\x01\x00[2001:db8::1]\x00", IPV6),
    socks5("5-ipv4", IPV4_REQUEST, IPV4),
    socks5("5-name", NAME_REQUEST, NAMED),
    socks5("5-ipv6", IPV6_REQUEST, IPV6),
    socks5(
        "5-longest-name",
        b"\x05\x01\x00\x03\xfe" + LONG_NAME + b".\x00\x50",
        Request(CONNECT, LONG_NAME.decode() + ".", 80, True),
    ),
    socks5("5-mapped", b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\xc0\x00\x02\x07\x01\xbb", IPV4),
    socks5("5-bind", b"\x05\x02" + IPV4_REQUEST[2:], IPV4._replace(command=BIND)),
    socks5("5-udp", b"\x05\x03" + IPV4_REQUEST[2:], IPV4._replace(command=UDP_ASSOCIATE)),
    socks5("5-rsv", b"\x05\x01\xff" + IPV4_REQUEST[3:], IPV4),
    socks5("5-login-ipv4", IPV4_REQUEST, IPV4, LOGIN, *CLAIM),
    socks5("5-login-name", NAME_REQUEST, NAMED, LOGIN, *CLAIM),
    socks5("5-login-ipv6", IPV6_REQUEST, IPV6, LOGIN, *CLAIM),
    socks5("5-login-empty", IPV4_REQUEST, IPV4, b"\x01\x00\x00", b"", b""),
    socks5("5-login-no-user", IPV4_REQUEST, IPV4, b"\x01\x00\x02pw", b"", b"pw"),
    socks5("5-login-no-password", IPV4_REQUEST, IPV4, b"\x01\x02me\x00", b"me", b""),
    socks5(
        "5-login-longest",
        NAME_REQUEST,
        NAMED,
        b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255,
        b"u" * 255,
        b"p" * 255,
    ),
    Talk(
        "5-255-methods",
        Socks5,
        b"\x05\xff" + bytes(range(255)) + IPV4_REQUEST,
        [Methods(bytes(range(255))), IPV4],
        [b"\x05\x00"],
    ),
    Talk(
        "5-login-unasked",  # some clients authenticate although method 0 was chosen
        Socks5,
        b"\x05\x01\x00" + LOGIN + IPV6_REQUEST,
        [Methods(b"\x00"), Credentials(*CLAIM), IPV6],
        [b"\x05\x00", b"\x01\x00"],
    ),
]

every_talk = pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.name)
every_payload = pytest.mark.parametrize("payload", [b"", PAYLOAD], ids=["bare", "payload"])


def meant(talk: Talk, payload: bytes) -> tuple:
    """What `seen` has to be of the conversation and what follows it."""
    return None, [(type(event), tuple(event)) for event in talk.events], talk.replies, payload


def seen(trace) -> tuple:
    return trace.error, trace.events, trace.replies, trace.leftover


@every_payload
@every_talk
def test_in_one_segment(drive, talk, payload):
    trace = drive(talk.machine(), [talk.stream + payload], talk.method)
    assert seen(trace) == meant(talk, payload)


@every_payload
@every_talk
def test_one_octet_per_segment(drive, single_octets, talk, payload):
    trace = drive(talk.machine(), single_octets(talk.stream + payload), talk.method)
    assert seen(trace) == meant(talk, payload)


@every_payload
@every_talk
def test_two_segments_cut_at_every_position(drive, talk, payload):
    stream = talk.stream + payload
    for position in range(len(stream) + 1):
        trace = drive(talk.machine(), [stream[:position], stream[position:]], talk.method)
        assert seen(trace) == meant(talk, payload), position


@every_payload
@every_talk
@settings(max_examples=30)
@given(positions=st.lists(st.integers(0, 1 << 12), max_size=12), bursts=st.lists(st.integers(1, 4)))
def test_random_cuts_and_bursts(drive, cut, talk, payload, positions, bursts):
    chunks = cut(talk.stream + payload, positions)
    trace = drive(talk.machine(), chunks, talk.method, bursts=bursts)
    assert seen(trace) == meant(talk, payload)


@every_talk
def test_no_event_before_the_last_octet(drive, talk):
    trace = drive(talk.machine(), [talk.stream[:-1]], talk.method)
    assert trace.events == [(type(event), tuple(event)) for event in talk.events[:-1]]


@every_talk
def test_what_follows_the_request_is_never_read_as_protocol(drive, talk):
    machine = talk.machine()
    drive(machine, [talk.stream], talk.method)
    machine.feed(PAYLOAD)
    assert machine.next_event() is None
    assert machine.leftover() == PAYLOAD
    assert machine.leftover() == b""
