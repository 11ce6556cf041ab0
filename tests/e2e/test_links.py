# Two hosts may have one link-local address, each on a link of its own: to the proxy they are two
# clients. In networks of their own, three of them, as it takes two links.

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.namespaces import PATIENCE, own_network, programs_in
from support.programs import first_line

HOST = str(Path(__file__).with_name("link_local.py"))


@pytest.fixture
def networks(need):
    """Of the proxy, and of a host on each of its links."""
    ip = need("ip")

    def run(enter: list[str], *words: str) -> None:
        subprocess.run([*enter, ip, *words], check=True, timeout=PATIENCE)

    with own_network() as proxy, own_network() as near, own_network() as far:
        for link, (enter, ours, theirs) in enumerate(
            [(near, "fd00:a::1/64", "fd00:a::9/64"), (far, "fd00:b::1/64", "fd00:b::9/64")]
        ):
            holder = enter[1].split("/")[2]
            run(proxy, *f"link add link{link} type veth peer name lan netns {holder}".split())
            for address in ("fd00::1/128", ours):
                run(proxy, "address", "add", address, "dev", f"link{link}", "nodad")
            run(proxy, "link", "set", f"link{link}", "up")
            for address in ("fe80::9/64", theirs):
                run(enter, "address", "add", address, "dev", "lan", "nodad")
            run(enter, "link", "set", "lan", "up")
            run(enter, "route", "add", "fd00::1", "dev", "lan")
        yield proxy, near, far


def test_one_address_on_two_links_is_two_clients(networks, engine, plain_environment, tmp_path):
    """The second may have an association of its own, and may not send through the first's."""
    proxy, near, far = networks
    options = ["--listen", "[fd00::1]:0", "--open", "--allow", "all", "--udp-per-client", "1"]
    with programs_in(proxy, plain_environment, tmp_path) as start:
        line = first_line(start(sys.executable, "-m", "fastsocks", "--engine", engine, *options))
        port = line.split()[3].rpartition(":")[2]
        with subprocess.Popen(
            [*near, sys.executable, HOST, "client", port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            ports = client.stdout.readline().split()
            other = [*far, sys.executable, HOST, "other", port, *ports]
            subprocess.run(other, check=True, timeout=PATIENCE)
            assert client.communicate("go on\n", PATIENCE)[0] == "client\n"
