"""How long an address has to wait after failed logins, so that guessing is slow.

From the third failure on the wait doubles, up to five seconds; a minute without a
failure is a clean slate, and so is a success, but only of the one user who failed: with
an account of their own nobody shall try out another's. Each try takes a turn of its own:
who opens a hundred connections at once gains nothing by it. It must not know passwords,
and sleeps for nobody: it only says for how long.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable

from fastsocks.clients import network_of

# A typing error or two cost nothing. Beyond, waits (in seconds) double up to less than what a
# handshake may take, so that who knows the password at last gets in.
FREE_FAILURES = 2
FIRST_WAIT = 0.5
LONGEST_WAIT = 5.0
WINDOW = 60.0
# Who commands more addresses than this has other ways as well; 2 MB at most.
ADDRESSES = 4096


class _Record:
    __slots__ = ("failures", "latest", "turn", "user")

    def __init__(self, user: bytes) -> None:
        self.user: bytes | None = user
        """who failed; None when it was not always the same"""
        self.failures = 0
        self.latest = 0.0
        self.turn = 0.0
        """when the next try may be made"""


class BackOff:
    """Times are seconds of ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: collections.OrderedDict[str, _Record] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def has(self, host: str) -> bool:
        """Whether the address has failed lately. Nearly free while nobody has."""
        record = self._records.get(network_of(host)) if self._records else None
        return record is not None and self._clock() - record.latest <= WINDOW

    def wait(self, host: str) -> float | None:
        """Takes a turn and tells in how many seconds it comes; None when that would
        be too long, and no turn is taken."""
        record = self._records.get(network_of(host)) if self._records else None
        now = self._clock()
        if record is None or now - record.latest > WINDOW:
            return 0.0
        turn = max(now, record.turn)
        if turn - now > LONGEST_WAIT:
            return None
        record.turn = turn + pause(record.failures)
        return turn - now

    def failed(self, host: str, user: bytes) -> None:
        now, network = self._clock(), network_of(host)
        record = self._records.pop(network, None)
        if record is None or now - record.latest > WINDOW:
            record = _Record(user)
        elif record.user != user:
            record.user = None
        self._records[network] = record  # the latest to fail are the last to be forgotten
        record.failures += 1
        record.latest = now
        record.turn = max(record.turn, now + pause(record.failures))
        if len(self._records) > ADDRESSES:
            self._records.popitem(last=False)

    def succeeded(self, host: str, user: bytes) -> None:
        record = self._records.get(network_of(host)) if self._records else None
        if record is not None and record.user == user:
            del self._records[network_of(host)]


def pause(failures: int) -> float:
    """Seconds between two tries after so many failures."""
    if failures <= FREE_FAILURES:
        return 0.0
    doublings = min(failures - FREE_FAILURES - 1, 10)
    return min(LONGEST_WAIT, math.ldexp(FIRST_WAIT, doublings))
