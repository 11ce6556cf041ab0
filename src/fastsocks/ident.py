"""May this client come, and does its host's identd (RFC 1413) name an allowed user?

An ordered list of rules; the first whose range contains the client decides. It says
something about hosts whose administrator one trusts, and nothing about any other.
It must not know sockets, nor what the client is told.
"""

from __future__ import annotations

import bisect
import errno
import os
import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from fastsocks.engine import Conn, Engine
from fastsocks.errors import LACKS, IdentError, IdentReply
from fastsocks.flow import quotable, readable
from fastsocks.hosts import Hosts
from fastsocks.proto import ident as rfc1413
from fastsocks.proto.ident import Answer, Outcome
from fastsocks.ranges import Order, Rule
from fastsocks.waits import within

# A host without identd, or one whose packet filter swallows what would connect to it,
# would cost each of its connections the whole budget.
KEEP_NO_ANSWER = 10.0  # seconds
KEEP_LIMIT = 1024  # hosts

NO_ANSWER = (Outcome.REFUSED, Outcome.TIMEOUT, Outcome.UNREACHABLE)

# Trouble of our own (no descriptor, memory or port is left) says nothing about a host. ENOSPC
# is epoll's, without room for one more.
OWN_TROUBLE = LACKS | {errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOSPC, errno.EPERM}


class Verdict(NamedTuple):
    """``rule`` is the range that decided, as it was written, or "" if none did;
    ``answer`` what identd said, None if it was not asked."""

    allowed: bool
    rule: str
    answer: Answer | None = None


class Ident:
    """``timeout`` in seconds, above 0: for connect and answer together, and again for
    the look-ups that a rule with names needs."""

    def __init__(
        self,
        engine: Engine,
        rules: Sequence[Rule],
        timeout: float,
        hosts: Hosts | None = None,
        *,
        port: int = rfc1413.PORT,
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._order = Order([rule.ranges for rule in rules])
        self._timeout = timeout
        self._hosts = hosts or Hosts()
        self._port = port
        self._silent: dict[str, tuple[float, Answer]] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def close(self) -> None:
        self._hosts.close()

    async def admit(self, client: Conn, user_id: bytes | None) -> bytes | None:
        """The name that identd gave, None if the rule asks for none. ``user_id`` is
        the one of SOCKS4, which must be the same; None for SOCKS5, which has none.

        Raises IdentError for a client that may not come, ClientGone if it resets its
        connection while its identd is being connected to.
        """
        try:
            verdict = await self.verdict(client)
        except TimeoutError:
            reason = "ident: the names in the ranges could not be looked up"
            raise IdentError(reason) from None
        answer = verdict.answer
        if answer is None:
            if verdict.allowed:
                return None
            raise IdentError("ident: in no range of clients that may come")
        where = f"ident (range {verdict.rule})"
        if answer.outcome in NO_ANSWER:
            raise IdentError(f"{where}: {describe(answer)}", IdentReply.NO_IDENTD)
        if answer.outcome is not Outcome.NAME:
            raise IdentError(f"{where}: {describe(answer)}")
        if user_id is not None and not rfc1413.matches(answer.name, (user_id,)):
            claimed = readable(user_id)
            raise IdentError(
                f'{where}: {describe(answer)}, but the client says "{claimed}"',
                IdentReply.OTHER_USER,
            )
        if not verdict.allowed:
            raise IdentError(f"{where}: {describe(answer)}, who is not allowed")
        return answer.name

    async def verdict(self, client: Conn) -> Verdict:
        """Does not wait where neither a name nor identd has to be asked. Raises
        TimeoutError where the names in a range that may decide get no answer."""
        rule = await self._find_rule(client.peer[0])
        if rule is None or rule.names is None:
            return Verdict(rule is not None, rule.text if rule else "")
        answer = await self._ask(client)
        named = answer.outcome is Outcome.NAME and rfc1413.matches(answer.name, rule.names)
        return Verdict(named, rule.text, answer)

    # -- the rule that decides -----------------------------------------------

    async def _find_rule(self, host: str) -> Rule | None:
        number = self._order.first(host)
        named = self._order.named[: bisect.bisect_left(self._order.named, number)]
        if named:
            # A later rule must not decide only because names take their time, or get no answer.
            async with within(self._timeout):
                for earlier in named:
                    if await self._rules[earlier].ranges.contains(host, self._hosts):
                        return self._rules[earlier]
        return self._rules[number] if number < len(self._rules) else None

    # -- asking identd -------------------------------------------------------

    async def _ask(self, client: Conn) -> Answer:
        host = client.peer[0]
        until, silence = self._silent.get(host, (0.0, None))
        if silence is not None and time.monotonic() < until:
            return silence
        until = time.monotonic() + self._timeout
        try:
            identd = await self._dial(client)
        except OSError as error:
            answer = no_answer(error)
            if error.errno not in OWN_TROUBLE:
                self._keep(host, answer)
            return answer
        try:
            identd.deadline(max(until - time.monotonic(), 0.001))
            return await self._exchange(client, identd)
        except OSError as error:  # which says something about this connection only
            return no_answer(error)
        finally:
            identd.close()

    def _keep(self, host: str, answer: Answer) -> None:
        self._silent.pop(host, None)
        if len(self._silent) >= KEEP_LIMIT:
            del self._silent[next(iter(self._silent))]
        self._silent[host] = time.monotonic() + KEEP_NO_ANSWER, answer

    def _dial(self, client: Conn) -> Awaitable[Conn]:
        """From the address that the client connected to: on a host with several, its
        identd knows of no connection between any others."""
        identd = client.peer[0], self._port
        return self._engine.dial(client, identd, client.sockname[0], self._timeout)

    async def _exchange(self, client: Conn, identd: Conn) -> Answer:
        client_port, local_port = client.peer[1], client.sockname[1]
        await identd.send(rfc1413.query(client_port, local_port))
        said = b""
        while not rfc1413.is_complete(said) and (more := await identd.recv()):
            said += more
        return rfc1413.parse(said, client_port, local_port)


def no_answer(error: OSError) -> Answer:
    if isinstance(error, TimeoutError):
        return Answer(Outcome.TIMEOUT)
    if isinstance(error, ConnectionRefusedError):
        return Answer(Outcome.REFUSED)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return Answer(Outcome.UNREACHABLE, detail=reason)


def describe(answer: Answer) -> str:
    """For the log; the peer's own words made harmless."""
    name = readable(answer.name)
    return {
        Outcome.NAME: f'identd says "{name}"',
        Outcome.ERROR: f'identd says it is an error, "{quotable(answer.detail)}"',
        Outcome.MALFORMED: f"identd's answer is malformed ({answer.detail})",
        Outcome.REFUSED: "no identd there: connection refused",
        Outcome.TIMEOUT: "identd gave no answer in time",
        Outcome.UNREACHABLE: f"identd cannot be reached: {answer.detail}",
    }[answer.outcome]
