# Ranges of clients, a test per row of the syntax; and names, which count only for
# those whose address they map back to.

from __future__ import annotations

import asyncio
import ipaddress
import random

import pytest

from fastsocks.hosts import Hosts
from fastsocks.ranges import Order, hold_everyone, parse, parse_rule


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.8", "::192.0.2.7"]),
        ("2001:DB8::7", ["2001:db8::7", "2001:db8::7%3"], ["2001:db8::8"]),
        ("::ffff:192.0.2.7", ["192.0.2.7"], ["192.0.2.6"]),
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255"], ["192.0.3.0", "192.0.1.255"]),
        ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::", "32.1.13.184"]),
        ("10.", ["10.0.0.0", "10.255.255.255"], ["11.0.0.0", "9.255.255.255", "::a00:1"]),
        ("10.1.", ["10.1.0.0", "10.1.255.255"], ["10.2.0.0", "10.10.0.1"]),
        ("10.1.2.", ["10.1.2.0", "10.1.2.255"], ["10.1.3.0", "10.1.20.1"]),
        (".", ["0.0.0.0", "255.255.255.255", "::", "fe80::1%2"], []),
        ("10.0.0.1:10.0.1.9", ["10.0.0.1", "10.0.0.200", "10.0.1.9"], ["10.0.1.10", "10.0.0.0"]),
        ("10.0.0.1 10.0.0.9", ["10.0.0.1", "10.0.0.9"], ["10.0.0.10"]),
        ("10.0.0.1-10.0.0.9", ["10.0.0.5"], ["10.0.0.10"]),
        ("2001:db8::1 2001:db8::9", ["2001:db8::9"], ["2001:db8::a"]),
        ("2001:db8::1-2001:db8::9", ["2001:db8::1"], ["2001:db8::"]),
        (" 10. ; ;192.0.2.1", ["10.1.1.1", "192.0.2.1"], ["192.0.2.2"]),
    ],
)
def test_a_range_has_its_first_and_last_address_and_none_beside(text, inside, outside):
    ranges = parse(text)
    assert [one for one in inside if ranges.contains_now(one) is not True] == []
    assert [one for one in outside if ranges.contains_now(one) is not False] == []


@pytest.mark.parametrize(
    ("texts", "everyone"),
    [
        (["."], True),
        (["0.0.0.0/0"], True),
        (["::/0"], True),
        (["0.0.0.0/1;128.0.0.0/1"], True),
        (["128.0.0.0/1", "host.example", "0.0.0.0/1"], True),
        (["200.0.0.0:255.0.0.0", "0.0.0.0:199.255.255.255", "9."], True),
        (["1.0.0.0:223.255.255.255"], True),
        (["2000::-2fff::", "2fff::-4000::"], True),
        (["2000::-2fff::", "2fff::1-4000::"], True),
        (["2000::-2fff::", "2fff::2-4000::"], False),
        (["0.0.0.0/1", "128.0.0.0/2;192.0.0.0/8"], False),
        (["1.0.0.1:223.255.255.255"], False),
        (["1.0.0.0:223.255.255.254"], False),
        (["10.", "fd00::/8", ".example.com", "a.example:b.example"], False),
        ([], False),
    ],
    ids=str,
)
def test_ranges_that_are_everyone_between_them(texts, everyone):
    assert hold_everyone(map(parse, texts)) is everyone


# -- in order ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "address", "number"),
    [
        ([], "10.0.0.1", 0),
        (["10."], "9.255.255.255", 1),
        (["10."], "11.0.0.0", 1),
        (["."], "::", 0),
        (["0.0.0.0", "255.255.255.255", "."], "255.255.255.255", 1),
        (["10.", "10.0.0.1"], "10.0.0.1", 0),
        (["10.0.0.1", "10."], "10.0.0.1", 0),
        (["10.0.0.1", "10."], "10.0.0.2", 1),
        (["host.example", "10."], "10.0.0.2", 1),
        (["host.example;10.0.0.2", "10."], "10.0.0.2", 0),
    ],
)
def test_the_first_range_that_contains_it(texts, address, number):
    assert Order([parse(text) for text in texts]).first(address) == number


@pytest.mark.parametrize("seed", range(20))
def test_of_many_the_first_that_contains_it(seed):
    """As looking at each in turn says; in so small a space that most of them overlap."""
    chance = random.Random(seed)

    def some() -> str:
        base = ipaddress.ip_address(chance.choice(["0.0.0.0", "255.255.255.192", "::", "2001::"]))
        return str(base + chance.randrange(64))

    def pair() -> str:
        first, last = (ipaddress.ip_address(some()) for _ in range(2))
        if first.version != last.version or first > last:
            return f"{first}"
        return f"{first}-{last}"

    ranges = [parse(";".join(pair() for _ in range(chance.randint(1, 3)))) for _ in range(40)]
    order = Order(ranges)
    for address in (some() for _ in range(400)):
        told = [number for number, one in enumerate(ranges) if one.contains_now(address)]
        assert order.first(address) == (told or [len(ranges)])[0], address


# -- the syntax --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no range"),
        (" ; ", "no range"),
        ("10.1", "four octets"),
        ("33.44.100:33.44.200", "33.44.100"),
        ("300.0.0.1", "four octets"),
        ("300.", "0 to 255"),
        ("010.", "0 to 255"),
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("10.0.0.0/33", "network"),
        ("10.0.0.9:10.0.0.1", "lower one goes first"),
        ("10.0.0.9 2001:db8::1", "families"),
        ("fe80::1%eth0", "scope"),
        ("a:b:c", "FROM:TO"),
        ("..", "domain"),
        (".exa mple.com", "domain"),
        (".com.1", "domain"),
        ("under score!", "host name"),
        ("*.example.com", "host name"),
        ("[::1]", "brackets"),
    ],
)
def test_what_is_no_range(text, hint):
    with pytest.raises(ValueError, match=hint):
        parse(text)


class Dns:
    """Who maps to what, as its owners would have it."""

    def __init__(self):
        self.names = {"192.0.2.7": "Host.Example.COM.", "192.0.2.66": "host.example.com"}
        self.addresses = {"host.example.com": ["192.0.2.7"], "b.example.com": ["192.0.2.9"]}
        self.asked = []

    def reverse(self, address):
        self.asked.append(address)
        return self.names.get(address)

    def forward(self, name):
        self.asked.append(name)
        name.encode("idna")  # raises UnicodeError, as the system's does
        return self.addresses.get(name.lower().removesuffix("."), [])


@pytest.fixture
async def lookups():
    """``lookups(dns)``: hosts whose threads end with the test."""
    made = []

    def make(dns):
        made.append(Hosts(dns.reverse, dns.forward))
        return made[-1]

    yield make
    for hosts in made:
        hosts.close()


@pytest.mark.parametrize(
    ("text", "address", "contained"),
    [
        (".example.com", "192.0.2.7", True),
        (".COM", "192.0.2.7", True),
        (".ample.com", "192.0.2.7", False),
        (".example.com", "192.0.2.66", False),  # its owner says so, the name does not
        (".example.com", "192.0.2.9", False),
        ("host.example.com", "192.0.2.7", True),
        ("host.example.com", "192.0.2.66", False),
        ("host.example.com:b.example.com", "192.0.2.8", True),
        ("192.0.2.6:b.example.com", "192.0.2.7", False),
        ("nowhere.example", "192.0.2.7", False),
    ],
)
async def test_a_name_counts_only_for_the_address_that_it_maps_to(
    lookups, text, address, contained
):
    ranges = parse(text)
    assert ranges.contains_now(address) is None
    assert await ranges.contains(address, lookups(Dns())) is contained


async def test_asked_once_for_many(lookups):
    dns = Dns()
    hosts, ranges = lookups(dns), parse(".example.com")
    answers = await asyncio.gather(*[ranges.contains("192.0.2.7", hosts) for _ in range(50)])
    assert answers == [True] * 50
    assert await ranges.contains("192.0.2.7", hosts)
    assert len(dns.asked) == 2


async def test_a_client_whose_name_is_no_name_is_in_no_range(lookups):
    dns = Dns()
    dns.names["192.0.2.1"] = "x" * 64 + ".example.com"
    assert not await parse(".example.com").contains("192.0.2.1", lookups(dns))


class Silent(Dns):
    """Nobody answers for names under .dead."""

    def forward(self, name):
        if name.endswith(".dead"):
            raise TimeoutError
        return super().forward(name)


@pytest.mark.parametrize(
    "text", ["a.dead", "a.dead:b.example.com", "b.example.com;192.0.2.1:b.dead", ".dead"]
)
async def test_names_without_an_answer(lookups, text):
    """Neither contain an address nor do not; unless another name of the range does."""
    dns = Silent()
    dns.names["192.0.2.7"] = "a.dead"
    hosts = lookups(dns)
    with pytest.raises(TimeoutError):
        await parse(text).contains("192.0.2.7", hosts)
    for both in (f"{text};host.example.com", f"host.example.com;{text}"):
        assert await parse(both).contains("192.0.2.7", hosts)


async def test_the_system_is_asked_by_default():
    hosts = Hosts()
    assert await parse("localhost").contains("127.0.0.1", hosts)
    hosts.close()


def test_a_rule_whose_list_of_users_is_empty_is_refused():
    rule = parse_rule("10.;.example.com=alice;bob=c")
    assert (rule.text, rule.names) == ("10.;.example.com", {b"alice", b"bob=c"})
    assert parse_rule("10.").names is None
    for wrong in ("10.=", "10.= ;", "=alice"):
        with pytest.raises(ValueError):
            parse_rule(wrong)
