"""The benchmark suite: every workload against every system in turn.

    python bench/run.py [--only down-1,conn] [--systems fastsocks,haproxy] [--over veth]
    [--rounds 5] [--seconds 2] [--json FILE]

Rates on one machine mean little by themselves: read the ratios, all taken in the same run, round by
round in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NoReturn

import namespace
from generators import compile_generators
from measure import measure
from place import LOOPBACK, VETH, Place, lay_veth
from processes import Unmeasured
from report import Table, count_errors, judge_all, lay_out, summarise
from system import Kind, System
from systems import SYSTEMS, named
from workloads import ALL, ITSELF, Outcome, Workload

LEFT_OUT = "FASTSOCKS_BENCH_LEFT_OUT"  # the systems that are missing, and why
USUAL = (
    *("direct", "fastsocks", "fastsocks-python"),
    *("haproxy", "microsocks", "dante", "go-socks5"),
)


@dataclass(slots=True)
class Runs:
    """Of one system in one workload."""

    outcomes: list[Outcome] = field(default_factory=list)
    given_up: str = ""  # why there are no more


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="WORKLOAD[,..]", help="default: all but the wide ones (see --list)"
    )
    parser.add_argument(
        "--over", choices=("loopback", "veth"), default="loopback", help="default: %(default)s"
    )
    parser.add_argument(
        "--systems",
        metavar="NAME[@FLAGS][,..]",
        default=",".join(USUAL),
        help="default: %(default)s; all: every one there is",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each, in turn (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="length of a run (default: %(default)s)"
    )
    parser.add_argument(
        "--fastsocks-args", metavar="FLAGS", default="", help="further flags for every fastsocks"
    )
    parser.add_argument(
        "--unprivileged",
        action="store_true",
        help="servers run as nobody, so that pipe limits bite",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything there as well")
    parser.add_argument(
        "--list", action="store_true", help="list workloads and systems, and do nothing"
    )
    options = parser.parse_args(argv)
    workloads = {workload.name: workload for workload in ALL}
    chosen = options.only.split(",") if options.only else [w.name for w in ALL if not w.wide]
    wanted = list(SYSTEMS) if options.systems == "all" else options.systems.split(",")
    for name, known in [(n, workloads) for n in chosen] + [
        (n.partition("@")[0], SYSTEMS) for n in wanted
    ]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if options.rounds < 1 or not 0.1 <= options.seconds <= 60:
        parser.error("--rounds is at least 1, --seconds between 0.1 and 60")
    options.workloads = [workloads[name] for name in chosen]
    options.systems = [named(name, options.fastsocks_args) for name in wanted]
    return options


def main() -> int:
    options = parse([argument for argument in sys.argv[1:] if argument != namespace.MARK])
    if options.list:
        print(
            "workloads:", *(f"  {w.name:13} {w.title}{' (wide)' * w.wide}" for w in ALL), sep="\n"
        )
        print(
            "systems:",
            *(f"  {system.name:20} {system.kind.value}" for system in SYSTEMS.values()),
            sep="\n",
        )
        return 0
    needed = ["unshare", "setpriv", "mount", os.environ.get("CC", "gcc")]
    needed += ["ip", "nsenter"] if options.over == "veth" else []
    if missing := [name for name in needed if not shutil.which(name)]:
        sys.exit(f"bench: nothing can be measured without {' and '.join(missing)}")
    if namespace.outside():
        # Inside nothing can be fetched: what a system is built from is had now.
        reasons = {s.name: reason for s in options.systems if (reason := s.missing())}
        os.environ[LEFT_OUT] = json.dumps(reasons)
    notes = namespace.enter()
    signal.signal(signal.SIGTERM, _leave)
    if options.unprivileged and namespace.mapped_user():
        notes.append(
            "--unprivileged changes nothing: you are not root, so the limits apply as it is"
        )
        options.unprivileged = False
    compile_generators()
    systems = []
    reasons = json.loads(os.environ[LEFT_OUT])
    for system in options.systems:
        if reason := reasons.get(system.name):
            notes.append(f"{system.name} is left out: {reason}")
        else:
            systems.append(system)
    with ExitStack() as stack:
        place = LOOPBACK
        notes += namespace.name_hosts((VETH if options.over == "veth" else LOOPBACK).hosts())
        if options.over == "veth":
            try:
                place, further = lay_veth(stack)
            except Unmeasured as why:
                sys.exit(f"bench: no veth between three namespaces: {why}")
            notes += further
        run(options, systems, place, notes)
    return 0


def run(options: argparse.Namespace, systems: list[System], place: Place, notes: list[str]) -> None:
    record: dict[str, Any] = {
        "kernel": platform.release().partition("-")[0],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "over": place.name,
        "congestion_control": namespace.congestion_control(),
        "unprivileged": options.unprivileged,
        "ordinary_user": namespace.mapped_user(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "notes": notes,
        "workloads": {},
    }
    print(
        f"Linux {record['kernel']}, {record['cpus']} CPUs,"
        f" {options.rounds} rounds of {options.seconds:g} s;",
        end=" ",
    )
    print(
        "median (lowest..highest); one GB is 10^9 bytes",
        *(f"note: {note}" for note in notes),
        sep="\n",
    )
    tables: dict[str, Table] = {}
    for workloads in grouped(options.workloads):
        runs = measure_all(workloads, systems, place, options)
        for workload in workloads:
            text, tables[workload.name], record["workloads"][workload.name] = compare(
                workload, runs[workload.name], options.rounds, tables
            )
            print(f"\n{text}", flush=True)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(record, file, indent=1)


def grouped(workloads: list[Workload]) -> list[list[Workload]]:
    """What is to be measured in the same rounds: each workload by itself, but with the one whose
    figure is its bar, as a machine is not the same minutes later."""
    groups: dict[str, list[Workload]] = {}
    for workload in workloads:
        rivals = [bar.against or "" for bar in workload.bars]
        named = [rival for rival in rivals if rival.startswith(ITSELF)]
        home = named[0].removeprefix(ITSELF) if named else workload.name
        groups.setdefault(home if home in groups else workload.name, []).append(workload)
    return list(groups.values())


def measure_all(
    workloads: list[Workload], systems: list[System], place: Place, options: argparse.Namespace
) -> dict[str, dict[System, Runs]]:
    """Every round of every system, by workload."""
    runs: dict[str, dict[System, Runs]] = {}
    for workload in workloads:
        served = [s for s in systems if s.kind is not Kind.NOTHING]  # one of idle ones looks at it
        runs[workload.name] = {system: Runs() for system in (served if workload.idle else systems)}
    for number in range(options.rounds):
        for workload in workloads:
            for system, found in rotated(list(runs[workload.name].items()), number):
                if found.given_up:
                    continue
                _progress(f"{workload.name}, round {number + 1} of {options.rounds}: {system.name}")
                try:
                    outcome = measure(
                        system, workload, options.seconds, place, unprivileged=options.unprivileged
                    )
                except Unmeasured as why:
                    found.given_up = str(why)
                else:
                    found.outcomes.append(outcome)
    _progress("")
    return runs


def rotated(systems: list[Any], by: int) -> list[Any]:
    """So that none comes first, or after the same one, in every round."""
    first = by % max(1, len(systems))
    return systems[first:] + systems[:first]


def compare(
    workload: Workload, runs: dict[System, Runs], rounds: int, earlier: dict[str, Table]
) -> tuple[str, Table, dict[str, Any]]:
    outcomes = {system: found.outcomes for system, found in runs.items()}
    reasons = {system: found.given_up for system, found in runs.items() if found.given_up}
    table: Table = {s: summarise(workload, found) for s, found in outcomes.items() if found}
    errors = {system: count_errors(outcomes[system]) for system in table}
    text = lay_out(workload, table, errors, judge_all(workload, table, earlier))
    for system, reason in reasons.items():
        done = f"{len(outcomes[system])} of {rounds} rounds"
        text += f"\n  {system.name} was given up after {done}: {reason}"
    record = {
        "title": workload.title,
        "reference": workload.reference,
        "systems": {
            system.name: {
                "figures": {
                    name: {"median": f.median, "runs": f.runs}
                    for name, f in table.get(system, {}).items()
                },
                "errors": errors.get(system, {}),
                "given_up": reasons.get(system),
                "outcomes": outcomes[system],
            }
            for system in runs
        },
    }
    return text, table, record


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(143)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
