# UDP ASSOCIATE octet by octet (RFC 1928, 7): where datagrams go to, whose are taken, what is
# dropped, and that it all ends with the TCP connection.

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pytest

from support.programs import wait_until

PATIENCE = 20.0
UNSPECIFIED = b"\1\0\0\0\0\0\0"


class Association(NamedTuple):
    control: object
    relay: tuple[str, int]
    sock: socket.socket

    def send(self, target: socket.socket, payload: bytes, head: bytes = b"\0\0\0") -> None:
        host, port = target.getsockname()
        packed = b"\1" + socket.inet_aton(host) + int(port).to_bytes(2)
        self.sock.sendto(head + packed + payload, self.relay)


def udp_socket(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(PATIENCE)
    return sock


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with closing(udp_socket()) as sock:
        yield sock


def associate(proxy, dial, sock, declared: bytes) -> Association:
    control = dial(proxy)
    control.send(b"\5\1\0")
    assert control.exactly(2) == b"\5\0"
    control.send(b"\5\3\0" + declared)
    reply = control.exactly(10)
    assert reply[:4] == b"\5\0\0\1"
    host, port = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:])
    assert (host, bool(port)) == ("127.0.0.1", True), "BND is where the client has to send to"
    return Association(control, (host, port), sock)


@pytest.fixture
def association(proxy, dial) -> Iterator[Association]:
    with closing(udp_socket()) as sock:
        yield associate(proxy, dial, sock, UNSPECIFIED)


def there_and_back(one: Association, target: socket.socket, payload: bytes) -> bytes:
    """What the client gets, when the target answers what comes first with "re:" before it."""
    one.send(target, payload)
    data, relay = target.recvfrom(1 << 16)
    target.sendto(b"re:" + data, relay)
    answer, sender = one.sock.recvfrom(1 << 16)
    host, port = target.getsockname()
    header = b"\0\0\0\1" + socket.inet_aton(host) + int(port).to_bytes(2)
    assert (answer[: len(header)], sender) == (header, one.relay)
    return answer[len(header) :]


@pytest.mark.parametrize("payload", [b"one", b"", b"x" * 9000], ids=len)
def test_there_and_back(association, target, payload) -> None:
    assert there_and_back(association, target, payload) == b"re:" + payload


# PySocks sends the second; the third is the target, as many clients have it.
DECLARED = {
    "unspecified": UNSPECIFIED,
    "name-0": b"\3\x010\0\0",
    "a-target": b"\1\xc0\0\2\1\0\x35",
}


@pytest.mark.parametrize(
    ("proxy", "declared"),
    [
        (proxy, declared)
        for proxy in ("dante", "native", "python")
        for declared in DECLARED
        # Dante filters by it, as RFC 1928 allows ("may use this information to limit access").
        if (proxy, declared) != ("dante", "a-target")
    ],
    indirect=["proxy"],
)
def test_what_the_request_declares_is_no_filter(proxy, dial, target, declared) -> None:
    with closing(udp_socket()) as sock:
        one = associate(proxy, dial, sock, DECLARED[declared])
        assert there_and_back(one, target, b"data") == b"re:data"


@pytest.mark.parametrize(
    "noise",
    [b"", b"\0", b"\0\0\0", b"\0\0\0\1\x7f\0\0", b"\0\0\0\2\x7f\0\0\1\0\1x", b"\0\0\0\3\0\0\1x"],
    ids=["empty", "one-octet", "no-address", "short-address", "unknown-type", "empty-name"],
)
def test_malformed_datagrams_are_dropped_and_it_lives_on(association, target, noise) -> None:
    association.sock.sendto(noise, association.relay)
    assert there_and_back(association, target, b"after it") == b"re:after it"


def test_fragments_are_dropped(association, target) -> None:
    association.send(target, b"fragment", head=b"\0\0\1")
    # The first to arrive.
    assert there_and_back(association, target, b"after it") == b"re:after it"


def test_another_sender_is_not_relayed(association, target) -> None:
    assert there_and_back(association, target, b"first") == b"re:first"
    for host in ("127.0.0.1", "127.0.0.9"):
        with closing(udp_socket(host)) as stranger:
            association._replace(sock=stranger).send(target, b"stranger")
    # And the stranger's have not come before.
    assert there_and_back(association, target, b"second") == b"re:second"


def test_it_ends_with_the_tcp_connection(association, target) -> None:
    assert there_and_back(association, target, b"data") == b"re:data"
    association.control.sock.close()
    association.sock.connect(association.relay)

    def refused() -> bool:
        try:
            association.sock.send(b"?")
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, "the association is closed")
