# Shows that what is meant for one association never reaches another that has taken its slot: an
# event of a socket that somebody else has open too, an order or a question that comes too late;
# nor does a datagram that waits lose its destination to others.
#
# These are about the turns of the native engine, so here most are taken by hand: run_once is one
# of the relay without a thread, and then of the front with what was there before.

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest

from fastsocks import engine as contract


@pytest.fixture
async def place(make_native_place):
    """The native engine, whose relay has its turns on the loop's thread."""
    return make_native_place(relay_threads=0)


def open_too(place, is_it):
    """Another descriptor of a socket that the engine has, as a forked child inherits."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(link.readlink()).startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(link.name)))
            with contextlib.suppress(OSError):
                if is_it(sock):
                    return place.rig.hold(sock)
            sock.close()
    raise AssertionError("there is no such socket")


def reset_control(client, reset):
    reset(client.control)


def close_control(client, _):
    client.control.close()


def say_something(client, _):
    client.control.send(b"?")


def send_a_datagram(client, _):
    client.sock.sendto(b"?", client.relay)


@pytest.mark.parametrize("relay_threads", [0, 1])
@pytest.mark.parametrize("action", [reset_control, close_control, say_something, send_a_datagram])
async def test_a_socket_that_somebody_else_has_open_too(
    make_native_place, reset, calm, relay_threads, action
):
    """Closing does not take it off the epoll then, and what is level-triggered would make
    epoll come for ever."""
    place = make_native_place(relay_threads=relay_threads)
    ended, target = place.client(), place.target()
    assert await ended.ping(target) == b"ping"
    open_too(place, lambda sock: sock.getpeername() == ended.control.getsockname())
    open_too(place, lambda sock: sock.getsockname() == ended.relay)
    place.rig.engine.kill(ended.handle)
    assert (await place.rig.ended())[3] == contract.KILLED
    successor = place.client()
    assert await successor.ping(target) == b"ping"
    action(ended, reset)
    await calm()
    assert await successor.ping(target) == b"ping"
    assert len(place.rig.ends) == 1


async def test_an_old_handle_does_not_kill_a_new_association(place):
    client, target = place.client(), place.target()
    place.rig.engine.kill(client.handle)
    await place.rig.ended()
    successor = place.client()
    place.rig.engine.kill(client.handle)
    assert await successor.ping(target) == b"ping"
    assert len(place.rig.ends) == 1


async def test_an_order_to_end_that_comes_after_the_end(place):
    """Told before the loop knows of the end, obeyed when the slot has been used again."""
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    client.control.close()
    place.rig.engine.run_once()
    assert not place.rig.ends, "the end is known already"
    place.rig.engine.kill(client.handle)
    place.rig.engine.run_once()
    assert (await place.rig.ended())[3] == contract.FINISHED
    assert await place.client().ping(target) == b"ping"
    assert len(place.rig.ends) == 1


@pytest.mark.parametrize("order_first", [True, False])
async def test_an_end_and_the_order_to_end_in_one_batch(place, order_first):
    client, target = place.client(), place.target()
    assert await client.ping(target) == b"ping"
    if order_first:
        place.rig.engine.kill(client.handle)
    client.control.close()
    client.send(b"too late", target.address)
    if not order_first:
        place.rig.engine.kill(client.handle)
    place.rig.engine.run_once()
    reason = contract.KILLED if order_first else contract.FINISHED
    assert (await place.rig.ended())[3] == reason
    assert await place.client().ping(target) == b"ping"
    assert len(place.rig.ends) == 1
    assert target.is_silent()


async def test_a_question_whose_association_has_ended(place):
    """Another one takes the slot in the very turn in which the question would be put."""
    successors = []

    def on_closed(ended):
        if not successors:
            successors.append(place.client())

    engine = place.rig.engine
    place.rig.engine = type(engine)(place.rig.loop, place.rig.settings, on_closed)
    engine.close()
    client, target = place.client(), place.target()
    place.rig.engine.run_once()
    client.send(b"?", target.address)
    client.control.close()
    place.rig.engine.run_once()
    place.rig.engine.run_once()
    assert len(successors) == 1
    assert not successors[0].asked
    assert not client.asked
    assert await successors[0].ping(target) == b"ping"


async def test_what_datagrams_wait_for_is_not_forgotten(place):
    """However many destinations are new meanwhile."""
    held = []
    target, others = place.target(), place.target()

    def judge(association, *what):
        if what[1] == b"slow.example":
            held.append(what)
        else:
            association.answer(*what, others.address, 0)

    client = place.client(on_ask=judge)
    client.send(b"waits", ("slow.example", 53))
    for number in range(1500):
        client.send(b"%d" % number, (f"n{number}.example", 53))
        assert await others.recv() == b"%d" % number
    client.association.answer(*held[0], target.address, 0)
    assert await target.recv() == b"waits"
    assert len(client.asked) == 1501


def test_what_is_about_to_be_sent_is_not_forgotten_before(program):
    process = program(
        "udp_forgotten", GLIBC_TUNABLES="glibc.malloc.tcache_count=0:glibc.malloc.perturb=165"
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, process.log.read_text()
    assert json.loads(out) == {"came": True, "asked": 1025}


async def test_an_error_of_the_program_silences_no_question(place):
    """The end of a session and a question are told in one turn; the program fails at the first."""
    client, first, second = place.client(), place.target(), place.target()
    relayed = place.rig.relay()
    engine, loop, errors = place.rig.engine, place.rig.loop, []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    engine.run_once()
    place.rig.ends = None  # which nothing can be added to
    relayed.client.close()
    relayed.remote.close()
    client.send(b"?", first.address)
    engine.run_once()
    engine.run_once()
    assert [type(error) for error in errors] == [AttributeError]
    place.rig.ends = []
    assert await client.ping(second) == b"ping"
