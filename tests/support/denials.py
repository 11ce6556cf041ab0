# Whether a client may reach an address, and why not, for tests of the judge.

from __future__ import annotations

from collections.abc import Sequence

from fastsocks.addresses import Judge
from fastsocks.errors import Reply, RuleDenied

STRANGER = "198.41.0.4"
LOCAL = "127.0.0.1"


def denied(
    host: str,
    client: str = STRANGER,
    port: int = 80,
    *,
    allowed: Sequence[str] = (),
    listeners: Sequence[tuple[str, int]] = (),
    datagram: bool = False,
) -> str:
    """Why ``host`` is denied, "" where it is not."""
    judge = Judge(allowed, listeners)
    try:
        judge.judge(client, host, port, datagram)
    except RuleDenied as error:
        return error.reason if error.reply is Reply.NOT_ALLOWED else f"wrong reply {error.reply}"
    return ""
