"""The systems that are compared: how each is started, and why it cannot be, if it cannot.

Each runs with its own defaults wherever it has any. HAProxy speaks no SOCKS: it forwards plain TCP,
as the yardstick of what a relay can do, and so gets one frontend for each port of the origin.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / ".build"
GO_PATH = Path("/usr/share/gocode")
ROLES = ("source", "sink", "echo")
TARGETS = [f"127.0.2.{n}" for n in range(1, 17)]  # the origin's addresses, as in load.c


class Kind(Enum):
    NOTHING = "no server at all"
    RELAY = "a relay without SOCKS"
    PEER = "a SOCKS server by others"
    OWN = "fastsocks"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server is started into."""

    port: int
    origins: list[dict[str, int]]
    directory: Path
    unprivileged: bool


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
        ports = dict(setting.origins[origin])
        if self.kind is Kind.RELAY:
            ports |= {role: _frontend_port(setting, origin, role) for role in ROLES}
        arguments: list[object] = [
            word for role, port in ports.items() for word in (f"--{role}", port)
        ]
        if self.kind in (Kind.PEER, Kind.OWN):
            arguments += ["--socks", setting.port]
        return arguments


def _program(name: str, package: str) -> Callable[[], str | None]:
    return lambda: None if _path(name) else f"the program {name} is not installed ({package})"


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


# -- fastsocks


def _fastsocks(engine: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        return [
            sys.executable,
            "-m",
            "fastsocks",
            "--listen",
            f"127.0.0.1:{setting.port}",
            "--engine",
            engine,
        ]

    return command


def _fastsocks_missing() -> str | None:
    asked = subprocess.run(
        [sys.executable, "-m", "fastsocks", "--version"], capture_output=True, text=True, cwd="/"
    )
    return (
        None
        if asked.returncode == 0
        else f"{sys.executable} cannot run it: {asked.stderr.strip().splitlines()[-1]}"
    )


# -- HAProxy

HAPROXY_HEAD = """
global
    nbthread 1
    maxconn {connections}
    tune.pipesize 1048576
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 10m
    timeout server 10m
"""

# It binds in the order of its config, so that once this one answers, all do.
HAPROXY_TAIL = """
frontend ready
    bind 127.0.0.1:{port}
"""

# splice-auto looks at a flow only when something wakes its task, and a flow that never stalls wakes
# nothing: it may be copied for good. The ports that carry bulk are therefore told to splice from
# the start, at five times the speed.
HAPROXY_SPLICE = {
    "source": "option splice-response",
    "sink": "option splice-request",
    "echo": "option splice-auto",
}

# Turn by turn through the origin's addresses, as the clients of the other systems go.
HAPROXY_PAIR = """
frontend {name}
    bind {binds}
    {splice}
    default_backend {name}
backend {name}
    balance roundrobin
{servers}
"""


def _frontend_port(setting: Setting, origin: int, role: str) -> int:
    return setting.port + 1 + origin * len(ROLES) + ROLES.index(role)


def _haproxy(setting: Setting) -> list[str]:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # It sets aside two descriptors for each connection and half a one for a pipe, and will not
    # start with fewer.
    text = HAPROXY_HEAD.format(connections=min(6000, descriptors // 3))
    for number, origin in enumerate(setting.origins):
        for role in ROLES:
            port = _frontend_port(setting, number, role)
            text += HAPROXY_PAIR.format(
                name=f"{role}{number}",
                splice=HAPROXY_SPLICE[role],
                binds=",".join(f"{target}:{port}" for target in TARGETS),
                servers="\n".join(
                    f"    server {target} {target}:{origin[role]}" for target in TARGETS
                ),
            )
    text += HAPROXY_TAIL.format(port=setting.port)
    config = setting.directory / "haproxy.cfg"
    config.write_text(text)
    return [str(_path("haproxy")), "-db", "-f", str(config)]


# -- microsocks, Dante, go-socks5


def _microsocks(setting: Setting) -> list[str]:
    return [str(_path("microsocks")), "-i", "127.0.0.1", "-p", str(setting.port)]


DANTE_CONFIG = """
errorlog: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
socksmethod: none
clientmethod: none
user.{privilege}: {user}
client pass {{ from: 127.0.0.0/8 to: 127.0.0.0/8 }}
socks pass {{ from: 127.0.0.0/8 to: 127.0.0.0/8 }}
"""


def _dante(setting: Setting) -> list[str]:
    privilege, user = ("unprivileged", "nobody") if setting.unprivileged else ("privileged", "root")
    config = setting.directory / "danted.conf"
    config.write_text(DANTE_CONFIG.format(port=setting.port, privilege=privilege, user=user))
    return [str(_path("danted")), "-f", str(config), "-p", str(setting.directory / "danted.pid")]


def _go_socks5(setting: Setting) -> list[str]:
    return [str(BUILD / "go_socks5"), f"127.0.0.1:{setting.port}"]


def _go_socks5_missing() -> str | None:
    go = _path("go")
    if not go:
        return "the program go is not installed (golang-go)"
    if not (GO_PATH / "src/github.com/armon/go-socks5").is_dir():
        return "the library is not installed (golang-github-armon-go-socks5-dev)"
    environment = os.environ | {
        "GOPATH": str(GO_PATH),
        "GO111MODULE": "off",
        "GOCACHE": str(BUILD / "go-cache"),
    }
    source, program = str(HERE / "peers/go_socks5.go"), str(BUILD / "go_socks5")
    built = subprocess.run(
        [go, "build", "-o", program, source], env=environment, capture_output=True, text=True
    )
    return None if built.returncode == 0 else f"go could not build it: {built.stderr.strip()}"


# -- all of them

SYSTEMS = {
    system.name: system
    for system in (
        System("direct", Kind.NOTHING, lambda setting: [], lambda: None),
        System("fastsocks", Kind.OWN, _fastsocks("native"), _fastsocks_missing),
        System("fastsocks-python", Kind.OWN, _fastsocks("python"), _fastsocks_missing),
        System("haproxy", Kind.RELAY, _haproxy, _program("haproxy", "haproxy")),
        System("microsocks", Kind.PEER, _microsocks, _program("microsocks", "microsocks")),
        System("dante", Kind.PEER, _dante, _program("danted", "dante-server")),
        System("go-socks5", Kind.PEER, _go_socks5, _go_socks5_missing),
    )
}


def named(text: str, own_flags: str = "") -> System:
    """The system of that name, or NAME@FLAGS: the same with flags of its own."""
    name, _, flags = text.partition("@")
    system = SYSTEMS[name]
    extra = own_flags if system.kind is Kind.OWN else ""
    return replace(system, name=text, flags=tuple(shlex.split(flags) + shlex.split(extra)))


def new_directory() -> tempfile.TemporaryDirectory[str]:
    """For a server's config: open to the user it is going to run as."""
    directory = tempfile.TemporaryDirectory(prefix="fastsocks-bench-")
    os.chmod(directory.name, 0o777)
    return directory


def program(name: str) -> str:
    return str(BUILD / name)


def compile_generators() -> None:
    BUILD.mkdir(exist_ok=True)
    for name in ("load", "udp"):
        sources = [HERE / f"{name}.c", HERE / "common.h"]
        built = BUILD / name
        if built.exists() and built.stat().st_mtime > max(s.stat().st_mtime for s in sources):
            continue
        compiler = os.environ.get("CC", "gcc")
        subprocess.run(
            [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-o", built, sources[0]], check=True
        )
