"""Bulk: what splice(2) is for."""

from __future__ import annotations

import pytest

from conftest import Compare


# One flow. Over loopback on two CPUs: 4.2 times, 3.3 to 5.4 in runs of five rounds, and without
# splice (--relay copy) 1.3 to 1.5. So 4 would fail every other push and 2.5 none but one that has
# lost it. With 16 flows such runs spread from 2.5 to 7, which no gate can stand on.
@pytest.mark.parametrize("workload", ["down-1", "up-1"])
def test_bulk_costs_a_fraction_of_the_python_engines_cpu(
    times_less: Compare, workload: str
) -> None:
    assert times_less(workload, "cpu") >= 2.5


def test_small_messages_cost_less_cpu_than_with_the_python_engine(times_less: Compare) -> None:
    assert times_less("rr-64", "cpu") >= 1.3
