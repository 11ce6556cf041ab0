# OpenBSD netcat through the proxy: SOCKS4 and SOCKS5 from a client that reads replies of one
# fixed size, and half-close from a program that does it for real. With -N netcat shuts its
# sending side down at the end of its input and goes on reading until the other side ends, so
# whatever the proxy drops at the first end of file is missing from the output.

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable

import pytest

VERSIONS = ("4", "5")
HALF_CLOSED_INPUT = 10 * (1 << 20)
GREETING = b"220 the server speaks first\r\n"
RUN_SECONDS = 60


@pytest.fixture(scope="module")
def netcat(need, plain_environment) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """netcat(proxy, version, host, port, data): the finished nc -N, fed with the data."""
    program = need("nc")

    def run(
        proxy, version: str, host: str, port: int, data: bytes = b"", *options: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, "-N", *options, "-X", version, "-x", proxy.address, host, str(port)],
            input=data,
            capture_output=True,
            timeout=RUN_SECONDS,
            env=plain_environment,
        )

    return run


@pytest.fixture(scope="module")
def greeter(remote, late_data):
    """Speaks first, listens to the end, then sends the digest of it and `late_data`."""

    def script(connection, peer: str) -> None:
        connection.sendall(GREETING)
        digest = hashlib.sha256()
        while data := connection.recv(1 << 16):
            digest.update(data)
        connection.sendall(digest.digest())
        connection.sendall(late_data)

    return remote(script)


@pytest.mark.parametrize("version", VERSIONS)
def test_echo_and_late_data(proxy, netcat, echo, late_data, version) -> None:
    data = os.urandom(HALF_CLOSED_INPUT)
    result = netcat(proxy, version, echo.host, echo.port, data)
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(result.stdout) == len(data) + len(late_data)
    assert result.stdout == data + late_data


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_sent_and_late_data(proxy, netcat, echo, late_data, version) -> None:
    result = netcat(proxy, version, echo.host, echo.port)
    assert (result.returncode, result.stdout == late_data) == (0, True)


@pytest.mark.parametrize("size", [0, 1, 1 << 16, HALF_CLOSED_INPUT])
@pytest.mark.parametrize("version", VERSIONS)
def test_server_that_speaks_first(proxy, netcat, greeter, late_data, version, size) -> None:
    data = os.urandom(size)
    result = netcat(proxy, version, greeter.host, greeter.port, data)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == GREETING + hashlib.sha256(data).digest() + late_data


@pytest.mark.parametrize("version", VERSIONS)
def test_server_that_speaks_and_leaves(proxy, netcat, remote, late_data, version) -> None:
    # The end of file is in the server's first burst, maybe before the client has its reply.
    # -d keeps netcat from reading its input, so the only end is the server's.
    server = remote(lambda connection, peer: connection.sendall(late_data))
    result = netcat(proxy, version, server.host, server.port, b"", "-d")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == late_data


def test_name_resolved_by_the_proxy(proxy, netcat, echo, late_data) -> None:
    # The echo server has no IPv6 address: where localhost has, the proxy must try both.
    result = netcat(proxy, "5", "localhost", echo.port, b"by name")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"by name" + late_data


def test_ipv6_target(proxy, netcat, remote, ipv6) -> None:
    server = remote(lambda connection, peer: connection.sendall(peer.encode()), ipv6)
    result = netcat(proxy, "5", server.host, server.port)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"::1 ")


@pytest.mark.parametrize("version", VERSIONS)
def test_refused_port(proxy, netcat, refused_port, version) -> None:
    result = netcat(proxy, version, "127.0.0.1", refused_port)
    assert (result.returncode, result.stdout) == (1, b"")
    word = {"4": b"rejected", "5": b"refused"}[version]  # netcat's name for the proxy's code
    assert word in result.stderr
