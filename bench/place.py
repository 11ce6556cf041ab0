"""Where client, proxy and origin are: all on loopback, or in three namespaces joined by veth."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import namespace
from processes import GUARD, Unmeasured

# As in common.h: the load generators spread over them.
SOURCES, TARGETS = 32, 16


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses are each the first of a row, but the proxy's."""

    name: str
    proxy: str  # as clients reach it
    outward: str  # as the origin sees it
    source: str
    origin: str
    relay: str  # where a relay without SOCKS stands in for the origin
    to_client: tuple[str, ...] = ()  # goes before a command that is to run there
    to_origin: tuple[str, ...] = ()

    def relay_addresses(self) -> list[str]:
        return _row(self.relay, TARGETS)

    def origin_addresses(self) -> list[str]:
        return _row(self.origin, TARGETS)

    def hosts(self) -> str:
        """The lines of /etc/hosts by which client.c's names are found."""
        lines = [f"{host} origin-{n}.bench" for n, host in enumerate(self.origin_addresses(), 1)]
        return "\n".join(["127.0.0.1 localhost", *lines, ""])

    def inside(self) -> bool:
        """Whether the clients are on the proxy's own machine."""
        return self.name == "loopback"


def _row(first: str, length: int) -> list[str]:
    return [str(IPv4Address(first) + n) for n in range(length)]


LOOPBACK = Place("loopback", "127.0.0.1", "127.0.0.1", "127.0.1.1", "127.0.2.1", "127.0.2.1")

# Of the network that RFC 2544 set aside for benchmarks. The harness is on the proxy's machine.
VETH = Place("veth", "198.18.1.254", "198.18.2.254", "198.18.1.1", "198.18.2.1", "198.18.1.101")


def lay_veth(stack: ExitStack) -> tuple[Place, list[str]]:
    """Client and origin in namespaces of their own, for as long as the stack lasts.

    What goes from one to the other without a proxy is forwarded by the one in between, as by a
    router. Offloads stay as the kernel sets them. Returns what could not be set, too.
    """
    notes: list[str] = []
    ends = {}
    for name, near, far, own in (
        ("client", VETH.proxy, _row(VETH.source, SOURCES), _row(VETH.relay, TARGETS)),
        ("origin", VETH.outward, _row(VETH.origin, TARGETS), []),
    ):
        holder = _hold_namespace(stack)
        ends[name] = prefix = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
        _ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", str(holder.pid))
        _dress((), name, [near, *own])
        _dress(prefix, "eth0", far)
        _run(*prefix, "ip", "link", "set", "lo", "up")
        _run(*prefix, "ip", "route", "add", "default", "via", near)
        notes += [f"{name}: {note}" for note in namespace.settle(prefix)]
    namespace.write((), "net/ipv4/ip_forward", "1")
    return replace(VETH, to_client=ends["client"], to_origin=ends["origin"]), notes


def _hold_namespace(stack: ExitStack) -> subprocess.Popen[bytes]:
    holder = stack.enter_context(
        subprocess.Popen([*GUARD, "--", "unshare", "--net", "sleep", "infinity"])
    )
    stack.callback(holder.kill)
    own = os.readlink("/proc/self/ns/net")
    deadline = time.monotonic() + 5
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
        if holder.poll() is not None or time.monotonic() > deadline:
            raise Unmeasured("unshare made no further network namespace")
        time.sleep(0.005)
    return holder


def _dress(prefix: tuple[str, ...], interface: str, addresses: list[str]) -> None:
    for address in addresses:
        _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", interface)
    _run(*prefix, "ip", "link", "set", interface, "up")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise Unmeasured(f"{' '.join(command)}: {ended.stderr.strip()}")
