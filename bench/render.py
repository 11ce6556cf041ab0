"""From bench/results/*.json to docs/benchmarks.md and docs/benchmarks*.svg.

    python bench/render.py

It measures nothing, so that the page can be made anew from what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from report import Figure, Table, Verdict, judge_all, short
from system import HERE, System
from systems import named
from workloads import ALL, Metric, Workload

DOCS = HERE.parent / "docs"
PARTS = {
    "loopback": "Loopback",
    "unprivileged": "As an unprivileged user",
    "veth": "Over veth, between three network namespaces",
    "threads": "Relay threads: none (inline on the loop's thread), 1, 2 and 4",
}
WORKLOADS = {workload.name: workload for workload in ALL}

HEAD = """# Benchmarks

<!-- Made by `make bench-peers` from bench/results/*.json. Do not edit: run it again. -->

![fastsocks and its peers](benchmarks.svg)

`make bench-peers` measures this page on your machine (an hour and a half; `bench/suite.py --quick`
a coarse one in five minutes). What each workload is, what each system is told, and how to read it
is in [bench/README.md](../bench/README.md). Every figure is a median; lowest and highest are in
brackets where there were several rounds. Ratios are in *italics*. Client, server and origin share
the CPUs, so compare within a table. `direct` is no proxy at all. PASS and MISS say whether a bar
that fastsocks has set itself is met, however near.
"""

Record = dict[str, Any]


def write_all(results: Path, docs: Path = DOCS) -> None:
    parts = {
        name: json.loads(path.read_text())
        for name in PARTS
        if (path := results / f"{name}.json").exists()
    }
    docs.mkdir(exist_ok=True)
    (docs / "benchmarks.md").write_text(page(parts))
    if "workloads" in parts.get("loopback", {}):
        (docs / "benchmarks.svg").write_text(chart(parts["loopback"], OVERVIEW))
        (docs / "benchmarks-detail.svg").write_text(chart(parts["loopback"], DETAIL))


# -- the page


def page(parts: dict[str, Record]) -> str:
    text = [HEAD]
    for name, record in parts.items():
        text += [f"## {PARTS[name]}\n"]
        if "workloads" not in record:
            text += ["This could not be measured.\n"]
            continue
        text += [_circumstances(record)]
        if name == "loopback":
            text += ["\n![the same for more workloads](benchmarks-detail.svg)\n"]
        known = {n: found for n, found in record["workloads"].items() if n in WORKLOADS}
        figures = {n: _figures(found) for n, found in known.items()}
        for workload_name, found in known.items():
            workload = WORKLOADS[workload_name]
            verdicts = judge_all(workload, figures[workload_name], figures)
            text += ["\n".join(_table(workload, found, verdicts))]
    return "\n".join(text)


def _figures(found: Record) -> Table:
    return {
        named(name): {
            metric: Figure(tuple(figure["runs"])) for metric, figure in system["figures"].items()
        }
        for name, system in found["systems"].items()
        if system["figures"]
    }


def _circumstances(record: Record) -> str:
    who = "nobody" if record["unprivileged"] else "root"
    if record.get("ordinary_user"):
        who = "an ordinary user"
    lines = [
        f"Linux {record['kernel']}, {record['cpus']} CPUs,"
        f" CPython {record['python']},"
        f" {record['congestion_control']}, servers run as {who};"
        f" rounds: {record['rounds']}, of {record['seconds']:g} s.",
        "",
        *(f"- {note}" for note in record["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _table(
    workload: Workload, found: Record, verdicts: dict[System, list[Verdict]]
) -> Iterable[str]:
    systems = found["systems"]
    reference = systems.get(workload.reference or "", {}).get("figures", {})
    yield f"### {workload.name}: {workload.title}\n"
    if reference:
        yield f"Ratios to {workload.reference}.\n"
    yield "| system | " + " | ".join(metric.unit for metric in workload.metrics) + " | errors |"
    yield "|---|" + "---:|" * (len(workload.metrics) + 1)
    for name, system in systems.items():
        if system["figures"]:
            cells = [_cell(metric, system["figures"], reference) for metric in workload.metrics]
            shown = f"**{name}**" if name.startswith("fastsocks") else name
            yield f"| {shown} | {' | '.join(cells)} | {sum(system['errors'].values())} |"
    yield ""
    for judged, its in verdicts.items():
        for verdict in its:
            if verdict.mark != "?":
                yield f"- {verdict.mark}: {judged.name}: {verdict.text}"
    unmeasured = [f"{name} ({_why(s)})" for name, s in systems.items() if s["given_up"]]
    if unmeasured:
        yield f"- could not be measured: {'; '.join(unmeasured)}"
    yield ""


def _why(system: Record) -> str:
    """Without the name of the load generator that said it."""
    return str(system["given_up"]).removeprefix("load: ").removeprefix("udp: ")


def _cell(metric: Metric, figures: Record, reference: Record) -> str:
    if metric.name not in figures:
        return "-"
    runs, value = figures[metric.name]["runs"], figures[metric.name]["median"]
    cell = short(value)
    if len(runs) > 1:
        cell += f" ({short(min(runs))}..{short(max(runs))})"
    other = reference.get(metric.name, {}).get("median")
    return f"{cell} *{value / other:.2f}*" if other else cell


# -- the charts

# Panels: workload, metric, and the heading above it.
OVERVIEW = (
    ("down-16", "rate", "download, 16 flows: GB/s"),
    ("down-16", "cpu", "download: CPU seconds per GB (less is better)"),
    ("conn", "rate", "handshake, one byte and back, close: sessions/s"),
    ("udp-64-8", "rate", "UDP, 64 bytes and back: round trips/s"),
)
DETAIL = (
    ("rr-64", "rate", "64-byte ping-pong, 64 connections: round trips/s"),
    ("rr-64", "cpu", "64-byte ping-pong: CPU us each (less is better)"),
    ("conn", "cpu", "handshake: CPU us each (less is better)"),
    ("fetch-16KB", "objects", "objects of 16 KB, one per connection: objects/s"),
    ("udp-bulk-up", "rate", "UDP stream of 1,200-byte datagrams: GB/s"),
    ("udp-64-8", "cpu", "UDP, 64 bytes: CPU us per datagram (less is better)"),
)

COLUMNS, PANEL_WIDTH, MARGIN = 2, 460, 20
NAME_WIDTH, VALUE_WIDTH, ROW, BAR = 150, 60, 20, 13
OWN, TWIN, OTHER, CEILING = "#d9480f", "#f2a97e", "#8a94a3", "#d5d9df"
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1c2430}"
    ".h{font-weight:600;font-size:13px}.n{text-anchor:end}.o{font-weight:700}"
)

Bars = list[tuple[str, float]]


def chart(record: Record, wanted: Iterable[tuple[str, str, str]]) -> str:
    panels = [
        (heading, bars)
        for workload, metric, heading in wanted
        if (bars := _bars(record, workload, metric))
    ]
    shapes: list[str] = []
    top = MARGIN
    for first in range(0, len(panels), COLUMNS):
        row = panels[first : first + COLUMNS]
        for column, (heading, bars) in enumerate(row):
            left = MARGIN + column * (PANEL_WIDTH + MARGIN)
            shapes += _panel(left, top, heading, bars)
        top += (max(len(bars) for _, bars in row) + 2) * ROW
    width = COLUMNS * (PANEL_WIDTH + MARGIN) + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}"'
            f' width="{width}" height="{top}" role="img">',
            "<title>fastsocks and its peers, one run on one machine</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{top}" fill="#ffffff"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _bars(record: Record, workload: str, metric: str) -> Bars:
    """Best first."""
    systems = record["workloads"].get(workload, {}).get("systems", {})
    found = {
        name: median(system["figures"][metric]["runs"])
        for name, system in systems.items()
        if metric in system["figures"]
    }
    more = next(m.more_is_better for m in WORKLOADS[workload].metrics if m.name == metric)
    return sorted(found.items(), key=lambda bar: bar[1], reverse=more)


def _panel(left: int, top: int, heading: str, bars: Bars) -> Iterable[str]:
    yield f'<text class="h" x="{left}" y="{top + 12}">{escape(heading)}</text>'
    room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
    longest = max(value for _, value in bars) or 1
    for number, (name, value) in enumerate(bars, 1):
        y = top + number * ROW + 6
        own = ' class="n o"' if name == "fastsocks" else ' class="n"'
        length = max(1.0, value / longest * room)
        yield f'<text{own} x="{left + NAME_WIDTH - 8}" y="{y + 11}">{escape(name)}</text>'
        yield (
            f'<rect x="{left + NAME_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"'
            f' fill="{_colour(name)}"/>'
        )
        end = left + NAME_WIDTH + length + 6
        yield f'<text x="{end:.1f}" y="{y + 11}">{short(value)}</text>'


def _colour(name: str) -> str:
    special = {"fastsocks": OWN, "fastsocks-python": TWIN, "direct": CEILING}
    return special.get(name, OTHER)


if __name__ == "__main__":
    write_all(HERE / "results")
