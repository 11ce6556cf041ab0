# Every reply, octet by octet: clients read fixed lengths, so a reply that is one octet
# short, of another address type or due in another state breaks them.

from __future__ import annotations

import pytest

from fastsocks.errors import Reply
from fastsocks.proto.machine import Credentials, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import NO_ACCEPTABLE, NO_AUTH, USER_PASSWORD, Socks5

GREETING = b"\x05\x02\x00\x02"
LOGIN = b"\x01\x05alice\x06secret"
REQUESTS = {
    "ipv4": b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb",
    "name": b"\x05\x01\x00\x03\x01x\x01\xbb",
    "ipv6": b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb",
    "mapped": b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\x01\xbb",
}
FAILURES = [reply for reply in Reply if reply is not Reply.SUCCEEDED]
MAPPED_BOUND = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
IPV6_BOUND = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x09"


def socks5_after(request: bytes) -> Socks5:
    machine = Socks5()
    machine.feed(GREETING + request)
    assert isinstance(machine.next_event(), Methods)
    machine.choose(NO_AUTH)
    assert machine.next_event() is not None
    return machine


@pytest.mark.parametrize(
    ("host", "port", "reply"),
    [
        ("127.0.0.1", 1080, b"\x00\x5a\x04\x38\x7f\x00\x00\x01"),
        ("255.255.255.255", 65535, b"\x00\x5a\xff\xff\xff\xff\xff\xff"),
        ("0.0.0.0", 0, b"\x00\x5a\x00\x00\x00\x00\x00\x00"),
        ("2001:db8::9", 1080, b"\x00\x5a\x04\x38\x00\x00\x00\x00"),  # the port is still true
        ("fe80::1%2", 1080, b"\x00\x5a\x04\x38\x00\x00\x00\x00"),
    ],
)
def test_socks4_granted(host, port, reply):
    assert Socks4().granted(host, port) == reply


@pytest.mark.parametrize("reply", FAILURES)
def test_socks4_knows_one_refusal(reply):
    assert Socks4().refusal(reply) == b"\x00\x5b\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("request_type", "host", "port", "reply"),
    [
        ("ipv4", "127.0.0.1", 1080, b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"),
        ("ipv4", "127.0.0.1", 0, b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"),
        ("ipv4", "127.0.0.1", 65535, b"\x05\x00\x00\x01\x7f\x00\x00\x01\xff\xff"),
        ("name", "127.0.0.1", 1080, b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"),
        ("name", "2001:db8::9", 1080, b"\x05\x00\x00\x01\x00\x00\x00\x00\x04\x38"),
        ("ipv4", "2001:db8::9", 1080, b"\x05\x00\x00\x01\x00\x00\x00\x00\x04\x38"),
        ("ipv6", "2001:db8::9", 1080, b"\x05\x00\x00\x04" + IPV6_BOUND + b"\x04\x38"),
        ("ipv6", "2001:db8::9%3", 1080, b"\x05\x00\x00\x04" + IPV6_BOUND + b"\x04\x38"),
        ("ipv6", "127.0.0.1", 1080, b"\x05\x00\x00\x04" + MAPPED_BOUND + b"\x04\x38"),
        ("mapped", "127.0.0.1", 1080, b"\x05\x00\x00\x04" + MAPPED_BOUND + b"\x04\x38"),
    ],
)
def test_socks5_granted_in_the_family_of_the_request(request_type, host, port, reply):
    assert socks5_after(REQUESTS[request_type]).granted(host, port) == reply


@pytest.mark.parametrize("request_type", REQUESTS)
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply.GENERAL_FAILURE, 1),
        (Reply.NOT_ALLOWED, 2),
        (Reply.NETWORK_UNREACHABLE, 3),
        (Reply.HOST_UNREACHABLE, 4),
        (Reply.CONNECTION_REFUSED, 5),
        (Reply.TTL_EXPIRED, 6),
        (Reply.COMMAND_NOT_SUPPORTED, 7),
        (Reply.ADDRESS_NOT_SUPPORTED, 8),
    ],
)
def test_socks5_refusal_of_a_request(request_type, reply, code):
    expected = bytes((5, code)) + b"\x00\x01\x00\x00\x00\x00\x00\x00"
    assert socks5_after(REQUESTS[request_type]).refusal(reply) == expected


def test_no_code_beyond_those_of_the_rfc():
    # Clients raise on a code above 8.
    assert [int(reply) for reply in Reply] == list(range(9))


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        (NO_AUTH, b"\x05\x00"),
        (USER_PASSWORD, b"\x05\x02"),
        (NO_ACCEPTABLE, b"\x05\xff"),
    ],
)
def test_method_reply(method, reply):
    machine = Socks5()
    machine.feed(GREETING)
    assert machine.next_event() == Methods(b"\x00\x02")
    assert machine.choose(method) == reply


@pytest.mark.parametrize(("accepted", "reply"), [(True, b"\x01\x00"), (False, b"\x01\x01")])
def test_verdict_has_the_version_of_rfc_1929(accepted, reply):
    machine = Socks5()
    machine.feed(GREETING + LOGIN)
    assert machine.next_event() == Methods(b"\x00\x02")
    machine.choose(USER_PASSWORD)
    assert machine.next_event() == Credentials(b"alice", b"secret")
    assert machine.verdict(accepted) == reply


METHODS_REFUSED = b"\x05\xff"
LOGIN_REFUSED = b"\x01\x01"
REQUEST_REFUSED = b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"
NOTHING_DUE = b""


CHOSEN_NONE = [GREETING, ("choose", NO_AUTH)]
CHOSEN_LOGIN = [GREETING, ("choose", USER_PASSWORD)]


@pytest.mark.parametrize(
    ("steps", "reply"),
    [
        pytest.param([], METHODS_REFUSED, id="nothing"),
        pytest.param([GREETING[:1]], METHODS_REFUSED, id="half a greeting"),
        pytest.param([GREETING], METHODS_REFUSED, id="greeting"),
        pytest.param(CHOSEN_NONE, REQUEST_REFUSED, id="no login needed"),
        pytest.param([*CHOSEN_NONE, REQUESTS["name"]], REQUEST_REFUSED, id="request"),
        pytest.param(CHOSEN_LOGIN, LOGIN_REFUSED, id="login needed"),
        pytest.param([*CHOSEN_LOGIN, LOGIN[:4]], LOGIN_REFUSED, id="half a login"),
        pytest.param([*CHOSEN_LOGIN, LOGIN], LOGIN_REFUSED, id="login"),
        pytest.param([*CHOSEN_LOGIN, LOGIN, ("verdict", True)], REQUEST_REFUSED, id="logged in"),
        # The refusal has been said, and there is nothing to add to it.
        pytest.param([*CHOSEN_LOGIN, LOGIN, ("verdict", False)], NOTHING_DUE, id="turned away"),
        pytest.param([GREETING, ("choose", NO_ACCEPTABLE)], NOTHING_DUE, id="no method"),
        # A login where none was asked for: the login is what is answered.
        pytest.param([*CHOSEN_NONE, LOGIN], LOGIN_REFUSED, id="login unasked"),
        pytest.param(
            [*CHOSEN_NONE, LOGIN, ("verdict", True)], REQUEST_REFUSED, id="login unasked, accepted"
        ),
    ],
)
def test_socks5_refuses_the_message_that_is_due(steps, reply):
    machine = Socks5()
    for step in steps:
        if isinstance(step, bytes):
            machine.feed(step)
            machine.next_event()
        else:
            decision, value = step
            getattr(machine, decision)(value)
    assert machine.refusal(Reply.GENERAL_FAILURE) == reply


@pytest.mark.parametrize("command", [2, 3], ids=["bind", "udp"])
@pytest.mark.parametrize("request_type", ["ipv4", "ipv6", "name"])
@pytest.mark.parametrize(
    ("host", "reply"),
    [
        ("192.0.2.9", b"\x05\0\0\x01\xc0\x00\x02\x09\x12\x34"),
        ("2001:db8::9", b"\x05\0\0\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x09\x12\x34"),
    ],
)
def test_socks5_address_to_be_used_is_granted_in_its_own_family(command, request_type, host, reply):
    request = bytearray(REQUESTS[request_type])
    request[1] = command
    assert socks5_after(bytes(request)).granted(host, 0x1234) == reply
