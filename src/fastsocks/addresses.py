"""Which addresses a client may reach: the one place where an address is judged.

The table is ours, from the registries named below, because the properties of
Python's ``ipaddress`` answer another question and differ between its versions. What
is judged is a numeric address, never a name; addresses that carry an IPv4 address
inside are judged by both, as a translator or tunnel on the way would deliver them.

    a client on loopback    reaches every unicast address: it could without us
    any other client        reaches none in the table, and none of this machine's own,
                            unless the operator allows it
    nobody                  reaches a group, 0.0.0.0, :: or our own listeners by TCP

It must not know SOCKS, names, or how a connection is made.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import logging
import os
import socket
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fastsocks.errors import NotJudged, Reply, RuleDenied
from fastsocks.literals import family_of
from fastsocks.routes import ANY_PORT, Here, leads_here

BOTH_FAMILIES = frozenset({"ipv4", "ipv6"})

log = logging.getLogger("fastsocks.addresses")


class Use(enum.Enum):
    """What an address in a range is good for."""

    SPECIAL = "for those the operator allows, and for clients on loopback"
    GROUP = "not one host: no TCP at all, UDP for those the operator allows"
    NEVER = "no destination, though Linux takes it for loopback"
    ALIAS = "another spelling of the IPv4 address inside, which alone decides"


class Range(NamedTuple):
    """One row. ``inside`` tells where IPv4 addresses stand in it: the index of the
    first octet, and the octet that each of the four has been XORed with."""

    network: str
    name: str
    source: str
    use: Use = Use.SPECIAL
    inside: tuple[tuple[int, int], ...] = ()


# The IANA IPv4 and IPv6 Special-Purpose Address Registries of 2025-10-09, and with them
# multicast, what RFC 4291 2.4 leaves unassigned, and what has been deprecated.
TABLE = (
    Range("0.0.0.0/32", "unspecified", "RFC 1122 3.2.1.3", Use.NEVER),
    Range("0.0.0.0/8", "this-network", "RFC 791 3.2"),
    Range("10.0.0.0/8", "private", "RFC 1918"),
    Range("100.64.0.0/10", "shared", "RFC 6598"),
    Range("127.0.0.0/8", "loopback", "RFC 1122 3.2.1.3"),
    Range("169.254.0.0/16", "link-local", "RFC 3927"),
    Range("172.16.0.0/12", "private", "RFC 1918"),
    Range("192.0.0.0/24", "ietf-protocol", "RFC 6890 2.1"),
    Range("192.0.0.0/29", "ds-lite", "RFC 7335"),
    Range("192.0.0.8/32", "dummy", "RFC 7600"),
    Range("192.0.0.9/32", "pcp-anycast", "RFC 7723"),
    Range("192.0.0.10/32", "turn-anycast", "RFC 8155"),
    Range("192.0.0.170/32", "nat64-discovery", "RFC 8880"),
    Range("192.0.0.171/32", "nat64-discovery", "RFC 8880"),
    Range("192.0.2.0/24", "documentation", "RFC 5737"),
    Range("192.31.196.0/24", "as112", "RFC 7535"),
    Range("192.52.193.0/24", "amt", "RFC 7450"),
    Range("192.88.99.0/24", "6to4-relay", "RFC 7526"),
    Range("192.88.99.2/32", "6a44-relay", "RFC 6751"),
    Range("192.168.0.0/16", "private", "RFC 1918"),
    Range("192.175.48.0/24", "as112", "RFC 7534"),
    Range("198.18.0.0/15", "benchmarking", "RFC 2544"),
    Range("198.51.100.0/24", "documentation", "RFC 5737"),
    Range("203.0.113.0/24", "documentation", "RFC 5737"),
    Range("224.0.0.0/4", "multicast", "RFC 1112", Use.GROUP),
    Range("240.0.0.0/4", "reserved", "RFC 1112 4"),
    Range("255.255.255.255/32", "broadcast", "RFC 919 7", Use.NEVER),
    # Only 2000::/3 has ever been assigned to hosts; a mesh may well sit in the rest.
    Range("::/3", "reserved", "RFC 4291 2.4"),
    Range("4000::/2", "reserved", "RFC 4291 2.4"),
    Range("8000::/1", "reserved", "RFC 4291 2.4"),
    Range("::/96", "ipv4-compatible", "RFC 4291 2.5.5.1", inside=((12, 0),)),
    Range("::/128", "unspecified", "RFC 4291 2.5.2", Use.NEVER),
    Range("::1/128", "loopback", "RFC 4291 2.5.3"),
    Range("::ffff:0:0/96", "ipv4-mapped", "RFC 4291 2.5.5.2", Use.ALIAS, ((12, 0),)),
    Range("::ffff:0:0:0/96", "ipv4-translated", "RFC 2765 2.1", inside=((12, 0),)),
    # A host without IPv4 reaches all of it through here, so the prefix itself is no bar.
    Range("64:ff9b::/96", "nat64", "RFC 6052", Use.ALIAS, ((12, 0),)),
    # How long an operator's own prefix is nobody else knows; read as the usual /96.
    Range("64:ff9b:1::/48", "nat64-local", "RFC 8215", inside=((12, 0),)),
    Range("100::/64", "discard", "RFC 6666"),
    Range("100:0:0:1::/64", "dummy", "RFC 9780"),
    Range("2001::/23", "ietf-protocol", "RFC 2928"),
    Range("2001::/32", "teredo", "RFC 4380", inside=((4, 0), (12, 0xFF))),
    Range("2001:1::1/128", "pcp-anycast", "RFC 7723"),
    Range("2001:1::2/128", "turn-anycast", "RFC 8155"),
    Range("2001:1::3/128", "dns-sd-anycast", "RFC 9665"),
    Range("2001:2::/48", "benchmarking", "RFC 5180"),
    Range("2001:3::/32", "amt", "RFC 7450"),
    Range("2001:4:112::/48", "as112", "RFC 7535"),
    Range("2001:10::/28", "orchid", "RFC 4843"),
    Range("2001:20::/28", "orchid", "RFC 7343"),
    Range("2001:30::/28", "drone-id", "RFC 9374"),
    Range("2001:db8::/32", "documentation", "RFC 3849"),
    Range("2002::/16", "6to4", "RFC 7526", inside=((2, 0),)),
    Range("2620:4f:8000::/48", "as112", "RFC 7534"),
    Range("3fff::/20", "documentation", "RFC 9637"),
    Range("5f00::/16", "srv6", "RFC 9602"),
    Range("fc00::/7", "unique-local", "RFC 4193"),
    Range("fe80::/10", "link-local", "RFC 4291 2.5.6"),
    Range("fec0::/10", "site-local", "RFC 3879"),
    Range("ff00::/8", "multicast", "RFC 4291 2.7", Use.GROUP),
)

# ISATAP is told by the interface identifier, whatever the prefix (RFC 5214 6.1).
ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")

MAPPED = bytes(10) + b"\xff\xff"
LOOPBACK = bytes(15) + b"\x01"

# In no table, as each machine has others: those of its own that are in no range. What it
# serves there may be kept from a client's network, by rules that know of no client within.
OWN = "own"

EVERY_RANGE = "all"
NAMES = sorted({OWN, *(row.name for row in TABLE if row.use in (Use.SPECIAL, Use.GROUP))})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Reading(NamedTuple):
    """What an address is: ``family`` as it is written, ``spellings`` its octets and those
    of the IPv4 addresses inside, ``ranges`` the rows that they are in, each with the
    octets in question, and ``ordinary`` those in no row."""

    family: str
    spellings: tuple[bytes, ...]
    ranges: tuple[tuple[Range, bytes], ...]
    ordinary: tuple[bytes, ...]


class Judge:
    """``allowed`` is what clients elsewhere than on loopback may reach of the special-purpose
    ranges and of this machine: CIDRs, names of ranges, "own", or "all". ``listeners`` are the
    addresses and ports that we serve ourselves, ``families`` those (``ipv4``, ``ipv6``)
    that anybody reaches. Raises ValueError for an entry that is neither CIDR nor name,
    saying what would be right."""

    def __init__(
        self,
        allowed: Sequence[str],
        listeners: Sequence[tuple[str, int]],
        families: Collection[str] = BOTH_FAMILIES,
    ) -> None:
        self._families = families
        self._names: set[str] = set()
        self._networks: list[tuple[int, int, int]] = []  # (octets, mask, base)
        for entry in allowed:
            self._allow(entry)
        self._here = Here()
        self._ports = frozenset(port for _, port in listeners)
        self._own: set[tuple[bytes, int]] = set()
        self._everywhere: set[tuple[int, int]] = set()  # (octets of the family, port)
        ipv4_ports = {port for host, port in listeners if ":" not in host}
        for host, port in listeners:
            for packed in reading_of(host).spellings:
                if any(packed):
                    self._own.add((packed, port))
                    continue
                self._everywhere.add((len(packed), port))
                if port not in ipv4_ports:  # [::] serves IPv4 clients too
                    self._everywhere.add((4, port))

    def uses(self, family: str) -> bool:
        return family in self._families

    def judge(self, client_host: str, host: str, port: int, datagram: bool = False) -> None:
        """Raises RuleDenied, with the range in its reason, if ``client_host`` may not
        reach ``host``, NotJudged (which is one) where that cannot be told now. Both are IP
        literals; IPv6 ones may carry a scope."""
        reading = reading_of(host)
        if reading.family not in self._families:
            raise RuleDenied(
                f"{host}: its family is not used (--prefer, -b)", Reply.ADDRESS_NOT_SUPPORTED
            )
        local = is_loopback(client_host)
        try:
            if port in self._ports and not datagram:
                self._refuse_loop(reading, host, port)
            if not local:
                self._refuse_own(reading, host)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise NotJudged(
                f"{host}: whether it is an address of this machine cannot be told: {reason}"
            ) from None
        for row, packed in reading.ranges:
            may_be_allowed = row.use is Use.SPECIAL or (row.use is Use.GROUP and datagram)
            if row.use is Use.SPECIAL and local:
                continue
            if may_be_allowed and self._allows(row.name, packed):
                continue
            remedy = f"; needs --allow {row.name}" if may_be_allowed else ""
            raise RuleDenied(f"{host} is in {row.name} ({row.network}, {row.source}){remedy}")

    def choose(self, client_host: str, hosts: Sequence[str], port: int) -> list[str]:
        """Those that ``client_host`` may reach, at least one. Raises RuleDenied as
        ``judge`` does, for a range rather than for a family."""
        chosen: list[str] = []
        denied: list[RuleDenied] = []
        for host in hosts:
            try:
                self.judge(client_host, host, port)
            except RuleDenied as error:
                log.debug("%s does not reach %s: %s", client_host, host, error.reason)
                denied.append(error)
            else:
                chosen.append(host)
        if not chosen:
            raise min(denied, key=lambda error: error.reply is not Reply.NOT_ALLOWED)
        return chosen

    def _allow(self, entry: str) -> None:
        if entry == EVERY_RANGE:
            self._names.update(NAMES)
            return
        if entry in NAMES:
            self._names.add(entry)
            return
        try:
            if "%" in entry:
                raise ValueError("an interface is no part of a network")
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            raise ValueError(
                f"allow {entry}: must be a network such as 10.1.0.0/16,"
                f' "{EVERY_RANGE}", or one of {", ".join(NAMES)}'
            ) from None
        if network.network_address != ipaddress.ip_interface(entry).ip:
            raise ValueError(f"allow {entry}: begins in the middle of a network: write {network}")
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:  # it is judged as what it stands for
            network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
        self._networks.append(_numbers(network))

    def _allows(self, name: str, packed: bytes) -> bool:
        if name in self._names:
            return True
        number = int.from_bytes(packed)
        return any(
            size == len(packed) and number & mask == base for size, mask, base in self._networks
        )

    def _refuse_loop(self, reading: Reading, host: str, port: int) -> None:
        """A proxy that connects to itself does so until it is full."""
        for packed in reading.spellings:
            if (packed, port) in self._own or (
                (len(packed), port) in self._everywhere and _is_ours(packed, port)
            ):
                raise RuleDenied(f"{host} port {port} is this proxy itself")

    def _refuse_own(self, reading: Reading, host: str) -> None:
        for packed in reading.ordinary:
            if not self._allows(OWN, packed) and self._here.is_led_to(packed):
                raise RuleDenied(f"{host} is an address of this machine; needs --allow {OWN}")


def is_own(host: str) -> bool:
    """Whether an IP literal is an address of this machine."""
    packed = packed_address(host)
    return packed is not None and _is_ours(packed, ANY_PORT)


# Bounded, this one and the next; a stranger who fills them costs others a microsecond.
@functools.lru_cache(maxsize=4096)
def is_loopback(host: str) -> bool:
    """Whether an address is 127.0.0.0/8 or ::1, IPv4-mapped or not."""
    packed = packed_address(host)
    return packed is not None and _loops_back(packed[-4:] if _is_ipv4(packed) else packed)


@functools.lru_cache(maxsize=4096)
def reading_of(host: str) -> Reading:
    """What an IP literal is. Raises RuleDenied for anything else: what cannot be read
    cannot be judged."""
    packed = packed_address(host)
    if packed is None:
        raise RuleDenied(f"{host} is no IP address")
    row = _find(packed)
    inside = row.inside if row is not None else ()
    if packed[8:12] in ISATAP:
        inside += ((12, 0),)
    spellings = (
        packed,
        *(bytes(octet ^ flip for octet in packed[at : at + 4]) for at, flip in inside),
    )
    rows = [(_find(octets), octets) for octets in spellings]
    return Reading(
        family_of(host),
        spellings,
        tuple((row, octets) for row, octets in rows if row and row.use is not Use.ALIAS),
        tuple(octets for row, octets in rows if row is None),
    )


def packed_address(host: str) -> bytes | None:
    """The octets of an IP literal, without its scope; None for anything else."""
    try:
        if ":" not in host:
            return socket.inet_pton(socket.AF_INET, host)
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None


def _is_ours(packed: bytes, port: int) -> bool:
    return _loops_back(packed) or leads_here(packed, port)


def _loops_back(packed: bytes) -> bool:
    return packed[0] == 127 if len(packed) == 4 else packed == LOOPBACK


def _is_ipv4(packed: bytes) -> bool:
    return len(packed) == 4 or packed[:12] == MAPPED


def _numbers(network: Network) -> tuple[int, int, int]:
    """Octets of the family, mask, base: a test is one AND and one comparison."""
    return network.max_prefixlen // 8, int(network.netmask), int(network.network_address)


def _index() -> dict[tuple[int, int], tuple[tuple[int, int, Range], ...]]:
    """By octets of the family and first octet: the rows that may apply, narrowest
    first. Most addresses of the Internet have no entry, and so need no search."""
    index: dict[tuple[int, int], list[tuple[int, int, Range]]] = {}
    for row in TABLE:
        size, mask, base = _numbers(ipaddress.ip_network(row.network))
        low = base >> (size * 8 - 8)
        high = (base | ((1 << size * 8) - 1) ^ mask) >> (size * 8 - 8)
        for first in range(low, high + 1):
            index.setdefault((size, first), []).append((mask, base, row))
    return {key: tuple(sorted(rows, key=lambda one: -one[0])) for key, rows in index.items()}


INDEX = _index()


def _find(packed: bytes) -> Range | None:
    """The narrowest row that holds an address."""
    rows = INDEX.get((len(packed), packed[0]))
    if rows is not None:
        number = int.from_bytes(packed)
        for mask, base, row in rows:
            if number & mask == base:
                return row
    return None
