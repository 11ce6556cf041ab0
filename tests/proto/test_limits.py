# Every field has a hard limit: the longest legal value passes, one octet more is refused,
# and no stream of octets, however long and however cut, is buffered beyond one message.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks.errors import ProtocolError, Reply
from fastsocks.proto.machine import Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import NO_AUTH, USER_PASSWORD, Socks5
from fastsocks.proto.wire import Request

MACHINES = {4: Socks4, 5: Socks5}
# The longest message of each: VN CD PORT IP, user id and name with their NULs; RFC 1929.
LONGEST = {Socks4: 8 + 256 + 256, Socks5: 3 + 255 + 255}

SOCKS4_FIXED = b"\x04\x01\x00\x50\xc0\x00\x02\x07"
SOCKS4A_FIXED = b"\x04\x01\x00\x50\x00\x00\x00\x01"


def reply_of(machine, stream: bytes) -> Reply | Request | None:
    machine.feed(stream)
    try:
        return machine.next_event()
    except ProtocolError as error:
        return error.reply


@pytest.mark.parametrize("fixed", [SOCKS4_FIXED, SOCKS4A_FIXED], ids=["4", "4a"])
@pytest.mark.parametrize(
    ("length", "ended", "legal"),
    [
        (0, True, True),
        (255, True, True),
        (255, False, True),
        (256, False, False),
        (256, True, False),
    ],
)
def test_socks4_user_id(drive, single_octets, fixed, length, ended, legal):
    stream = fixed + b"u" * length + (b"\x00" if ended else b"")
    for chunks in ([stream], single_octets(stream)):
        trace = drive(Socks4(), chunks)
        assert (trace.error is None) == legal
        assert trace.last_words == (b"" if legal else b"\x00\x5b" + bytes(6))
        assert len(trace.events) == (ended and legal and fixed is SOCKS4_FIXED)


@pytest.mark.parametrize(
    ("length", "ended", "outcome"),
    [
        (253, True, "request"),
        (254, True, "refused"),  # the field may be as long, a name may not
        (255, True, "refused"),
        (255, False, "more"),
        (256, False, "refused"),
        (256, True, "refused"),
    ],
)
def test_socks4a_name_field(drive, single_octets, length, ended, outcome):
    name = (b"n" * 49 + b".") * 6
    stream = SOCKS4A_FIXED + b"\x00" + name[: length - 1] + b"n" + (b"\x00" if ended else b"")
    for chunks in ([stream], single_octets(stream)):
        trace = drive(Socks4(), chunks)
        assert (trace.error is None) == (outcome != "refused")
        assert len(trace.events) == (outcome == "request")


@pytest.mark.parametrize("fixed", [SOCKS4_FIXED, SOCKS4A_FIXED, SOCKS4A_FIXED + b"\x00"])
def test_socks4_field_without_end_in_one_huge_segment(fixed):
    assert reply_of(Socks4(), fixed + b"x" * 16384) is Reply.GENERAL_FAILURE


@pytest.mark.parametrize(
    "offered",
    [b"\x00", b"\x02", b"\x00" * 255, b"\x02\x00\x02\x00", bytes(range(255)), b"\xff" * 255],
    ids=["one", "two", "255-same", "duplicates", "255-different", "255-none"],
)
def test_socks5_methods(offered):
    event = reply_of(Socks5(), bytes((5, len(offered))) + offered)
    assert event == Methods(offered)


def test_socks5_methods_one_octet_missing():
    machine = Socks5()
    machine.feed(b"\x05\xff" + bytes(254))
    assert machine.next_event() is None
    machine.feed(b"\x07")
    assert machine.next_event() == Methods(bytes(254) + b"\x07")


def test_socks5_no_methods(drive):
    trace = drive(Socks5(), [b"\x05\x00"])
    assert trace.error == ("no authentication method offered", Reply.GENERAL_FAILURE)
    assert trace.last_words == b"\x05\xff"


@pytest.mark.parametrize(("length", "legal"), [(1, True), (253, True), (254, False), (255, False)])
def test_socks5_name_length(drive, length, legal):
    name = ((b"n" * 49 + b".") * 6)[: length - 1] + b"n"
    trace = drive(
        Socks5(), [b"\x05\x01\x00\x05\x01\x00\x03", bytes((length,)) + name + b"\x00\x50"]
    )
    assert (trace.error is None) == legal
    if not legal:
        assert trace.last_words == b"\x05\x01\x00\x01" + bytes(6)


@pytest.mark.parametrize("port", [0, 1, 80, 255, 256, 65535])
@pytest.mark.parametrize(
    ("machine", "before", "after"),
    [
        (Socks4, b"\x04\x01", b"\xc0\x00\x02\x07\x00"),
        (Socks5, b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x07", b""),
        (Socks5, b"\x05\x01\x00\x05\x01\x00\x03\x01x", b""),
        (Socks5, b"\x05\x01\x00\x05\x01\x00\x04" + bytes(16), b""),
    ],
    ids=["4", "5-ipv4", "5-name", "5-ipv6"],
)
def test_every_port_is_legal_on_the_wire(drive, requested, machine, before, after, port):
    stream = before + port.to_bytes(2, "big") + after
    assert requested(drive(machine(), [stream])).port == port


def held_at_most(machine, stream: bytes, method: int) -> tuple[int, bool]:
    """The most octets that stood in the machine's buffer at once, fed one by one, and
    whether it came to an end (a request or an error)."""
    held = most = 0
    for octet in stream:
        machine.feed(bytes((octet,)))
        held += 1
        try:
            while (event := machine.next_event()) is not None:
                held = 0
                if isinstance(event, Request):
                    return most, True
                machine.choose(method) if isinstance(event, Methods) else machine.verdict(True)
        except ProtocolError:
            return most, True
        most = max(most, held)
    return most, False


ENDLESS = [
    b"\x04\x01\0\0\x01\1\1\1",  # a user id
    b"\x04\x01\0\0\0\0\0\x01\0",  # a name
    b"\x05\xff",  # methods
    b"\x05\x01\x00\x05\x01\x00",
    b"\x05\x01\x00\x05\x01\x00\x03\xff",
    b"\x05\x01\x02\x01\xff",
]


@pytest.mark.parametrize("filler", [b"a", b"\x02", b"\x05", b"\xff", b"\x04\x05"], ids=bytes.hex)
@pytest.mark.parametrize("head", ENDLESS, ids=bytes.hex)
@pytest.mark.parametrize("method", [NO_AUTH, USER_PASSWORD])
def test_a_field_that_does_not_end_is_refused_or_full(head, filler, method):
    machine = MACHINES[head[0]]()
    most, ended = held_at_most(machine, head + filler * 2000, method)
    assert ended
    assert most < LONGEST[type(machine)]


@given(
    machine=st.sampled_from([Socks4, Socks5]),
    head=st.sampled_from([b"", b"\x05\x01\x02", b"\x05\x01\x02\x01\xff", *ENDLESS]),
    stream=st.binary(max_size=1200),
    method=st.sampled_from([NO_AUTH, USER_PASSWORD]),
)
def test_never_more_than_one_message_is_buffered(machine, head, stream, method):
    most, _ = held_at_most(machine(), head + stream, method)
    assert most < LONGEST[machine]


@pytest.mark.parametrize("method", [NO_AUTH, USER_PASSWORD])
def test_a_handshake_is_not_an_endless_series_of_logins(method):
    """Greeting, login and request are 257, 513 and 262 octets at most. A client that may
    log in again and again is in its handshake for as long as it likes, and each login costs
    the proxy a reply."""
    machine = Socks5()
    _, ended = held_at_most(machine, b"\x05\x01" + bytes((method,)) + b"\x01\x00\x00" * 400, method)
    assert ended
