"""RFC 1413: asking the client's own host which of its users a connection belongs to.

    query(6191, 1080)     b"6191, 1080\\r\\n", the ports as that host sees them
    is_complete(answer)   nothing more need be read
    parse(answer, ...)    what it says; never raises, whatever was sent

An answer is one line, PORTS : USERID : SYSTEM[, CHARSET] : NAME or
PORTS : ERROR : REASON, with white space anywhere but in the name, where it counts.
"""

from __future__ import annotations

import enum
from collections.abc import Container
from typing import NamedTuple

PORT = 113

# RFC 1413 section 6: clients may give up after so many octets without an end of line,
# and no name is longer than that.
ANSWER_LIMIT = 1000
NAME_LIMIT = 512

BLANKS = b" \t"


class Outcome(enum.Enum):
    """How asking ended. The last three are those of never getting an answer."""

    NAME = "name"
    ERROR = "error"
    MALFORMED = "malformed"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


class Answer(NamedTuple):
    """``name`` is raw: all that followed the third colon. ``detail`` is for people:
    the reason of an ERROR as the peer wrote it, or what was MALFORMED."""

    outcome: Outcome
    name: bytes = b""
    detail: str = ""


def query(client_port: int, server_port: int) -> bytes:
    return b"%d, %d\r\n" % (client_port, server_port)


def is_complete(answer: bytes) -> bool:
    return b"\n" in answer or len(answer) >= ANSWER_LIMIT


def parse(answer: bytes, client_port: int, server_port: int) -> Answer:
    """What is not an answer to exactly this query is MALFORMED: a name that was cut
    short is another user's name."""
    line, end, _ = answer[:ANSWER_LIMIT].partition(b"\n")
    if not end:
        return malformed("no end of line")
    fields = line.removesuffix(b"\r").split(b":", 3)
    if len(fields) < 3:
        return malformed("too few fields")
    if parse_ports(fields[0]) != (client_port, server_port):
        return malformed("it is about other ports")
    kind = fields[1].strip(BLANKS).upper()
    if kind == b"ERROR":
        reason = b":".join(fields[2:]).strip(BLANKS)
        return Answer(Outcome.ERROR, detail=reason.decode("latin-1"))
    if kind != b"USERID" or len(fields) < 4:
        return malformed("neither a name nor an error")
    name = fields[3]
    if not name.strip(BLANKS):
        return malformed("empty name")
    if len(name) > NAME_LIMIT or b"\0" in name or b"\r" in name:
        return malformed("a name that is too long, or has a NUL or CR in it")
    return Answer(Outcome.NAME, name)


def matches(name: bytes, allowed: Container[bytes]) -> bool:
    """The name as it came, or else without the blanks that many servers put first."""
    return name in allowed or name.strip(BLANKS) in allowed


def malformed(why: str) -> Answer:
    return Answer(Outcome.MALFORMED, detail=why)


def parse_ports(field: bytes) -> tuple[int, int] | None:
    ports = [part.strip(BLANKS) for part in field.split(b",")]
    if len(ports) != 2 or not all(port.isdigit() and len(port) <= 5 for port in ports):
        return None
    return int(ports[0]), int(ports[1])
