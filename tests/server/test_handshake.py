# Whole handshakes against the running server, in every cut a network can make of them,
# with the payload that may follow in the same segment.

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsocks.associate import Associations
from fastsocks.bind import Binder
from fastsocks.dial import Dialer

PAYLOAD = b"early payload, sent before any reply \x00\x05\x01\x00"
KINDS = ["socks5", "socks5-name", "socks5-login", "socks4", "socks4-user", "socks4a"]
USERS = {"alice": "secret"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def users(kind):
    return USERS if kind == "socks5-login" else {}


@pytest.fixture
async def proxy(serve, users):
    async with serve(users=users) as running:
        yield running


GRANTED5, GRANTED4 = b"\x05\x00\x00\x01", b"\x00\x5a"


@dataclass(frozen=True, slots=True)
class Talk:
    """All that the client says, and what it is told: without the address at the end,
    which is not known before, so that of ``size`` octets only the first are."""

    said: bytes
    told: bytes
    size: int


@pytest.fixture
def talk(kind, say, echo):
    port = echo.port
    request = say.socks5("127.0.0.1", port)
    return {
        "socks5": Talk(b"\x05\x01\x00" + request, b"\x05\x00" + GRANTED5, 12),
        "socks5-name": Talk(
            b"\x05\x02\x02\x00" + say.socks5("localhost", port), b"\x05\x00" + GRANTED5, 12
        ),
        "socks5-login": Talk(
            b"\x05\x02\x00\x02" + say.login(b"alice", b"secret") + request,
            b"\x05\x02\x01\x00" + GRANTED5,
            14,
        ),
        "socks4": Talk(say.socks4("127.0.0.1", port), GRANTED4, 8),
        "socks4-user": Talk(say.socks4("127.0.0.1", port, b"alice"), GRANTED4, 8),
        "socks4a": Talk(say.socks4("localhost", port, b"alice"), GRANTED4, 8),
    }[kind]


async def answers(client, talk) -> tuple[bytes, bytes]:
    """What the client is told, and all that comes behind it, to the end."""
    replies = await client.exactly(talk.size)
    echoed = await client.exactly(len(PAYLOAD))
    client.finish()
    return replies[: len(talk.told)], echoed + await client.to_end()


async def test_one_octet_per_segment(proxy, dial, echo, talk):
    client = await dial(proxy)
    await client.dribble(talk.said + PAYLOAD)
    assert await answers(client, talk) == (talk.told, PAYLOAD)
    assert echo.received == PAYLOAD


async def test_all_in_one_segment_with_payload(proxy, dial, echo, talk):
    client = await dial(proxy)
    await client.send(talk.said + PAYLOAD)
    assert await answers(client, talk) == (talk.told, PAYLOAD)
    assert echo.received == PAYLOAD


async def test_payload_larger_than_any_handshake_buffer(proxy, dial, echo, talk):
    client = await dial(proxy)
    payload = bytes(range(256)) * 800
    await client.send(talk.said + payload)
    await client.exactly(talk.size)
    assert await client.exactly(len(payload)) == payload
    assert echo.received == payload


async def test_all_in_one_segment_and_the_end_as_well(proxy, dial, talk, books):
    """A client that has sent all and half-closes at once still gets its answer."""
    ledger = books(proxy)
    client = await dial(proxy)
    await client.send(talk.said + PAYLOAD)
    client.finish()
    answer = await client.to_end()
    assert answer[talk.size :] == PAYLOAD
    client.close()
    assert await ledger.outstanding() == {}


async def test_two_segments_cut_at_every_position(proxy, dial, talk, books):
    ledger = books(proxy)
    stream = talk.said + PAYLOAD
    for position in range(1, len(talk.said) + 2):
        client = await dial(proxy)
        await client.send(stream[:position])
        await client.seen()
        await client.send(stream[position:])
        assert await answers(client, talk) == (talk.told, PAYLOAD), f"cut at {position}"
        client.close()
    assert await ledger.outstanding() == {}


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(positions=st.sets(st.integers(1, 120), max_size=10))
async def test_random_cuts(proxy, dial, talk, positions):
    stream = talk.said + PAYLOAD
    edges = [0, *sorted(at for at in positions if at < len(stream)), len(stream)]
    client = await dial(proxy)
    for begin, end in itertools.pairwise(edges):
        await client.send(stream[begin:end])
        await client.seen()
    assert await answers(client, talk) == (talk.told, PAYLOAD)
    client.close()


# -- no command without proof ----------------------------------------------------

WRONG_LOGINS = [(b"alice", b"wrong"), (b"alice", b""), (b"", b""), (b"bob", b"secret")]
NO_METHOD, NO_LOGIN = b"\x05\xff", b"\x05\x02\x01\x01"


@pytest.fixture
def begun(monkeypatch):
    """The commands that were begun, for whomever."""
    names = []

    def watch(stage, name):
        real = getattr(stage, name)

        def begin(*arguments):
            names.append(name)
            return real(*arguments)

        monkeypatch.setattr(stage, name, begin)

    for stage, name in ((Dialer, "dial"), (Binder, "listen"), (Associations, "open")):
        watch(stage, name)
    return names


@pytest.fixture(params=[1, 2, 3], ids=["connect", "bind", "udp"])
def asks(request, say, echo):
    """A request for each command."""
    return say.socks5("127.0.0.1", echo.port, command=request.param)


@pytest.fixture
async def guarded(serve):
    async with serve(users=USERS, allow_bind=True, bind_anyone=True) as running:
        yield running


async def is_told(guarded, dial, books, said: bytes, answer: bytes) -> None:
    """In one segment, and an octet at a time."""
    ledger = books(guarded)
    for way in ("send", "dribble"):
        client = await dial(guarded)
        try:
            await getattr(client, way)(said)
            assert await client.to_end() == answer
        except ConnectionError:
            assert way == "dribble"  # it went on talking after the answer
        client.close()
    assert await ledger.outstanding() == {}


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        (b"\x05\x01\x02", NO_LOGIN),  # the method agreed on, and nothing more
        (b"\x05\x02\x00\x02", NO_LOGIN),
        (b"\x05\x01\x00", NO_METHOD),
        (b"\x05\x03\x00\x01\x80", NO_METHOD),
        (b"\x05\x00", NO_METHOD),
        (b"", NO_METHOD),  # what is octet two of a request counts methods
    ],
)
async def test_request_before_the_login(guarded, dial, books, begun, asks, before, answer):
    await is_told(guarded, dial, books, before + asks, answer)
    assert begun == []


@pytest.mark.parametrize("wrong", WRONG_LOGINS, ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["once", "then right"])
async def test_request_after_a_login_that_failed(
    serve, dial, say, books, begun, asks, wrong, again
):
    """Not even where the right one follows: there is one try a connection."""
    said = b"\x05\x01\x02" + say.login(*wrong)
    if again:
        said += say.login(b"alice", b"secret")
    async with serve(users=USERS, allow_bind=True) as guarded:
        ledger = books(guarded)
        client = await dial(guarded)
        await client.send(said + asks)
        assert await client.to_end() == NO_LOGIN
        client.close()
        assert await ledger.outstanding() == {}
    assert begun == []


@pytest.mark.parametrize("command", [1, 2, 3])
async def test_socks4_proves_nothing(guarded, dial, say, books, begun, echo, command):
    said = say.socks4("127.0.0.1", echo.port, b"alice", command=command)
    await is_told(guarded, dial, books, said, say.failed4)
    assert begun == []


async def test_request_of_whom_ident_refuses(serve, dial, say, books, begun, asks):
    async with serve(ident=["127.0.0.9"], allow_bind=True) as guarded:
        await is_told(guarded, dial, books, say.no_login + asks, NO_METHOD)
        four = b"\x04" + asks[1:2] + asks[-2:] + b"\x7f\0\0\x01\0"
        await is_told(guarded, dial, books, four, say.failed4)
    assert begun == []


async def test_request_after_the_right_login(guarded, dial, say, begun, asks):
    """The proof that the tests above would see a command begun."""
    client = await dial(guarded)
    await client.send(b"\x05\x01\x02" + say.login(b"alice", b"secret") + asks)
    assert (await client.exactly(6))[:6] == b"\x05\x02\x01\x00\x05\x00"
    assert begun == [{1: "dial", 2: "listen", 3: "open"}[asks[1]]]
