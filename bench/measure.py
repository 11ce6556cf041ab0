"""One run of one workload against one system: start it, load it, read it, end it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from generators import generator
from place import Place
from processes import (
    Load,
    Server,
    Unmeasured,
    cpu_seconds,
    describe_failure,
    resident_bytes,
)
from system import Kind, Setting, System
from workloads import Outcome, Workload

# Each run has its server and its origins on ports of their own: no run meets the TIME_WAITs of the
# one before. Servers stay below the range from which the kernel takes ports for connections.
PORTS_EACH = 12
FIRST_PORT, LAST_PORT = 2000, 19990
_ports = count(FIRST_PORT, PORTS_EACH)


def measure(
    system: System, workload: Workload, seconds: float, place: Place, *, unprivileged: bool
) -> Outcome:
    if reason := _no_sense(system, workload):
        raise Unmeasured(reason)
    with ExitStack() as stack:
        directory = stack.enter_context(_new_directory())
        programs = [workload.program, workload.beside_program][: 1 + bool(workload.beside)]
        origins = [_start_origin(stack, program, place) for program in programs]
        setting = Setting(
            place, _next_port(), origins, Path(directory), unprivileged, workload.password
        )
        server = None
        if system.kind is not Kind.NOTHING:
            address = (place.proxy, setting.port)
            server = Server(system.full_command(setting), address, unprivileged=unprivileged)
            stack.enter_context(server)
        run = _Run(stack, system, setting, server, workload, seconds)
        try:
            return run.hold() if workload.idle else run.load()
        except Unmeasured as why:
            if server and server.process.poll() is not None:
                raise Unmeasured(f"the server ended by itself; {why}") from None
            raise


def _no_sense(system: System, workload: Workload) -> str | None:
    if system.kind is Kind.RELAY and "udp" in (workload.program, workload.beside_program):
        return "it relays TCP only"
    if system.kind in (Kind.RELAY, Kind.NOTHING) and "--as" in workload.main:
        return "there is no handshake"
    return None


def _new_directory() -> tempfile.TemporaryDirectory[str]:
    """For a server's config: open to the user it is going to run as."""
    directory = tempfile.TemporaryDirectory(prefix="fastsocks-bench-")
    os.chmod(directory.name, 0o777)
    return directory


def _next_port() -> int:
    port = next(_ports)
    if port > LAST_PORT:
        raise Unmeasured("more runs than there are ports for servers: ask for fewer rounds")
    return port


def _start_origin(stack: ExitStack, program: str, place: Place) -> dict[str, int]:
    command = (*place.to_origin, generator(program), "origin", "--origin", place.origin)
    ports: dict[str, int] = json.loads(stack.enter_context(Load(*command, limit=900)).line())
    return ports


@dataclass(frozen=True, slots=True)
class _Run:
    stack: ExitStack
    system: System
    setting: Setting
    server: Server | None
    workload: Workload
    seconds: float

    def load(self) -> Outcome:
        outcome: Outcome = {}
        if self.workload.alone_first:
            outcome["alone"] = _figures(self._client(0, *self.workload.main))
        beside = self._client(1, *self.workload.beside) if self.workload.beside else None
        main = self._client(0, *self.workload.main)
        main.wait_for("begin")
        before = self._cpu()
        main.wait_for("end")
        outcome["cpu"] = self._cpu() - before if self.server else None
        outcome["main"] = main.figures()
        _insist_on_something(outcome["main"])
        if beside:
            outcome["beside"] = _figures(beside)
        return outcome

    def hold(self) -> Outcome:
        assert self.server
        # What a server takes once, with its first sessions, is not what each of them costs.
        _figures(self._client(0, "--conn", 8, "--seconds", 0.5, "--warmup", 0))
        empty = resident_bytes(self.server.pid)
        client = self._client(0, *self.workload.main, "--seconds", self.seconds + 30)
        client.wait_for("ready")
        # What was begun when the last session opened is over by then; fastsocks looks after
        # a second which sessions have stayed.
        time.sleep(2)
        before, since = self._cpu(), time.monotonic()
        time.sleep(self.seconds)
        spent, lasted = self._cpu() - before, time.monotonic() - since
        full = resident_bytes(self.server.pid)
        client.release()
        figures = client.figures()
        sessions, count, lost = (
            figures["idle"]["sessions"],
            figures["idle"]["count"],
            figures["lost"],
        )
        if lost or count < sessions:
            raise Unmeasured(f"of {sessions} sessions {count} carried a byte and {lost} were lost")
        return {
            "main": figures,
            "cpu_share": spent / lasted,
            "bytes_each": (full - empty) / sessions,
        }

    def _client(self, origin: int, *arguments: object) -> Load:
        command = (
            *self.setting.place.to_client,
            generator((self.workload.program, self.workload.beside_program)[origin]),
            "client",
            *self.system.client_arguments(self.setting, origin),
            *("--seconds", self.seconds),
            *arguments,
        )
        return self.stack.enter_context(Load(*command, limit=self.seconds + 120))

    def _cpu(self) -> float:
        return cpu_seconds(self.server.pid) if self.server else 0.0


def _figures(client: Load) -> Outcome:
    client.wait_for("begin")
    client.wait_for("end")
    return client.figures()


def _insist_on_something(figures: Outcome) -> None:
    """A server that refuses each session is none that serves zero of them a second."""
    groups = [group for group in figures.values() if isinstance(group, dict) and "count" in group]
    if not any(group["count"] or group["bytes"] for group in groups):
        raise Unmeasured(describe_failure(figures | {"failed": "no session succeeded"}))
