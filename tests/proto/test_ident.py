# Answers of identd, which is a stranger's program: whatever it says is an answer of some
# kind, and no octet of it makes one name of another.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks.proto.ident import ANSWER_LIMIT, Outcome, is_complete, matches, parse, query

PORTS = 6191, 1080


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (b"6191, 1080 : USERID : UNIX : alice\r\n", b" alice"),
        (b"6191,1080:USERID:UNIX:alice\n", b"alice"),
        (b" \t06191 , 1080\t:\tUSERID : UNIX , UTF-8 :a:b c \r\nmore", b"a:b c "),
        (b"6191,1080:USERID:OTHER:" + b"x" * 512 + b"\r\n", b"x" * 512),
    ],
)
def test_names(answer, name):
    assert parse(answer, *PORTS)[:2] == (Outcome.NAME, name)
    for size in range(answer.index(b"\n") + 1):  # a cut is never another name
        assert parse(answer[:size], *PORTS).outcome is Outcome.MALFORMED
        assert not is_complete(answer[:size])


def test_error():
    answer = parse(b"6191,1080: ERROR : NO-USER: really\x1b[0m\r\n", *PORTS)
    assert (answer.outcome, answer.detail) == (Outcome.ERROR, "NO-USER: really\x1b[0m")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b":::\n",
        b"1080,6191:USERID:UNIX:alice\n",
        b"6191:USERID:UNIX:alice\n",
        b"6191,1080,1:USERID:UNIX:alice\n",
        b"-6191,1080:USERID:UNIX:alice\n",
        b"6191,1080:USERID:alice\n",
        b"6191,1080:USER ID:UNIX:alice\n",
        b"6191,1080:USERID:UNIX:\n",
        b"6191,1080:USERID:UNIX: \t \r\n",
        b"6191,1080:USERID:UNIX:al\0ice\n",
        b"6191,1080:USERID:UNIX:al\rice\n",
        b"6191,1080:USERID:UNIX:" + b"x" * 513 + b"\n",
        b"6191,1080" + b" " * ANSWER_LIMIT + b":USERID:UNIX:alice\n",
        b"x" * 10_000_000,
    ],
    ids=lambda answer: answer[:40],
)
def test_malformed(answer):
    assert parse(answer, *PORTS).outcome is Outcome.MALFORMED


@given(st.binary() | st.binary().map(lambda tail: b"6191,1080:USERID:UNIX:" + tail))
def test_never_raises(answer):
    found = parse(answer, *PORTS)
    assert bool(found.name) == (found.outcome is Outcome.NAME)


def test_query_and_match():
    assert query(*PORTS) == b"6191, 1080\r\n"
    assert matches(b" alice", {b"alice"})
    assert matches(b" alice", {b" alice"})
    assert not matches(b"alice", {b" alice"})
    assert not matches(b"Alice", {b"alice"})
