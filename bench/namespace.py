"""A network namespace of the benchmark's own, so that its settings touch nothing else."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import sys

MARK = "--inside"

# The first that the kernel lets this namespace have. BBR, some systems' default, paces even
# loopback, to a sixth of what it can carry, and so hides every difference; the other two do not
# pace.
CONGESTION_CONTROLS = ("cubic", "reno")

# Tens of thousands of short connections a second, each blocking its port pair for a minute in
# TIME_WAIT: a wide range, reuse after a second, and a short list of them keep every system from
# measuring the kernel's search for a free port.
SETTINGS = {
    "net/ipv4/ip_local_port_range": "20000 65535",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/tcp_max_tw_buckets": "8192",
}


def enter() -> list[str]:
    """Come back inside the namespace, by starting over in it; returns what could not be had."""
    if MARK not in sys.argv:
        command = ["unshare", "--net"]
        if os.geteuid() == 0:
            _allow(CONGESTION_CONTROLS[0])
        else:
            command += ["--user", "--map-root-user"]
        os.execvp(command[0], [*command, sys.executable, *sys.argv, MARK])
    sys.argv.remove(MARK)
    _bring_up("lo")
    _raise_descriptor_limit()
    notes = [
        f"could not set {name} to {value}"
        for name, value in SETTINGS.items()
        if not _set(name, value)
    ]
    if not any(_set("net/ipv4/tcp_congestion_control", name) for name in CONGESTION_CONTROLS):
        notes.append("congestion control stays " + congestion_control())
    elif congestion_control() != CONGESTION_CONTROLS[0]:
        notes.append(
            f"congestion control is {congestion_control()}, which does not pace either: "
            f"{CONGESTION_CONTROLS[0]} is not among the machine's tcp_allowed_congestion_control"
        )
    return notes


def _allow(name: str) -> None:
    """A namespace may only choose what the machine allows to anyone; allowing changes no
    connection."""
    path = "net/ipv4/tcp_allowed_congestion_control"
    with open(f"/proc/sys/{path}") as file:
        allowed = file.read().split()
    if name not in allowed:
        _set(path, " ".join([*allowed, name]))


def congestion_control() -> str:
    with open("/proc/sys/net/ipv4/tcp_congestion_control") as file:
        return file.read().strip()


def mapped_user() -> bool:
    """Whether root here is an ordinary user outside, who cannot become yet another one."""
    with open("/proc/self/uid_map") as file:
        return int(file.read().split()[2]) == 1


def _set(name: str, value: str) -> bool:
    try:
        with open(f"/proc/sys/{name}", "w") as file:
            file.write(value)
    except OSError:
        return False
    return True


def _bring_up(interface: str) -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", interface.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, get_flags, request), 16)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", interface.encode(), flags | up))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
