"""Bulk: what splice(2) is for."""

from __future__ import annotations

import pytest

from conftest import Compare


# One flow: measured 5 to 7.5 times. With 16 flows on two busy CPUs, runs of half a second spread
# from 2.5 to 7 times, which no gate can stand on.
@pytest.mark.parametrize("workload", ["down-1", "up-1"])
def test_bulk_costs_a_quarter_of_the_python_engines_cpu(times_less: Compare, workload: str) -> None:
    assert times_less(workload, "cpu") >= 4


def test_small_messages_cost_less_cpu_than_with_the_python_engine(times_less: Compare) -> None:
    assert times_less("rr-64", "cpu") >= 1.3
