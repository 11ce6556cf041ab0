# What the system says of processes, of their descriptors and sockets, and of connections that
# nobody has accepted: by /proc where there is one, else by the programs that read it out, which
# not every Linux has; and of a port.

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

HAS_PROC = sys.platform == "linux"
SYN_SENT = "02"  # in the tables of /proc/net


def asleep(pid: int) -> bool:
    """Whether that process waits for something."""
    # ps on macOS calls one idle that has slept for longer than 20 seconds.
    return (stat(pid)[0] if HAS_PROC else ps(pid, "stat")[:1]) in ("S", "I")


def cpu_seconds(pid: int) -> float:
    if HAS_PROC:
        user, system = stat(pid)[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    seconds = 0.0
    for part in ps(pid, "time").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def resident_octets(pid: int) -> int:
    if HAS_PROC:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(ps(pid, "rss")) << 10


def connecting_to(port: int) -> int:
    """Connections of this machine to a port that wait for an answer to their SYN."""
    if HAS_PROC:
        rows = [
            line.split()
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()[1:]
        ]
        return sum(row[2].endswith(f":{port:04X}") and row[3] == SYN_SENT for row in rows)
    rows = [line.split() for line in said("netstat", "-an", "-p", "tcp").splitlines()]
    return sum("SYN_SENT" in row and row[4].endswith(f".{port}") for row in rows)


def open_descriptors() -> int:
    """Of this process."""
    return len(os.listdir("/dev/fd"))


def option_of(local: tuple[str, int], remote: tuple[str, int], level: int, option: int) -> int:
    """Of this process's socket that is connected so."""
    values = []
    for number in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # what is none, or not connected
            sock = socket.socket(fileno=number)
            try:
                if (sock.getsockname()[:2], sock.getpeername()[:2]) == (local, remote):
                    values.append(sock.getsockopt(level, option))
            finally:
                sock.detach()
    (value,) = values
    return value


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as knock:
        return knock.connect_ex(address) == errno.ECONNREFUSED


def stat(pid: int) -> list[str]:
    """The fields from the state on, which is behind a name that may be anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def ps(pid: int, column: str) -> str:
    return said("ps", "-o", f"{column}=", "-p", str(pid)).strip()


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
