"""The short benchmarks: the native engine against the Python one, for every push.

    make bench-short

They run on loopback and in a minute and a half, so they gate with slack what must never get lost,
and by CPU: with client, server and origin on two CPUs even no proxy at all has only three to five
times the Python engine's rate, whereas a server's CPU seconds are its own. The figures of both
engines are in the JSON's extra_info; the clock of pytest-benchmark has but the length of the runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from generators import compile_generators
from measure import measure
from place import LOOPBACK
from report import Figures, summarise
from systems import SYSTEMS
from workloads import ALL

ROUNDS, SECONDS = 5, 0.5
ENGINES = ("fastsocks", "fastsocks-python")
WORKLOADS = {workload.name: workload for workload in ALL}

Compare = Callable[[str, str], float]


@pytest.fixture(scope="session")
def generators() -> None:
    compile_generators()


@pytest.fixture
def times_less(benchmark: Any, generators: None) -> Compare:
    """How many times the native engine's figure the Python one's is, engines in turn."""

    def compare(workload: str, metric: str) -> float:
        outcomes: dict[str, list[Any]] = {engine: [] for engine in ENGINES}
        turns = list(ENGINES)  # the other one first in every other round

        def round_of_both() -> None:
            turns.append(turns.pop(0))
            for engine in turns:
                outcomes[engine].append(
                    measure(
                        SYSTEMS[engine], WORKLOADS[workload], SECONDS, LOOPBACK, unprivileged=False
                    )
                )

        benchmark.pedantic(round_of_both, rounds=ROUNDS)
        figures: dict[str, Figures] = {
            engine: summarise(WORKLOADS[workload], found) for engine, found in outcomes.items()
        }
        for engine, found in figures.items():
            benchmark.extra_info[engine] = {name: median(f.runs) for name, f in found.items()}
        native, twin = (figures[engine][metric].median for engine in ENGINES)
        benchmark.extra_info["times"] = twin / native
        return twin / native

    return compare
