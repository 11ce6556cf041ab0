"""What the kernel says of the way to an address. No packet leaves by any of it.

It must not know what an address means, nor who may reach it: addresses.py judges.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from fastsocks.errors import LACKS
from fastsocks.literals import literal_of

FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}

# rtnetlink(7): a request of one message, and where an answer says what kind of route it is.
NETLINK_ROUTE = 0
NEW_ROUTE, GET_ROUTE, REQUEST = 24, 26, 1
HEADER, ROUTE, DESTINATION = struct.Struct("=IHHII"), struct.Struct("=8BI"), struct.Struct("=HH")
DESTINATION_KIND = 1
KIND_AT = HEADER.size + 7
LOCAL, ANYCAST = 2, 4

# What each session asks is asked of the kernel once a second; so many answers are kept, as
# clients choose the addresses.
FRESH = 1.0
ANSWERS_MAX = 4096

ANY_PORT = 1  # where it is the way that counts


def leads_here(packed: bytes, port: int) -> bool:
    """Whether a packet to this address, in octets, would come to this machine itself.

    The routing table is asked, since interfaces come and go, and have prefixes that are
    local as a whole (RFC 4291 subnet-router anycast, Linux' AnyIP). Where that cannot be
    asked, as elsewhere than on Linux, and for addresses of a link, it is whether we would
    send from that very address, which is not so for each of several in one subnet.

    Raises OSError where there is no descriptor or memory to ask with.
    """
    told = has_local_route(packed)
    if told is None or (not told and is_link_local(packed)):
        return is_source(packed, port)
    return told


class Here:
    """Remembers what ``leads_here`` says, for ``FRESH`` seconds of ``clock``: that an address
    comes or goes is rare, and that long nobody notices."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._answers: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def is_led_to(self, packed: bytes) -> bool:
        """By packets to this address, in octets. Raises OSError as ``leads_here`` does."""
        now = self._clock()
        if now >= self._until or len(self._answers) >= ANSWERS_MAX:
            self._answers.clear()
            self._until = now + FRESH
        answer = self._answers.get(packed)
        if answer is None:
            answer = self._answers[packed] = leads_here(packed, ANY_PORT)
        return answer


def is_link_local(packed: bytes) -> bool:
    """fe80::/10: on which link, the octets do not say."""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def has_local_route(packed: bytes) -> bool | None:
    """By the routing table; None where there is none that can be asked."""
    try:
        return route_kind(packed) in (LOCAL, ANYCAST)
    except OSError as error:
        if error.errno in LACKS:  # a guess instead could be a loop
            raise
        return None
    except AttributeError:
        return None  # no such thing here


def is_source(packed: bytes, port: int) -> bool:
    """Whether a packet to this address, on whatever link, would carry it as its source too."""
    family = FAMILIES[len(packed)]
    host = socket.inet_ntop(family, packed)
    places: list[tuple[str, int] | tuple[str, int, int, int]] = [(host, port)]
    if is_link_local(packed):
        places = [(host, port, 0, index) for index, _ in socket.if_nameindex()]
    for place in places:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)
                source = probe.getsockname()[0].partition("%")[0]
        except OSError as error:
            if error.errno in LACKS:
                raise
            continue  # there is no way to it
        if socket.inet_pton(family, source) == packed:
            return True
    return False


def route_kind(packed: bytes) -> int:
    """As rtnetlink numbers them; 0 for no route. Raises OSError where that cannot be asked,
    AttributeError where there is no such thing."""
    route = ROUTE.pack(FAMILIES[len(packed)], 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    attribute = DESTINATION.pack(DESTINATION.size + len(packed), DESTINATION_KIND) + packed
    size = HEADER.size + len(route) + len(attribute)
    request = HEADER.pack(size, GET_ROUTE, REQUEST, 1, 0) + route + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as kernel:
        kernel.sendto(request, (0, 0))
        answer = kernel.recv(4096, socket.MSG_DONTWAIT)  # it is there already
    return answer[KIND_AT] if HEADER.unpack_from(answer)[1] == NEW_ROUTE else 0


def source_towards(host: str, port: int = ANY_PORT) -> str:
    """Of our addresses the one that a packet to an IP literal would carry. Raises OSError
    where there is no way to it."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return literal_of(probe.getsockname())


def exists(host: str, port: int) -> bool:
    """Whether there is any way to an IP literal. Raises OSError where there is no descriptor or
    memory to ask with."""
    try:
        source_towards(host, port)
    except OSError as error:
        if error.errno in LACKS:
            raise
        return False
    return True
