"""Clients on the SOCKS port that do not speak SOCKS: what they are, and the last
word they get. Only the first segment is looked at."""

from __future__ import annotations

HTTP_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 66\r\n"
    b"Connection: close\r\n\r\n"
    b"This is a SOCKS proxy. Configure it as SOCKS4 or SOCKS5, not HTTP\n"
)

TLS_HANDSHAKE = 0x16


def describe(first: bytes) -> tuple[str, bytes]:
    """(what it was, one of three texts; what to answer, empty for close)."""
    if 0x41 <= first[0] <= 0x5A:  # every HTTP method starts with a capital letter
        return "an HTTP client", HTTP_REFUSAL
    if first[0] == TLS_HANDSHAKE:
        return "a TLS client", b""
    return "no SOCKS client", b""
