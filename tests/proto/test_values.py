# The small parts around the machines: what an event shows of itself, which errno becomes
# which reply, and what clients of other protocols are told.

from __future__ import annotations

import errno

import pytest

from fastsocks import errors
from fastsocks.errors import Reply, reply_for
from fastsocks.proto import foreign
from fastsocks.proto.machine import Credentials


@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{!r}".format, "%s".__mod__],
    ids=["repr", "str", "f", "r", "%"],
)
def test_credentials_never_show_the_password(show):
    claim = (Credentials(b"alice", b"hunter2"),)
    shown = show(claim) if show == "%s".__mod__ else show(claim[0])
    assert "alice" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("container", [list, tuple])
def test_credentials_in_a_container_never_show_the_password(container):
    assert "hunter2" not in repr(container([Credentials(b"alice", b"hunter2")]))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, 5),
        (errno.ENETUNREACH, 3),
        (errno.ENETDOWN, 3),
        (errno.EHOSTUNREACH, 4),
        (errno.EHOSTDOWN, 4),
        (errno.ETIMEDOUT, 4),
        (errno.EACCES, 2),
        (errno.EPERM, 2),
        (errno.EAFNOSUPPORT, 8),
        (errno.EMFILE, 1),
        (errno.ENFILE, 1),
        (errno.ENOBUFS, 1),
        (errno.ENOMEM, 1),
        (errno.EADDRNOTAVAIL, 1),
        (errno.ECONNRESET, 1),
        (errno.EINVAL, 1),
        (None, 1),
    ],
)
def test_reply_for_errno(number, code):
    error = OSError() if number is None else OSError(number, "what it was")
    assert reply_for(error) == Reply(code)


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (errors.ProtocolError("x"), Reply.GENERAL_FAILURE),
        (errors.ProtocolError("x", None), None),
        (errors.AuthError("x"), Reply.GENERAL_FAILURE),
        (errors.ClientGone("x"), None),
        (errors.DialError("x", Reply.CONNECTION_REFUSED), Reply.CONNECTION_REFUSED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_carry_reason_and_reply(error, reply):
    assert isinstance(error, errors.SocksError)
    assert (error.reply, error.reason, str(error)) == (reply, "x", "x")


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n", b"CONNECT example.com:443 HTTP/1.1\r\n", b"P", b"OPTIONS *", b"TRACE "],
)
def test_http_gets_an_answer_it_understands(first):
    what, answer = foreign.describe(first)
    assert what == "an HTTP client"
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert b"Content-Length: %d" % len(body) in fields
    assert b"Connection: close" in fields
    assert b"SOCKS" in body


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "a TLS client"),
        (b"\x00", "no SOCKS client"),
        (b"\xff\xfb", "no SOCKS client"),
        (b"get / ", "no SOCKS client"),
    ],
)
def test_others_get_a_close(first, what):
    assert foreign.describe(first) == (what, b"")


def test_kinds_are_few():
    """The log counts by them, so that no stranger may invent one."""
    told = {foreign.describe(bytes((octet,))) for octet in range(256) if octet not in (4, 5)}
    assert len(told) == 3
    assert all(what.isprintable() for what, _ in told)
