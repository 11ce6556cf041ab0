"""Datagrams: Python sees none of them with the native engine."""

from __future__ import annotations

import pytest

from conftest import Compare


@pytest.mark.parametrize("workload", ["udp-64-8", "udp-bulk-up"])
def test_a_datagram_costs_a_third_of_the_python_engines_cpu(
    times_less: Compare, workload: str
) -> None:
    assert times_less(workload, "cpu") >= 3
