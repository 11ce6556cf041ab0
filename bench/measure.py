"""One run of one workload against one system: start it, load it, read it, end it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from processes import Load, Server, Unmeasured, cpu_seconds, resident_bytes
from systems import Kind, Setting, System, new_directory, program
from workloads import Outcome, Workload

# Each run has its server and its origins on ports of their own: no run meets the TIME_WAITs of the
# one before. Servers stay below the range from which the kernel takes ports for connections.
PORTS_EACH = 10
FIRST_PORT, LAST_PORT = 2000, 19990
_ports = count(FIRST_PORT, PORTS_EACH)


def measure(system: System, workload: Workload, seconds: float, *, unprivileged: bool) -> Outcome:
    if workload.program == "udp" and system.kind is Kind.RELAY:
        raise Unmeasured("it relays TCP only")
    with ExitStack() as stack:
        directory = stack.enter_context(new_directory())
        origins = [_start_origin(stack, workload) for _ in range(2 if workload.beside else 1)]
        setting = Setting(_next_port(), origins, Path(directory), unprivileged)
        server = None
        if system.kind is not Kind.NOTHING:
            server = Server(system.full_command(setting), setting.port, unprivileged=unprivileged)
            stack.enter_context(server)
        run = _Run(stack, system, setting, server, workload, seconds)
        try:
            return run.hold() if workload.idle else run.load()
        except Unmeasured as why:
            if server and server.process.poll() is not None:
                raise Unmeasured(f"the server ended by itself; {why}") from None
            raise


def _next_port() -> int:
    port = next(_ports)
    if port > LAST_PORT:
        raise Unmeasured("more runs than there are ports for servers: ask for fewer rounds")
    return port


def _start_origin(stack: ExitStack, workload: Workload) -> dict[str, int]:
    origin = stack.enter_context(Load(program(workload.program), "origin", limit=900))
    ports: dict[str, int] = json.loads(origin.line())
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
        time.sleep(0.5)  # for what was begun when the last session opened
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
        where = self.system.client_arguments(self.setting, origin)
        everything = ("client", *where, "--seconds", self.seconds, *arguments)
        generator = program(self.workload.program)
        return self.stack.enter_context(Load(generator, *everything, limit=self.seconds + 120))

    def _cpu(self) -> float:
        return cpu_seconds(self.server.pid) if self.server else 0.0


def _figures(client: Load) -> Outcome:
    client.wait_for("begin")
    client.wait_for("end")
    return client.figures()
