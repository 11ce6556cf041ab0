"""A network namespace of the benchmark's own, so that its settings touch nothing else.

One thing it cannot set in there: as root it lets everybody on the machine choose the congestion
control that it needs (net.ipv4.tcp_allowed_congestion_control), until the next boot.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile

MARK = "--inside"

# The first that the kernel lets this namespace have. BBR, some systems' default, paces even
# loopback, to a sixth of what it can carry, and so hides every difference; the other two do not
# pace.
CONGESTION_CONTROLS = ("cubic", "reno")
CONGESTION_CONTROL = "net/ipv4/tcp_congestion_control"

# Tens of thousands of short connections a second, each blocking its port pair for a minute in
# TIME_WAIT: a wide range, reuse after a second, and a short list of them keep every system from
# measuring the kernel's search for a free port.
SETTINGS = {
    "net/ipv4/ip_local_port_range": "20000 65535",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/tcp_max_tw_buckets": "8192",
}

# 9,000 sessions have two each. Only root may go beyond what the machine grants.
DESCRIPTORS = 65536


def outside() -> bool:
    return MARK not in sys.argv


def possible() -> bool:
    try:
        return subprocess.run([*_unshare(), "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def insist() -> None:
    if not possible():
        sys.exit(
            "bench: needs a network namespace, and may not make one: run it as root, or let users"
            " make them (on Ubuntu: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)"
        )


def _unshare() -> list[str]:
    command = ["unshare", "--net", "--mount"]
    return command if os.geteuid() == 0 else [*command, "--user", "--map-root-user"]


def enter() -> list[str]:
    """Come back inside the namespace, by starting over in it; returns what could not be had."""
    if outside():
        insist()
        if os.geteuid() == 0:
            _allow(CONGESTION_CONTROLS[0])
        command = [*_unshare(), sys.executable, *sys.argv, MARK]
        os.execvp(command[0], command)
    sys.argv.remove(MARK)
    _bring_up("lo")
    _raise_descriptor_limit()
    return settle(())


def settle(prefix: tuple[str, ...]) -> list[str]:
    """Set what a namespace needs; `prefix` is what brings a command into it."""
    notes = [
        f"could not set {name} to {value}"
        for name, value in SETTINGS.items()
        if not write(prefix, name, value)
    ]
    taken = next(
        (name for name in CONGESTION_CONTROLS if write(prefix, CONGESTION_CONTROL, name)), None
    )
    if taken is None:
        notes.append("congestion control stays as it is")
    elif taken != CONGESTION_CONTROLS[0]:
        notes.append(
            f"congestion control is {taken}, which does not pace either: "
            f"{CONGESTION_CONTROLS[0]} is not among the machine's tcp_allowed_congestion_control"
        )
    return notes


def name_hosts(lines: str) -> list[str]:
    """Make the names known to every process of this run and to no other."""
    with tempfile.NamedTemporaryFile("w", prefix="fastsocks-bench-hosts-") as file:
        file.write(lines)
        file.flush()
        os.chmod(file.name, 0o644)
        # The mount holds the file after its name is gone.
        done = subprocess.run(
            ["mount", "--bind", file.name, "/etc/hosts"], capture_output=True, text=True
        )
    return [f"no names for conn-name and conn-4a: {done.stderr.strip()}"] if done.returncode else []


def _allow(name: str) -> None:
    """A namespace may only choose what the machine allows to anyone; allowing changes no
    connection."""
    path = "net/ipv4/tcp_allowed_congestion_control"
    with open(f"/proc/sys/{path}") as file:
        allowed = file.read().split()
    if name not in allowed:
        write((), path, " ".join([*allowed, name]))


def congestion_control() -> str:
    with open(f"/proc/sys/{CONGESTION_CONTROL}") as file:
        return file.read().strip()


def mapped_user() -> bool:
    """Whether root here is an ordinary user outside, who cannot become yet another one."""
    with open("/proc/self/uid_map") as file:
        return int(file.read().split()[2]) == 1


def write(prefix: tuple[str, ...], name: str, value: str) -> bool:
    """/proc/sys/net shows each process the namespace that it is in, hence a process to do it."""
    script = f"printf '%s\\n' '{value}' >/proc/sys/{name}"
    return subprocess.run([*prefix, "sh", "-c", script], capture_output=True).returncode == 0


def _bring_up(interface: str) -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", interface.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, get_flags, request), 16)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", interface.encode(), flags | up))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, OSError):
            continue
        return
