"""What the SOCKS4 and SOCKS5 machines have in common: a bounded buffer and the
contract towards the session.

    machine.feed(data)              store what the client sent, whatever the cut
    machine.next_event()            the next event, or None: feed more
    machine.choose(method)          the answer to the event Methods
    machine.verdict(accepted)       the answer to the event Credentials
    machine.refusal(reply)          the full-length reply for a failure, b"" where
                                    the protocol has none at this point
    machine.granted(host, port)     the reply for success
    machine.leftover()              what came after the request: payload for the remote

What a machine reads next is what ``next_event`` is at the moment: the method for the
message that is due, or ``_wait`` when all that may come is payload.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

from fastsocks.errors import IdentReply, Reply
from fastsocks.proto.wire import Credentials, Request


class Methods(bytes):
    """SOCKS5: the authentication methods offered, as they were sent."""

    __slots__ = ()


Event = Methods | Credentials | Request


class Machine(abc.ABC):
    """The part every machine shares; see the top of this file."""

    __slots__ = ("_data", "next_event")

    next_event: Callable[[], Event | None]
    """Raises ProtocolError on the first octet that cannot be legal."""

    has_login: ClassVar[bool]
    """Whether the protocol lets a client prove who it is."""

    tells_ipv6: ClassVar[bool]
    """Whether its replies can hold an IPv6 address."""

    _data: bytes
    """What has been fed and belongs to no event yet."""

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    def leftover(self) -> bytes:
        data, self._data = self._data, b""
        return data

    @abc.abstractmethod
    def choose(self, method: int) -> bytes:
        """The answer to Methods."""

    @abc.abstractmethod
    def verdict(self, accepted: bool) -> bytes:
        """The answer to Credentials."""

    @abc.abstractmethod
    def granted(self, host: str, port: int) -> bytes:
        """The reply for success, with the address the remote sees."""

    @abc.abstractmethod
    def refusal(self, reply: Reply | IdentReply) -> bytes:
        """The reply for failure, b"" where none is due."""

    def _wait(self) -> Event | None:
        """The state in which nothing more is due: all that comes is payload."""
        return None
