# A real identd, asked on the port it really has: proxy, oidentd and curl in a network
# namespace of their own, where port 113 is nobody else's. oidentd finds the owner of
# curl's connection in the kernel; curl runs as one user or another.

from __future__ import annotations

import subprocess
import sys

import pytest

from support.namespaces import PATIENCE, own_network, programs_in
from support.programs import first_line, wait_until

LISTENING = ": 00000000:{:04X} "  # in /proc/net/tcp, where oidentd has any address


@pytest.fixture(scope="module")
def namespace():
    with own_network() as enter:
        yield enter


@pytest.fixture
def inside(namespace, plain_environment, tmp_path):
    """``inside(command)``: started in there, ended with the test."""
    with programs_in(namespace, plain_environment, tmp_path) as run:
        yield run


@pytest.fixture
def proxy(inside, engine):
    """The port of one that serves ``nobody`` alone."""
    command = ["--listen", "127.0.0.1:0", "--engine", engine, "--ident", "127.0.0.=nobody"]
    process = inside(sys.executable, "-m", "fastsocks", *command)
    line = first_line(process)
    assert line.startswith("fastsocks listening on 127.0.0.1:"), line
    return int(line.split()[3].rpartition(":")[2])


@pytest.fixture
def identd(inside, namespace, need):
    process = inside(need("oidentd"), "-i", "-S", "-u", "0", "-g", "0", "-a", "0.0.0.0")

    def listens():
        assert process.poll() is None, "oidentd has ended"
        table = subprocess.run(
            [*namespace, "cat", "/proc/net/tcp"], capture_output=True, text=True, check=True
        )
        return LISTENING.format(113) in table.stdout

    wait_until(listens, "oidentd listens")


@pytest.fixture
def fetch(inside, need, namespace, plain_environment, proxy):
    """``fetch(user, scheme)``: (exit status, output, errors) of curl as that user."""
    server = inside(sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0")
    line = first_line(server)
    port = int(line.split(" port ")[1].split()[0])

    def run(user, scheme):
        ended = subprocess.run(
            [
                *namespace,
                *(need("setpriv"), f"--reuid={user}", "--clear-groups"),
                *(need("curl"), "-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}"),
                *("--max-time", "30", "-x", f"{scheme}@127.0.0.1:{proxy}"),
                f"http://127.0.0.1:{port}/",
            ],
            capture_output=True,
            env=plain_environment,
            timeout=PATIENCE,
        )
        return ended.returncode, ended.stdout, ended.stderr.decode()

    return run


@pytest.mark.parametrize("scheme", ["socks5://", "socks4://nobody"])
def test_the_right_user(fetch, identd, scheme):
    assert fetch("nobody", scheme) == (0, b"200", "")


@pytest.mark.parametrize("scheme", ["socks5://", "socks4://daemon"])
def test_a_user_whom_no_rule_names_is_refused(fetch, identd, scheme):
    status, output, told = fetch("daemon", scheme)
    assert (status, output) == (97, b"000"), told


def test_a_user_who_says_to_be_another(fetch, identd):
    status, _, told = fetch("daemon", "socks4://nobody")
    assert (status, "different user-ids" in told) == (97, True), told


def test_no_identd(fetch):
    status, _, told = fetch("nobody", "socks4://nobody")
    assert (status, "cannot connect to identd" in told) == (97, True), told
