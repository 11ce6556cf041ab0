# The SOCKS client in Java's standard library, which every Java program has by a property. It
# always offers "none" and user/password; asked for the latter without having one it sends the
# operating system's user and an empty password; refused, it tries SOCKS4 on the same
# connection.

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RUN_SECONDS = 90
SOURCE = Path(__file__).with_name("SocksClient.java")


@pytest.fixture(scope="module")
def java(
    need, plain_environment, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """java(proxy, version, host, port, data, *account): the finished client."""
    directory, machine = tmp_path_factory.mktemp("java"), need("java")
    compiler = [need("javac"), "-d", str(directory), str(SOURCE)]
    subprocess.run(compiler, check=True, timeout=RUN_SECONDS, env=plain_environment)

    def run(proxy, version: int, host: str, port: int, data: bytes, *account: str):
        # The quickest start there is: these programs live for a second.
        options = ("-XX:TieredStopAtLevel=1", "-Xshare:auto", f"-DsocksProxyVersion={version}")
        where = (proxy.host, str(proxy.port), host, str(port))
        return subprocess.run(
            [machine, *options, "-cp", str(directory), "SocksClient", *where, *account],
            input=data,
            capture_output=True,
            timeout=RUN_SECONDS,
            env=plain_environment,
        )

    return run


@pytest.mark.parametrize(
    ("version", "host"), [(4, "127.0.0.1"), (5, "127.0.0.1"), (5, "localhost")]
)
def test_echo_and_late_data(proxy, java, echo, late_data, version, host) -> None:
    data = os.urandom(1 << 20)
    result = java(proxy, version, host, echo.port, data)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == data + late_data


def test_user_and_password(locked_proxy, java, echo, late_data, login) -> None:
    account = (login.user, login.password)
    result = java(locked_proxy, 5, "localhost", echo.port, b"data", *account)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"data" + late_data


def test_not_let_in_without_a_password(locked_proxy, java, echo) -> None:
    result = java(locked_proxy, 5, "127.0.0.1", echo.port, b"data")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"SOCKS" in result.stderr


def test_refused_port(proxy, java, refused_port) -> None:
    result = java(proxy, 5, "127.0.0.1", refused_port, b"data")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Connection refused" in result.stderr
