"""UDP associations of the Python engine: plain sockets and the loop's readers.

The client's socket takes datagrams with headers, one socket per family those of the
targets without. What is dropped, and why, is as in the native engine; here it is
written for reading. It must not know who may reach a destination: ``on_ask`` does.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import functools
import math
import os
import random
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastsocks import engine as contract
from fastsocks.literals import literal_of, unmapped
from fastsocks.proto import udp, wire
from fastsocks.pure_conn import READ, numeric
from fastsocks.pure_idle import IdleTimer

if TYPE_CHECKING:
    from fastsocks.pure import Engine
    from fastsocks.pure_conn import Conn

UP, DOWN = 0, 1
LARGEST = 1 << 16
BUDGET = 32  # datagrams of one socket before the others have a turn
DESTINATIONS = 1024  # remembered by one association; then the least used goes
# Datagrams that wait for verdicts, in one association. A destination may have more of them
# while it has fewer than are free, so that one slow name does not keep out all others.
HELD_MOST = 32
HELD_OCTETS = 1 << 17
# Of them those for names, so that addresses need not wait for a name server that is silent.
NAMED_MOST = 24
NAMED_OCTETS = 3 << 15
DENIED_FOR = 1.0  # seconds, after an error in on_ask
# Seconds that a datagram may wait in a socket, where a turn takes milliseconds; for so long a
# client that the kernel gives the port to would not be heard.
WAITING = 1.0
BUFFER = 1 << 19  # as asked for; a burst overruns the default

Key = tuple[int, bytes, int]  # a destination as it stands in a header: ATYP, address, port


class Destination:
    """What is known of where the client sends to."""

    __slots__ = ("address", "asked", "until")

    def __init__(self) -> None:
        self.asked = True
        self.address: Any = None  # None: denied
        self.until = 0.0  # when to ask for it again; 0: never, or it is asked for


class OwnPorts:
    """Those of the remote sockets of an engine: where one client's datagrams come from if
    they are sent to the port of another's association."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # At most one for each port of a family, of which an address tells by its length.
        self._until: dict[tuple[int, int], float] = {}

    def add(self, address: Any) -> None:
        self._until[len(address), address[1]] = math.inf

    def remove(self, address: Any) -> None:
        """Soon: what came from there may still wait in the socket of another association."""
        self._until[len(address), address[1]] = self._clock() + WAITING

    def has(self, address: Any) -> bool:
        return self._until.get((len(address), address[1]), 0.0) >= self._clock()


class Questions:
    """Those of all associations, oldest first: a turn of the loop puts so many of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()

    def add(self, ask: Callable[[], None]) -> None:
        if not self._waiting:
            self._loop.call_soon(self._put)
        self._waiting.append(ask)

    def _put(self) -> None:
        for _ in range(min(len(self._waiting), contract.QUESTIONS_PER_TURN)):
            self._loop.call_soon(self._waiting.popleft())
        if self._waiting:
            self._loop.call_soon(self._put)


class Association:
    """See engine.Association."""

    def __init__(
        self,
        engine: Engine,
        client: Conn,
        host: str,
        sources: Sequence[str],
        on_ask: contract.OnAsk,
        is_local: bool,
    ) -> None:
        self._engine = engine
        self._host = client.peer[0]
        self._port = 0  # the client's, once it is known
        self._address: Any = None  # both, as the socket wants them
        self._on_ask = on_ask
        self._is_local = is_local
        self._sources = {numeric(source, 0)[0]: source for source in sources}
        self._client = bind_client_socket(host, engine.settings.udp_ports)
        self.sockname: tuple[str, int] = self._client.getsockname()[:2]
        self._remotes: dict[int, socket.socket] = {}
        self._control: Conn | None = None
        self._destinations: collections.OrderedDict[Key, Destination] = collections.OrderedDict()
        # Socket address -> the destinations that mean it.
        self._targets: dict[Any, dict[Key, None]] = {}
        self._held: list[tuple[Key, bytes]] = []
        self._octets = [0, 0]

    def close(self) -> None:
        if self._control is None:
            self._client.close()

    # -- life ----------------------------------------------------------------

    def start(self, control: Conn, flow: Any, handle: int) -> None:
        loop = self._engine.loop
        self._control, self._flow, self._handle = control, flow, handle
        limit = self._engine.settings.udp_timeout
        self._timer = IdleTimer(loop, limit, self._on_idle, lambda: bool(self._held))
        try:
            make_ready(self._client)
            loop.add_reader(self._client.fileno(), self._on_client)
            self._engine.spawn(self._watch_control(control))
        except (OSError, MemoryError) as error:  # epoll may have no room
            number = error.errno if isinstance(error, OSError) else errno.ENOMEM
            self.end(contract.KILLED, number or 0)

    async def _watch_control(self, control: Conn) -> None:
        """What the client says there means nothing, that it ends means everything."""
        try:
            while True:
                try:
                    said = control.sock.recv(LARGEST)
                except BlockingIOError:
                    await control.ready(READ)
                    continue
                if not said:
                    break
                await asyncio.sleep(0)
        except OSError as error:
            self.end(contract.CLIENT_RESET, error.errno or 0)
        else:
            self.end(contract.FINISHED)

    def end(self, reason: str, error: int = 0) -> None:
        """Closes all sockets and reports; once."""
        control = self._control
        if control is None or self._engine.associations.pop(self._handle, None) is None:
            return
        self._timer.cancel()
        for remote in self._remotes.values():
            self._engine.own_ports.remove(remote.getsockname())
        for sock in (self._client, *self._remotes.values()):
            self._engine.loop.remove_reader(sock.fileno())
            sock.close()
        control.shut(reset=reason != contract.FINISHED)
        self._engine.report((self._flow, *self._octets, reason, error))

    def _on_idle(self) -> None:
        self.end(contract.IDLE, errno.ETIMEDOUT)

    # -- up ------------------------------------------------------------------

    def _on_client(self) -> None:
        for data, sender in datagrams(self._client):
            if (
                self._is_own_socket(sender)
                or literal_of(sender) != self._host
                or self._port not in (0, sender[1])
            ):
                self._drop("source")
            else:
                self._pass_up(data, sender)

    def _is_own_socket(self, sender: Any) -> bool:
        """Whether a remote socket has that address. Where they are bound to a source, others
        of this machine may have their ports."""
        if not self._is_local or not self._engine.own_ports.has(sender):
            return False
        family = socket.AF_INET if len(sender) == 2 else socket.AF_INET6
        source = literal_of(self._source(family))
        return source in ("0.0.0.0", "::", literal_of(sender))

    def _source(self, family: int) -> Any:
        """What the remote socket of a family is bound to."""
        any_address = "::" if family == socket.AF_INET6 else "0.0.0.0"
        return numeric(self._sources.get(family, any_address), 0)[1]

    def _pass_up(self, data: bytes, sender: Any) -> None:
        parsed = udp.parse(data)
        if isinstance(parsed, udp.Fault):
            self._drop(parsed.value)
            return
        # Not connected to it: ICMP's word on a reply would then end uvloop's reader.
        self._address, self._port = sender, sender[1]
        key = parsed.atyp, parsed.raw, parsed.port
        destination = self._find(key, len(data) - parsed.payload)
        if destination is None:
            self._drop("full")
        elif destination.asked:
            self._hold(key, data[parsed.payload :])
        elif destination.address is None:
            self._drop("denied")
        else:
            self._send_up(destination.address, data[parsed.payload :])

    def _find(self, key: Key, octets: int) -> Destination | None:
        """The destination, asked for if it is new or its verdict too old; None where
        the datagram could not wait for the answer."""
        destination = self._destinations.get(key)
        if destination is not None:
            self._destinations.move_to_end(key)
            if self._is_valid(destination):
                return destination
        # A flow that stands goes on meanwhile: its replies would be nobody's.
        old = None if destination is None else destination.address
        if old is None and not self._can_hold(key, octets):
            return None
        if destination is None:
            if len(self._destinations) >= DESTINATIONS:
                self._evict()
            destination = self._destinations[key] = Destination()
        destination.asked, destination.until = old is None, 0.0
        self._engine.questions.add(lambda: self._ask(key, old))  # never within a datagram's turn
        return destination

    def _is_valid(self, destination: Destination) -> bool:
        return not destination.until or self._engine.loop.time() < destination.until

    def _ask(self, key: Key, old: Any) -> None:
        if not self.is_alive():
            return
        try:
            self._on_ask(self, *key, None if old is None else (literal_of(old), old[1]))
        except BaseException:
            self.answer(*key, None, DENIED_FOR)  # nothing may wait for ever
            raise  # to the loop, which reports it

    def _evict(self) -> None:
        """Drops the least used; one that datagrams wait for stays."""
        key = next(key for key, one in self._destinations.items() if not one.asked)
        self._forget_target(key)
        del self._destinations[key]

    def _forget_target(self, key: Key) -> None:
        destination = self._destinations[key]
        if destination.address is not None:
            keys = self._targets[destination.address]
            del keys[key]
            if not keys:
                del self._targets[destination.address]
            destination.address = None

    def _hold(self, key: Key, payload: bytes) -> None:
        if self._can_hold(key, len(payload)):
            self._held.append((key, payload))
        else:
            self._drop("full")

    def _can_hold(self, key: Key, octets: int) -> bool:
        """One more for this destination."""
        named = key[0] == wire.ATYP_NAME
        most, most_octets = (NAMED_MOST, NAMED_OCTETS) if named else (HELD_MOST, HELD_OCTETS)
        every = [len(payload) for _, payload in self._held]
        own = [len(payload) for other, payload in self._held if other == key]
        return len(own) < most - len(every) and sum(own) + octets <= most_octets - sum(every)

    def answer(
        self, atyp: int, raw: bytes, port: int, address: tuple[str, int] | None, ttl: float
    ) -> None:
        where = None if address is None else numeric(unmapped(address[0]), address[1])[1]
        key = atyp, raw, port
        destination = self._destinations.get(key)
        if destination is None or not self.is_alive():
            return
        self._forget_target(key)
        destination.asked = False
        destination.until = self._engine.loop.time() + ttl if ttl else 0.0
        destination.address = where
        if where is not None:
            self._targets.setdefault(where, {})[key] = None
        held, self._held = self._held, []
        for other, payload in held:
            if other != key:
                self._held.append((other, payload))
            elif where is None:
                self._drop("denied")
            else:
                self._send_up(where, payload)

    def _send_up(self, where: Any, payload: bytes) -> None:
        family = socket.AF_INET if len(where) == 2 else socket.AF_INET6
        try:
            remote = self._remotes.get(family) or self._open_remote(family)
        except OSError:
            self._drop("failed")
        else:
            self._send(UP, len(payload), functools.partial(remote.sendto, payload, where))

    def _open_remote(self, family: int) -> socket.socket:
        remote = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                remote.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            make_ready(remote)
            remote.bind(self._source(family))
            self._engine.loop.add_reader(remote.fileno(), self._on_remote, remote)
        except OSError:
            remote.close()
            raise
        self._remotes[family] = remote
        self._engine.own_ports.add(remote.getsockname())
        return remote

    # -- down ----------------------------------------------------------------

    def _on_remote(self, remote: socket.socket) -> None:
        for payload, sender in datagrams(remote):
            if keys := self._targets.get(sender):
                self._destinations.move_to_end(next(iter(keys)))  # a reply is use as well
            elif not self._engine.settings.udp_full_cone:
                self._drop("stranger")
                continue
            data = udp.header(*sender[:2]) + payload
            self._send(
                DOWN, len(payload), functools.partial(self._client.sendto, data, self._address)
            )

    # -- both ----------------------------------------------------------------

    def is_new(self) -> bool:
        return self._control is None and self._client.fileno() >= 0

    def is_alive(self) -> bool:
        return self._control is not None and self._handle in self._engine.associations

    def _send(self, way: int, octets: int, send: Callable[[], int]) -> None:
        try:
            send()
        except BlockingIOError:
            self._drop("full")
        except OSError as error:
            self._drop("full" if error.errno == errno.ENOBUFS else "failed")
        else:
            self._timer.moved = self._engine.loop.time()
            self._octets[way] += octets
            self._engine.udp["datagrams_down" if way else "datagrams_up"] += 1

    def _drop(self, why: str) -> None:
        self._engine.udp[f"udp_dropped_{why}"] += 1


def datagrams(sock: socket.socket) -> list[tuple[bytes, Any]]:
    """What has come, up to a turn's budget."""
    got: list[tuple[bytes, Any]] = []
    with contextlib.suppress(OSError):  # mostly: nothing more is there
        while len(got) < BUDGET:
            got.append(sock.recvfrom(LARGEST))
    return got


def make_ready(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)


def bind_client_socket(host: str, ports: tuple[int, int] | None) -> socket.socket:
    """Any free port, or a free one of the range. Raises OSError."""
    family, address = numeric(host, 0)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    low, high = ports or (0, 0)
    count = high - low + 1
    start = random.randrange(count)  # noqa: S311 -- only to spread them
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for number in range(count):
            try:
                sock.bind((address[0], low + (start + number) % count, *address[2:]))
                return sock
            except OSError as error:
                # EACCES: below net.ipv4.ip_unprivileged_port_start, where the others need not be.
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except BaseException:
        sock.close()
        raise
