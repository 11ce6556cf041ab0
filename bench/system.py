"""What a system under test is to the harness, and what it is started into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from place import Place

HERE = Path(__file__).parent
BUILD = HERE / ".build"
ROLES = ("source", "sink", "echo", "object")  # of the origin's ports, as in origin.c
USER, PASSWORD = "bench", "bench"  # as in client.c


class Kind(Enum):
    NOTHING = "no server at all"
    RELAY = "a relay without SOCKS"
    PEER = "a SOCKS server by others"
    OWN = "fastsocks"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server is started into."""

    place: Place
    port: int
    origins: list[dict[str, int]]
    directory: Path
    unprivileged: bool
    password: bool  # clients log in as USER

    @property
    def listener(self) -> str:
        return f"{self.place.proxy}:{self.port}"


@dataclass(frozen=True, slots=True)
class System:
    name: str
    kind: Kind
    command: Callable[[Setting], list[str]]
    missing: Callable[[], str | None]
    flags: tuple[str, ...] = ()

    def full_command(self, setting: Setting) -> list[str]:
        return [*self.command(setting), *self.flags]

    def client_arguments(self, setting: Setting, origin: int) -> list[object]:
        """Where a client finds the origin of that number."""
        ports, place = dict(setting.origins[origin]), setting.place
        arguments: list[object] = ["--origin", place.origin, "--from", place.source]
        if self.kind is Kind.RELAY:
            ports |= {role: frontend_port(setting, origin, role) for role in ROLES}
            arguments += ["--target", place.relay]
        if self.kind in (Kind.PEER, Kind.OWN):
            arguments += ["--proxy", place.proxy, "--socks", setting.port]
        return arguments + [word for role, port in ports.items() for word in (f"--{role}", port)]


def frontend_port(setting: Setting, origin: int, role: str) -> int:
    """Where a relay without SOCKS stands for that port of that origin."""
    return setting.port + 1 + origin * len(ROLES) + ROLES.index(role)


def path_of(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
