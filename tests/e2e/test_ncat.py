# Nmap's ncat through the proxy: SOCKS4 and SOCKS5, names resolved at the proxy, with and
# without a user. It is the second netcat because it shares no code with OpenBSD's, and has
# user and password, which that one has not.

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

RUN_SECONDS = 60
SIZE = 1 << 20


@pytest.fixture(scope="module")
def ncat(need, plain_environment) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """ncat(proxy, kind, host, port, data, *options): the finished ncat."""
    program = need("ncat")

    def run(proxy, kind: str, host: str, port: int, data: bytes, *options: str):
        where = ("--proxy", proxy.address, "--proxy-type", kind)
        return subprocess.run(
            [program, *where, *options, host, str(port)],
            input=data,
            capture_output=True,
            timeout=RUN_SECONDS,
            env=plain_environment,
        )

    return run


@pytest.mark.parametrize(
    ("kind", "host"),
    [("socks4", "127.0.0.1"), ("socks5", "127.0.0.1"), ("socks5", "localhost")],
)
def test_echo_and_late_data(proxy, ncat, echo, late_data, kind, host) -> None:
    data = os.urandom(SIZE)
    options = ("--proxy-dns", "remote") if host == "localhost" else ()
    result = ncat(proxy, kind, host, echo.port, data, *options)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == data + late_data


def test_ipv6_target(proxy, ncat, remote, ipv6) -> None:
    server = remote(lambda connection, peer: connection.sendall(peer.encode()), ipv6)
    result = ncat(proxy, "socks5", server.host, server.port, b"")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"::1 ")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_user_and_password(locked_proxy, ncat, echo, late_data, login, host) -> None:
    data = os.urandom(SIZE)
    options = ("--proxy-dns", "remote", "--proxy-auth", f"{login.user}:{login.password}")
    result = ncat(locked_proxy, "socks5", host, echo.port, data, *options)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == data + late_data


@pytest.mark.parametrize("account", ["wrong", "none"])
def test_without_the_password_nothing_comes_back(locked_proxy, ncat, echo, login, account) -> None:
    options = ("--proxy-auth", f"{login.user}:{login.wrong}") if account == "wrong" else ()
    result = ncat(locked_proxy, "socks5", "127.0.0.1", echo.port, b"data", *options)
    assert (result.returncode != 0, result.stdout) == (True, b"")
    assert result.stderr


@pytest.mark.parametrize("kind", ["socks4", "socks5"])
def test_refused_port(proxy, ncat, refused_port, kind) -> None:
    result = ncat(proxy, kind, "127.0.0.1", refused_port, b"data")
    assert (result.returncode != 0, result.stdout) == (True, b"")
