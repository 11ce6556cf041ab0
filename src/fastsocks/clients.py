"""Who counts as one client, wherever clients share something out.

It must not know what is shared.
"""

from __future__ import annotations

import functools
import ipaddress


def network_of(host: str) -> str:
    """The client's IPv4 address, or the /64 of its IPv6 address, as that is what one
    machine has: counted singly, it would never run out of addresses."""
    return _network_of_ipv6(host) if ":" in host else host


# Reading an address takes longer than all the rest of a login that is remembered.
@functools.lru_cache(maxsize=1024)
def _network_of_ipv6(host: str) -> str:
    plain, percent, scope = host.partition("%")
    network = str(ipaddress.ip_network((plain, 64), strict=False))
    return network + percent + scope  # fe80::/64 is another one on each link
