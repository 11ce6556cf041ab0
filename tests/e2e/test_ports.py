# What the kernel's rules for ports do to a proxy: those that it gives out by itself, and those
# that only root may bind. In a network of its own, since they hold for all of a network.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.namespaces import PATIENCE, own_network, programs_in
from support.programs import first_line

REPLIES = Path(__file__).with_name("replies.py")
CONNECT, ASSOCIATE = "050100 01 7f000001", "050300 01 00000000 0000"
# An address that nobody has and a port that nobody listens on, in the range below.
GIVEN_OUT, CLOSED = "40000 40020", 40004
OFTEN = 3000  # a connection gets the very port that it goes to once in 50 to 1,000 times
FIRST_FREE, PROXY = 30000, 50080


@pytest.fixture(scope="module")
def namespace():
    with own_network() as enter:
        rules = {"ip_local_port_range": GIVEN_OUT, "ip_unprivileged_port_start": FIRST_FREE}
        for name, value in rules.items():
            command = f"echo {value} > /proc/sys/net/ipv4/{name}"
            subprocess.run([*enter, "sh", "-c", command], check=True, timeout=PATIENCE)
        yield enter


@pytest.fixture
def codes(namespace, plain_environment, tmp_path, engine):
    """``codes(request, count, how, options, user)``: of the replies to that."""
    with programs_in(namespace, plain_environment, tmp_path) as start:

        def run(request, count, how, *options, user=()):
            listen = ["--listen", f"0.0.0.0:{PROXY}", "--open"]
            command = [sys.executable, "-m", "fastsocks", "--engine", engine, *listen, *options]
            assert "listening" in first_line(start(*user, *command))
            asks = [str(REPLIES), str(PROXY), request, str(count), how]
            return first_line(start(sys.executable, *asks))

        yield run


def test_closed_port_that_the_kernel_may_give_to_the_connection_itself(codes):
    """TCP would connect it to itself, and the client would be told that somebody is there."""
    assert codes(f"{CONNECT} {CLOSED:04x}", OFTEN, "once") == "5\n"


@pytest.fixture
def ordinary(need):
    """The start of a command line that runs the rest without root's rights."""
    return [need("setpriv"), "--bounding-set", "-all", "--inh-caps", "-all"]


def test_datagrams_where_some_ports_of_the_range_are_root_s(codes, ordinary):
    ports = f"{FIRST_FREE - 20}-{FIRST_FREE + 19}"
    assert codes(ASSOCIATE, 20, "held", "--udp-ports", ports, user=ordinary) == "0\n"


def test_datagrams_where_all_ports_of_the_range_are_root_s(codes, ordinary):
    ports = f"{FIRST_FREE - 20}-{FIRST_FREE - 1}"
    assert codes(ASSOCIATE, 1, "once", "--udp-ports", ports, user=ordinary) == "1\n"
