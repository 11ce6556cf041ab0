"""What an IP address, written down, says of itself.

It must not know who may reach it: addresses.py judges.
"""

from __future__ import annotations

import ipaddress


def is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_one_host(literal: str) -> bool:
    """Neither a group nor "all addresses"."""
    address = ipaddress.ip_address(literal)
    plain = getattr(address, "ipv4_mapped", None) or address
    return not (plain.is_unspecified or plain.is_multicast)


def family_of(literal: str) -> str:
    """``ipv4`` or ``ipv6``."""
    return "ipv6" if ":" in literal else "ipv4"
