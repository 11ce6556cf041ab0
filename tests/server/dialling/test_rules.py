# Nothing is dialled that was not judged, whatever a name means a moment later, and nothing of a
# family that is not used; and where connections come from.

from __future__ import annotations

import socket
from typing import Any

import pytest

from fastsocks.addresses import Judge
from fastsocks.errors import Reply, RuleDenied

LOCAL, STRANGER = "127.0.0.1", "198.41.0.4"


async def test_an_address_that_is_denied_is_skipped_and_never_dialled(rig, refused_port):
    with pytest.raises(ConnectionRefusedError):
        await rig.dial(
            refused_port,
            *("10.0.0.1", "::1", "127.0.0.9", "169.254.169.254", "::ffff:10.0.0.1"),
            who=STRANGER,
            allowed=["127.0.0.9/32"],
        )
    assert rig.engine.dialled == ["127.0.0.9"]


async def test_all_denied(rig):
    with pytest.raises(RuleDenied) as raised:
        await rig.dial(80, "10.0.0.1", "::1", "127.0.0.1", who=STRANGER)
    assert raised.value.reply is Reply.NOT_ALLOWED
    assert rig.engine.dialled == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
async def test_a_literal_is_judged_before_anything_happens(rig, host):
    with pytest.raises(RuleDenied):
        await rig.dialer().dial(rig.client, STRANGER, host, 80, False)
    assert rig.engine.dialled == []


async def test_what_a_name_means_a_moment_later_does_not_matter(rig, listening, monkeypatch):
    """Rebinding: an answer for the judge, and another one for the connection."""
    victim = listening("127.0.0.1")
    port = victim.getsockname()[1]
    dialer = rig.dialer()
    answers = iter([("192.0.2.1", "127.0.0.9"), ("127.0.0.1",), ("127.0.0.1",)])

    async def changing(name: str, budget: float, client_host: str) -> tuple[str, ...]:
        return next(answers)

    monkeypatch.setattr(dialer._resolver, "resolve", changing)
    real = socket.getaddrinfo

    def literals_only(host: str, *rest: Any, **more: Any) -> Any:
        assert more["flags"] & socket.AI_NUMERICHOST, f"{host} is looked up again"
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", literals_only)
    dialer._judge = Judge(["127.0.0.9"], ())
    with pytest.raises(OSError):
        await dialer.dial(rig.client, STRANGER, "host", port, True)
    assert rig.engine.dialled == ["127.0.0.9"]
    with pytest.raises(RuleDenied):
        await dialer.dial(rig.client, STRANGER, "host", port, True)
    assert rig.engine.dialled == ["127.0.0.9"]
    victim.setblocking(False)
    with pytest.raises(BlockingIOError):
        victim.accept()


# -- families and sources --------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), [("ipv4", "::1"), ("ipv6", "127.0.0.1")])
async def test_a_literal_of_a_family_that_is_not_used(rig, family, host):
    dialer = rig.dialer(families=[family])
    with pytest.raises(RuleDenied) as raised:
        await dialer.dial(rig.client, LOCAL, host, 80, False)
    assert raised.value.reply is Reply.ADDRESS_NOT_SUPPORTED
    assert rig.engine.dialled == []


async def test_each_family_has_its_source(rig, listening):
    sources = {"ipv4": "127.0.0.3", "ipv6": "::1"}
    for host, source in (("127.0.0.1", "127.0.0.3"), ("::1", "::1")):
        port = listening(host).getsockname()[1]
        remote = await rig.dial(port, host, sources=sources)
        assert remote.sockname[0] == source
        remote.close()


async def test_addresses_of_a_family_that_is_not_used(rig, listening):
    port = listening("127.0.0.1").getsockname()[1]
    remote = await rig.dial(port, "::1", "127.0.0.1", families=["ipv4"])
    assert rig.engine.dialled == ["127.0.0.1"]
    remote.close()
    with pytest.raises(RuleDenied) as raised:
        await rig.dial(port, "::1", families=["ipv4"])
    assert raised.value.reply is Reply.ADDRESS_NOT_SUPPORTED
    with pytest.raises(RuleDenied) as raised:
        await rig.dial(port, "::1", "0.0.0.0", families=["ipv4"])
    assert raised.value.reply is Reply.NOT_ALLOWED
