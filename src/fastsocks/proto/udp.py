"""The header of a datagram between client and relay (RFC 1928, 7), sans-IO.

    RSV RSV FRAG ATYP address port payload

RSV should be zero and is not looked at, as in requests: clients that set it work
elsewhere. What is wrong with a header is told, not raised: such a datagram is dropped,
and nobody is answered.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from fastsocks.proto import wire

# Where the address begins and how long it is; a name's length is in the octet before.
ADDRESS = {wire.ATYP_IPV4: (4, 4), wire.ATYP_NAME: (5, 0), wire.ATYP_IPV6: (4, 16)}
SHORTEST = 4 + 1


class Fault(StrEnum):
    """Why a datagram is not relayed."""

    MALFORMED = "malformed"
    FRAGMENT = "fragment"


class Datagram(NamedTuple):
    """What a header says. ``raw`` is the address as it stands there, a name without
    its length octet; the payload begins at ``payload``."""

    atyp: int
    raw: bytes
    port: int
    payload: int


def parse(data: bytes) -> Datagram | Fault:
    """FRAGMENT for a sound header with FRAG set, which nobody sends and RFC 1928 lets
    a relay drop; MALFORMED for all that is short, of an unknown type, without a name
    or to port 0."""
    if len(data) < SHORTEST or data[3] not in ADDRESS:
        return Fault.MALFORMED
    atyp = data[3]
    start, length = ADDRESS[atyp]
    if atyp == wire.ATYP_NAME:
        length = data[4]
    end = start + length
    port = int.from_bytes(data[end : end + 2])
    if not length or len(data) < end + 2 or not port:
        return Fault.MALFORMED
    if data[2]:
        return Fault.FRAGMENT
    return Datagram(atyp, data[start:end], port, end + 2)


def header(host: str, port: int) -> bytes:
    """The header of a reply from an IP literal: only ATYP 1 and 4, as clients that
    read fixed sizes fail on names. Raises ValueError for what is no IP literal."""
    plain = host.partition("%")[0]
    packed = wire.packed_ipv4(plain) or wire.packed_ipv6(plain)
    if packed is None:
        raise ValueError(f"no IP address: {host!r}")
    atyp = wire.ATYP_IPV4 if len(packed) == 4 else wire.ATYP_IPV6
    return bytes((0, 0, 0, atyp)) + packed + port.to_bytes(2)
