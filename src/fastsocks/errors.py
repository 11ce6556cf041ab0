"""What can go wrong, and what the client is told.

Every refusal of a client is a SocksError; the reply code travels with it, so that one
place (session.py) can answer. It must not know sockets, machines, nor what can be set. No
text here ever holds a password or payload.
"""

from __future__ import annotations

import enum
import errno


class Reply(enum.IntEnum):
    """Reply codes of RFC 1928 section 6. SOCKS4 has one for all of them but the first."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class IdentReply(enum.Enum):
    """Refusals after ident (RFC 1413) that SOCKS4 has codes for. SOCKS5 clients are
    refused before their request, when no code is due."""

    NO_IDENTD = "the client's identd cannot be reached"
    OTHER_USER = "the user id is not the one that identd reports"


# Of descriptors, memory or buffers, of ours or of the machine's: it says nothing of anybody else.
LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class SocksError(Exception):
    """A session that ends without being relayed.

    ``reply`` is what the client is told, or ``None`` where its protocol has no
    reply for it at that point and the connection is closed.
    """

    def __init__(
        self, reason: str, reply: Reply | IdentReply | None = Reply.GENERAL_FAILURE
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class ProtocolError(SocksError):
    """The client sent what its protocol does not allow."""


class AuthError(SocksError):
    """The client did not prove who it is; it is told so by its method's own refusal."""


class NotChecked(AuthError):
    """Nothing is known of what the client claims: others come first, it failed too often, or
    the check itself did not work."""


class IdentError(SocksError):
    """The client comes from where nobody may, or is not a user who may."""

    def __init__(self, reason: str, reply: Reply | IdentReply = Reply.NOT_ALLOWED) -> None:
        super().__init__(reason, reply)


class ClientGone(SocksError):
    """The client left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, None)


class RuleDenied(SocksError):
    """The destination is one that this client may not reach, or nobody may."""

    def __init__(self, reason: str, reply: Reply = Reply.NOT_ALLOWED) -> None:
        super().__init__(reason, reply)


class NotJudged(RuleDenied):
    """Whether this client may reach the destination cannot be told now, for trouble of our own."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, Reply.GENERAL_FAILURE)


class DialError(SocksError):
    """No connection to the remote could be made."""


class ConfigError(ValueError):
    """A setting that cannot be meant; the message names it and what would be right."""


# EPERM is what a packet filter on this machine answers to connect(); ETIMEDOUT
# is a host that does not answer, which is 4 to most servers (6 would be a TTL).
# What is not listed (EMFILE, ENOBUFS, EADDRNOTAVAIL, ...) is the proxy's own
# trouble: GENERAL_FAILURE.
REPLY_FOR_ERRNO = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
    errno.EACCES: Reply.NOT_ALLOWED,
    errno.EPERM: Reply.NOT_ALLOWED,
    errno.EAFNOSUPPORT: Reply.ADDRESS_NOT_SUPPORTED,
}


def reply_for(error: OSError) -> Reply:
    """The reply code for an error of connect(), whatever engine it came from."""
    return REPLY_FOR_ERRNO.get(error.errno or 0, Reply.GENERAL_FAILURE)
