"""The protocol machines: both engines use the same, so they are compared with themselves.

A client that sends octet by octet shall not cost more than its octets do.
"""

from __future__ import annotations

from timeit import repeat
from typing import Any

import pytest

from fastsocks.proto.machine import Machine, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import Socks5
from fastsocks.proto.wire import NO_AUTH, Request

NAME = b"www.example.org"
SOCKS4A = b"\x04\x01\x00\x50\x00\x00\x00\x01user\x00" + NAME + b"\x00"
SOCKS5 = b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes((len(NAME),)) + NAME + b"\x00\x50"

CASES = {"socks4a": (Socks4, SOCKS4A), "socks5": (Socks5, SOCKS5)}


def parse(machine: Machine, octets: bytes, cut: int) -> Request:
    for at in range(0, len(octets), cut):
        machine.feed(octets[at : at + cut])
        while event := machine.next_event():
            if isinstance(event, Methods):
                machine.choose(NO_AUTH)
            elif isinstance(event, Request):
                return event
    raise AssertionError("the request did not come out")


@pytest.mark.parametrize("case", CASES)
def test_handshake_in_one_piece(benchmark: Any, case: str) -> None:
    machine, octets = CASES[case]
    assert benchmark(lambda: parse(machine(), octets, len(octets))).host


@pytest.mark.parametrize("case", CASES)
def test_octet_by_octet_costs_no_more_than_its_octets(benchmark: Any, case: str) -> None:
    machine, octets = CASES[case]
    benchmark(lambda: parse(machine(), octets, 1))

    def fastest(cut: int) -> float:
        return min(repeat(lambda: parse(machine(), octets, cut), number=500))

    whole, dribbled = fastest(len(octets)), fastest(1)
    benchmark.extra_info["times"] = dribbled / whole
    assert dribbled <= 2 * len(octets) * whole
