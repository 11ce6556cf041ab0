"""The benchmark suite: every workload against every system in turn.

    python bench/run.py [--only down-1,conn] [--systems fastsocks,haproxy] [--rounds 5] [--seconds
    2] [--json FILE]

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
from typing import Any, NoReturn

import namespace
from measure import measure
from processes import Unmeasured
from report import Figures, Verdict, count_errors, judge, lay_out, summarise
from systems import SYSTEMS, Kind, System, compile_generators, named
from workloads import ALL, Outcome, Workload


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORKLOAD[,..]", help="default: all of them")
    parser.add_argument(
        "--systems",
        metavar="NAME[@FLAGS][,..]",
        default=",".join(SYSTEMS),
        help="default: %(default)s",
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
    chosen = options.only.split(",") if options.only else list(workloads)
    wanted = options.systems.split(",")
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
            "workloads:", *(f"  {workload.name:10} {workload.title}" for workload in ALL), sep="\n"
        )
        print(
            "systems:",
            *(f"  {system.name:17} {system.kind.value}" for system in SYSTEMS.values()),
            sep="\n",
        )
        return 0
    if missing := [
        name
        for name in ("unshare", "setpriv", os.environ.get("CC", "gcc"))
        if not shutil.which(name)
    ]:
        sys.exit(f"bench: nothing can be measured without {' and '.join(missing)}")
    notes = namespace.enter()
    signal.signal(signal.SIGTERM, _leave)
    if options.unprivileged and namespace.mapped_user():
        notes.append(
            "--unprivileged changes nothing: you are not root, so the limits apply as it is"
        )
        options.unprivileged = False
    compile_generators()
    systems = []
    for system in options.systems:
        if reason := system.missing():
            notes.append(f"{system.name} is left out: {reason}")
        else:
            systems.append(system)

    record: dict[str, Any] = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "congestion_control": namespace.congestion_control(),
        "unprivileged": options.unprivileged,
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
    for workload in options.workloads:
        text, record["workloads"][workload.name] = compare(workload, systems, options)
        print(f"\n{text}", flush=True)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(record, file, indent=1)
    return 0


def compare(
    workload: Workload, systems: list[System], options: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    if workload.idle:  # there is no server to look at
        systems = [system for system in systems if system.kind is not Kind.NOTHING]
    outcomes: dict[System, list[Outcome]] = {system: [] for system in systems}
    reasons: dict[System, str] = {}
    for number in range(options.rounds):
        for system in systems:
            if system in reasons:
                continue
            _progress(f"{workload.name}, round {number + 1} of {options.rounds}: {system.name}")
            try:
                outcome = measure(
                    system, workload, options.seconds, unprivileged=options.unprivileged
                )
            except Unmeasured as why:
                reasons[system] = str(why)
            else:
                outcomes[system].append(outcome)
    _progress("")

    table: dict[System, Figures] = {
        s: summarise(workload, found) for s, found in outcomes.items() if found
    }
    errors = {system: count_errors(outcomes[system]) for system in table}
    verdicts: dict[System, list[Verdict]] = {
        system: [judge(bar, workload, system, table) for bar in workload.bars]
        for system in table
        if system.kind is Kind.OWN and not system.name.startswith("fastsocks-python")
    }
    text = lay_out(workload, table, errors, verdicts)
    for system, reason in reasons.items():
        rounds = f"{len(outcomes[system])} of {options.rounds} rounds"
        text += f"\n  {system.name} was given up after {rounds}: {reason}"
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
                "bars": [
                    {"bar": verdict.words, "verdict": verdict.word}
                    for verdict in verdicts.get(system, [])
                ],
                "given_up": reasons.get(system),
                "outcomes": outcomes[system],
            }
            for system in systems
        },
    }
    return text, record


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
