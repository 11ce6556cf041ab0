# Who is asked by ident, in tests of it, and what a client is told who is turned away.

from __future__ import annotations

HOST = "127.0.0.5"  # of the client and its identd, and of nobody else
# Where clients connect to in tests of where the query comes from: not the address that the
# kernel would take for it, which is 127.0.0.1 towards all of loopback.
OURS = "127.0.0.3"
SOCKS5_REFUSED = b"\x05\xff"
REJECTED, NO_IDENTD, OTHER_USER = (bytes((0, code)) + bytes(6) for code in (91, 92, 93))
