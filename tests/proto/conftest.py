# What the tests of the machines share: a driver that plays the session's part, so that
# every test feeds its bytes and takes its decisions in the same way.

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings

from fastsocks.errors import ProtocolError, Reply
from fastsocks.proto.machine import Credentials, Machine, Methods
from fastsocks.proto.socks5 import NO_AUTH
from fastsocks.proto.wire import Request

settings.register_profile("proto", deadline=None)  # no test here is about speed
settings.load_profile("proto")


@dataclass
class Trace:
    """All that a session could see of one conversation."""

    events: list[tuple[type, tuple]] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    error: tuple[str, Reply | None] | None = None
    last_words: bytes = b""
    leftover: bytes = b""


def drive(
    machine: Machine,
    chunks: Iterable[bytes],
    method: int = NO_AUTH,
    accept: bool = True,
    bursts: Iterable[int] = (),
) -> Trace:
    """Feeds ``chunks`` until the request is there or an error ends it. ``bursts``
    says how many chunks come at once before each look at the events (1 when it
    runs out). What is never fed counts as leftover: it is still in the socket."""
    waiting, bursts, trace = list(chunks), iter(bursts), Trace()
    try:
        while True:
            event = machine.next_event()
            if event is None:
                if not waiting:
                    break
                for _ in range(next(bursts, 1)):
                    machine.feed(waiting.pop(0) if waiting else b"")
                continue
            trace.events.append((type(event), tuple(event)))
            if isinstance(event, Methods):
                trace.replies.append(machine.choose(method))
            elif isinstance(event, Credentials):
                trace.replies.append(machine.verdict(accept))
            else:
                break
    except ProtocolError as error:
        trace.error = (error.reason, error.reply)
        trace.last_words = b"" if error.reply is None else machine.refusal(error.reply)
        return trace
    trace.leftover = machine.leftover() + b"".join(waiting)
    return trace


@pytest.fixture(scope="session", name="drive")
def drive_fixture() -> Callable[..., Trace]:
    return drive


@pytest.fixture(scope="session")
def single_octets() -> Callable[[bytes], list[bytes]]:
    """The worst cut there is: one octet per segment."""
    return lambda stream: [stream[at : at + 1] for at in range(len(stream))]


@pytest.fixture(scope="session")
def cut() -> Callable[[bytes, Iterable[int]], list[bytes]]:
    """The stream in segments that end at the given positions, wherever those are."""

    def at(stream: bytes, positions: Iterable[int]) -> list[bytes]:
        edges = [0, *sorted(position % (len(stream) + 1) for position in positions), len(stream)]
        return [stream[begin:end] for begin, end in itertools.pairwise(edges)]

    return at


@pytest.fixture(scope="session")
def requested() -> Callable[[Trace], Request]:
    """The request a conversation ended in, by its last event."""

    def of(trace: Trace) -> Request:
        assert trace.error is None, trace.error
        kind, values = trace.events[-1]
        assert kind is Request, trace.events
        return Request(*values)

    return of
