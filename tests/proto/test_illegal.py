# What no client may send: every illegal octet in every place gives a ProtocolError with
# the full reply its protocol has for it (or none, where it has none), and the same one
# however it is cut. Nothing a client sends may raise anything else.

from __future__ import annotations

import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastsocks.errors import ProtocolError
from fastsocks.proto.machine import Credentials, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import NO_ACCEPTABLE, NO_AUTH, USER_PASSWORD, Socks5
from fastsocks.proto.wire import Request

EVERY_OCTET = frozenset(range(256))
# A name may hold printable ASCII but no blank and no slash.
IN_NAMES = frozenset(range(0x21, 0x7F)) - {0x2F}

REJECTED = b"\x00\x5b" + bytes(6)
NO_METHOD = b"\x05\xff"
LOGIN_FAILED = b"\x01\x01"


def failed(code: int) -> bytes:
    return bytes((5, code)) + b"\x00\x01" + bytes(6)


def row(name, machine, before, illegal, after, last_words, method=NO_AUTH):
    return pytest.param(machine, before, illegal, after, last_words, method, id=name)


LOGGED_IN = b"\x05\x01\x02\x01\x02me\x02pw"
TABLE = [
    # SOCKS4 has one refusal. Its version octet is what chose the machine.
    row("4 command", Socks4, b"\x04", EVERY_OCTET - {1, 2}, b"\0\x50\1\2\3\4\0", REJECTED),
    row(
        "4 connect to 0.0.0.0", Socks4, b"\x04\x01\x00\x50\0\0\0", {0}, b"\0", REJECTED
    ),  # Linux would connect to itself
    row(
        "4a name, first",
        Socks4,
        b"\x04\x01\x00\x50\0\0\0\1\0",
        EVERY_OCTET - IN_NAMES - {0},
        b"ame\0",
        REJECTED,
    ),
    row(
        "4a name, middle",
        Socks4,
        b"\x04\x01\x00\x50\0\0\0\1me\0na",
        EVERY_OCTET - IN_NAMES - {0},
        b"e\0",
        REJECTED,
    ),
    row("4a name, empty", Socks4, b"\x04\x01\x00\x50\0\0\0\1\0", {0}, b"", REJECTED),
    # SOCKS5. A greeting of another version gets no reply: which could it be?
    row("5 version", Socks5, b"", EVERY_OCTET - {5}, b"\x01\x00", b""),
    row("5 no methods", Socks5, b"\x05", {0}, b"", NO_METHOD),
    row(
        "5 login version",
        Socks5,
        b"\x05\x01\x02",
        EVERY_OCTET - {1},
        b"\x02me\x02pw",
        LOGIN_FAILED,
        USER_PASSWORD,
    ),
    row(
        "5 request version, logged in",
        Socks5,
        LOGGED_IN,
        EVERY_OCTET - {1, 5},
        b"\x01\x00\x01\1\2\3\4\0\x50",
        failed(1),
        USER_PASSWORD,
    ),
    row(
        "5 request version",
        Socks5,
        b"\x05\x01\x00",
        EVERY_OCTET - {1, 5},  # 1: some clients log in although nobody asked
        b"\x01\x00\x01\1\2\3\4\0\x50",
        failed(1),
    ),
    row(
        "5 command",
        Socks5,
        b"\x05\x01\x00\x05",
        EVERY_OCTET - {1, 2, 3},
        b"\x00\x01\1\2\3\4\0\x50",
        failed(7),
    ),
    row(
        "5 command, name",
        Socks5,
        b"\x05\x01\x00\x05",
        EVERY_OCTET - {1, 2, 3},
        b"\x00\x03\x01x\0\x50",
        failed(7),
    ),
    row(
        "5 address type",
        Socks5,
        b"\x05\x01\x00\x05\x01\x00",
        EVERY_OCTET - {1, 3, 4},
        b"",
        failed(8),
    ),
    row("5 name, empty", Socks5, b"\x05\x01\x00\x05\x01\x00\x03", {0}, b"\0\x50", failed(1)),
    row(
        "5 name, first",
        Socks5,
        b"\x05\x01\x00\x05\x01\x00\x03\x04",
        EVERY_OCTET - IN_NAMES,
        b"ame\0\x50",
        failed(1),
    ),
    row(
        "5 name, middle",
        Socks5,
        b"\x05\x01\x00\x05\x01\x00\x03\x04na",
        EVERY_OCTET - IN_NAMES,
        b"e\0\x50",
        failed(1),
    ),
    row(
        "5 name, last",
        Socks5,
        b"\x05\x01\x00\x05\x01\x00\x03\x04nam",
        EVERY_OCTET - IN_NAMES,
        b"\0\x50",
        failed(1),
    ),
]


@pytest.mark.parametrize(("machine", "before", "illegal", "after", "last_words", "method"), TABLE)
def test_illegal_octet(drive, single_octets, machine, before, illegal, after, last_words, method):
    for octet in sorted(illegal):
        stream = before + bytes((octet,)) + after
        whole = drive(machine(), [stream], method)
        assert whole.error is not None, f"octet {octet:#04x} was taken: {whole}"
        assert whole.last_words == last_words, f"octet {octet:#04x}"
        assert not any(kind is Request for kind, _ in whole.events)
        cut = drive(machine(), single_octets(stream), method)
        assert (cut.error, cut.last_words) == (whole.error, last_words), f"octet {octet:#04x}"


@pytest.mark.parametrize("octet", sorted(EVERY_OCTET - {0}))
def test_every_rsv_is_taken(drive, requested, octet):
    # Clients that set it work with other servers.
    request = b"\x05\x01" + bytes((octet,)) + b"\x01\1\2\3\4\0\x50"
    assert requested(drive(Socks5(), [b"\x05\x01\x00" + request])).host == "1.2.3.4"


@pytest.mark.parametrize("position", range(6))
def test_text_of_an_error_holds_no_credentials(drive, position):
    """The reason is logged and must not repeat what was sent, whichever octet is wrong."""
    stream = bytearray(b"\x05\x01\x02\x01\x06secret\x06secret\x05\x01\x00\x01\1\2\3\4\0\x50")
    stream[[0, 1, 3, 18, 19, 21][position]] = 0
    trace = drive(Socks5(), [bytes(stream)], USER_PASSWORD)
    assert "secret" not in str(trace.error)


# -- whatever comes ----------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        b"\x05\x01\x00",
        b"\x05\x02\x00\x02",
        b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
        b"\x05\x01\x00\x03\x0bexample.com\x00\x50",
        b"\x05\x01\x00\x04" + bytes(16) + b"\x00\x50",
        b"\x01\x04user\x04word",
        b"\x01\x00\x00",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00",
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00example.com\x00",
    ]
)
CHUNKS = st.lists(st.one_of(FRAGMENTS, st.binary(max_size=24)), max_size=12)
DECISIONS = st.sampled_from([NO_AUTH, USER_PASSWORD, NO_ACCEPTABLE, 1, 0x80])
LAST_WORDS = {Socks4: {REJECTED}, Socks5: {b"", NO_METHOD, LOGIN_FAILED}}


@given(
    machine=st.sampled_from([Socks4, Socks5]),
    chunks=CHUNKS,
    method=DECISIONS,
    accept=st.booleans(),
    bursts=st.lists(st.integers(1, 3), max_size=6),
)
def test_only_protocol_errors(drive, machine, chunks, method, accept, bursts):
    trace = drive(machine(), chunks, method, accept, bursts)
    if trace.error is not None:
        full = {failed(code) for code in range(1, 9)} if machine is Socks5 else set()
        assert trace.last_words in LAST_WORDS[machine] | full
    for kind, values in trace.events:
        if kind is Methods:
            assert 1 <= len(values) <= 255
        elif kind is Credentials:
            assert len(values[0]) <= 255
            assert len(values[1]) <= 255
        else:
            request = Request(*values)
            assert request.command in (1, 2, 3)
            assert 1 <= len(request.host) <= 253
            assert set(request.host.encode()) <= IN_NAMES
            assert 0 <= request.port <= 65535
            assert len(request.user) <= 255


@given(
    machine=st.sampled_from([Socks4, Socks5]),
    chunks=CHUNKS,
    positions=st.lists(st.integers(0, 1 << 10), max_size=8),
    method=DECISIONS,
    accept=st.booleans(),
    bursts=st.lists(st.integers(1, 3), max_size=6),
)
def test_garbage_too_means_the_same_however_cut(
    drive, cut, machine, chunks, positions, method, accept, bursts
):
    stream = b"".join(chunks)
    whole = drive(machine(), [stream], method, accept)
    assert drive(machine(), cut(stream, positions), method, accept, bursts) == whole


@given(chunks=CHUNKS, method=DECISIONS, accept=st.booleans())
def test_a_machine_that_raised_gives_no_request_later(drive, chunks, method, accept):
    machine = Socks5()
    assume(drive(machine, chunks, method, accept).error is not None)
    for _ in range(3):
        machine.feed(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
        with contextlib.suppress(ProtocolError):
            assert machine.next_event() is None
