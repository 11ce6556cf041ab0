"""The whole comparison, and its page: every workload against every system, to docs/benchmarks.md.

    python bench/suite.py [--quick] [--part NAME] [--only WORKLOAD[,..]] [--wrap COMMAND]

Each part and workload is a run of run.py. What it finds goes to bench/results/PART.json, and
render.py makes the page and the charts from there: nobody edits a figure by hand. What is quick
goes to build/bench-quick, since the page is not for figures of one round.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import namespace
import render
from run import grouped
from system import HERE
from workloads import ALL, Workload

RESULTS = HERE / "results"
QUICK_PAGE = HERE.parent / "build" / "bench-quick"
SECONDS = 0.4  # of a run: long enough for thousands of sessions, short enough for many rounds
CORE = [
    *("down-1", "down-16", "down-256", "up-1", "up-16", "up-256"),
    *("conn", "conn-rst", "conn-password", "rr-64"),
    *("udp-64-8", "udp-bulk-up", "udp-bulk-down"),
]
QUICK = [
    "down-1",
    "down-16",
    "up-16",
    "conn",
    "conn-password",
    "fetch-16KB",
    "rr-64",
    "udp-64-8",
    "udp-bulk-up",
]
SERIOUS = "direct,fastsocks,haproxy,microsocks,dante,go-socks5"
THREADS = ",".join(f"fastsocks@--relay-threads {n}" for n in (0, 1, 2, 4))
# Many and short: what else runs on a machine comes and goes by the second. What has a bar
# near what is found needs more of them; what only has its place in the comparison, fewer.
ROUNDS = 5
ROUNDS_CLOSE = 11
ROUNDS_WIDE = 3
EVERY_ROUNDS = f"{ROUNDS_WIDE}, {ROUNDS} or {ROUNDS_CLOSE}"
CLOSE = {"down-1", "down-16", "up-1", "up-16", "conn", "conn-password", "rr-64", "rr-conn"}


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    workloads: list[str]
    systems: str
    flags: tuple[str, ...] = ()


FULL = (
    Part("loopback", [workload.name for workload in ALL], "all"),
    Part("unprivileged", CORE, SERIOUS, ("--unprivileged",)),
    Part("veth", CORE, SERIOUS, ("--over", "veth")),
    Part("threads", ["down-16", "rr-64", "conn", "udp-64-8"], THREADS),
)
SHORT = (
    Part("loopback", QUICK, "all"),
    Part("veth", ["down-16", "conn", "udp-64-8"], SERIOUS, ("--over", "veth")),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/suite.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="five minutes, few workloads, one short round each"
    )
    parser.add_argument(
        "--part", metavar="NAME", help="one part only; the page keeps the others as they were"
    )
    parser.add_argument(
        "--only", metavar="WORKLOAD[,..]", help="the page keeps the others as they were"
    )
    parser.add_argument("--rounds", type=int, help="of every workload")
    parser.add_argument(
        "--wrap", metavar="COMMAND", default="", help="goes before each command that measures"
    )
    options = parser.parse_args()
    known = [workload.name for workload in ALL]
    options.only = options.only.split(",") if options.only else []
    for name in options.only:
        if name not in known:
            parser.error(f"--only {name}: must be of {', '.join(known)}")
    results, page = (QUICK_PAGE, QUICK_PAGE) if options.quick else (RESULTS, render.DOCS)
    parts = SHORT if options.quick else FULL
    names = [part.name for part in parts]
    if options.part not in (None, *names):
        parser.error(f"--part {options.part}: must be one of {', '.join(names)}")
    namespace.insist()
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts:
        if options.part in (None, part.name):
            try:
                measure(part, options, results)
            except subprocess.CalledProcessError:  # which has said why
                failed.append(part.name)
    render.write_all(results, page)
    print(f"the page is {page / 'benchmarks.md'}")
    if failed:
        print(f"bench: could not be measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(part: Part, options: argparse.Namespace, results: Path) -> None:
    """Raises CalledProcessError where that cannot be; the page says so then, unless it keeps
    what there was."""
    file = results / f"{part.name}.json"
    wanted = set(part.workloads).intersection(options.only or part.workloads)
    if not wanted:
        return
    keeps = options.only and file.exists()
    whole: dict[str, Any] = json.loads(file.read_text()) if keeps else {}
    chosen = [workload for workload in ALL if workload.name in wanted]
    for group in grouped(chosen):
        names = [workload.name for workload in group]
        rounds = options.rounds or (1 if options.quick else max(map(_rounds, group)))
        try:
            found = _run(part, names, rounds, options)
        except subprocess.CalledProcessError:
            if not keeps:
                file.write_text(json.dumps({"unmeasured": True}) + "\n")
            raise
        workloads = whole.get("workloads", {}) | found["workloads"]
        whole = found | {"workloads": workloads, "rounds": "1" if options.quick else EVERY_ROUNDS}
        if options.rounds:
            whole["rounds"] = str(options.rounds)
    # Only now: half a part shall not replace a whole one.
    file.write_text(json.dumps(whole, indent=1) + "\n")


def _rounds(workload: Workload) -> int:
    if workload.name in CLOSE:
        return ROUNDS_CLOSE
    return ROUNDS_WIDE if workload.wide else ROUNDS


def _run(
    part: Part, workloads: list[str], rounds: int, options: argparse.Namespace
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        command = [*shlex.split(options.wrap), sys.executable, str(HERE / "run.py"), *part.flags]
        command += ["--only", ",".join(workloads), "--systems", part.systems]
        command += ["--rounds", str(rounds), "--seconds", str(SECONDS)]
        subprocess.run([*command, "--json", file.name], check=True)
        found: dict[str, Any] = json.load(file)
    for workload in found["workloads"].values():
        for system in workload["systems"].values():
            del system["outcomes"]
    return found


if __name__ == "__main__":
    sys.exit(main())
