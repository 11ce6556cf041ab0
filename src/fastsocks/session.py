"""One client, top to bottom: detect, authenticate, decide, dial, reply, relay.

This is the only place where the stages meet, and the only one that answers a
client. It must not know how bytes move (engine) or what they look like (proto).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastsocks.auth import Users
from fastsocks.dial import Dialer
from fastsocks.engine import Conn, Engine
from fastsocks.errors import AuthError, ClientGone, ProtocolError, Reply, SocksError
from fastsocks.flow import Flow, endpoint
from fastsocks.ident import Ident
from fastsocks.proto import foreign, wire
from fastsocks.proto.machine import Credentials, Machine, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import NO_AUTH, USER_PASSWORD, Socks5
from fastsocks.proto.wire import Request

if TYPE_CHECKING:
    from fastsocks.quiet import QuietLog

MACHINES: dict[int, Callable[[], Machine]] = {4: Socks4, 5: Socks5}

log = logging.getLogger("fastsocks.session")


class Session:
    """What all sessions of a server share. ``run`` is one of them."""

    def __init__(
        self, engine: Engine, users: Users, dialer: Dialer, quiet: QuietLog, ident: Ident
    ) -> None:
        self._engine = engine
        self._users = users
        self._login_needed = bool(users)
        self._dialer = dialer
        self._quiet = quiet
        self._ident = ident

    async def run(self, client: Conn) -> None:
        """Ends when the client is relayed or gone; raises nothing a peer can cause."""
        flow = Flow(client.peer)
        machine: Machine | None = None
        try:
            first = await client.recv()
            if first[0] not in MACHINES:
                self._turn_away(client, first)
                return
            machine = MACHINES[first[0]]()
            machine.feed(first)
            request = await self._negotiate(client, machine, flow)
            client.deadline(0)
            flow.target = endpoint(request.host, request.port)
            self._decide(request)
            remote = await self._dialer.dial(client, request.host, request.port, request.is_name)
            try:
                await client.send(machine.granted(*remote.sockname))
            except BaseException:
                remote.close()
                raise
            self._engine.relay(client, remote, flow, machine.leftover())
            log.debug("%s relayed", flow)
        except SocksError as error:
            self._quiet.info(type(error).__name__, "%s: %s", flow, error.reason)
            if machine is not None and error.reply is not None:
                client.refuse(machine.refusal(error.reply))
        except TimeoutError:
            self._quiet.info("timeout", "%s: handshake not finished in time", flow)
        except OSError as error:
            log.debug("%s: client left: %s", flow, error)
        finally:
            client.close()

    # -- stages ------------------------------------------------------------

    async def _negotiate(self, client: Conn, machine: Machine, flow: Flow) -> Request:
        """Methods, credentials and request, in whatever segments they come."""
        while not isinstance(event := machine.next_event(), Request):
            if event is None:
                data = await client.recv()
                if not data:
                    raise ClientGone("left during the handshake")
                machine.feed(data)
            elif isinstance(event, Methods):
                method = self._choose_method(event.offered)
                if self._ident:
                    await self._identify(client, flow, None)
                await client.send(machine.choose(method))
            else:
                self._authenticate(event, flow)
                await client.send(machine.verdict(True))
        if self._login_needed and isinstance(machine, Socks4):
            # Its user id proves nothing.
            raise AuthError("SOCKS4 cannot authenticate, and users are configured")
        if self._ident and isinstance(machine, Socks4):
            await self._identify(client, flow, event.user)
        return event

    async def _identify(self, client: Conn, flow: Flow, user_id: bytes | None) -> None:
        name = await self._ident.admit(client, user_id)
        if name is not None:
            flow.user = name.strip().decode("utf-8", "replace")

    def _choose_method(self, offered: bytes) -> int:
        """With users configured only user/password will do. Without, "none" wins;
        a client that offers nothing but user/password may say what it likes, as
        some can only do that."""
        acceptable = (USER_PASSWORD,) if self._login_needed else (NO_AUTH, USER_PASSWORD)
        for method in acceptable:
            if method in offered:
                return method
        raise ProtocolError("no acceptable authentication method offered")

    def _authenticate(self, claim: Credentials, flow: Flow) -> None:
        if not self._login_needed:
            return
        if not self._users.verify(claim.user, claim.password):
            raise AuthError(f"wrong user or password for user {claim.user[:64]!r}")
        flow.user = claim.user.decode("utf-8", "replace")

    def _decide(self, request: Request) -> None:
        if request.command != wire.CONNECT:
            name = wire.COMMAND_NAMES[request.command]
            raise ProtocolError(f"{name} is not offered", Reply.COMMAND_NOT_SUPPORTED)

    def _turn_away(self, client: Conn, first: bytes) -> None:
        what, answer = foreign.describe(first)
        who = endpoint(*client.peer)
        self._quiet.info(what, "%s: %s on the SOCKS port (first octet 0x%02x)", who, what, first[0])
        if answer:
            client.refuse(answer)
