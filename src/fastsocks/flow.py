"""The record that travels with a session, from its first octet to its end.

It is all that Python keeps of a relayed session, so it has slots and holds no
object that is not needed to say what happened.
"""

from __future__ import annotations

import itertools

_ids = itertools.count(1)


class Flow:
    """One session: who (``client`` as (host, port), ``user``), where to
    (``target`` as HOST:PORT), and a serial number ``id`` for the log."""

    __slots__ = ("client", "id", "target", "user")

    def __init__(self, client: tuple[str, int]) -> None:
        self.id = next(_ids)
        self.client = client
        self.user: str | None = None
        self.target = "-"

    def __str__(self) -> str:
        user = f"{printable(self.user)}@" if self.user else ""
        return f"#{self.id} {user}{endpoint(*self.client)} -> {self.target}"


def printable(text: str) -> str:
    """What a peer wrote, with nothing in it that a log or a terminal obeys."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def endpoint(host: str, port: int) -> str:
    """HOST:PORT, with the brackets an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
