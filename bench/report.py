"""From outcomes to medians, ratios, verdicts and one table per workload."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from system import Kind, System
from workloads import ITSELF, Bar, Outcome, Workload


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one system, over all rounds."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.runs)

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(min(self.runs))}..{short(max(self.runs))})"


@dataclass(frozen=True, slots=True)
class Verdict:
    bar: Bar
    mark: str  # PASS, MISS, or ? where there was nothing to compare with
    text: str


Figures = dict[str, Figure]  # by metric
Table = dict[System, Figures]


def short(value: float) -> str:
    """Three digits, and k or M where they help."""
    for unit, size, least in (("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if abs(value) >= least:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def summarise(workload: Workload, outcomes: Iterable[Outcome]) -> Figures:
    found = {
        metric.name: [metric.of(outcome) for outcome in outcomes] for metric in workload.metrics
    }
    return {
        name: Figure(tuple(value for value in values if value is not None))
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def count_errors(outcomes: Iterable[Outcome]) -> dict[str, int]:
    total: dict[str, int] = {}
    for outcome in outcomes:
        for part in ("alone", "main", "beside"):
            for name, number in outcome.get(part, {}).get("errors", {}).items():
                if number:
                    total[name] = total.get(name, 0) + number
    return total


def judge_all(
    workload: Workload, table: Table, earlier: dict[str, Table]
) -> dict[System, list[Verdict]]:
    """Of each fastsocks with the native engine; ``earlier`` has the tables of other workloads."""
    return {
        system: [judge(bar, workload, system, table, earlier) for bar in workload.bars]
        for system in table
        if system.kind is Kind.OWN and not system.name.startswith("fastsocks-python")
    }


def judge(
    bar: Bar, workload: Workload, system: System, table: Table, earlier: dict[str, Table]
) -> Verdict:
    metric = next(metric for metric in workload.metrics if metric.name == bar.metric)
    own = table[system].get(bar.metric)
    rivals = _rivals(bar, system, table, earlier)
    sign = ">=" if metric.more_is_better else "<="
    wanted = f"{bar.metric} {sign} {bar.factor:g}"
    wanted += f" x {bar.against}" if bar.against else f" {metric.unit}"
    if own is None:
        return Verdict(bar, "?", f"{wanted}: no figure")
    if bar.against is None:
        limit, got = bar.factor, short(own.median)
    elif rivals:
        best = (max if metric.more_is_better else min)(rivals, key=rivals.__getitem__)
        limit = rivals[best] * bar.factor
        got = f"{own.median / rivals[best]:.2f} x {best}"
    else:
        return Verdict(bar, "?", f"{wanted}: {bar.against}: not in this run")
    passed = own.median >= limit if metric.more_is_better else own.median <= limit
    return Verdict(bar, "PASS" if passed else "MISS", f"{wanted}: {got}")


def _rivals(bar: Bar, system: System, table: Table, earlier: dict[str, Table]) -> dict[str, float]:
    """What the bar compares with, by name."""
    if bar.against and bar.against.startswith(ITSELF):
        before = earlier.get(bar.against.removeprefix(ITSELF), {}).get(system, {})
        return {bar.against: before[bar.metric].median} if bar.metric in before else {}
    kinds = {"peers": (Kind.PEER, Kind.RELAY), "SOCKS peers": (Kind.PEER,)}.get(
        bar.against or "", ()
    )
    return {
        other.name: figures[bar.metric].median
        for other, figures in table.items()
        if bar.metric in figures
        and (other.kind in kinds or other.name == bar.against)
        # 0 is too little to be measured, as the CPU of who moves next to nothing.
        and figures[bar.metric].median
    }


def lay_out(
    workload: Workload,
    table: Table,
    errors: dict[System, dict[str, int]],
    verdicts: dict[System, list[Verdict]],
) -> str:
    reference = next(
        (figures for system, figures in table.items() if system.name == workload.reference), {}
    )
    head = ["system"]
    for metric in workload.metrics:
        head += [metric.unit, "ratio"] if workload.reference else [metric.unit]
    rows = [[*head, "errors", "bar"]]
    for system, figures in table.items():
        row = [system.name]
        for metric in workload.metrics:
            figure, other = figures.get(metric.name), reference.get(metric.name)
            row.append(str(figure) if figure else "-")
            if workload.reference:
                row.append(
                    f"{figure.median / other.median:.2f}"
                    if figure and other and other.median
                    else "-"
                )
        row.append(str(sum(errors[system].values())))
        row.append(_overall(verdicts.get(system, [])))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    title = f"{workload.name}: {workload.title}" + (
        f" (ratio: to {workload.reference})" if workload.reference else ""
    )
    lines = [title, "", *lines]
    for system, counted in errors.items():
        if counted:
            lines.append(
                f"  {system.name}: "
                + ", ".join(f"{number} {name}" for name, number in counted.items())
            )
    for system, found in verdicts.items():
        lines += [f"  {verdict.mark}  {system.name}: {verdict.text}" for verdict in found]
    return "\n".join(lines)


def _overall(verdicts: list[Verdict]) -> str:
    marks = {verdict.mark for verdict in verdicts}
    return next((mark for mark in ("MISS", "?", "PASS") if mark in marks), "-")
