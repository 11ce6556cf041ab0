"""How each system that is not fastsocks is had and started.

HAProxy speaks no SOCKS: it forwards plain TCP, as the yardstick of what a relay can do, and so gets
one frontend for each port of the origin.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Unmeasured
from system import BUILD, HERE, PASSWORD, ROLES, USER, Setting, frontend_port, path_of

GO_PATH = Path("/usr/share/gocode")


def needs(program: str, package: str = "") -> Callable[[], str | None]:
    """A program of the machine's own packages."""

    def missing() -> str | None:
        if path_of(program):
            return None
        return f"the program {program} is not installed ({package or program})"

    return missing


def _without_password(setting: Setting, why: str) -> None:
    if setting.password:
        raise Unmeasured(why)


# -- HAProxy

HAPROXY_HEAD = """
global
    nbthread 1
    maxconn {connections}
    {pipes}
defaults
    mode tcp
    timeout connect 10s
    timeout client 10m
    timeout server 10m
"""

# It binds in the order of its config, so that once this one answers, all do.
HAPROXY_TAIL = """
frontend ready
    bind {listener}
"""

# splice-auto looks at a flow only when something wakes its task, and a flow that never stalls wakes
# nothing: it may be copied for good. The ports that carry bulk are therefore told to splice from
# the start, at five times the speed.
HAPROXY_SPLICE = {
    "source": "option splice-response",
    "sink": "option splice-request",
    "echo": "option splice-auto",
    "object": "option splice-response",
}

# Turn by turn through the origin's addresses, as the clients of the other systems go.
HAPROXY_PAIR = """
frontend {name}
    bind {binds}
    {splice}
    default_backend {name}
backend {name}
    balance roundrobin
    {splice}
{servers}
"""


def haproxy(*, splice: bool) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # It sets aside two descriptors for each connection and half a one for a pipe, and will not
        # start with fewer.
        text = HAPROXY_HEAD.format(
            connections=min(10000, descriptors // 3),
            pipes="tune.pipesize 1048576" if splice else "",
        )
        for number, origin in enumerate(setting.origins):
            for role in ROLES:
                if role in origin:
                    text += _haproxy_pair(setting, number, role, splice)
        text += HAPROXY_TAIL.format(listener=setting.listener)
        config = setting.directory / "haproxy.cfg"
        config.write_text(text)
        return [str(path_of("haproxy")), "-db", "-f", str(config)]

    return command


def _haproxy_pair(setting: Setting, number: int, role: str, splice: bool) -> str:
    port = frontend_port(setting, number, role)
    relays, origins = setting.place.relay_addresses(), setting.place.origin_addresses()
    return HAPROXY_PAIR.format(
        name=f"{role}{number}",
        splice=HAPROXY_SPLICE[role] if splice else "",
        binds=",".join(f"{address}:{port}" for address in relays),
        servers="\n".join(
            f"    server {address} {address}:{setting.origins[number][role]}" for address in origins
        ),
    )


# -- C and Go


def microsocks(setting: Setting) -> list[str]:
    words = [str(path_of("microsocks")), "-i", setting.place.proxy, "-p", str(setting.port)]
    return words + ["-u", USER, "-P", PASSWORD] * setting.password


DANTE_CONFIG = """
errorlog: stderr
internal: {place.proxy} port = {port}
external: {place.outward}
socksmethod: none
clientmethod: none
user.{privilege}: {user}
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""


def dante(setting: Setting) -> list[str]:
    _without_password(setting, "its users are those of the machine")
    privilege, user = ("unprivileged", "nobody") if setting.unprivileged else ("privileged", "root")
    config = setting.directory / "danted.conf"
    config.write_text(
        DANTE_CONFIG.format(place=setting.place, port=setting.port, privilege=privilege, user=user)
    )
    return [str(path_of("danted")), "-f", str(config), "-p", str(setting.directory / "danted.pid")]


def three_proxy(setting: Setting) -> list[str]:
    config = setting.directory / "3proxy.cfg"
    users = f"users {USER}:CL:{PASSWORD}\nauth strong\n" if setting.password else "auth none\n"
    config.write_text(
        f"{users}allow *\nmaxconn 10000\n"
        f"socks -i{setting.place.proxy} -p{setting.port} -e{setting.place.outward}\n"
    )
    return [str(path_of("3proxy")), str(config)]


HEV_CONFIG = """
main:
  workers: 1
  port: {port}
  listen-address: '{place.proxy}'
  listen-ipv6-only: false
misc:
  limit-nofile: 20000
"""


def hev(setting: Setting) -> list[str]:
    text = HEV_CONFIG.format(port=setting.port, place=setting.place)
    if setting.password:
        text += f"auth:\n  username: {USER}\n  password: {PASSWORD}\n"
    config = setting.directory / "hev.yml"
    config.write_text(text)
    return [str(path_of("hev-socks5-server")), str(config)]


def go_socks5(setting: Setting) -> list[str]:
    return [str(BUILD / "go_socks5"), setting.listener, *(USER, PASSWORD) * setting.password]


def build_go_socks5() -> str | None:
    go = path_of("go")
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


# -- Python


def streams(*flags: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        _without_password(setting, "it knows no users")
        program = str(HERE / "peers/streams.py")
        return [sys.executable, program, setting.place.proxy, str(setting.port), *flags]

    return command


@dataclass(frozen=True, slots=True)
class FromPyPI:
    """A package in a virtual environment of its own, since one's dependencies may exclude
    another's."""

    name: str
    version: str
    since: tuple[int, int]
    before: tuple[int, int]

    @property
    def directory(self) -> Path:
        return BUILD / f"{self.name}-{self.version}"

    def install(self) -> str | None:
        if (self.directory / "installed").exists():
            return None
        python = self._find_python()
        if not python:
            since, before = (".".join(map(str, v)) for v in (self.since, self.before))
            return f"it needs a CPython from {since} to before {before}, and there is none on PATH"
        pip = [str(self.directory / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
        for command in (
            [python, "-m", "venv", "--clear", str(self.directory)],
            [*pip, "install", "--quiet", f"{self.name}=={self.version}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
                return f"pip could not install {self.name} {self.version}: {said[-1]}"
        (self.directory / "installed").touch()
        return None

    def _find_python(self) -> str | None:
        minors = range(self.before[1] - 1, self.since[1] - 1, -1)
        paths = (sys.executable, *(shutil.which(f"python3.{minor}") for minor in minors))
        return next((path for path in paths if path and self._fits(path)), None)

    def _fits(self, python: str) -> bool:
        test = f"import sys; sys.exit(not {self.since} <= sys.version_info[:2] < {self.before})"
        return subprocess.run([python, "-c", test], capture_output=True).returncode == 0


PPROXY = FromPyPI("pproxy", "2.7.9", since=(3, 11), before=(3, 14))
ASYNCIO_SOCKS_SERVER = FromPyPI("asyncio-socks-server", "1.3.3", since=(3, 12), before=(3, 16))


def pproxy(setting: Setting) -> list[str]:
    program = str(PPROXY.directory / "bin/pproxy")
    login = f"#{USER}:{PASSWORD}" if setting.password else ""
    return [program, "-l", f"socks4+socks5://{setting.listener}/{login}"]


def asyncio_socks_server(setting: Setting) -> list[str]:
    program = str(ASYNCIO_SOCKS_SERVER.directory / "bin/asyncio_socks_server")
    words = [program, "--host", setting.place.proxy, "--port", str(setting.port)]
    words += ["--log-level", "ERROR"]
    return words + ["--auth", f"{USER}:{PASSWORD}"] * setting.password
