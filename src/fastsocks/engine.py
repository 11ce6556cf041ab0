"""The contract between the program and what moves its bytes, and the choice of who
fulfils it: ``_front`` and what is behind it (Linux, native) or ``pure`` (asyncio, anywhere).

An engine owns every socket of the data path from accept to close; nobody else
reads, writes or closes one. It must not know SOCKS, but for the header
of its datagrams: it moves bytes, keeps deadlines and reports ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from fastsocks.errors import ConfigError

if TYPE_CHECKING:
    import socket

# How a relayed session ended. FINISHED: both ends sent FIN and every byte was
# delivered; all others were passed on to the other end as a reset.
FINISHED = "finished"
CLIENT_RESET = "client reset"
REMOTE_RESET = "remote reset"
IDLE = "idle timeout"
HALF_CLOSED = "half-closed timeout"
KILLED = "killed"
# In the order of the C enum in _relay.pxd, whose values are indices into this.
REASONS = (FINISHED, CLIENT_RESET, REMOTE_RESET, IDLE, HALF_CLOSED, KILLED)

log = logging.getLogger("fastsocks.engine")

KEEPALIVE_AFTER = 7200.0  # net.ipv4.tcp_keepalive_time in seconds, as systems ship it

# Of a connection on which nothing more is said, and whose client may have lost its power or
# its network while targets go on sending: seconds until the first probe, between two, and
# how many go unanswered.
CONTROL_KEEPALIVE = (60, 20, 3)

# Seconds. After SIGCONT, and when a loop has stood still, its timers come before reads: look again
# when what waited has been read.
SECOND_LOOK = 0.01

# What an engine counts of datagrams; see Engine.counters().
UDP_COUNTERS = (
    "datagrams_up",
    "datagrams_down",
    "udp_dropped_source",
    "udp_dropped_malformed",
    "udp_dropped_fragment",
    "udp_dropped_denied",
    "udp_dropped_stranger",
    "udp_dropped_full",
    "udp_dropped_failed",
    "udp_gso_sends",
)

# Datagrams to new destinations that are judged in one turn, each in some 40 us of the loop: one
# client may have 2,048 that wait, and others shake hands meanwhile.
QUESTIONS_PER_TURN = 32

# What accept() may say of one client that is gone already (accept(2), "Error handling"). All
# else leaves the client in the backlog, and would be said again at once.
ACCEPT_AGAIN = {
    errno.ECONNABORTED,
    errno.EINTR,
    errno.ENETDOWN,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}

# What the log says of it, in either engine.
ACCEPTING_PAUSES = "accepting pauses for %d ms: %s"
GONE_BEFORE_DIAL = "reset its connection before the remote was dialled"
GONE_DURING_DIAL = "reset its connection while the remote was dialled"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What an engine has to know. Times are in seconds, 0 means no limit."""

    handshake_timeout: float = 10.0
    """accept to complete request, in all"""
    idle_timeout: float = 300.0
    """no byte either way in a relayed session"""
    half_closed_timeout: float = 60.0
    """the same once one end has sent FIN"""
    linger_timeout: float = 1.0
    """how long unread input is drained after a refusal, so that the reply survives"""
    max_sessions: int = 0
    """connections held at once, above which accepting pauses; 0: no limit"""
    relay: str = "auto"
    """``auto`` (copy, then splice what streams), ``copy`` or ``splice``"""
    relay_threads: int = 1
    """for sessions that last or stream; others, and with 0 all, are relayed on the event
    loop's thread"""
    io_uring: bool = True
    """many short messages are read by one system call and sent by another, where the kernel has
    io_uring"""
    pipe_size: int = 1 << 20
    """octets asked for per pipe; the kernel may grant less"""
    max_pipes: int = 64
    """pipes held at once over all relay threads; none to be had means copy"""

    udp_timeout: float = 300.0
    """no datagram either way in a UDP association"""
    udp_ports: tuple[int, int] | None = None
    """first and last port that clients may be told to send datagrams to; None: any"""
    udp_full_cone: bool = False
    """pass on datagrams from anybody, not only from where the client has sent to"""

    @property
    def needs_keepalive(self) -> bool:
        """Whether the kernel has to find out that a silent peer is gone. It asks after
        two hours, so shorter timeouts leave nothing to ask, and no timer to set for
        each connection."""
        limits = (
            self.handshake_timeout,
            self.idle_timeout,
            self.half_closed_timeout,
            self.udp_timeout,
        )
        return not all(0 < limit < KEEPALIVE_AFTER for limit in limits)


End = tuple[Any, int, int, str, int]
"""(flow, octets up, octets down, how it ended, errno) of one ended session."""


class Conn(Protocol):
    """One connected socket of an engine. One operation at a time."""

    @property
    def peer(self) -> tuple[str, int]:
        """(host, port) of the far end; IPv4-mapped addresses are IPv4."""

    @property
    def sockname(self) -> tuple[str, int]:
        """(host, port) of our end."""

    def recv_now(self) -> bytes | None:
        """As recv, but None where that would wait."""

    def recv(self) -> Awaitable[bytes]:
        """What has come, at most 16 KiB; ``b""`` at FIN. Raises OSError on a
        reset and TimeoutError when the deadline passes first."""

    def send_now(self, data: bytes) -> bool:
        """Sends what can be sent at once; False: ``sent`` waits for the rest."""

    def sent(self) -> Awaitable[None]:
        """Until all of what ``send_now`` was given is sent. Raises as recv does."""

    def send(self, data: bytes) -> Awaitable[None]:
        """Sends all of ``data``. Raises as recv does."""

    def has_left(self) -> bool:
        """Whether the far end has sent FIN or reset the connection, however much is
        still unread. It may take a turn of the loop to be known."""

    def was_reset(self) -> bool:
        """The same of a reset alone: who has sent FIN may still want an answer. False as well
        where the kernel has no room to tell."""

    def deadline(self, seconds: float) -> None:
        """From now on, in place of the one before; 0 for none."""

    def time_left(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None where there is none."""

    def refuse(self, last_words: bytes) -> None:
        """Sends ``last_words``, then FIN, drains what the client still sends for
        a moment (else the kernel answers it with a reset that eats the reply),
        and closes."""

    def close(self) -> None:
        """At once. Closing twice is harmless."""


class Visit(Protocol):
    """A coroutine on its way, as asyncio.Task has it, and perhaps none as long as all it
    waits for is a Conn's or a dial's doing. At its first wait for anything else it becomes
    a Task; ``waits.within`` is for what asks for one before that."""

    @property
    def task(self) -> asyncio.Task[None] | None:
        """None while it is none."""

    def begin(self) -> None:
        """Now or soon. Once."""

    def cancel(self) -> None:
        """Raises CancelledError in it where it waits, soon."""


class Association(Protocol):
    """One UDP association (RFC 1928, 7): the socket that a client sends to, and the
    sockets behind it.

    The client is the host of its TCP connection; its port is taken from its first
    valid datagram and stays. Replies are passed on from targets (address and port)
    that it has sent to and that were allowed, unless ``udp_full_cone``. What is not
    passed on is dropped and counted; it ends nothing.
    """

    @property
    def sockname(self) -> tuple[str, int]:
        """(host, port) where the client must send its datagrams."""

    def answer(
        self, atyp: int, raw: bytes, port: int, address: tuple[str, int] | None, ttl: float
    ) -> None:
        """The verdict on one destination, as it was asked for: the address to send
        to (an IP literal, which may carry %scope, and a port), or None for denied.
        After ``ttl`` seconds the next datagram has it asked for again, and what was
        allowed is used until that is answered; 0 is for the life of the association.
        Raises OSError (EINVAL) for what is no IP literal."""

    def close(self) -> None:
        """Gives up one that was not handed over; else nothing happens."""


Address = tuple[str, int]

OnAsk = Callable[[Association, int, bytes, int, Address | None], None]
"""(association, ATYP, address as it stands in the datagram, port, the answer that has
grown old or None), on the loop's thread: may be answered at once or later, and must be
some day, for where there is no old answer the first few datagrams wait. For a name the
address comes without its length octet."""


class Engine(Protocol):
    """See the top of this file. Belongs to one event loop and one thread."""

    @property
    def name(self) -> str: ...

    @property
    def sessions(self) -> int:
        """Connections accepted, or adopted and relayed, that are not closed yet."""

    def describe(self) -> str:
        """Relay mode, threads and effective pipe size in words, for the log."""

    def listen(self, sock: socket.socket, on_client: Callable[[Conn], None]) -> None:
        """Takes over a listening socket. ``on_client`` is called when the first
        octet of a client is there; one that never sends any costs no Python."""

    def stop_listening(self) -> None:
        """Closes the listeners; sessions go on."""

    def visit(self, session: Coroutine[Any, Any, None]) -> Visit:
        """Not begun yet, for it may be over when begin() returns."""

    def adopt(self, sock: socket.socket) -> Conn:
        """Takes over a connected stream socket (detaches it)."""

    def dial(
        self,
        client: Conn,
        address: tuple[str, int],
        source: str | None,
        timeout: float,
    ) -> Awaitable[Conn]:
        """Connects to an IP literal (an IPv6 one may carry %scope). Raises
        OSError with the errno of connect(), ETIMEDOUT after ``timeout`` seconds,
        and ClientGone when the client resets its connection meanwhile. Several may
        be under way for one client; cancelling one closes its socket."""

    def relay(self, client: Conn, remote: Conn, flow: Any, early: bytes) -> int:
        """Takes both connections for good; ``early`` goes to the remote first.
        The end is told through ``on_closed``. Returns a handle for kill()."""

    def open_udp(
        self,
        client: Conn,
        host: str,
        sources: Sequence[str],
        on_ask: OnAsk,
        is_local: bool = False,
    ) -> Association:
        """Binds a datagram socket for ``client`` to ``host``, the address its
        connection came in on, and a port as ``udp_ports`` says. ``sources`` are IP
        literals to send from, at most one per family. ``is_local``: the client is on this
        machine, so that what the engine itself sends for other clients comes from an address
        of this client's as well, and must not be taken for its. Raises OSError, EADDRINUSE
        when all ports of the range are taken."""

    def associate(self, client: Conn, association: Association, flow: Any) -> int:
        """Takes both for good: the association lives as long as the connection, on
        which nothing more is said, and which is probed (CONTROL_KEEPALIVE). Told
        through ``on_closed`` with the octets of payload passed on: FINISHED when the
        client sent FIN, else CLIENT_RESET, IDLE or KILLED. Returns a handle for kill()."""

    def kill(self, handle: int) -> None:
        """Ends a session by reset; nothing happens if it has ended by itself."""

    def counters(self) -> dict[str, int]:
        """Totals since the start, until ``close``: octets ``spliced`` and ``copied``, and of
        the latter ``batched`` (with one system call for many sessions); ``pipes_refused``,
        ``accepted``, ``accept_pauses``, ``relayed``, ``moved_on`` (to a relay thread);
        ``udp_associations`` handed over, ``datagrams_up`` and ``_down`` passed on, and those
        dropped: ``udp_dropped_source`` (not the client), ``_malformed``, ``_fragment``,
        ``_denied``, ``_stranger`` (not a target of the client's), ``_full`` (no room) and
        ``_failed`` (refused by the kernel); ``udp_gso_sends`` (several datagrams in one).
        And what there is now: ``pipes``, and ``slots`` taken, which each engine has for
        what it likes."""

    def close(self) -> None:
        """Ends everything by reset and reports it; returns with no descriptor left."""


OnClosed = Callable[[Sequence[End]], None]


def choose(
    name: str, loop: asyncio.AbstractEventLoop, settings: Settings, on_closed: OnClosed
) -> Engine:
    """The engine called ``name``: ``native``, ``python``, or ``auto`` for the
    native one where it has been built."""
    if name in ("auto", "native"):
        try:
            from fastsocks._front import Engine as NativeEngine

            # An engine's calls take its own Conn only, which a Protocol cannot say.
            return cast(Engine, NativeEngine(loop, settings, on_closed))
        except ImportError as error:
            if name == "native":
                raise ConfigError(
                    "engine native: the compiled extension is not installed (it needs Linux and a C"
                    f" compiler at install time; {error}); use --engine python or auto"
                ) from None
            if error.name != "fastsocks._front":
                log.warning("the Python engine serves: the native one cannot be loaded: %s", error)
    from fastsocks import pure

    return cast(Engine, pure.Engine(loop, settings, on_closed))
