"""Handshakes: Python decides on both engines, so the native one saves the I/O around it."""

from __future__ import annotations

import pytest

from conftest import Compare


@pytest.mark.parametrize("workload", ["conn", "conn-password"])
def test_a_session_costs_less_cpu_than_with_the_python_engine(
    times_less: Compare, workload: str
) -> None:
    assert times_less(workload, "cpu") >= 1.2
