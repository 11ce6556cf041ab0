# The C library's resolver and a name server with troubles: proxy, name server and curl in a
# network of their own, where port 53 and /etc/resolv.conf are nobody else's.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.namespaces import PATIENCE, own_network, programs_in
from support.programs import first_line

NAME_SERVER = Path(__file__).with_name("name_server.py")
# Code 4 of RFC 1928, 6. curl's words before it change from version to version.
UNREACHABLE = "complete SOCKS5 connection to {}. (4)"
# Patient beyond what curl waits: it is the proxy that must not be.
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:10 attempts:2\n"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    own = tmp_path_factory.mktemp("etc")
    (own / "resolv.conf").write_text(RESOLV_CONF)
    (own / "nsswitch.conf").write_text("hosts: files dns\n")
    files = {f"/etc/{file.name}": file for file in own.iterdir()}
    with own_network(files) as enter:
        yield enter


@pytest.fixture
def start(namespace, plain_environment, tmp_path):
    """``start(command)`` in there: the first line of it; ended with the test."""
    with programs_in(namespace, plain_environment, tmp_path) as run:
        yield lambda *command: first_line(run(*command))


@pytest.fixture
def fetch(start, namespace, need, plain_environment, engine):
    """``fetch(host, seconds)``: what curl says, by name through a proxy that gives names so
    much time; the page is on 127.0.0.9."""
    line = start(sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.9", "0")
    port = int(line.split(" port ")[1].split()[0])
    assert start(sys.executable, str(NAME_SERVER)) == "listening\n"

    def begin(host, proxy):
        return subprocess.Popen(
            [
                *(*namespace, need("curl"), "-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}"),
                *("--max-time", "15", "-x", f"socks5h://127.0.0.1:{proxy}"),
                f"http://{host}:{port}/",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=plain_environment,
            text=True,
        )

    def run(*hosts, seconds):
        command = ["--listen", "127.0.0.1:0", "--engine", engine, "--connect-timeout", seconds]
        line = start(sys.executable, "-m", "fastsocks", *command)
        proxy = int(line.split()[3].rpartition(":")[2])
        fetching = [begin(host, proxy) for host in hosts]
        return [process.communicate(timeout=PATIENCE)[0] for process in fetching]

    return run


@pytest.mark.parametrize("name", ["good.test", "many.test", "mapped.test"])
def test_found(fetch, name):
    """One address; one of fifty; an IPv4 address in the guise of IPv6."""
    assert fetch(name, seconds="10") == ["200"]


@pytest.mark.parametrize("name", ["servfail.test", "refused.test", "nowhere.test", "empty.test"])
def test_the_name_server_has_no_answer(fetch, name):
    (told,) = fetch(name, seconds="20")
    assert told.endswith(f"{UNREACHABLE.format(name)}\n000")


def test_silence_ends_and_keeps_nobody_waiting(fetch):
    silent, good = fetch("silent.test", "good.test", seconds="1.5")
    assert silent.endswith(f"{UNREACHABLE.format('silent.test')}\n000")
    assert good == "200"
