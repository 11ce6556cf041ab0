"""Everything that can be set, in one frozen and validated record.

The same fields are the keyword arguments of ``fastsocks.Server``; all but ``authenticator``
have a flag. It must not know how a setting is used.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, MutableSequence, Sequence

from fastsocks import fields
from fastsocks.addresses import BOTH_FAMILIES, EVERY_RANGE, Judge, is_loopback
from fastsocks.authenticator import Authenticator
from fastsocks.capacity import PIPE_SIZE_MAX, default_max_pipes, default_max_sessions
from fastsocks.engine import Settings
from fastsocks.errors import ConfigError
from fastsocks.literals import family_of, is_group, is_literal, is_one_host, unmapped
from fastsocks.ranges import Rule, hold_everyone, parse_rule
from fastsocks.resolve import ORDER, is_wanted

ENGINES = ("auto", "native", "python")
RELAYS = ("auto", "copy", "splice")

SECONDS_MAX = 10**9
IDENT_SECONDS_MIN = 0.001  # no limit would let an identd hold sessions for ever
THREADS_MAX = 1024
COUNT_MAX = 10**6
PIPE_SIZE_MIN = 1 << 16
LIMITS: dict[str, tuple[float, float]] = {
    "handshake_timeout": (0, SECONDS_MAX),
    "connect_timeout": (0, SECONDS_MAX),
    "idle_timeout": (0, SECONDS_MAX),
    "half_closed_timeout": (0, SECONDS_MAX),
    "grace": (0, SECONDS_MAX),
    "bind_timeout": (0, SECONDS_MAX),
    "udp_timeout": (0, SECONDS_MAX),
    "ident_timeout": (IDENT_SECONDS_MIN, SECONDS_MAX),
    "relay_threads": (0, THREADS_MAX),
    "udp_per_client": (1, COUNT_MAX),
    "max_pipes": (0, COUNT_MAX),
    "max_sessions": (1, COUNT_MAX),
    "pipe_size": (PIPE_SIZE_MIN, PIPE_SIZE_MAX),
}
"""least and most of each; None, where a setting may be that, is up to the machine"""

_ENGINE = Settings()

Listener = tuple[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """See ``fastsocks --help`` for what each is for. Times are in seconds; 0 is no limit, but
    for ``grace`` no time at all, and ``ident_timeout`` has to have one."""

    listen: Sequence[str] = ("127.0.0.1:1080",)
    users: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    users_file: str | os.PathLike[str] | None = None
    authenticator: Authenticator | None = None
    strict_methods: bool = False
    source: str | Sequence[str] | None = None
    """to connect from: one address, or one of each family"""
    prefer: str = ""
    allow: Sequence[str] = ()
    allow_bind: bool = False
    bind_anyone: bool = False
    bind_timeout: float = 180.0
    udp: bool = True
    udp_ports: tuple[int, int] | None = _ENGINE.udp_ports
    udp_address: str | None = None
    udp_full_cone: bool = _ENGINE.udp_full_cone
    udp_timeout: float = _ENGINE.udp_timeout
    udp_per_client: int = 64
    open: bool = False
    engine: str = "auto"
    relay: str = _ENGINE.relay
    relay_threads: int = _ENGINE.relay_threads
    io_uring: bool = _ENGINE.io_uring
    pipe_size: int = _ENGINE.pipe_size
    max_pipes: int | None = None
    handshake_timeout: float = _ENGINE.handshake_timeout
    connect_timeout: float = 10.0
    idle_timeout: float = _ENGINE.idle_timeout
    half_closed_timeout: float = _ENGINE.half_closed_timeout
    grace: float = 10.0
    max_sessions: int | None = None
    ident: Sequence[str] = ()
    ident_timeout: float = 3.0

    def __post_init__(self) -> None:
        fields.check(self)
        self._keep_copies()
        one_of("engine", self.engine, ENGINES)
        one_of("relay", self.relay, RELAYS)
        one_of("prefer", self.prefer, ("", *ORDER))
        self._check_limits()
        self._check_addresses()
        self._check_listeners()
        self._check_users()
        self._check_ident()
        self._check_udp()
        self._check_commands()
        self._check_not_open()

    def _keep_copies(self) -> None:
        """What has been checked is what counts, whatever the caller does with a list."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                object.__setattr__(self, field.name, dict(value))
            elif isinstance(value, MutableSequence):
                object.__setattr__(self, field.name, list(value))

    def _check_limits(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            # NaN compares false with everything, so it is refused here as well.
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} {value}: must be {least} to {most}")

    def _check_listeners(self) -> None:
        if not self.listen:
            raise ConfigError("listen: at least one HOST:PORT is needed")
        for text in self.listen:
            parse_listener(text)

    def _check_users(self) -> None:
        for user, password in self.users.items():
            for what, text in (("user name", user), ("password", password)):
                if not is_credential(text):
                    raise ConfigError(f"users: a {what} must have 1 to 255 octets of UTF-8")
        if self.users_file is not None and not os.fspath(self.users_file):
            raise ConfigError('users_file "": must name a file')
        if self.users_file is not None and "\0" in os.fspath(self.users_file):
            raise ConfigError("users_file: must not hold a NUL")
        if self.authenticator is not None and (self.users or self.users_file is not None):
            raise ConfigError("authenticator: decides alone; must not be given with users")

    def _check_ident(self) -> None:
        for text in self.ident:
            try:
                parse_rule(text)
            except ValueError as error:
                raise ConfigError(f"ident {text}: {error}") from None

    def _check_commands(self) -> None:
        """What is set for a command that is not offered would deceive whoever has set it."""
        if self.bind_anyone and not self.allow_bind:
            raise ConfigError("bind_anyone: has no effect without allow_bind=True")
        for name in ("udp_ports", "udp_address", "udp_full_cone"):
            if getattr(self, name) and not self.udp:
                raise ConfigError(f"{name}: has no effect with udp=False")

    def _check_addresses(self) -> None:
        for address in self._source_list:
            if not is_literal(address):
                raise ConfigError(f"source {address}: must be an IPv4 or IPv6 address")
            if is_group(address):
                raise ConfigError(f"source {address}: must be an address of this machine")
        if len(self.sources) < len(self._source_list):
            raise ConfigError(f"source {self._source_list[-1]}: must be the only one of its family")
        if not self.families:
            raise ConfigError(
                f"source {self._source_list[0]}: must be of the one family that is used"
                f" (prefer {self.prefer})"
            )
        try:
            Judge(self.allow, ())
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _check_udp(self) -> None:
        if self.udp_ports is not None:
            first, last = self.udp_ports
            if not 1 <= first <= last <= 65535:
                raise ConfigError(
                    f"udp_ports {first}-{last}: must be A-B with 1 <= A <= B <= 65535"
                )
        if self.udp_address is not None:
            if not is_literal(self.udp_address):
                raise ConfigError(
                    f"udp_address {self.udp_address}: must be an IPv4 or IPv6 address"
                )
            if not is_one_host(self.udp_address) or "%" in self.udp_address:
                raise ConfigError(
                    f"udp_address {self.udp_address}: must be the address of one host, without"
                    " a scope, as clients have to send their datagrams there"
                )

    def _check_not_open(self) -> None:
        """Most open proxies of the world are an accident of this kind."""
        if self.login_needed or self.open:
            return
        rules = self.ident_rules
        who, remedy = "anyone who reaches this address could use the proxy", "ident ranges"
        if rules:
            if not hold_everyone(one.ranges for one in rules):
                return
            who += ", as the ident ranges are everyone"
            if any(one.names is not None for one in rules):
                who += " (and a stranger's own identd gives any name)"
            remedy = "narrower ident ranges"
        for text in self.listen:
            host, _ = parse_listener(text)
            if not is_loopback(host):
                raise ConfigError(
                    f"listen {text}: {who}; configure a user or {remedy}, listen on loopback,"
                    " or say open=True"
                )

    @property
    def _source_list(self) -> Sequence[str]:
        given = [self.source] if isinstance(self.source, str) else self.source or ()
        return [unmapped(one) for one in given]

    @property
    def sources(self) -> dict[str, str]:
        """The addresses to connect from, by family: ``ipv4``, ``ipv6``."""
        return {family_of(address): address for address in self._source_list}

    @property
    def families(self) -> frozenset[str]:
        """Of the addresses that remotes may have: with the source address of one family
        only, the other would show an address that nobody chose."""
        return frozenset(
            family
            for family in BOTH_FAMILIES
            if is_wanted(self.prefer, family) and (family in self.sources or not self.sources)
        )

    @property
    def allows_all(self) -> bool:
        """Whether clients from anywhere may reach addresses in every special range."""
        return EVERY_RANGE in self.allow

    @property
    def login_needed(self) -> bool:
        """Whether a client has to say, in whatever way, who it is."""
        return bool(self.users) or self.users_file is not None or self.authenticator is not None

    @property
    def listeners(self) -> list[Listener]:
        return [parse_listener(text) for text in self.listen]

    @property
    def ident_rules(self) -> list[Rule]:
        return [parse_rule(text) for text in self.ident]

    def settings(self) -> Settings:
        """What the engine has to know, with the defaults that depend on the machine."""
        pipes = default_max_pipes(self.pipe_size) if self.max_pipes is None else self.max_pipes
        return Settings(
            handshake_timeout=self.handshake_timeout,
            idle_timeout=self.idle_timeout,
            half_closed_timeout=self.half_closed_timeout,
            max_sessions=self.max_sessions or default_max_sessions(pipes),
            relay=self.relay,
            relay_threads=self.relay_threads,
            io_uring=self.io_uring,
            pipe_size=self.pipe_size,
            max_pipes=pipes,
            udp_timeout=self.udp_timeout,
            udp_ports=self.udp_ports,
            udp_full_cone=self.udp_full_cone,
        )


def parse_listener(text: str) -> Listener:
    """HOST:PORT or [IPV6]:PORT; the host is an address or "localhost", as a name
    could mean several addresses."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (colon and is_port(port)):
        raise ConfigError(f"listen {text}: must be HOST:PORT, with a port from 0 to 65535")
    if not bracketed and ":" in host and is_literal(host):
        raise ConfigError(f"listen {text}: an IPv6 address needs brackets, as in [::1]:1080")
    host = "127.0.0.1" if host == "localhost" else host
    if not is_literal(host):
        raise ConfigError(f"listen {text}: the host must be an IPv4 or IPv6 address")
    if is_group(host):
        raise ConfigError(f"listen {text}: must be the address of a host, not of a group")
    return host, int(port)


def is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536


def is_credential(text: str) -> bool:
    """RFC 1929 has one octet for the length of a user name and of a password."""
    try:
        return 1 <= len(text.encode()) <= 255
    except UnicodeEncodeError:
        return False


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value}: must be one of {', '.join(filter(None, allowed))}")
