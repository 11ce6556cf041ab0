"""One client, top to bottom: detect, authenticate, decide, do what it asks, relay.

This is the only place where the stages meet, and the only one that answers a
client. It must not know how bytes move (engine) or what they look like (proto).

Whatever a client sends is tried at once (``recv_now``, ``send_now``) and awaited only
where that would block: most handshakes are over after one wait.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastsocks.associate import Associations
from fastsocks.auth import Users, choose_method
from fastsocks.authenticator import Custom
from fastsocks.bind import Binder
from fastsocks.dial import Dialer
from fastsocks.engine import Conn, Engine, Visit
from fastsocks.errors import (
    AuthError,
    ClientGone,
    DialError,
    ProtocolError,
    Reply,
    SocksError,
    reply_for,
)
from fastsocks.flow import Flow, endpoint, readable
from fastsocks.ident import Ident
from fastsocks.proto import foreign, socks4, socks5, wire
from fastsocks.proto.machine import Machine, Methods
from fastsocks.proto.wire import NO_AUTH, Credentials, Request
from fastsocks.quiet import QuietLog
from fastsocks.waits import while_there

MACHINES: dict[int, Callable[[], Machine]] = {
    socks4.VERSION: socks4.Socks4,
    socks5.VERSION: socks5.Socks5,
}

# Seconds for an embedding program's authenticator to take notice that it is cancelled.
CANCEL_PATIENCE = 5.0

Command = Callable[[Conn, Machine, Request, Flow], Awaitable[None]]

log = logging.getLogger("fastsocks.session")


@dataclass(frozen=True, slots=True)
class Stages:
    """What a session goes through, shared by all sessions of a server. A command that
    is not offered has None."""

    users: Users | Custom
    ident: Ident
    dialer: Dialer
    binder: Binder | None = None
    associations: Associations | None = None


class Sessions:
    """Those of a server, and what they share. ``run`` is one of them."""

    def __init__(
        self,
        engine: Engine,
        stages: Stages,
        quiet: QuietLog,
        strict_methods: bool = False,
    ) -> None:
        users = stages.users
        self._engine = engine
        self._users = users
        self._custom = users if isinstance(users, Custom) else None
        self._login_needed = bool(users)
        self._strict_methods = strict_methods
        self._dialer = stages.dialer
        self._commands: dict[int, Command] = {wire.CONNECT: self._connect}
        if stages.binder is not None:
            self._commands[wire.BIND] = functools.partial(self._bind, stages.binder)
        if stages.associations is not None:
            self._commands[wire.UDP_ASSOCIATE] = functools.partial(
                self._associate, stages.associations
            )
        self._quiet = quiet
        self._ident = stages.ident if stages.ident else None
        self._others_decide = self._ident is not None or self._custom is not None
        self._visits: dict[Conn, Visit] = {}

    def begin(self, client: Conn) -> None:
        visit = self._visits[client] = self._engine.visit(self.run(client))
        visit.begin()

    def has_current(self) -> bool:
        """Whether what runs now is one of them, or called by one."""
        me = asyncio.current_task()
        return any(visit.task is me for visit in self._visits.values())

    async def end_all(self) -> None:
        """Ends those that are not relayed yet."""
        # Not the one that asks: an authenticator may stop its server.
        me = asyncio.current_task()
        visits = [visit for visit in self._visits.values() if visit.task is not me]
        for visit in visits:
            visit.cancel()
        await asyncio.sleep(0)  # the turn in which those end that are no Tasks
        tasks = [visit.task for visit in visits if visit.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_PATIENCE)
        self._visits.clear()  # of those that were cancelled before they began

    async def run(self, client: Conn) -> None:
        """Ends when the client is relayed or gone; raises nothing."""
        flow = Flow(client.peer)
        machine: Machine | None = None
        try:
            first = client.recv_now() or await client.recv()
            if not first:
                raise ClientGone("left without a word")
            version = MACHINES.get(first[0])
            if version is None:
                self._turn_away(client, first)
                return
            machine = version()
            machine.feed(first)
            request = await self._negotiate(client, machine, flow)
            client.deadline(0)
            flow.host, flow.port = request.host, request.port
            command = self._commands.get(request.command)
            if command is None:
                name = wire.COMMAND_NAMES[request.command]
                raise ProtocolError(f"{name} is not offered", Reply.COMMAND_NOT_SUPPORTED)
            await command(client, machine, request, flow)
            log.debug("%s relayed", flow)
        except SocksError as error:
            self._quiet.info((type(error), error.reply), "%s: %s", flow, error.reason)
            if machine is not None and error.reply is not None:
                client.refuse(machine.refusal(error.reply))
        except TimeoutError:
            self._quiet.info("timeout", "%s: handshake not finished in time", flow)
        except OSError as error:
            log.debug("%s: client left: %s", flow, error)
        except MemoryError:  # which strangers can bring about, of each session
            self._quiet.warning("memory", "%s ended for want of memory", flow)
        except Exception:
            log.exception("%s ended by an error in fastsocks", flow)
        finally:
            client.close()
            self._visits.pop(client, None)

    # -- who it is ---------------------------------------------------------

    async def _negotiate(self, client: Conn, machine: Machine, flow: Flow) -> Request:
        """Methods, credentials and request, in whatever segments they come."""
        login_needed = self._login_needed
        while not isinstance(event := machine.next_event(), Request):
            if event is None:
                data = await client.recv()
                if not data:
                    raise ClientGone("left during the handshake")
                machine.feed(data)
                continue
            if isinstance(event, Methods):
                method = choose_method(event, login_needed, self._strict_methods)
                if self._others_decide:
                    method = await self._ask_others(method, event, client, flow)
                    login_needed = login_needed and method != NO_AUTH
                if method is None:
                    raise ProtocolError("no acceptable authentication method offered")
                answer = machine.choose(method)
            else:
                if login_needed:
                    if not self._users.check_now(flow.client, event.user, event.password):
                        await self._verify(client, event, flow)
                    flow.user = event.user
                answer = machine.verdict(True)
            if not client.send_now(answer):
                await client.sent()
        if not machine.has_login and (login_needed or self._others_decide):
            await self._admit_without_login(client, flow, login_needed, event.user)
        return event

    async def _ask_others(
        self, method: int | None, offered: Methods, client: Conn, flow: Flow
    ) -> int | None:
        """Ident may turn the client away, and the embedding program let it in as it is; ident
        first, as what the program does may be dear."""
        may_be_admitted = self._custom is not None and NO_AUTH in offered
        if method is not None or may_be_admitted:
            await self._identify(client, flow, None)
        return NO_AUTH if may_be_admitted and await self._admitted(client) else method

    async def _admit_without_login(
        self, client: Conn, flow: Flow, login_needed: bool, user_id: bytes
    ) -> None:
        """SOCKS4, whose user id proves nothing."""
        if not login_needed or self._custom is not None:
            await self._identify(client, flow, user_id)
        if login_needed and not await self._admitted(client):
            raise AuthError("SOCKS4 cannot authenticate, and users are configured")

    async def _admitted(self, client: Conn) -> bool:
        """Whether the embedding program lets the client in as it is."""
        if self._custom is None:
            return False
        async with while_there(client):
            return await self._custom.admits(client.peer)

    async def _identify(self, client: Conn, flow: Flow, user_id: bytes | None) -> None:
        if self._ident is None:
            return
        async with while_there(client):
            name = await self._ident.admit(client, user_id)
        if name is not None:
            flow.user = name.strip()

    async def _verify(self, client: Conn, claim: Credentials, flow: Flow) -> None:
        async with while_there(client):
            granted = await self._users.verify(flow.client, claim.user, claim.password)
        if not granted:
            user = readable(claim.user[:64])
            raise AuthError(f'wrong user or password for user "{user}"')

    # -- what it asks for --------------------------------------------------

    async def _connect(self, client: Conn, machine: Machine, request: Request, flow: Flow) -> None:
        try:
            remote = await self._dialer.dial(
                client, flow.client[0], request.host, request.port, request.is_name
            )
        except OSError as error:
            raise refused("connect", error) from None
        try:
            bound = remote.sockname
            # TCP lets a socket connect to itself (RFC 9293, 3.5), where nobody listens and
            # the kernel happens to have given it that very port.
            if bound[1] == request.port and bound == remote.peer:
                raise DialError("connect: nobody listens there", Reply.CONNECTION_REFUSED)
            if not client.send_now(machine.granted(*bound)):
                await client.sent()
            self._engine.relay(client, remote, flow, machine.leftover())
        except BaseException:
            remote.close()
            raise

    async def _bind(
        self, binder: Binder, client: Conn, machine: Machine, request: Request, flow: Flow
    ) -> None:
        """Two replies: where the peer has to connect to, and who has connected."""
        try:
            waiting = await binder.listen(client, request.host, request.is_name, machine.tells_ipv6)
        except OSError as error:
            raise refused("listen", error) from None
        try:
            if ":" in waiting.sockname[0] and not machine.tells_ipv6:
                raise DialError(
                    "an IPv6 address cannot be told in SOCKS4", Reply.ADDRESS_NOT_SUPPORTED
                )
            await client.send(machine.granted(*waiting.sockname))
            remote, early = await waiting.accept(client)
        finally:
            waiting.close()
        try:
            flow.host, flow.port = waiting.peer
            await client.send(machine.granted(*waiting.peer))
            self._engine.relay(client, remote, flow, machine.leftover() + early)
        except BaseException:
            remote.close()
            raise

    async def _associate(
        self,
        associations: Associations,
        client: Conn,
        machine: Machine,
        request: Request,
        flow: Flow,
    ) -> None:
        """From then on what comes on this connection means nothing but its end."""
        flow.host, flow.port = "datagrams", 0
        try:
            datagrams = associations.open(client, flow)
        except OSError as error:
            raise refused("UDP", error) from None
        try:
            await client.send(machine.granted(*datagrams.announced))
            self._engine.associate(client, datagrams.association, flow)
            flow.on_end = datagrams.end
        except BaseException:
            datagrams.association.close()
            datagrams.end()
            raise

    def _turn_away(self, client: Conn, first: bytes) -> None:
        what, answer = foreign.describe(first)
        who = endpoint(*client.peer)
        self._quiet.info(what, "%s: %s on the SOCKS port (first octet 0x%02x)", who, what, first[0])
        if answer:
            client.refuse(answer)


def refused(what: str, error: OSError) -> DialError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return DialError(f"{what}: {reason}", reply_for(error))
