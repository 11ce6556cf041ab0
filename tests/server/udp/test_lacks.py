# What the kernel cannot say for want of descriptors or memory: it is no verdict on a destination,
# and cuts no flow.

from __future__ import annotations

import errno
import os

import pytest

from fastsocks import addresses, associate, routes
from fastsocks.resolve import Resolver
from support.udp import reaches_until


class Kernel:
    """Asked whether an address is one of this machine: it is none."""

    lacks_descriptors = False

    def leads_here(self, packed, port):
        if self.lacks_descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return False


@pytest.fixture
def kernel(monkeypatch, not_on_loopback):
    """It is asked about each destination, as about those that are in no special range."""
    kernel = Kernel()
    monkeypatch.setattr(routes, "leads_here", kernel.leads_here)
    monkeypatch.setattr(routes, "FRESH", 0.0)
    monkeypatch.setattr(addresses, "INDEX", {})
    monkeypatch.setattr(addresses, "reading_of", addresses.reading_of.__wrapped__)
    return kernel


async def test_lack_of_a_descriptor_is_no_verdict(
    server, associated, datagrams, kernel, until, monkeypatch
):
    """Once there is one again, the destination is judged, in the same association."""
    monkeypatch.setattr(associate, "NOT_JUDGED_TTL", 0.05)
    one, target = await associated(server), datagrams()
    kernel.lacks_descriptors = True
    one.send(*target.name, b"lost")
    await until(lambda: server.engine.counters()["udp_dropped_denied"] == 1, "it is not judged")
    assert target.is_silent()
    kernel.lacks_descriptors = False

    def is_reached():
        one.send(*target.name, b"again")
        return not target.is_silent()

    await until(is_reached, "it is judged")


async def test_lack_of_a_descriptor_cuts_no_flow_to_a_name(
    server, associated, datagrams, names, soon_old, kernel
):
    names.answers["target.test"] = ["127.0.0.1"]
    one, target = await associated(server), datagrams()
    assert await one.reaches(target, "target.test")
    kernel.lacks_descriptors = True
    await reaches_until(lambda: names.asked.count("target.test") == 4, one, target)


@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENOBUFS])
async def test_lack_that_hides_the_way_moves_no_flow(
    server, associated, datagrams, names, soon_old, monkeypatch, lack
):
    """It does not say that there is none, so that another address would be tried."""
    names.answers["target.test"] = ["127.0.0.1", "127.0.0.9"]
    one, target = await associated(server), datagrams()
    assert await one.reaches(target, "target.test")

    def source_towards(host, port):
        raise OSError(lack, os.strerror(lack))

    monkeypatch.setattr(routes, "source_towards", source_towards)
    await reaches_until(lambda: names.asked.count("target.test") == 4, one, target)


async def test_lack_of_memory_cuts_no_flow_to_a_name(
    server, associated, datagrams, names, soon_old, monkeypatch, caplog
):
    names.answers["target.test"] = ["127.0.0.1"]
    one, target = await associated(server), datagrams()
    assert await one.reaches(target, "target.test")
    tried = []

    async def resolve(*_):
        tried.append(1)
        raise MemoryError

    monkeypatch.setattr(Resolver, "resolve", resolve)
    await reaches_until(lambda: len(tried) == 3, one, target)
    assert "no memory to look a name up" in caplog.text
    assert "Traceback" not in caplog.text
