# Shows that runs of datagrams of one size leave the native engine in one send (UDP_SEGMENT), come
# in with one receive (UDP_GRO), and arrive as the datagrams they were.

from __future__ import annotations

import json
import random

import pytest

from fastsocks.engine import FINISHED
from support.namespaces import bare_network
from support.programs import need

SOL_UDP, UDP_SEGMENT = 17, 103


def gso_sends(place):
    return place.rig.engine.counters()["udp_gso_sends"]


async def all_of(peer, count):
    return [await peer.recv() for _ in range(count)]


async def exchange(client, target, payloads):
    """What comes of them at the target, and then at the client, when all are sent at once, up
    and back down."""
    for payload in payloads:
        client.send(payload, target.address)
    came = [await target.recvfrom() for _ in payloads]
    outside = came[-1][1]
    for payload in payloads:
        target.sock.sendto(payload, outside)
    back = await all_of(client, len(payloads))
    return [data for data, _ in came], [data[10:] for data in back]


async def test_equal_sizes_leave_together(make_native_place, payload):
    place = make_native_place(relay_threads=0)  # all is queued before the engine looks
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    payloads = [payload(1200, seed) for seed in range(30)]
    assert await exchange(client, target, payloads) == (payloads, payloads)
    assert gso_sends(place) >= 2
    assert place.rig.engine.counters()["datagrams_up"] == 31
    assert place.rig.engine.counters()["datagrams_down"] == 31


@pytest.mark.parametrize("threads", [0, 1])
async def test_any_sizes_in_any_order(make_native_place, threads):
    place = make_native_place(relay_threads=threads)
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    chance = random.Random(7)
    for _ in range(40):
        sizes = chance.choice([[0, 1, 64], [64], [100, 101, 100, 99], [1200, 1200, 300], [1400, 0]])
        payloads = [chance.randbytes(chance.choice(sizes)) for _ in range(chance.randrange(1, 60))]
        assert await exchange(client, target, payloads) == (payloads, payloads)
    assert gso_sends(place) > 0


async def test_runs_to_several_targets_do_not_mix(make_native_place, payload):
    place = make_native_place(relay_threads=0)
    client = place.client()
    targets = [place.target() for _ in range(3)]
    for target in targets:
        assert await client.ping(target) == b"ping"
    chance = random.Random(1)
    expected = {target: [] for target in targets}
    for number in range(60):
        target = chance.choice(targets)
        expected[target].append(payload(500, number))
        client.send(expected[target][-1], target.address)
    for target in targets:
        assert await all_of(target, len(expected[target])) == expected[target]


@pytest.mark.parametrize("size", [1, 100, 1000])
async def test_a_run_that_comes_in_one(make_native_place, header, payload, size):
    """The client and the target use UDP_SEGMENT too: the engine gets a run ready-made. Without
    UDP_GRO on the socket that it comes in on, it would be cut up on the way in, and leave in
    batches of what one receive takes."""
    place = make_native_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    client.send(b"?", target.address)
    outside = (await target.recvfrom())[1]
    payloads = [payload(size, number) for number in range(40)] + [payload(size)[: size // 2 or 1]]
    head = header(*target.address)
    run = b"".join(head + piece for piece in payloads)
    cut = [(SOL_UDP, UDP_SEGMENT, (len(head) + size).to_bytes(2, "little"))]
    client.sock.sendmsg([run], cut, 0, client.relay)
    assert await all_of(target, 41) == payloads
    await place.rig.until(lambda: gso_sends(place) > 0, "the run is counted")
    assert gso_sends(place) == 1, "cut up on the way up"
    cut = [(SOL_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))]
    target.sock.sendmsg([b"".join(payloads)], cut, 0, outside)
    assert await all_of(client, 41) == [head + piece for piece in payloads]
    await place.rig.until(lambda: gso_sends(place) > 1, "the run is counted")
    assert gso_sends(place) == 2, "cut up on the way down"


async def test_a_run_of_other_destinations_comes_apart(make_native_place, header):
    place = make_native_place()
    client = place.client()
    targets = [place.target() for _ in range(4)]
    for target in targets:
        assert await client.ping(target) == b"ping"
    order = [targets[number % 4] for number in range(20)]
    run = b"".join(header(*target.address) + b"%04d" % n for n, target in enumerate(order))
    client.sock.sendmsg(
        [run], [(SOL_UDP, UDP_SEGMENT, (14).to_bytes(2, "little"))], 0, client.relay
    )
    for number, target in enumerate(targets):
        assert await all_of(target, 5) == [b"%04d" % (number + 4 * turn) for turn in range(5)]


async def test_a_run_with_bad_headers_in_it(make_native_place, header):
    place = make_native_place()
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    good = header(*target.address) + b"good"
    bad = b"\0\0\0\x09" + good[4:]
    run = good + bad + good + b"\0\0\x01" + good[3:] + good + good[:6]
    cut = [(SOL_UDP, UDP_SEGMENT, len(good).to_bytes(2, "little"))]
    client.sock.sendmsg([run], cut, 0, client.relay)
    assert await all_of(target, 3) == [b"good"] * 3
    assert await client.drops("malformed", 2) == 2
    assert await client.drops("fragment", 1) == 1


@pytest.mark.parametrize("threads", [0, 1, 2])
async def test_inline_and_in_threads_are_the_same(make_native_place, payload, threads):
    place = make_native_place(relay_threads=threads)
    clients, target = [place.client() for _ in range(4)], place.target()
    payloads = [payload(300, number) for number in range(16)]
    for client in clients:
        assert await exchange(client, target, payloads) == (payloads, payloads)
    for client in clients:
        client.control.close()
    await place.rig.ended(4)
    octets = 16 * 300
    expected = {(client.flow, octets, octets, FINISHED, 0) for client in clients}
    assert set(place.rig.ends) == expected


def test_what_the_kernel_will_not_cut_is_sent_one_by_one(program, tmp_path):
    """UDP_SEGMENT is refused for what is longer than the path's packets: those are sent as
    ever, in fragments, and the shorter ones go on leaving together. No length is refused
    twice."""
    calls = tmp_path / "calls"
    process = program(
        "udp_short_path",
        prefix=[
            *bare_network(),
            *(need("strace"), "-f", "-e", "trace=sendmmsg,sendmsg", "-o", str(calls)),
        ],
        ASAN_OPTIONS="detect_leaks=0",  # which does not work in a program that is traced
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    result = json.loads(out)
    assert [one["intact"] for one in result["rounds"]] == [True] * 6, result
    together = [one["size"] for one in result["rounds"] if one["sends"]]
    assert together == [1000, 1000, 1400], result
    assert result["failed"] == 0
    refused = [line for line in calls.read_text().splitlines() if " = -1 E" in line]
    assert len(refused) == 4, "3000 and 2500, each on the way up and on the way down"
