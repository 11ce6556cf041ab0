"""Who is the client? Users and passwords as configured.

It must not know sockets or the wire; it is asked with what the client claims.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping


class Users:
    """The users of a server. Empty: nobody has to prove anything."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = {user.encode(): secret.encode() for user, secret in passwords.items()}

    def __bool__(self) -> bool:
        return bool(self._passwords)

    def verify(self, user: bytes, password: bytes) -> bool:
        """Constant in time for known and unknown users alike."""
        known = self._passwords.get(user)
        same = hmac.compare_digest(known if known is not None else b"\0", password)
        return same and known is not None
