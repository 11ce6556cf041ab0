"""What an IP address, written down, says of itself.

It must not know who may reach it: addresses.py judges.
"""

from __future__ import annotations

import ipaddress
from typing import Any

BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def literal_of(address: tuple[Any, ...]) -> str:
    """The host of a socket address: an IPv4-mapped one as IPv4, a link-local one with the
    scope without which it means nothing."""
    host = str(address[0])
    if "." in host:
        return host.removeprefix("::ffff:")
    scope = address[3] if len(address) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_one_host(literal: str) -> bool:
    """Neither a group nor "all addresses"."""
    return not (_unmapped(literal).is_unspecified or is_group(literal))


def is_group(literal: str) -> bool:
    """A multicast group, or the broadcast address."""
    address = _unmapped(literal)
    return address.is_multicast or address == BROADCAST


def is_link_local(literal: str) -> bool:
    """Means nothing without its interface, if it is IPv6."""
    return _unmapped(literal).is_link_local


def family_of(literal: str) -> str:
    """``ipv4`` or ``ipv6``."""
    return "ipv6" if ":" in literal else "ipv4"


def unmapped(literal: str) -> str:
    """An IPv4-mapped address as the IPv4 address that it stands for; what is no literal as
    it is."""
    try:
        return str(_unmapped(literal))
    except ValueError:
        return literal


def _unmapped(literal: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(literal)
    return getattr(address, "ipv4_mapped", None) or address
