# The source address of IPv6 connections and datagrams. Loopback has a single address of that
# family, from which everything comes anyway, so this is shown in a network of its own, where
# it is given another one.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.namespaces import PATIENCE, own_network, programs_in
from support.programs import first_line

CLIENT = Path(__file__).with_name("seen_from.py")
SOURCE = "fd00::2"


@pytest.fixture(scope="module")
def namespace(need, need_module):
    need_module("socks")
    with own_network() as enter:
        command = [need("ip"), "address", "add", f"{SOURCE}/128", "dev", "lo"]
        subprocess.run([*enter, *command], check=True, timeout=PATIENCE)
        yield enter


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ([], "::1"),  # from where the kernel goes by itself
        (["-b", SOURCE], SOURCE),
        (["-b", "127.0.0.9", "-b", SOURCE], SOURCE),
    ],
    ids=["none", "ipv6", "both"],
)
def test_ipv6_connections_and_datagrams_come_from_the_source_address(
    namespace, engine, plain_environment, tmp_path, options, seen
):
    with programs_in(namespace, plain_environment, tmp_path) as start:
        command = [sys.executable, "-m", "fastsocks", "--engine", engine, "--listen", "127.0.0.1:0"]
        line = first_line(start(*command, *options))
        proxy = line.split()[3].rpartition(":")[2]
        told = first_line(start(sys.executable, str(CLIENT), proxy))
    assert told == f"{seen} {seen}\n"
