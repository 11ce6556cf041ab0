"""Where the associations of this server take datagrams, which are for their own clients only.

What the proxy sends has an address of its own. If one client could send through it to the
port of another's association, it would pass there for a client on this machine. So such a
destination is denied; and as the verdict on one is asked for once, and the association may
be younger, verdicts on addresses of this machine are remembered, to be taken back.

It must not know sockets, nor how a destination is spelt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Place = tuple[bytes, int]
"""An address in octets, and a port."""

# Verdicts of one association on addresses of this machine: as many as it may remember at all.
PERMITTED_MOST = 1024


class OwnPorts:
    """Of one server, on the thread of its loop."""

    def __init__(self) -> None:
        self._taken: set[Place] = set()
        self._permitted: dict[Place, dict[object, Callable[[], None]]] = {}

    def take(self, place: Place) -> None:
        """An association has it from now on; nobody else's datagrams may go there."""
        self._taken.add(place)
        for revoke in self._permitted.pop(place, {}).values():
            revoke()

    def release(self, place: Place) -> None:
        self._taken.discard(place)

    def are_taken(self, places: Sequence[Place]) -> bool:
        return any(place in self._taken for place in places)

    def permit(self, place: Place, key: object, revoke: Callable[[], None]) -> None:
        """``revoke`` is called once an association has that place; ``key`` is for whom."""
        self._permitted.setdefault(place, {})[key] = revoke

    def forget(self, place: Place, key: object) -> None:
        permitted = self._permitted.get(place, {})
        permitted.pop(key, None)
        if not permitted:
            self._permitted.pop(place, None)
