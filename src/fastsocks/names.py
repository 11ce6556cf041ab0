"""Names and addresses, as the C library has them: for threads, since it blocks.

To a process that has no descriptors left it says that there is no such name. That would be
remembered, and decide who may come, so it is told apart here. It must not know who asks.
"""

from __future__ import annotations

import socket
from typing import Any

from fastsocks.errors import LACKS


class Lack(OSError):
    """Of descriptors or memory to ask with: no answer."""


def addresses_of(name: str, family: int = socket.AF_UNSPEC) -> list[tuple[Any, ...]]:
    """Socket addresses without a port. Raises socket.gaierror if there are none, Lack, and
    ValueError for a name that no codec takes."""
    try:
        entries = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except OSError:  # gaierror among them
        raise_lack()
        raise
    return [address for *_, address in entries]


def name_of(address: str) -> str:
    """Raises as ``addresses_of`` does."""
    try:
        return socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except OSError:  # gaierror among them
        raise_lack()
        raise


def raise_lack() -> None:
    """Raises Lack if the process is out of descriptors or memory now: the answer just given
    was then none."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno in LACKS:
            raise Lack(error.errno, error.strerror) from None
