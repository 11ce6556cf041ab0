# Listeners whose queue is full: what connects there waits, until somebody is let in.
#
# Must not know: who connects, or anything of fastsocks.

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Iterator

from support.system import connecting_to

PATIENCE = 30.0
# The backlog of a listener whose queue is full with the first connection: Linux lets in one
# more than it is told, and macOS takes 0 for the most that it has.
ROOM_FOR_ONE = 0 if sys.platform == "linux" else 1


class Hole:
    """SYNs to it get no answer until ``admit()``."""

    def __init__(self, listener: socket.socket, inside: contextlib.ExitStack) -> None:
        self._listener = listener
        self._inside = inside
        self.address = self.host, self.port = listener.getsockname()[:2]

    def waiting(self) -> int:
        return connecting_to(self.port)

    def admit(self) -> None:
        self._inside.enter_context(self._listener.accept()[0])


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[Hole]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = socket.create_server((host, port), family=family, backlog=ROOM_FOR_ONE)
        hole = Hole(stack.enter_context(listener), stack)
        stack.enter_context(socket.create_connection(hole.address))
        assert select.select([listener], [], [], PATIENCE)[0], "nothing is in its queue"
        yield hole
