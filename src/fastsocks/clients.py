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


def site_of(network: str) -> str:
    """The /48 of an IPv6 client's network, as whoever has that has 65,536 of them and could be
    as many clients; of any other client, the same again."""
    return _site_of(network) if network.endswith("/64") else network


# Reading an address takes longer than all the rest of a login that is remembered.
@functools.lru_cache(maxsize=1024)
def _network_of_ipv6(host: str) -> str:
    plain, percent, scope = host.partition("%")
    network = str(ipaddress.ip_network((plain, 64), strict=False))
    return network + percent + scope  # fe80::/64 is another one on each link


@functools.lru_cache(maxsize=1024)
def _site_of(network: str) -> str:
    return str(ipaddress.ip_network(network).supernet(new_prefix=48))
