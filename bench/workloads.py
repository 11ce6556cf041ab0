"""The workloads: what load each is, which figures it gives, which bar fastsocks has to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ITSELF = "itself in "

# Of one run: {"main": figures, "beside": figures, "alone": figures, "cpu": seconds, ...}.
Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    more_is_better: bool
    of: Callable[[Outcome], float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """`metric` is at least (where more is better) or at most `factor` times that of `against`.

    `against` is a system, or "peers" (every other server in the run), or "SOCKS peers", or
    ITSELF and an earlier workload of the run, or None: then `factor` is the limit itself.
    """

    metric: str
    factor: float
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    title: str
    main: tuple[object, ...]  # of the client whose figures are shown
    metrics: tuple[Metric, ...]
    bars: tuple[Bar, ...]
    reference: str | None
    beside: tuple[object, ...] = ()  # of a second client, with an origin of its own
    alone_first: bool = False  # measure the main client without the second one as well
    idle: bool = False
    program: str = "load"  # the load generator: load or udp
    beside_program: str = "load"
    password: bool = False  # the server asks for one
    wide: bool = False  # of the whole comparison only, not of every run


def _rate(
    group: str, counted: str = "count", part: str = "main", scale: float = 1.0
) -> Callable[[Outcome], float]:
    return lambda outcome: outcome[part][group][counted] / outcome[part]["seconds"] / scale


def _latency(group: str, which: str, part: str = "main") -> Callable[[Outcome], float]:
    return lambda outcome: outcome[part][group][which]


def _cpu_per(group: str, counted: str, scale: float) -> Callable[[Outcome], float | None]:
    def of(outcome: Outcome) -> float | None:
        done = outcome["main"][group][counted]
        return None if outcome["cpu"] is None or not done else outcome["cpu"] / done * scale

    return of


def _times_alone(outcome: Outcome) -> float:
    return float(outcome["main"]["rr"]["p99_us"] / outcome["alone"]["rr"]["p99_us"])


def _bulk(way: str, flows: int, *, wide: bool = False) -> Workload:
    return Workload(
        wide=wide,
        name=f"{way}-{flows}",
        title=f"bulk {way}, {flows} flow{'s' * (flows > 1)}",
        main=(f"--{way}", flows),
        metrics=(
            Metric("rate", "GB/s", True, _rate(way, "bytes", scale=1e9)),
            Metric("cpu", "CPU s/GB", False, _cpu_per(way, "bytes", 1e9)),
        ),
        bars=(
            Bar("rate", 8, "fastsocks-python"),
            Bar("rate", 1.0, "peers"),
            Bar("cpu", 1.0, "haproxy"),
        ),
        reference="haproxy",
    )


def _lost(group: str) -> Callable[[Outcome], float]:
    def of(outcome: Outcome) -> float:
        figures = outcome["main"][group]
        return float(100.0 * figures["lost"] / max(1, figures["lost"] + figures["count"]))

    return of


def _udp_rr(size: int, associations: int, *, merged: bool = False) -> Workload:
    return Workload(
        name=f"udp-{size}-{associations}" + "-runs" * merged,
        title=f"UDP ASSOCIATE: {size}-byte datagrams and back,"
        f" {associations} association{'s' * (associations > 1)}, 16 on their way in each"
        + ", sent as runs by UDP_SEGMENT"
        * merged,
        program="udp",
        main=("--rr", associations, "--bytes", size, "--window", 16, *("--merged",) * merged),
        metrics=(
            Metric("rate", "round trips/s", True, _rate("rr")),
            # Two datagrams pass the proxy in a round trip.
            Metric("cpu", "CPU us/datagram", False, _cpu_per("rr", "count", 0.5e6)),
            Metric("p99", "us p99", False, _latency("rr", "p99_us")),
            Metric("lost", "% lost", False, _lost("rr")),
        ),
        bars=(
            Bar("rate", 1.3, "SOCKS peers"),
            Bar("cpu", 0.75, "SOCKS peers"),
            Bar("rate", 10, "fastsocks-python"),
        ),
        reference="dante",
    )


def _udp_bulk(way: str) -> Workload:
    return Workload(
        name=f"udp-bulk-{way}",
        title=f"UDP ASSOCIATE: a stream of 1,200-byte datagrams {way}, 64 on their way",
        program="udp",
        main=(f"--{way}", 1, "--bytes", 1200, "--window", 64),
        metrics=(
            Metric("rate", "GB/s", True, _rate(way, "bytes", scale=1e9)),
            Metric("cpu", "CPU s/GB", False, _cpu_per(way, "bytes", 1e9)),
            Metric("lost", "% lost", False, _lost(way)),
        ),
        bars=(Bar("rate", 1.3, "SOCKS peers"), Bar("cpu", 0.75, "SOCKS peers")),
        reference="dante",
    )


RR_RATE = Metric("rate", "round trips/s", True, _rate("rr"))
RR_P50 = Metric("p50", "us p50", False, _latency("rr", "p50_us"))
RR_P99 = Metric("p99", "us p99", False, _latency("rr", "p99_us"))

RR_CPU = Metric("cpu", "CPU us each", False, _cpu_per("rr", "count", 1e6))

CONN = (
    Metric("rate", "sessions/s", True, _rate("conn")),
    Metric("cpu", "CPU us each", False, _cpu_per("conn", "count", 1e6)),
    Metric("p50", "us p50", False, _latency("conn", "p50_us")),
    Metric("p99", "us p99", False, _latency("conn", "p99_us")),
)
FIRST_OF_SOCKS = (Bar("rate", 1.0, "SOCKS peers"), Bar("cpu", 1.0, "SOCKS peers"))
FAR_AHEAD_OF_SOCKS = (Bar("rate", 1.3, "SOCKS peers"), Bar("cpu", 0.7, "SOCKS peers"))


def _conn(name: str, title: str, *flags: object, password: bool = False) -> Workload:
    return Workload(
        name=f"conn-{name}",
        title=f"{title} + 1-byte echo + close{' by RST' * (name == 'rst')}, 32 in flight",
        main=("--conn", 32, *flags),
        metrics=CONN,
        bars=(
            FAR_AHEAD_OF_SOCKS
            if name == "rst"
            else (Bar("rate", 0.9, ITSELF + "conn"),) * password + FIRST_OF_SOCKS
        ),
        reference="microsocks" if name == "rst" else None,
        password=password,
        wide=True,
    )


def _fetch(size: int, label: str, in_flight: int) -> Workload:
    return Workload(
        name=f"fetch-{label}",
        title=f"objects of {label}, one per connection, {in_flight} in flight",
        main=("--fetch", in_flight, "--size", size),
        metrics=(
            Metric("rate", "GB/s", True, _rate("fetch", "bytes", scale=1e9)),
            Metric("objects", "objects/s", True, _rate("fetch")),
            Metric("cpu", "CPU s/GB", False, _cpu_per("fetch", "bytes", 1e9)),
        ),
        bars=FIRST_OF_SOCKS,
        reference="haproxy",
        wide=True,
    )


def _rr(connections: int, size: int) -> Workload:
    return Workload(
        name=f"rr-{connections}x{size}",
        title=f"{size:,}-byte ping-pong on {connections:,} connection{'s' * (connections > 1)}",
        main=("--rr", connections, "--bytes", size),
        metrics=(RR_RATE, RR_CPU, RR_P50, RR_P99),
        bars=(Bar("cpu", 1.0, "peers"), Bar("rate", 1.0, "peers")),
        reference="haproxy",
        wide=True,
    )


ALL = (
    _bulk("down", 1),
    _bulk("down", 16),
    _bulk("up", 1),
    _bulk("up", 16),
    Workload(
        name="conn",
        title="connect + SOCKS5 handshake + 1-byte echo + close, 32 in flight",
        main=("--conn", 32),
        metrics=CONN,
        bars=(
            Bar("rate", 1.15, "microsocks"),
            Bar("cpu", 0.85, "microsocks"),
            *FAR_AHEAD_OF_SOCKS,
        ),
        reference="microsocks",
    ),
    Workload(
        name="rr-64",
        title="64-byte ping-pong on 64 connections",
        main=("--rr", 64),
        metrics=(RR_RATE, RR_CPU, RR_P50, RR_P99),
        bars=(Bar("cpu", 0.85, "haproxy"), Bar("rate", 1.0, "peers")),
        reference="haproxy",
    ),
    Workload(
        name="rr-bulk",
        title="64-byte ping-pong on 8 connections beside one bulk flow",
        main=("--rr", 8),
        beside=("--down", 1),
        metrics=(
            RR_P99,
            RR_P50,
            RR_RATE,
            Metric("bulk", "GB/s beside", True, _rate("down", "bytes", "beside", 1e9)),
        ),
        bars=(Bar("p99", 2, "haproxy"),),
        reference="haproxy",
    ),
    Workload(
        name="rr-conn",
        title="64-byte ping-pong on 8 connections beside 16 handshakes always in flight",
        main=("--rr", 8),
        beside=("--conn", 16),
        metrics=(
            RR_RATE,
            RR_P50,
            RR_P99,
            Metric("sessions", "sessions/s beside", True, _rate("conn", part="beside")),
        ),
        bars=(
            Bar("rate", 1, "SOCKS peers"),
            Bar("p99", 1, "SOCKS peers"),
            Bar("sessions", 1, "SOCKS peers"),
        ),
        reference="microsocks",
    ),
    Workload(
        name="rr-udp",
        title="64-byte ping-pong on 8 connections, alone and beside one flood of datagrams",
        main=("--rr", 8),
        beside=("--up", 1, "--bytes", 1200, "--window", 64),
        beside_program="udp",
        alone_first=True,
        metrics=(
            Metric("times", "x p99 alone", False, _times_alone),
            Metric("alone", "us p99 alone", False, _latency("rr", "p99_us", "alone")),
            Metric("p99", "us p99 beside", False, _latency("rr", "p99_us")),
            RR_RATE,
            Metric("flood", "GB/s beside", True, _rate("up", "bytes", "beside", 1e9)),
        ),
        # A second load on the same CPUs moves it without any proxy: read it beside "direct".
        bars=(Bar("times", 2.0),),
        reference=None,
    ),
    Workload(
        name="idle",
        title="5,000 idle sessions",
        main=("--idle", 5000),
        metrics=(
            Metric("memory", "KB each", False, lambda outcome: outcome["bytes_each"] / 1024),
            Metric("cpu", "% CPU", False, lambda outcome: outcome["cpu_share"] * 100),
        ),
        # A timer that looks at each session once a second would take several times as much.
        bars=(Bar("memory", 1.0), Bar("cpu", 0.05)),
        reference=None,
        idle=True,
    ),
    Workload(
        name="garbage",
        title="64-byte ping-pong on 8 connections, alone and beside 3 s of a port scan, 1,000/s",
        main=("--rr", 8, "--seconds", 3),
        beside=("--garbage", 1000, "--seconds", 3),
        alone_first=True,
        metrics=(
            Metric("times", "x p99 alone", False, _times_alone),
            Metric("alone", "us p99 alone", False, _latency("rr", "p99_us", "alone")),
            Metric("p99", "us p99 beside", False, _latency("rr", "p99_us")),
            RR_RATE,
        ),
        bars=(Bar("times", 2.0),),
        reference=None,
    ),
    _udp_rr(64, 1),
    _udp_rr(64, 8),
    _udp_rr(1200, 1),
    _udp_rr(1200, 8),
    _udp_rr(1200, 8, merged=True),
    _udp_bulk("up"),
    _udp_bulk("down"),
    _bulk("down", 256, wide=True),
    _bulk("up", 256, wide=True),
    _conn("rst", "connect + SOCKS5 handshake", "--rst"),
    _conn("4", "connect + SOCKS4 handshake", "--as", "4"),
    _conn("4a", "connect + SOCKS4a handshake by name", "--as", "4a"),
    _conn("name", "connect + SOCKS5 handshake by name", "--as", "name"),
    _conn(
        "password",
        "connect + SOCKS5 handshake with user and password",
        *("--as", "password"),
        password=True,
    ),
    _fetch(1, "1B", 16),
    _fetch(1 << 10, "1KB", 16),
    _fetch(16 << 10, "16KB", 16),
    _fetch(256 << 10, "256KB", 16),
    _fetch(4 << 20, "4MB", 4),
    _fetch(64 << 20, "64MB", 4),
    *(_rr(*shape) for shape in ((1, 64), (1, 1024), (1, 16384), (64, 1024), (64, 16384))),
    *(_rr(*shape) for shape in ((1000, 64), (1000, 1024), (1000, 16384))),
    Workload(
        name="live",
        title="64-byte ping-pong on 100 connections beside 8,900 that are silent",
        main=("--rr", 100, "--idle", 8900),
        metrics=(RR_RATE, RR_CPU, RR_P50, RR_P99),
        bars=(Bar("cpu", 1.0, "peers"), Bar("rate", 1.0, "peers")),
        reference="haproxy",
        wide=True,
    ),
)
