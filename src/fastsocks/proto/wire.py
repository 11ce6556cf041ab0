"""Numbers, names and addresses as they stand on the wire, shared by the machines.

What a name or an address from the wire must look like to be legal is decided here. It
must not know who may reach it.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple

from fastsocks.errors import ProtocolError, Reply

CONNECT, BIND, UDP_ASSOCIATE = 1, 2, 3
COMMAND_NAMES = {CONNECT: "CONNECT", BIND: "BIND", UDP_ASSOCIATE: "UDP ASSOCIATE"}

# The methods of RFC 1928 section 3 that are spoken here, and the refusal of all.
NO_AUTH, USER_PASSWORD, NO_ACCEPTABLE = 0x00, 0x02, 0xFF

ATYP_IPV4, ATYP_NAME, ATYP_IPV6 = 1, 3, 4

# RFC 1035 2.3.4: a name is at most 255 octets on the wire, which is 253 in text.
NAME_LIMIT = 253
LABELS = re.compile(r"[^.]{1,63}(\.[^.]{1,63})*")

# Printable ASCII without the slash, which would make a path of it in a log or a URL.
LEGAL_IN_NAME = bytes(octet for octet in range(0x21, 0x7F) if octet != 0x2F)


class Request(NamedTuple):
    """What the client wants. ``host`` is a name or an IP literal in text;
    ``is_name`` tells which. ``user`` is the SOCKS4 user id, never a proof."""

    command: int
    host: str
    port: int
    is_name: bool
    user: bytes = b""


class Credentials(NamedTuple):
    """RFC 1929: what the client claims. Never logged, never in an exception."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, password=...)"


# The same targets are asked for again and again.
@functools.lru_cache(maxsize=4096)
def ipv4_text(packed: bytes) -> str:
    return "{}.{}.{}.{}".format(*packed)


def ipv6_text(packed: bytes) -> str:
    """An IPv4-mapped address is the IPv4 address it stands for, everywhere."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


# Few addresses are asked for often: those of our own ends of connections.
@functools.lru_cache(maxsize=1024)
def packed_ipv4(host: str) -> bytes | None:
    """The four octets of a strict dotted quad, else None.

    Strict, because the resolver would also take ``127.1`` and ``0x7f.1``, and
    two readers of one address are how a judged address differs from the dialled.
    """
    try:
        return ipaddress.IPv4Address(host).packed
    except ValueError:
        return None


def packed_ipv6(host: str) -> bytes | None:
    """Not with a zone: that names an interface of the proxy, which is not the client's."""
    if "%" in host:
        return None
    try:
        return ipaddress.IPv6Address(host).packed
    except ValueError:
        return None


# A name is a pure function of its octets, and browsers ask for the same ones all day.
@functools.lru_cache(maxsize=1024)
def parse_name(raw: bytes) -> tuple[str, bool]:
    """The host in a name field: (text, is a name). Browsers put IP literals here.

    Raises ProtocolError for what cannot be a name: empty, over-long, or with
    octets outside printable ASCII (NUL would cut a C string short and make
    another name of it).
    """
    if not raw:
        raise ProtocolError("empty host name", Reply.GENERAL_FAILURE)
    if raw.translate(None, LEGAL_IN_NAME):
        raise ProtocolError("host name with illegal characters", Reply.GENERAL_FAILURE)
    text = raw.decode("ascii")
    if ":" in text:
        bracketed = text.startswith("[") and text.endswith("]")
        packed = packed_ipv6(text[1:-1] if bracketed else text)
        if packed is None:
            raise ProtocolError("malformed IPv6 address in the name field", Reply.GENERAL_FAILURE)
        return ipv6_text(packed), False
    name = text.removesuffix(".").lower()
    if len(name) > NAME_LIMIT or LABELS.fullmatch(name) is None:
        raise ProtocolError("host name with an empty or over-long label", Reply.GENERAL_FAILURE)
    last = name.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        # No top-level domain is a number; getaddrinfo would read 127.1 as an address.
        if packed_ipv4(text) is not None:
            return text, False
        raise ProtocolError("malformed IPv4 address in the name field", Reply.GENERAL_FAILURE)
    # A last dot stays, or the resolver would try its search list and find another host. Only
    # this name is in every hosts file, without one.
    absolute = text.endswith(".") and name != "localhost"
    return f"{name}." if absolute else name, True


def host_of(atyp: int, raw: bytes) -> tuple[str, bool]:
    """The host in a datagram's header, (text, is a name); ``raw`` is a name without its
    length octet. Raises ProtocolError as ``parse_name`` does, and for any other ATYP."""
    if atyp == ATYP_IPV4:
        return ipv4_text(raw), False
    if atyp == ATYP_IPV6:
        return ipv6_text(raw), False
    if atyp == ATYP_NAME:
        return parse_name(raw)
    raise ProtocolError(f"address type {atyp}", Reply.ADDRESS_NOT_SUPPORTED)
