"""The record that travels with a session, from its first octet to its end.

It is all that Python keeps of a relayed session, so it has slots, holds no object that
is not needed to say what happened, and makes text only of what is logged. It must not know who logs
it, nor when.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

_ids = itertools.count(1)


class Flow:
    """One session: who (``client`` as (host, port), ``user`` in octets), where to (``host`` and
    ``port``), a serial number ``id`` for the log, and what its end sets free."""

    __slots__ = ("client", "host", "id", "on_end", "port", "user")

    def __init__(self, client: tuple[str, int]) -> None:
        self.id = next(_ids)
        self.client = client
        self.user = b""
        self.host: str | None = None
        self.port = 0
        self.on_end: Callable[[], None] | None = None

    def __str__(self) -> str:
        # One word: without quotes, a blank would end it.
        user = readable(self.user).replace(" ", r"\x20") + "@" if self.user else ""
        target = endpoint(self.host, self.port) if self.host is not None else "-"
        return f"#{self.id} {user}{endpoint(*self.client)} -> {target}"


def readable(octets: bytes) -> str:
    """What a peer calls itself, be it text or not; may stand in quotes."""
    return quotable(octets.decode("utf-8", "replace"))


def quotable(text: str) -> str:
    """What a peer wrote, which cannot end the quotes it stands in, to pass for what the log
    says after it."""
    return printable(text).replace('"', r"\x22")


def printable(text: str) -> str:
    """What a peer wrote, with nothing in it that a log or a terminal obeys."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def endpoint(host: str, port: int) -> str:
    """HOST:PORT, with the brackets an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
