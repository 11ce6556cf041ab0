# The users whom the tests of logins configure, what they send to log in, and a password that
# none of them has.

from __future__ import annotations

USERS = {"alice": "correct horse", "bob": "p\u00e4ssword", "long": "p" * 255}
RIGHT = [(b"alice", b"correct horse"), (b"bob", "p\u00e4ssword".encode()), (b"long", b"p" * 255)]
WRONG = b"battery staple"
