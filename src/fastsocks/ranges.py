"""Who may come: ranges of client addresses, and ordered rules made of them.

The syntax is that of jsocks' InetRange, without its guesses, and with IPv6:

    192.0.2.7  2001:db8::7         one address
    192.0.2.0/24  2001:db8::/32    a network
    192.0.  10.                    all that begins so: one to three octets and a dot
    .                              everything
    192.0.2.1:192.0.2.9            from, to: with a colon, as in jsocks ...
    2001:db8::1 2001:db8::9        ... with white space ...
    2001:db8::1-2001:db8::9        ... or with a dash between addresses
    host.example.com               a name: the addresses it has
    a.example.com:b.example.com    from and to may be names as well
    .example.com                   every client whose name ends so

It must not know how names are looked up: ``hosts`` does that, where it is needed.
"""

from __future__ import annotations

import bisect
import heapq
import ipaddress
import itertools
import re
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

# An underscore is no host name's, but in some organisations' DNS all the same.
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NAME_LIMIT = 253
NUMBERS = re.compile(r"[0-9.]+")
PREFIX = re.compile(r"([0-9]{1,3}\.){1,3}")

Position = tuple[int, int]
"""(4 or 6, the address as a number): comparable within a family."""


# The hosts of the Internet have none below nor above these (RFC 791 3.2, RFC 1112 4, RFC 4291
# 2.4), so that leaving those out keeps nobody out.
STRANGERS: tuple[tuple[Position, Position], ...] = (
    ((4, 1 << 24), (4, (224 << 24) - 1)),  # 1.0.0.0 to 223.255.255.255
    ((6, 1 << 125), (6, (1 << 126) - 1)),  # 2000::/3
)


class Hosts(Protocol):
    """Names and addresses of hosts, each look-up bounded in time. Both raise TimeoutError
    if there is no answer: nothing is known of the name then, not even that it is none."""

    async def name_of(self, address: str) -> str | None:
        """The name of an address if that name has that address, in lower case, None if
        there is none; whoever owns an address can have it carry any name whatever."""

    async def addresses_of(self, name: str) -> frozenset[str]:
        """Empty if there are none."""


class Span(NamedTuple):
    """All addresses from ``first`` to ``last``."""

    first: Position
    last: Position

    def contains(self, position: Position) -> bool:
        return self.first <= position <= self.last


class Ranges:
    """A set of addresses. Raises ValueError for an entry that is none of the above,
    with what would be right."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.spans: list[Span] = []
        self._suffixes: tuple[str, ...] = ()
        self._names: list[str] = []
        self._name_pairs: list[tuple[str, str]] = []
        for entry in entries:
            self._add(entry.strip().lower())

    @property
    def needs_names(self) -> bool:
        return bool(self._suffixes or self._names or self._name_pairs)

    def contains_now(self, address: str) -> bool | None:
        """None if that depends on a name."""
        position = position_of(address)
        if any(span.contains(position) for span in self.spans):
            return True
        return None if self.needs_names else False

    async def contains(self, address: str, hosts: Hosts) -> bool:
        """Raises TimeoutError if that depends on a name for which nobody answers."""
        known = self.contains_now(address)
        if known is not None:
            return known
        silent = False
        for answer in self._answers(address, hosts):
            try:
                if await answer:
                    return True
            except TimeoutError:  # the other names may still contain it
                silent = True
        if silent:
            raise TimeoutError
        return False

    def _answers(self, address: str, hosts: Hosts) -> Iterator[Awaitable[bool]]:
        """One for each entry that needs names, to be awaited as they come."""
        position = position_of(address)
        for name in self._names:
            yield is_among(position, name, hosts)
        for first, last in self._name_pairs:
            yield is_between(position, first, last, hosts)
        if self._suffixes:
            yield is_called(address, self._suffixes, hosts)

    def _add(self, entry: str) -> None:
        if entry == ".":
            self.spans += [whole_family(4), whole_family(6)]
        elif "/" in entry:
            self.spans.append(parse_network(entry))
        elif PREFIX.fullmatch(entry):
            self.spans.append(parse_prefix(entry))
        elif entry.startswith("."):
            if not is_name(entry[1:]):
                raise ValueError(f'"{entry}" must be a dot and a domain, as in .example.com')
            self._suffixes += (entry,)
        elif len(ends := split_ends(entry)) == 2:
            self._add_pair(*ends)
        elif len(ends) == 1:
            position = parse_end(entry)
            if position is None:
                self._names.append(entry)
            else:
                self.spans.append(Span(position, position))
        else:
            raise ValueError(
                f'"{entry}" must be an address, a network, a name or FROM:TO (FROM-TO for'
                " IPv6 addresses); addresses have neither scope nor brackets here"
            )

    def _add_pair(self, first: str, last: str) -> None:
        low, high = parse_end(first), parse_end(last)
        if low is None or high is None:
            self._name_pairs.append((first, last))
        elif low[0] != high[0]:
            raise ValueError(f'"{first}" and "{last}" are of different families')
        elif low > high:
            raise ValueError(f'"{first}" comes after "{last}": the lower one goes first')
        else:
            self.spans.append(Span(low, high))


class Order:
    """Which of many ranges in order is the first that contains an address. Asked for every
    client, so it does not look at each of them."""

    def __init__(self, ranges: Sequence[Ranges]) -> None:
        self.named = [number for number, one in enumerate(ranges) if one.needs_names]
        """the numbers of those that contain an address because of a name, or may"""
        # From one of these positions to the next, the first is the same.
        self._from: list[Position] = []
        self._first: list[int] = []
        self._none = len(ranges)
        begin: dict[Position, list[tuple[int, Position]]] = {}
        for number, one in enumerate(ranges):
            for (family, low), (_, high) in one.spans:
                after = family, high + 1
                begin.setdefault((family, low), []).append((number, after))
                begin.setdefault(after, [])
        open_ones: list[tuple[int, Position]] = []
        for position in sorted(begin):
            for entry in begin[position]:
                heapq.heappush(open_ones, entry)
            while open_ones and open_ones[0][1] <= position:
                heapq.heappop(open_ones)
            self._from.append(position)
            self._first.append(open_ones[0][0] if open_ones else self._none)

    def first(self, address: str) -> int:
        """Its number, by what is known of addresses without asking for names; how many
        there are if it is in none."""
        place = bisect.bisect_right(self._from, position_of(address))
        return self._first[place - 1] if place else self._none


class Rule(NamedTuple):
    """Clients in ``ranges`` may come if identd calls them one of ``names``; whoever
    they are if ``names`` is None. ``text`` is the range as it was written."""

    text: str
    ranges: Ranges
    names: frozenset[bytes] | None


def parse_rule(text: str) -> Rule:
    """RANGE[;RANGE...][=NAME[;NAME...]]. Blanks around a name are part of it."""
    where, equals, who = text.partition("=")
    where = where.strip()
    ranges = parse(where)
    if not equals:
        return Rule(where, ranges, None)
    names = [name for name in who.split(";") if name.strip()]
    if not names:
        raise ValueError('no name after "=": leave it out to let in anyone from there')
    return Rule(where, ranges, frozenset(name.encode("utf-8", "surrogateescape") for name in names))


def parse(text: str) -> Ranges:
    """Entries with semicolons between them, at least one."""
    entries = [entry for entry in text.split(";") if entry.strip()]
    if not entries:
        raise ValueError('no range, such as "192.0.2." or "." for everyone')
    return Ranges(entries)


def hold_everyone(ranges: Iterable[Ranges]) -> bool:
    """Whether they have, between them, every address that a stranger of one family may have."""
    spans = sorted(span for one in ranges for span in one.spans)
    for missing, highest in STRANGERS:
        for first, last in spans:
            if first <= missing <= last:
                missing = last[0], last[1] + 1
        if missing > highest:
            return True
    return False


async def is_among(position: Position, name: str, hosts: Hosts) -> bool:
    return position in map(position_of, await hosts.addresses_of(name))


async def is_between(position: Position, first: str, last: str, hosts: Hosts) -> bool:
    lows, highs = [await hosts.addresses_of(name) for name in (first, last)]
    ends = itertools.product(map(position_of, lows), map(position_of, highs))
    return any(low <= position <= high for low, high in ends if low[0] == high[0])


async def is_called(address: str, suffixes: tuple[str, ...], hosts: Hosts) -> bool:
    name = await hosts.name_of(address)
    return name is not None and name.endswith(suffixes)


def position_of(address: str) -> Position:
    """Of an address without errors; a scope says how it is reached, not what it is."""
    return as_position(ipaddress.ip_address(address.partition("%")[0]))


def as_position(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Position:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).version, int(mapped or address)


def whole_family(version: int) -> Span:
    return Span((version, 0), (version, (1 << (32 if version == 4 else 128)) - 1))


def parse_network(entry: str) -> Span:
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(f'"{entry}" must be a network, as in 192.0.2.0/24') from None
    if str(network.network_address) != str(ipaddress.ip_address(entry.partition("/")[0])):
        raise ValueError(f'"{entry}" begins in the middle of a network: write {network}')
    first, last = as_position(network.network_address), as_position(network.broadcast_address)
    if first[0] != last[0]:  # larger than ::ffff:0:0/96, which holds IPv4
        first = (network.version, int(network.network_address))
        last = (network.version, int(network.broadcast_address))
    return Span(first, last)


def parse_prefix(entry: str) -> Span:
    octets = entry.removesuffix(".").split(".")
    missing = 4 - len(octets)
    first, last = (".".join(octets + [fill] * missing) for fill in ("0", "255"))
    if not is_address(first):
        raise ValueError(f'"{entry}" must be one to three octets of 0 to 255, as in 192.0.')
    return Span(position_of(first), position_of(last))


def split_ends(entry: str) -> list[str]:
    """An entry's one end or two. A dash may be part of a name, a colon of an address."""
    if is_address(entry):
        return [entry]
    dashed = entry.split("-")
    if len(dashed) == 2 and all(is_address(end.strip()) for end in dashed):
        return [end.strip() for end in dashed]
    if len(entry.split()) == 2:
        return entry.split()
    return [end.strip() for end in entry.split(":")]


def parse_end(end: str) -> Position | None:
    """None for a name."""
    if is_address(end):
        return position_of(end)
    if NUMBERS.fullmatch(end):
        # jsocks filled these up with zeros, C libraries do something else.
        raise ValueError(
            f'"{end}" must be four octets of 0 to 255, or end with a dot: 192.0. is all'
            " that begins so"
        )
    if not is_name(end):
        raise ValueError(f'"{end}" is neither an address without a scope nor a host name')
    return None


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_name(text: str) -> bool:
    """A host name in lower case; not one that could be read as an address."""
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= NAME_LIMIT
        and all(LABEL.fullmatch(label) for label in labels)
        and not (labels[-1].isdigit() or labels[-1].startswith("0x"))
    )
