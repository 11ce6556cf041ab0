"""The keyword arguments of ``Server()`` as type checkers know them: the fields of
``config.Config``, which says what each is for and checks it. A test compares the two.
It must not know more of a setting than its type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypedDict

from fastsocks.authenticator import Authenticator


class Keywords(TypedDict, total=False):
    listen: Sequence[str]
    users: Mapping[str, str]
    users_file: str | os.PathLike[str] | None
    authenticator: Authenticator | None
    strict_methods: bool
    source: str | Sequence[str] | None
    prefer: str
    allow: Sequence[str]
    allow_bind: bool
    bind_anyone: bool
    bind_timeout: float
    udp: bool
    udp_ports: tuple[int, int] | None
    udp_address: str | None
    udp_full_cone: bool
    udp_timeout: float
    udp_per_client: int
    open: bool
    engine: str
    relay: str
    relay_threads: int
    io_uring: bool
    pipe_size: int
    max_pipes: int | None
    handshake_timeout: float
    connect_timeout: float
    idle_timeout: float
    half_closed_timeout: float
    grace: float
    max_sessions: int | None
    ident: Sequence[str]
    ident_timeout: float
