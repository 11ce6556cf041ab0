# Asked for what cannot be had, a port, descriptors, an engine: one line that says why, and no
# traceback. Exit status 1, or 2 where other flags are the only help.

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from fastsocks import cli

PATIENCE = 30.0
ANYWHERE = ("--listen", "127.0.0.1:0")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_port_taken(fails, family):
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        told = fails(1, *ANYWHERE, "--listen", place)
    assert f"cannot listen on {place}: {os.strerror(errno.EADDRINUSE)}" in told


@pytest.mark.parametrize(
    ("limit", "flags", "needed"),
    [
        *((limit, (), cli.DESCRIPTORS_MIN) for limit in (10, 12, 20)),
        (64, ("--relay-threads", "16"), 84),
    ],
    ids=str,
)
def test_too_few_descriptors(command, environment, limit, flags, needed):
    ended = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command(*ANYWHERE, *flags)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=PATIENCE,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"fastsocks: {os.strerror(errno.EMFILE)}: fastsocks needs {needed} more"
        " descriptors to start (ulimit -n)\n"
    )


def test_what_is_meant_for_standard_error_goes_nowhere_else(command, environment):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = "{}:{}".format(*taken.getsockname())
        ended = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", *command("--listen", place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment(),
            timeout=PATIENCE,
        )
    assert (ended.returncode, ended.stdout) == (1, b"")


def test_same_place_twice(fails):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place = "{}:{}".format(*probe.getsockname())
    told = fails(1, "--listen", place, "--listen", place)
    assert f"cannot listen on {place}: {os.strerror(errno.EADDRINUSE)}" in told


@pytest.mark.parametrize("place", ["192.0.2.1:1080", "[2001:db8::1]:1080"])
def test_address_of_another_machine(fails, place):
    told = fails(1, "--listen", place, "--open")
    assert f"cannot listen on {place}: " in told
    assert os.strerror(errno.EADDRNOTAVAIL) in told


def test_zone_that_does_not_exist(fails):
    told = fails(1, "--open", "--listen", "[fe80::1%nowhere0]:1080")
    assert "cannot listen on [fe80::1%nowhere0]:1080: there is no interface nowhere0" in told


def test_engine_that_was_never_compiled(tmp_path, command, environment):
    """A source tree that was never compiled: named, with what would work instead."""
    package = tmp_path / "fastsocks"
    source = Path(cli.__file__).parent
    for file in source.rglob("*.py"):
        copy = package / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    ended = subprocess.run(
        command(*ANYWHERE, "--engine", "native"),
        capture_output=True,
        env=environment(PYTHONPATH=str(tmp_path)),
        timeout=PATIENCE,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "--engine native" in ended.stderr
    assert "python" in ended.stderr


@pytest.mark.linux  # for /dev/full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--no-such-flag",), 2),
        (("--users", "/not/there", *ANYWHERE), 2),
        (("--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"), 1),
        (("passwd",), 2),
        (("--help",), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_status_is_true_where_nobody_can_be_told(
    command, environment, arguments, status, unbuffered
):
    """As where the log is on a disk that is full: a service manager goes by it."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            timeout=PATIENCE,
        )
    assert ended.returncode == status
