# A request can be reached only through the decisions: whatever is sent and asked in
# whatever order, there is none before the session chose "no authentication" or accepted
# the credentials, and none after it turned the client away.

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocks.errors import ProtocolError
from fastsocks.proto.machine import Credentials, Methods
from fastsocks.proto.socks5 import NO_ACCEPTABLE, NO_AUTH, USER_PASSWORD, Socks5
from fastsocks.proto.wire import Request

GREETING = b"\x05\x02\x00\x02"
LOGIN = b"\x01\x02me\x02pw"
REQUEST = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"

STEPS = st.one_of(
    st.tuples(st.just("feed"), st.sampled_from([GREETING, LOGIN, REQUEST])),
    st.tuples(st.just("feed"), st.binary(max_size=6)),
    st.tuples(st.just("choose"), st.sampled_from([NO_AUTH, 1, USER_PASSWORD, 3, NO_ACCEPTABLE])),
    st.tuples(st.just("verdict"), st.booleans()),
    st.tuples(st.just("ask"), st.none()),
)


@given(st.lists(STEPS, max_size=40))
def test_no_request_without_a_decision(steps):
    machine = Socks5()
    may_request = False
    for step, value in steps:
        if step == "feed":
            machine.feed(value)
        elif step == "choose":
            machine.choose(value)
            may_request = value == NO_AUTH
        elif step == "verdict":
            machine.verdict(value)
            may_request = value
        else:
            try:
                event = machine.next_event()
            except ProtocolError:
                continue
            if isinstance(event, Request):
                assert may_request
            if event is not None:
                may_request = False


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([], [Methods]),
        ([("choose", USER_PASSWORD)], [Methods, Credentials]),
        ([("choose", USER_PASSWORD), ("verdict", False)], [Methods, Credentials]),
        ([("choose", NO_ACCEPTABLE)], [Methods]),
        ([("choose", USER_PASSWORD), ("verdict", True)], [Methods, Credentials, Request]),
    ],
)
def test_everything_at_once_still_waits_for_each_decision(decisions, expected):
    machine = Socks5()
    machine.feed(GREETING + LOGIN + REQUEST)
    seen = [type(machine.next_event())]
    for decision, value in decisions:
        assert machine.next_event() is None
        getattr(machine, decision)(value)
        event = machine.next_event()
        seen += [] if event is None else [type(event)]
    assert seen == expected
    assert machine.next_event() is None


@pytest.mark.parametrize("method", [NO_ACCEPTABLE, 1, 3, 0x80])
def test_no_other_method_leads_anywhere(method):
    machine = Socks5()
    machine.feed(GREETING + LOGIN + REQUEST)
    assert isinstance(machine.next_event(), Methods)
    machine.choose(method)
    assert machine.next_event() is None


def test_where_a_login_is_due_a_request_is_an_error():
    machine = Socks5()
    machine.feed(GREETING + REQUEST)
    assert isinstance(machine.next_event(), Methods)
    machine.choose(USER_PASSWORD)
    with pytest.raises(ProtocolError):
        machine.next_event()


def test_one_request_only():
    machine = Socks5()
    machine.feed(GREETING + REQUEST * 3)
    assert isinstance(machine.next_event(), Methods)
    machine.choose(NO_AUTH)
    assert isinstance(machine.next_event(), Request)
    assert machine.next_event() is None
    assert machine.leftover() == REQUEST * 2


def test_an_unasked_login_needs_its_verdict_before_the_request():
    machine = Socks5()
    machine.feed(GREETING + LOGIN + REQUEST)
    assert isinstance(machine.next_event(), Methods)
    machine.choose(NO_AUTH)
    assert machine.next_event() == Credentials(b"me", b"pw")
    assert machine.next_event() is None
    assert machine.verdict(True) == b"\x01\x00"
    assert isinstance(machine.next_event(), Request)
