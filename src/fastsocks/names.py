"""Names and addresses, as the C library has them: for threads, since it blocks.

To a process that has no descriptors left it says that there is no such name. That would be
remembered, and decide who may come, so it is told apart here. It must not know who asks.
"""

from __future__ import annotations

import errno
import os
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
    except OSError as answer:  # gaierror among them
        raise_lack(answer)
        raise
    return [address for *_, address in entries]


def name_of(address: str) -> str:
    """Raises as ``addresses_of`` does."""
    try:
        return socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except OSError as answer:  # gaierror among them
        raise_lack(answer)
        raise


def raise_lack(answer: OSError) -> None:
    """Raises Lack if the answer is for want of descriptors or memory: where it says so, or where
    the process is out of them now."""
    if isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_MEMORY:
        raise Lack(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno in LACKS:
            raise Lack(error.errno, error.strerror) from None
