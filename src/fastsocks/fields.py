"""The type of each setting, which is asked before anybody looks at its value: a program may
pass anything. A text is a sequence too, and where a list is meant its letters could mean
something; and to Python the text "no" is true.

It must not know what a setting is for, nor which values of the right type are wrong.
No message holds what may be a password.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fastsocks.errors import ConfigError


class Kind(NamedTuple):
    """``words`` go on from "must be"."""

    words: str
    fits: Callable[[object], bool]
    is_shown: bool = True
    """a message may hold what does not fit"""


def check(settings: object) -> None:
    """Raises ConfigError for the first attribute that is of another type."""
    for name, kind in KINDS.items():
        value = getattr(settings, name)
        if not kind.fits(value):
            found = f", not {shown(value)}" if kind.is_shown else ""
            raise ConfigError(f"{name}: must be {kind.words}{found}")


def shown(value: object) -> str:
    if isinstance(value, str):
        return f"the text {reprlib.repr(value)}"
    if value is None or isinstance(value, (int, float, list, tuple)):
        return reprlib.repr(value)
    return f"an object of type {type(value).__name__}"


def is_whole(value: object) -> bool:
    # To Python True is the number 1.
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return is_whole(value) or isinstance(value, float)


def is_text(value: object) -> bool:
    return isinstance(value, str)


def are_all(fits: Callable[[object], bool], value: object) -> bool:
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        return False
    return all(fits(one) for one in value)


def are_texts(value: object) -> bool:
    return are_all(is_text, value)


def are_two_ports(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and are_all(is_whole, value)


def are_passwords(value: object) -> bool:
    return isinstance(value, Mapping) and are_texts([*value.keys(), *value.values()])


def or_none(kind: Kind) -> Kind:
    return kind._replace(
        words=f"{kind.words}, or None", fits=lambda value: value is None or kind.fits(value)
    )


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("a text", is_text)
COUNT = Kind("a whole number", is_whole)
SECONDS = Kind("a number of seconds", is_number)

KINDS = {
    "listen": Kind("a list of HOST:PORT", are_texts),
    "users": Kind("a mapping of names to passwords, all of them texts", are_passwords, False),
    "users_file": or_none(
        Kind("the path of a file", lambda value: isinstance(value, (str, os.PathLike)), False)
    ),
    "authenticator": or_none(Kind("an async function", callable, False)),
    "strict_methods": FLAG,
    "source": or_none(
        Kind("an address, or a list of them", lambda value: is_text(value) or are_texts(value))
    ),
    "prefer": TEXT,
    "allow": Kind("a list of networks or names of ranges", are_texts),
    "allow_bind": FLAG,
    "bind_anyone": FLAG,
    "bind_timeout": SECONDS,
    "udp": FLAG,
    "udp_ports": or_none(Kind("two ports, as (40000, 40100)", are_two_ports)),
    "udp_address": or_none(TEXT),
    "udp_full_cone": FLAG,
    "udp_timeout": SECONDS,
    "udp_per_client": COUNT,
    "open": FLAG,
    "engine": TEXT,
    "relay": TEXT,
    "relay_threads": COUNT,
    "io_uring": FLAG,
    "pipe_size": COUNT,
    "max_pipes": or_none(COUNT),
    "handshake_timeout": SECONDS,
    "connect_timeout": SECONDS,
    "idle_timeout": SECONDS,
    "half_closed_timeout": SECONDS,
    "grace": SECONDS,
    "max_sessions": or_none(COUNT),
    "ident": Kind("a list of RANGE[=NAME;NAME...]", are_texts),
    "ident_timeout": SECONDS,
}
