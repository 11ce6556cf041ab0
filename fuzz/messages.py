"""What a hostile client might send: whole conversations of SOCKS messages in any order,
some of them damaged, cut into segments anywhere. All from one random generator, so that a
seed is enough to see a case again. It must not know what fastsocks makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

USER, PASSWORD = b"alice", b"secret"

NAMES = (
    b"localhost",
    b"example.com",
    b"127.0.0.1",
    b"127.1",
    b"0x7f.1",
    b"2130706433",
    b"::1",
    b"[::1]",
    b"::ffff:127.0.0.1",
    b"fe80::1%lo",
    b"",
    b".",
    b"a..b",
    b"x" * 64,
    b"evil\0.good",
    b"a b",
    b"\xff\xfe",
    b"0",
)
COMMANDS = (1, 1, 1, 2, 3, 0, 4, 0xF0, 0xFF)
TYPES = (1, 3, 4, 1, 3, 4, 0, 2, 5, 0xFF)
METHODS = (
    b"\0",
    b"\2",
    b"\0\2",
    b"\2\0",
    b"\1",
    b"\xff",
    b"",
    b"\0\1\2",
    b"\0\0\0",
    bytes(range(255)),
)
CREDENTIALS = (
    (USER, PASSWORD),
    (USER, PASSWORD),
    (USER, b"wrong"),
    (b"", b""),
    (b"x" * 255, b"y" * 255),
    (USER + b"\0", PASSWORD),
)


def greeting(rng: Random) -> bytes:
    offered = rng.choice(METHODS)
    return bytes((5, len(offered))) + offered


def login(rng: Random) -> bytes:
    user, password = rng.choice(CREDENTIALS)
    return bytes((1, len(user))) + user + bytes((len(password),)) + password


def address(rng: Random) -> bytes:
    """Type, address and port."""
    kind, port = rng.choice(TYPES), rng.randbytes(2)
    if kind == 3:
        name = rng.choice(NAMES)
        return bytes((3, len(name))) + name + port
    return bytes((kind,)) + rng.randbytes(16 if kind == 4 else 4) + port


def request(rng: Random) -> bytes:
    return bytes((5, rng.choice(COMMANDS), 0)) + address(rng)


def socks4(rng: Random) -> bytes:
    host = rng.choice((b"\0\0\0\1", b"\0\0\0\0", b"\x7f\0\0\1", rng.randbytes(4)))
    user = rng.choice((b"", USER, b"x" * 255, b"x" * 256))
    message = bytes((4, rng.choice(COMMANDS))) + rng.randbytes(2) + host + user + b"\0"
    return message + rng.choice(NAMES) + b"\0" if host[:3] == b"\0\0\0" else message


def noise(rng: Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 40))


def datagram(rng: Random) -> bytes:
    return rng.choice((b"\0\0\0", b"\0\0\0", b"\0\0\1", b"\5\1\0")) + address(rng) + noise(rng)


# Most are conversations as they should be: damage is only interesting to what looks sound.
ORDERS = (
    (greeting, request),
    (greeting, login, request),
    (greeting, login, request, noise),
    (socks4,),
    (socks4, noise),
)
ANY = (greeting, login, request, socks4, noise)


def damage(rng: Random, data: bytes) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
        case 1:
            return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        case 2:
            return data[:at] + noise(rng) + data[at:]
        case 3:
            return data[:at] + data[at + rng.randrange(1, 4) :]
        case 4:
            return data[:at]
        case _:
            return data[:at] + data[max(0, at - rng.randrange(1, 20)) :]


def conversation(rng: Random) -> bytes:
    parts: Sequence[Callable[[Random], bytes]] = rng.choice(ORDERS)
    if not rng.randrange(4):
        parts = rng.choices(ANY, k=rng.randrange(1, 6))
    stream = b"".join([part(rng) for part in parts])
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        stream = damage(rng, stream)
    return stream


def cut(rng: Random, stream: bytes) -> list[bytes]:
    """In one segment, octet by octet, or anywhere."""
    match rng.randrange(4):
        case 0:
            return [stream] if stream else []
        case 1:
            return [stream[at : at + 1] for at in range(len(stream))]
        case _:
            segments, at = [], 0
            while at < len(stream):
                size = rng.randrange(1, 33)
                segments.append(stream[at : at + size])
                at += size
            return segments
