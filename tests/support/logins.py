# The users whom the tests of logins configure, and a password that none of them has.

from __future__ import annotations

USERS = {"alice": "correct horse", "bob": "p\u00e4ssword", "long": "p" * 255}
WRONG = b"battery staple"
