# Handshakes octet by octet: what is sent, what has to come back, and what happens then, with
# the place in the RFC that says so. Every case runs in one segment, cut at every place, and
# one octet at a time, which may make no difference.
#
# The same table runs against Dante. Where it differs, DANTE says how, and why that is no
# reason to change us.

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

LOCAL = rb"\x7f\0\0\x01"
GREETING = b"\5\1\0"
HELLO = rb"\x05\0"
# A reply for success: VER, REP, RSV, and BND as ATYP 1 or 4 with the proxy's address there.
OK4 = rb"\x05\0\0\x01" + LOCAL + rb"(?!\0\0).."
OK6 = rb"\x05\0\0\x04" + rb"\0" * 15 + rb"\x01(?!\0\0).."
GRANTED4 = rb"\0\x5a.{6}"

GRANTED = rb"\0\x5a|\x05\0\x05\0"


def failed(code: bytes) -> bytes:
    """Of full length; the address in it means nothing."""
    return rb"\x05%b\0(\x01.{4}|\x04.{16}).." % re.escape(code)


class Case(NamedTuple):
    """`sent` may name ports of the world; `answer` is a pattern. `then` is what comes of it:
    "close", or "echo" for a connection that stands and carries half-close."""

    name: str
    source: str
    sent: bytes
    answer: bytes
    then: str


CASES = [
    # RFC 1928: the methods
    Case("method none", "1928, 3", GREETING + b"\5\1\0\1\x7f\0\0\1<echo>", HELLO + OK4, "echo"),
    Case("none among others", "1928, 3", b"\5\3\2\0\1\5\1\0\1\x7f\0\0\1<echo>",
         HELLO + OK4, "echo"),
    Case("none given twice", "1928, 3", b"\5\2\0\0\5\1\0\1\x7f\0\0\1<echo>", HELLO + OK4, "echo"),
    Case("255 methods", "1928, 3", b"\5\xff" + bytes(range(255)) + b"\5\1\0\1\x7f\0\0\1<echo>",
         HELLO + OK4, "echo"),
    Case("no acceptable method", "1928, 3", b"\5\1\x01", rb"\x05\xff", "close"),
    Case("only a private method", "1928, 3", b"\5\2\x80\xfe", rb"\x05\xff", "close"),
    Case("no method at all", "1928, 3", b"\5\0", rb"\x05\xff", "close"),
    # RFC 1928: CONNECT
    Case("IPv4", "1928, 4", GREETING + b"\5\1\0\1\x7f\0\0\1<echo>", HELLO + OK4, "echo"),
    Case("IPv6", "1928, 5", GREETING + b"\5\1\0\4" + bytes(15) + b"\1<echo6>", HELLO + OK6, "echo"),
    Case("name", "1928, 5", GREETING + b"\5\1\0\3\x09localhost<echo>", HELLO + OK4, "echo"),
    Case("IPv4 in the name", "1928, 5", GREETING + b"\5\1\0\3\x09127.0.0.1<echo>",
         HELLO + OK4, "echo"),
    Case("refused", "1928, 6", GREETING + b"\5\1\0\1\x7f\0\0\1<dead>",
         HELLO + failed(b"\5"), "close"),
    Case("no such name", "1928, 6", GREETING + b"\5\1\0\3\x0cname.invalid<echo>",
         HELLO + failed(b"\4"), "close"),
    Case("unknown command", "1928, 6", GREETING + b"\5\x09\0\1\x7f\0\0\1<echo>",
         HELLO + failed(b"\7"), "close"),
    Case("Tor's RESOLVE", "1928, 6", GREETING + b"\5\xf0\0\3\x09localhost<echo>",
         HELLO + failed(b"\7"), "close"),
    Case("unknown address type", "1928, 6", GREETING + b"\5\1\0\2\x7f\0\0\1<echo>",
         HELLO + failed(b"\x08"), "close"),
    Case("empty name", "1928, 5", GREETING + b"\5\1\0\3\0<echo>", HELLO + failed(b"\1"), "close"),
    Case("RSV set", "1928, 4", GREETING + b"\5\1\1\1\x7f\0\0\1<echo>", HELLO + OK4, "echo"),
    Case("wrong version in the request", "1928, 4", GREETING + b"\6\1\0\1\x7f\0\0\1<echo>",
         HELLO + failed(b"\1"), "close"),
    # SOCKS4 and 4a
    Case("SOCKS4", "SOCKS4", b"\4\1<echo>\x7f\0\0\1\0", GRANTED4, "echo"),
    Case("SOCKS4 user id", "SOCKS4", b"\4\1<echo>\x7f\0\0\1somebody\0", GRANTED4, "echo"),
    Case("SOCKS4 refused", "SOCKS4", b"\4\1<dead>\x7f\0\0\1\0", rb"\0\x5b.{6}", "close"),
    Case("SOCKS4 unknown command", "SOCKS4", b"\4\3<echo>\x7f\0\0\1\0", rb"\0\x5b.{6}", "close"),
    Case("SOCKS4a", "SOCKS4a", b"\4\1<echo>\0\0\0\1me\0localhost\0", GRANTED4, "echo"),
    Case("SOCKS4a 0.0.0.255", "SOCKS4a", b"\4\1<echo>\0\0\0\xffme\0localhost\0", GRANTED4, "echo"),
    Case("SOCKS4a no such name", "SOCKS4a", b"\4\1<echo>\0\0\0\1\0name.invalid\0", rb"\0\x5b.{6}",
         "close"),
]  # fmt: skip

LOGIN = b"\5\1\2\1\5alice\6secret"
ASKED = rb"\x05\x02"
LOCKED_CASES = [
    Case("login", "1929, 2", LOGIN + b"\5\1\0\1\x7f\0\0\1<echo>", ASKED + rb"\x01\0" + OK4, "echo"),
    Case("login offered with none", "1929, 2",
         b"\5\2\0\2\1\5alice\6secret\5\1\0\1\x7f\0\0\1<echo>", ASKED + rb"\x01\0" + OK4, "echo"),
    Case("wrong password", "1929, 2", b"\5\1\2\1\5alice\6Secret", ASKED + rb"\x01[^\0]", "close"),
    Case("unknown user", "1929, 2", b"\5\1\2\1\3bob\6secret", ASKED + rb"\x01[^\0]", "close"),
    Case("empty fields", "1929, 2", b"\5\1\2\1\0\0", ASKED + rb"\x01[^\0]", "close"),
    Case("version of the outer protocol", "1929, 2", b"\5\1\2\5\5alice\6secret",
         ASKED + rb"\x01[^\0]", "close"),
    Case("request without login", "1929, 2", b"\5\1\2\5\1\0\1\x7f\0\0\1<echo>",
         ASKED + rb"\x01[^\0]", "close"),
    Case("none only", "1928, 3", GREETING + b"\5\1\0\1\x7f\0\0\1<echo>", rb"\x05\xff", "close"),
    Case("SOCKS4 is not let in", "SOCKS4", b"\4\1<echo>\x7f\0\0\1alice\0", rb"\0[\x5b-\x5d].{6}",
         "close"),
]  # fmt: skip

# name of the case: (its answer, what then, why)
REFUSED4 = (rb"\0\x5b.{6}", "close")
NO_REPLY = (HELLO, "close", "closes without the reply RFC 1928, 6 asks for")
NO_STATUS = (ASKED, "close", "closes without the status of RFC 1929, 2 if the version is not 1")
# Debug log: the request is complete with the user id, connect() to 0.0.0.1 fails with EINVAL,
# and the name is kept as early payload.
NO_4A = (*REFUSED4, "knows SOCKS4 only, and takes 0.0.0.x for the address")
DANTE: dict[str, tuple[bytes, str, str]] = {
    "unknown command": NO_REPLY,
    "Tor's RESOLVE": NO_REPLY,
    "unknown address type": NO_REPLY,
    "wrong version in the request": NO_REPLY,
    # ATYP 3 in a reply is what clients trip over that read one size.
    "no such name": (HELLO + rb"\x05\x04\0\x03\x0cname.invalid..", "close", "BND is a name"),
    "empty name": (HELLO + rb"\x05\x04\0\x03\0..", "close", "BND is a name"),
    "SOCKS4a": NO_4A,
    "SOCKS4a 0.0.0.255": NO_4A,
    "version of the outer protocol": NO_STATUS,
    "request without login": NO_STATUS,
}
# What the client reads to the end, once it has the answer.
AFTERWARDS = {"close": b"", "echo": b"payloadbye"}


def expected_of(proxy: str, case: Case) -> Case:
    if proxy != "dante" or case.name not in DANTE:
        return case
    answer, then, _ = DANTE[case.name]
    return case._replace(answer=answer, then=then)


def play(client, case: Case, segments: list[bytes]) -> tuple[bytes, bytes]:
    """The answer, and all that comes after it: by itself where the proxy is to close, else in
    return for a payload and a FIN."""
    client.send(*segments)
    answer = client.until(case.answer)
    if case.then == "echo":
        client.sock.sendall(b"payload")
        client.sock.shutdown(socket.SHUT_WR)
    return answer, client.to_end()


def every_way(case: Case, sent: bytes) -> Iterator[list[bytes]]:
    """In one segment, in two cut at every place, and one octet at a time."""
    cuts = range(1, len(sent)) if len(sent) < 100 else (1, 2, 3, 100, len(sent) - 1)
    if case in LOCKED_CASES and case.then == "close":
        cuts = ()  # each would be a wrong login, and those are slowed down
    yield [sent]
    for at in cuts:
        yield [sent[:at], sent[at:]]
    if len(sent) < 100:
        yield [sent[at : at + 1] for at in range(len(sent))]


def named(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=named)
def test_handshake(proxy, dial, world, case) -> None:
    expected = expected_of(proxy.name, case)
    for segments in every_way(case, world.fill(case.sent)):
        answer, rest = play(dial(proxy), expected, segments)
        assert re.fullmatch(expected.answer, answer, re.DOTALL), (answer, segments)
        assert rest == AFTERWARDS[expected.then], segments


@pytest.mark.parametrize("case", LOCKED_CASES, ids=named)
def test_handshake_with_login(locked_proxy, dial, world, case) -> None:
    expected = expected_of(locked_proxy.name, case)
    for segments in every_way(case, world.fill(case.sent)):
        answer, rest = play(dial(locked_proxy), expected, segments)
        assert re.fullmatch(expected.answer, answer, re.DOTALL), (answer, segments)
        assert rest == AFTERWARDS[expected.then], segments


@pytest.mark.parametrize(
    ("proxy", "case"),
    [
        pytest.param(proxy, case, id=f"{proxy}-{named(case)}")
        for proxy in ("dante", "native", "python")
        for case in CASES
        if expected_of(proxy, case).then == "echo"
    ],
    indirect=["proxy"],
)
def test_payload_in_the_same_segment(proxy, dial, world, case) -> None:
    client = dial(proxy)
    client.send(world.fill(case.sent) + b"early")
    got = client.until(case.answer)
    assert re.fullmatch(case.answer, got, re.DOTALL), got
    client.sock.shutdown(socket.SHUT_WR)
    assert client.to_end() == b"earlybye"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_truncated_and_left(proxy, dial, world, case) -> None:
    """It ends with the client, whatever is missing, and nothing has been granted."""
    client = dial(proxy)
    client.send(world.fill(case.sent)[:-1])
    client.sock.shutdown(socket.SHUT_WR)
    assert not re.match(GRANTED, client.to_end())
