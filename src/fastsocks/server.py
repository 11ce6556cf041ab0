"""The life of a server: bind, start, serve, stop accepting, let finish, stop.

It must not know the protocol; a client's session is session.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Unpack

from fastsocks import engine as engines
from fastsocks.addresses import Judge
from fastsocks.associate import Associations
from fastsocks.auth import Users
from fastsocks.authenticator import Custom
from fastsocks.bind import Binder
from fastsocks.config import Config, Listener
from fastsocks.dial import Dialer
from fastsocks.engine import End, Engine
from fastsocks.errors import ConfigError
from fastsocks.flow import endpoint
from fastsocks.ident import Ident
from fastsocks.keywords import Keywords
from fastsocks.literals import is_link_local, literal_of, unmapped
from fastsocks.quiet import QuietLog
from fastsocks.resolve import Resolver
from fastsocks.session import Sessions, Stages

log = logging.getLogger("fastsocks")

# Linux cuts this to net.core.somaxconn (4096 by default).
BACKLOG = 4096

# Seconds between two looks at how many sessions are left when stopping.
STOP_POLL = 0.02

# One browser opens as many. An operator should hear of so few before clients have to wait.
FEW_SESSIONS = 64


class Server:
    """A SOCKS server on the running event loop.

        async with fastsocks.Server(listen=["127.0.0.1:0"]) as server:
            host, port = server.addresses[0]

    Keyword arguments are the fields of ``config.Config``; a wrong one raises
    ConfigError, a listener that cannot be bound OSError with its address in the
    message. Leaving the block stops at once; ``stop(grace)`` lets sessions finish.
    """

    def __init__(self, config: Config | None = None, **settings: Unpack[Keywords]) -> None:
        if config is not None and (settings or not isinstance(config, Config)):
            raise ConfigError("Server() takes its settings by keyword, as in listen=[...]")
        try:
            self.config = config or Config(**settings)
            """what it was given, checked"""
        except TypeError as error:
            raise ConfigError(str(error).replace("Config.__init__()", "Server()")) from None
        self.addresses: list[Listener] = []
        """(host, port) of each listener, with the real port where 0 was asked for"""
        self.engine: Engine | None = None
        self._users: Users | Custom = Users({})
        self._quiet = QuietLog(log)

    async def __aenter__(self) -> Server:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop(0)

    def start(self) -> None:
        """Binds and serves; returns with ``addresses`` set. Raises OSError naming an address
        that cannot be bound, ConfigError for a users file that cannot be used or an engine that
        is not installed, RuntimeError if it was started already or no loop runs."""
        if self.engine is not None:
            raise RuntimeError("the server has been started already")
        config = self.config
        loop = asyncio.get_running_loop()
        self._users = make_users(config, self._quiet)
        settings = config.settings()
        # No limit of the engine's applies to a client that waits in BIND: where BIND has none
        # either, only keepalive finds out that it is gone.
        waits = config.allow_bind and not 0 < config.bind_timeout < engines.KEEPALIVE_AFTER
        listeners = bind_all(config.listeners, waits or settings.needs_keepalive)
        try:
            self.engine = engines.choose(config.engine, loop, settings, self._on_closed)
            names = [sock.getsockname() for sock in listeners]
            self.addresses = [(literal_of(name), name[1]) for name in names]
            self._loop = loop
            self._resolver = Resolver(config.prefer)
            self._ident = Ident(self.engine, config.ident_rules, config.ident_timeout)
            stages = self._stages(config, self.engine)
            self._sessions = Sessions(self.engine, stages, self._quiet, config.strict_methods)
            for sock in listeners:
                self.engine.listen(sock, self._sessions.begin)
        except BaseException:
            for sock in listeners:
                sock.close()
            if self.engine is not None:
                self.engine.close()
                self.engine = None
            raise
        for source in config.sources.values():
            warn_unless_ours(source)
        if config.max_sessions is None and settings.max_sessions < FEW_SESSIONS:
            log.warning(
                "there are descriptors (ulimit -n) for no more than %d sessions beside %d pipes",
                settings.max_sessions,
                settings.max_pipes,
            )

    @property
    def sessions(self) -> int:
        """Connections of clients that are not closed yet."""
        return self.engine.sessions if self.engine is not None else 0

    def describe(self) -> str:
        """Engine, relay mode and effective pipe size, for the log."""
        engine = self.engine
        return "not started" if engine is None else f"engine {engine.name}, {engine.describe()}"

    def reload(self) -> None:
        """Reads the users file again, on the loop's thread. One that is wrong changes
        nothing; the log says what is wrong with it."""
        self._users.reload()

    async def stop(self, grace: float | None = None) -> None:
        """Stops accepting, gives sessions ``grace`` seconds (default: the
        configured ones) to finish, and ends those that have not; at once when it is
        cancelled. Raises RuntimeError on another event loop than start() was called on,
        unless that is closed."""
        engine = self.engine
        if engine is None:
            return
        if self._loop is not asyncio.get_running_loop() and not self._loop.is_closed():
            raise RuntimeError("the server must be stopped on the event loop it was started on")
        # Of this run: the server may have been stopped by somebody else and started again
        # before this returns.
        sessions, rest = self._sessions, (self._ident, self._users, self._resolver)
        if grace is None:
            grace = self.config.grace
        deadline = self._loop.time() + grace
        # An authenticator may stop its server: that session is not waited for.
        left = int(sessions.has_current())
        runs = not self._loop.is_closed()  # where it does not, nothing ends by itself
        engine.stop_listening()
        try:
            # The engine reports ends of sessions, not of refused clients: so it is asked.
            while runs and engine.sessions > left and self._loop.time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(STOP_POLL)
        finally:
            try:
                if runs:
                    await sessions.end_all()
            finally:
                if self.engine is engine:
                    self.engine = None
                with contextlib.ExitStack() as closing:
                    for one in (*rest, engine):  # the engine first, the others in any case
                        closing.callback(one.close)
            await asyncio.sleep(0)  # in which what belonged to them ends

    def _stages(self, config: Config, engine: Engine) -> Stages:
        judge = Judge(config.allow, self.addresses, config.families)
        sources, resolver = config.sources, self._resolver
        binder = associations = None
        if config.allow_bind:
            binder = Binder(
                engine,
                resolver,
                judge,
                sources,
                anyone=config.bind_anyone,
                lookup_timeout=config.connect_timeout,
                timeout=config.bind_timeout,
            )
        if config.udp:
            associations = Associations(
                engine,
                resolver,
                judge,
                sources,
                address=config.udp_address and unmapped(config.udp_address),
                per_client=config.udp_per_client,
                timeout=config.connect_timeout,
                quiet=self._quiet,
            )
        return Stages(
            users=self._users,
            ident=self._ident,
            dialer=Dialer(engine, resolver, judge, config.connect_timeout, sources),
            binder=binder,
            associations=associations,
        )

    def _on_closed(self, ended: Sequence[End]) -> None:
        for end in ended:
            on_end = end[0].on_end
            if on_end is not None:
                on_end()
        if log.isEnabledFor(logging.DEBUG):
            for flow, up, down, reason, error in ended:
                why = f" ({os.strerror(error)})" if error else ""
                log.debug("%s ended: %s%s, %d up, %d down", flow, reason, why, up, down)


def make_users(config: Config, quiet: QuietLog) -> Users | Custom:
    """Raises ConfigError for a users file that cannot be used."""
    if config.authenticator is not None:
        return Custom(config.authenticator, quiet)
    path = config.users_file
    return Users(config.users, None if path is None else os.path.abspath(path))


def warn_unless_ours(source: str) -> None:
    """It may become an address of this machine later, so it is no error."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET) as probe:
            probe.bind(socket.getaddrinfo(source, 0, flags=socket.AI_NUMERICHOST)[0][4])
    except OSError as error:
        log.warning(
            "source address %s (-b): %s; no remote of its family can be reached from there",
            source,
            error.strerror or error,
        )


def bind_all(listeners: Sequence[Listener], keepalive: bool) -> list[socket.socket]:
    """All of them or none: raises OSError that names the address."""
    bound: list[socket.socket] = []
    ipv4_ports = {port for host, port in listeners if port and ":" not in host}
    try:
        for host, port in listeners:
            bound.append(bind(host, port, keepalive, ipv6_only=port in ipv4_ports))
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def bind(host: str, port: int, keepalive: bool, ipv6_only: bool) -> socket.socket:
    """``ipv6_only`` is for [::], whose port is another listener's in IPv4."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        if family == socket.AF_INET6:
            # [::]:1080 serves IPv4 clients too, whatever the machine's default.
            only = ipv6_only and address[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        # Accepted sockets inherit these, which saves two system calls a session.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        where = endpoint(host, port)
        raise OSError(error.errno, f"cannot listen on {where}: {explain(error, host)}") from None
    return sock


def explain(error: OSError, host: str) -> str:
    """Why an address cannot be bound, where the system's own words would not say."""
    plain, _, scope = host.partition("%")
    if isinstance(error, socket.gaierror) and scope:
        try:
            socket.if_nametoindex(scope)
        except OSError:
            return f"there is no interface {scope}"
        return f"{plain} belongs to no one interface; must be given without %{scope}"
    if error.errno == errno.EINVAL and not scope and is_link_local(host):
        return f"must be given with its interface, as in {plain}%eth0"
    # getaddrinfo has numbers of its own, which strerror() does not know.
    lookup = isinstance(error, socket.gaierror) or not error.errno
    return str(error.strerror) if lookup else os.strerror(error.errno or 0)
