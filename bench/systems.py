"""The systems that are compared. Each runs with its own defaults, but for what README.md lists."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import rivals
from system import PASSWORD, USER, Kind, Setting, System


def _fastsocks(engine: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        words = [sys.executable, "-m", "fastsocks", "--listen", setting.listener]
        words += ["--engine", engine]
        if not setting.place.inside():
            # The addresses of benchmarks are among those that no stranger's client may reach.
            words += ["--allow", "all"] if setting.password else ["--allow", "all", "--open"]
        return words + ["-u", USER, "-P", PASSWORD] * setting.password

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


SYSTEMS = {
    system.name: system
    for system in (
        System("direct", Kind.NOTHING, lambda setting: [], lambda: None),
        System("fastsocks", Kind.OWN, _fastsocks("native"), _fastsocks_missing),
        System("fastsocks-python", Kind.OWN, _fastsocks("python"), _fastsocks_missing),
        System("haproxy", Kind.RELAY, rivals.haproxy(splice=True), rivals.needs("haproxy")),
        System("haproxy-copy", Kind.RELAY, rivals.haproxy(splice=False), rivals.needs("haproxy")),
        System("microsocks", Kind.PEER, rivals.microsocks, rivals.needs("microsocks")),
        System("dante", Kind.PEER, rivals.dante, rivals.needs("danted", "dante-server")),
        System("go-socks5", Kind.PEER, rivals.go_socks5, rivals.build_go_socks5),
        System("3proxy", Kind.PEER, rivals.three_proxy, rivals.needs("3proxy")),
        System("hev", Kind.PEER, rivals.hev, rivals.needs("hev-socks5-server")),
        System("streams", Kind.PEER, rivals.streams(), lambda: None),
        System("streams-uvloop", Kind.PEER, rivals.streams("--uvloop"), _fastsocks_missing),
        System("pproxy", Kind.PEER, rivals.pproxy, rivals.PPROXY.install),
        System(
            "asyncio-socks-server",
            Kind.PEER,
            rivals.asyncio_socks_server,
            rivals.ASYNCIO_SOCKS_SERVER.install,
        ),
    )
}


def named(text: str, own_flags: str = "") -> System:
    """The system of that name, or NAME@FLAGS: the same with flags of its own."""
    name, _, flags = text.partition("@")
    system = SYSTEMS[name]
    extra = own_flags if system.kind is Kind.OWN else ""
    return replace(system, name=text, flags=tuple(shlex.split(flags) + shlex.split(extra)))
