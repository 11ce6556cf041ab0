"""One run of one workload against one system: start it, load it, read it, end it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from processes import Load, Server, Unmeasured, cpu_seconds, resident_bytes
from systems import LOAD, Kind, Setting, System, new_directory
from workloads import Outcome, Workload

# Each run starts its server, and its origins, on ports of their own: no run meets the TIME_WAITs of
# the one before.
PORTS_EACH = 10
_ports = count(2000, PORTS_EACH)


def measure(system: System, workload: Workload, seconds: float, *, unprivileged: bool) -> Outcome:
    with ExitStack() as stack:
        directory = stack.enter_context(new_directory())
        origins = [_start_origin(stack) for _ in range(2 if workload.beside else 1)]
        setting = Setting(_next_port(), origins, Path(directory), unprivileged)
        server = None
        if system.kind is not Kind.NOTHING:
            server = Server(system.full_command(setting), setting.port, unprivileged=unprivileged)
            stack.enter_context(server)
        try:
            if workload.idle and server:
                return _hold(stack, system, setting, server, workload, seconds)
            return _run(stack, system, setting, server, workload, seconds)
        except Unmeasured as reason:
            if server and server.process.poll() is not None:
                raise Unmeasured(f"the server ended by itself; {reason}") from None
            raise


def _next_port() -> int:
    port = next(_ports)
    if port > 19000:
        raise Unmeasured("more runs than there are ports for servers: ask for fewer rounds")
    return port


def _start_origin(stack: ExitStack) -> dict[str, int]:
    origin = stack.enter_context(Load(str(LOAD), "origin", limit=600))
    ports: dict[str, int] = json.loads(origin.line())
    return ports


def _client(
    stack: ExitStack, system: System, setting: Setting, origin: int, *arguments: object
) -> Load:
    where = system.client_arguments(setting, origin)
    return stack.enter_context(Load(str(LOAD), "client", *where, *arguments, limit=120))


def _run(
    stack: ExitStack,
    system: System,
    setting: Setting,
    server: Server | None,
    workload: Workload,
    seconds: float,
) -> Outcome:
    outcome: Outcome = {}
    if workload.alone_first:
        alone = _client(stack, system, setting, 0, "--seconds", seconds, *workload.main)
        outcome["alone"] = _figures(alone)
    beside = (
        _client(stack, system, setting, 1, "--seconds", seconds, *workload.beside)
        if workload.beside
        else None
    )
    main = _client(stack, system, setting, 0, "--seconds", seconds, *workload.main)
    main.wait_for("begin")
    before = cpu_seconds(server.pid) if server else 0
    main.wait_for("end")
    outcome["cpu"] = cpu_seconds(server.pid) - before if server else None
    outcome["main"] = main.figures()
    if beside:
        outcome["beside"] = _figures(beside)
    return outcome


def _figures(client: Load) -> Outcome:
    client.wait_for("begin")
    client.wait_for("end")
    return client.figures()


def _hold(
    stack: ExitStack,
    system: System,
    setting: Setting,
    server: Server,
    workload: Workload,
    seconds: float,
) -> Outcome:
    # What a server takes once and for all, with its first sessions, is not what each one costs.
    _figures(_client(stack, system, setting, 0, "--conn", 8, "--seconds", 0.5, "--warmup", 0))
    empty = resident_bytes(server.pid)
    client = _client(stack, system, setting, 0, "--seconds", 60, *workload.main)
    client.wait_for("ready")
    time.sleep(0.5)
    before, since = cpu_seconds(server.pid), time.monotonic()
    time.sleep(seconds)
    spent = cpu_seconds(server.pid) - before
    lasted = time.monotonic() - since
    full = resident_bytes(server.pid)
    client.release()
    figures = client.figures()
    if figures["lost"] or figures["idle"]["count"] < figures["idle"]["sessions"]:
        raise Unmeasured(
            f"{figures['lost']} sessions lost, {figures['idle']['count']} ever carried a byte"
        )
    return {
        "main": figures,
        "cpu_share": spent / lasted,
        "bytes_each": (full - empty) / figures["idle"]["sessions"],
    }
