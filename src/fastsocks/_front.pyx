# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The native engine (Linux) as Python sees it: accept, handshake and dial.

    accept -> Conn --relay--> Pairs (_pairs.pyx) -> on_closed
                 --associate--> Datagrams (_datagrams.pyx) -> on_closed

Everything here runs on the event loop's thread, driven by an epoll of its own that
is nested in the loop by one add_reader: edge-triggered inside for connections (one
registration serves a whole handshake), level-triggered outside (what a turn leaves undone makes
the loop come again). The porch, where pairs begin, shares this epoll and its turns. It
must not know SOCKS.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from fastsocks._address cimport Address, endpoint_of, os_error, parse_address
from fastsocks._datagrams cimport Association, Datagrams
from fastsocks._linux cimport (
    AF_INET, AF_INET6, EAFNOSUPPORT, EAGAIN, EALREADY, EBADF, ECONNRESET, EINPROGRESS, EINTR,
    ENOMEM, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI, EPOLLRDHUP,
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, ETIMEDOUT, F_GETFL, F_SETFL,
    IPPROTO_IP, IPPROTO_TCP, IP_BIND_ADDRESS_NO_PORT, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC,
    O_NONBLOCK, SHUT_WR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_ERROR,
    SO_KEEPALIVE, SO_LINGER, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY, accept4, bind,
    close, connect, epoll_create1, epoll_event, epoll_wait, errno, eventfd_write, fcntl,
    getpeername, getpid, getsockname, getsockopt, linger, recv, send, setsockopt, shutdown,
    sockaddr, socket, socklen_t
)
from fastsocks._pairs cimport Pairs
from fastsocks._relay cimport (
    ASSOCIATION, CLIENT_END, End, FRONT, MAX_EVENTS, PIPE_MIN, Pair, REMOTE_END, Relay, TAG_ENDED,
    TAG_LISTENER, TICK_MS, Timer, WATCH_IN, Wheel, milliseconds, monotonic_ms, pipe_probe, ring_pop,
    timer_clear, timer_set, watch, wheel_collect, wheel_open
)
from fastsocks._visits cimport Pending, Turn, settled, unsettled, visit_of

from fastsocks import engine as contract
from fastsocks.errors import ClientGone
from fastsocks.quiet import QuietLog

cdef tuple CONTROL_KEEPALIVE = contract.CONTROL_KEEPALIVE

cdef enum:
    # A whole handshake and what a client sends along with it.
    FIRST_READ = 16 * 1024
    # Then sessions that stand have their turn: a storm of connections costs them this much.
    ACCEPTS_PER_TURN = 16
    # Out of descriptors, as a rule: some session may have ended by then.
    ACCEPT_PAUSE_MS = 100
    MEMORY_PAUSE_MS = 100
    # A refused client may send this much more before it is cut off.
    LINGER_OCTETS = 256 * 1024

cdef enum Stage:
    NEW                 # accepted, nothing received: no Python knows of it
    SESSION
    DIALING
    LINGERING           # refused; the engine alone sees it to its end
    GONE

cdef enum Waiting:
    NOTHING
    RECV
    SEND
    CONNECT


@cython.final
@cython.freelist(256)
cdef class Conn:
    """See engine.Conn. Holds the socket until it is closed or handed over."""

    cdef Engine engine
    cdef int fd
    cdef uint32_t index         # in the engine's table
    cdef uint32_t generation
    cdef Stage stage
    cdef bint counted           # in engine.sessions
    cdef bint registered        # in the front's epoll, perhaps dormant
    cdef bint watched           # and reporting
    cdef bint readable
    cdef bint fin
    cdef bint urgent
    cdef bint reset             # the far end has reset it
    cdef bint expired           # its deadline has passed while nothing waited
    cdef bint put_off           # its deadline, by a tick
    cdef Waiting waiting
    cdef Pending waiter         # of what is under way, or the last that was
    cdef object on_client       # while NEW: whom its first octets will interest
    cdef bytes stash            # the first octets, read before the session began
    cdef bytes unsent
    cdef Py_ssize_t pushed      # octets of ``unsent`` that are
    cdef size_t drained
    cdef Conn client            # while this one is dialled: for whom
    cdef Conn dials             # what is being dialled for this one, newest first
    cdef Conn older             # the next in that list
    cdef Timer timer
    cdef Address address

    def __cinit__(self):
        self.fd = -1
        self.stage = GONE

    def __dealloc__(self):
        if self.fd >= 0:  # its engine was never closed, and is garbage with it
            close(self.fd)

    @property
    def peer(self):
        return endpoint_of(&self.address)

    @property
    def sockname(self):
        cdef Address address
        cdef socklen_t length = sizeof(Address)
        if getsockname(self.fd, &address.any, &length) < 0:
            raise os_error(errno)
        return endpoint_of(&address)

    def recv_now(self):
        cdef bytes data = self.stash
        self.check()
        if data is not None:
            self.stash = None
            return data
        return self.read()

    def recv(self):
        data = self.recv_now()
        return self.wait(RECV) if data is None else settled(self.engine.turn, data)

    def send_now(self, bytes data not None):
        self.check()
        self.unsent = data
        self.pushed = 0
        return self.push()

    def sent(self):
        self.check()
        return settled(self.engine.turn, None) if self.unsent is None else self.wait(SEND)

    def send(self, bytes data not None):
        return settled(self.engine.turn, None) if self.send_now(data) else self.wait(SEND)

    def has_left(self):
        return self.was_reset() or self.fin

    def was_reset(self):
        if self.fd >= 0:
            try:
                self.register()
            except OSError:  # epoll has no room: its deadline will end it
                pass
        return self.fd < 0 or self.reset

    def deadline(self, double seconds):
        self.expired = self.put_off = False
        if self.fd < 0:
            return
        if seconds:
            timer_set(&self.engine.wheel, &self.timer, monotonic_ms() + milliseconds(seconds))
        else:
            timer_clear(&self.timer)

    def time_left(self):
        cdef uint64_t due = self.timer.due * TICK_MS
        cdef uint64_t now = monotonic_ms()
        if self.timer.next == NULL:
            return 0.0 if self.expired else None
        return (due - now) / 1000.0 if due > now else 0.0

    def refuse(self, bytes last_words not None):
        if self.fd < 0 or self.stage == LINGERING:
            return
        self.stage = LINGERING
        if PyBytes_GET_SIZE(last_words):
            send(self.fd, PyBytes_AS_STRING(last_words), PyBytes_GET_SIZE(last_words),
                 MSG_DONTWAIT | MSG_NOSIGNAL)
        shutdown(self.fd, SHUT_WR)
        self.deadline(self.engine.settings.linger_timeout)
        self.readable = True
        self.drain()
        if self.fd >= 0:
            try:
                self.register()
            except OSError:
                self.drop()  # without a moment for what it still sends

    def close(self):
        if self.stage != LINGERING:
            self.drop()

    def abandon(self):
        """The dial that made it has been cancelled."""
        self.waiter = None
        self.drop()

    # -- for the engine ----------------------------------------------------

    cdef bint is_tcp(self) noexcept:
        return self.address.any.sa_family in (AF_INET, AF_INET6)

    cdef int check(self) except -1:
        if self.fd < 0:
            raise OSError(EBADF, "this connection is closed or was handed over")
        if self.waiter is not None and not self.waiter.over:
            raise RuntimeError("one operation on a connection at a time")
        if self.expired:
            raise TimeoutError
        return 0

    cdef object wait(self, Waiting what):
        self.waiting = what
        self.waiter = unsettled(self.engine.turn)
        self.register()
        return self.waiter

    cdef int register(self) except -1:
        """Edge-triggered, so one registration serves the whole handshake; adding it
        reports what is there already."""
        cdef uint32_t events = WATCH_IN
        cdef int failed
        if self.waiting == SEND:
            events |= EPOLLOUT
        elif self.watched:
            return 0
        failed = watch(self.engine.epfd, EPOLL_CTL_MOD if self.registered else EPOLL_CTL_ADD,
                       self.fd, events, self.tag())
        if failed < 0:
            raise os_error(-failed)
        self.registered = self.watched = True
        return 0

    cdef uint64_t tag(self):
        return (<uint64_t>self.generation << 32) | FRONT | self.index

    cdef bytes read(self):
        """None where it would block."""
        cdef ssize_t got
        while self.readable:
            got = recv(self.fd, self.engine.buffer, FIRST_READ, MSG_DONTWAIT)
            if got >= 0:
                if got < FIRST_READ and not self.urgent and not self.fin:
                    self.readable = False
                return PyBytes_FromStringAndSize(self.engine.buffer, got)
            if errno == EAGAIN:
                self.readable = False
            elif errno != EINTR:
                raise os_error(errno)
        return None

    cdef bint push(self) except -1:
        """Whether all of ``unsent`` is sent."""
        cdef ssize_t sent
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.unsent)
        while self.pushed < size:
            sent = send(self.fd, PyBytes_AS_STRING(self.unsent) + self.pushed, size - self.pushed,
                        MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                self.pushed += sent
            elif errno == EAGAIN:
                return False
            elif errno != EINTR:
                raise os_error(errno)
        self.unsent = None
        return True

    cdef drain(self):
        """Throws away what a refused client still sends, until it ends or must."""
        cdef ssize_t got
        while True:
            # MSG_TRUNC: the kernel discards TCP data without copying it.
            got = recv(self.fd, self.engine.buffer, FIRST_READ, MSG_DONTWAIT | MSG_TRUNC)
            if got > 0:
                self.drained += got
                if self.drained < LINGER_OCTETS:
                    continue
            elif got < 0 and errno == EINTR:
                continue
            elif got < 0 and errno == EAGAIN:
                return
            self.drop()
            return

    cdef drop(self):
        """Closes the socket, once, and whatever hangs on it."""
        cdef int fd = self.fd
        cdef Conn remote = self.dials
        cdef Conn older
        cdef Conn _alive = self  # the table's reference may be the last
        if fd < 0:
            return
        self.leave()
        self.stage = GONE
        close(fd)
        while remote is not None:
            older, remote.older = remote.older, None
            remote.drop()
            remote = older
        if self.counted:
            self.counted = False
            self.engine.session_over()
        self.finish(None, ConnectionAbortedError("the connection was closed"))

    cdef int leave(self) noexcept:
        """Gives up the socket, which stays open; returns it."""
        cdef int fd = self.fd
        timer_clear(&self.timer)
        self.untie()
        self.engine.forget(self)
        self.fd = -1
        return fd

    cdef become(self, End *end, Relay *relay):
        """Gives the socket to one end of a pair. One that is in the epoll of that relay
        already, which is the porch's and the front's, stays in it."""
        if relay.inline_ and self.registered:
            end.known = 1
            self.registered = False
        end.urgent = self.urgent
        end.pieces = not self.is_tcp()
        end.writable = 1
        end.fd = self.leave()
        self.stage = GONE

    cdef void untie(self) noexcept:
        """Ends what ties a client and the remotes dialled for it, from either end. The
        list of a client stays a list, for drop() to go through."""
        cdef Conn other = self.dials
        while other is not None:
            other.client = None
            other = other.older
        self.dials = None
        other, self.client = self.client, None
        if other is None:
            return
        if other.dials is self:
            other.dials = self.older
        else:
            other = other.dials
            while other.older is not self:
                other = other.older
            other.older = self.older
        self.older = None

    cdef finish(self, object value, object error=None):
        """Ends what is under way; the last thing to be done to a connection in an
        event, as the session goes on in here."""
        cdef Pending waiter = self.waiter
        self.waiter = None
        self.waiting = NOTHING
        if waiter is not None:
            waiter.settle(value, error)

    cdef on_event(self, uint32_t events):
        cdef Conn remote
        if events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.readable = True
        if events & EPOLLRDHUP:
            self.fin = True
        if events & EPOLLPRI:
            self.urgent = True
        if events & EPOLLERR:
            self.reset = True
        if self.stage == NEW:
            self.engine.greet(self)
        elif self.stage == LINGERING:
            self.drain()
        elif self.stage == DIALING:
            self.on_connected(events)
        else:
            while self.reset and self.dials is not None:  # each takes itself off the list
                remote = self.dials
                remote.on_dial_failed(ClientGone(contract.GONE_DURING_DIAL))
            self.go_on()

    cdef go_on(self):
        """With what the session waits for."""
        cdef bytes data
        if self.waiter is None or self.waiter.over:
            pass  # nobody waits (any more): what came stays in the socket
        elif self.waiting == RECV:
            try:
                data = self.read()
            except BaseException as error:
                self.finish(None, error)
            else:
                if data is not None:
                    self.finish(data)
        elif self.waiting == SEND:
            try:
                if self.push():
                    self.finish(None)
            except OSError as error:
                self.finish(None, error)

    cdef on_connected(self, uint32_t events):
        """EPOLLOUT alone says that connect() succeeded; only a failure has an errno."""
        cdef int error = 0
        cdef socklen_t length = sizeof(error)
        if events & (EPOLLERR | EPOLLHUP):
            getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &error, &length)
            self.on_dial_failed(os_error(error if error else ECONNRESET))
            return
        timer_clear(&self.timer)
        self.untie()
        self.stage = SESSION
        self.readable = True
        self.watched = False  # one-shot: it has fired
        self.finish(self)

    cdef on_dial_failed(self, object error):
        cdef Pending waiter = self.waiter
        self.waiter = None
        self.drop()
        if waiter is not None:
            waiter.settle(None, error)

    cdef on_deadline(self):
        if self.stage != LINGERING and not self.put_off:
            # What came in time is looked at before that, also when this process was stopped, or
            # its loop stood still, and everything comes at once.
            self.put_off = True
            timer_set(&self.engine.wheel, &self.timer, monotonic_ms() + TICK_MS)
        elif self.stage == NEW or self.stage == LINGERING:
            self.drop()
        elif self.stage == DIALING:
            self.on_dial_failed(os_error(ETIMEDOUT))
        else:
            self.expired = True
            if self.waiter is not None and not self.waiter.over:
                self.finish(None, TimeoutError())


@cython.final
@cython.no_gc_clear  # the threads use what `pairs` and `datagrams` own until they are joined
cdef class Engine:
    """See engine.Engine. One loop, one front; the relay threads are its own."""

    cdef readonly object loop
    cdef readonly uint32_t sessions
    cdef Turn turn
    cdef object settings
    cdef object on_closed
    cdef object quiet
    cdef list listeners         # (socket, its descriptor, on_client)
    cdef bint accepting
    cdef int epfd
    cdef int pid                # of the process that it belongs to
    cdef Wheel wheel
    cdef Timer resume_timer     # accepting goes on
    cdef Timer memory_timer     # the relays have been told to wait
    cdef char *buffer
    cdef list table             # Conn by index, None where free
    cdef uint32_t *generations
    cdef uint32_t *free_indices     # a stack: to end a connection takes no memory
    cdef uint32_t free_count
    cdef Pairs pairs
    cdef Datagrams datagrams    # UDP associations, served by the relays of the pairs
    cdef bint keepalive         # where nothing else ends a session with a dead peer
    cdef uint64_t accepted
    cdef uint64_t pauses
    cdef int effective_pipe

    def __cinit__(self):
        self.epfd = self.wheel.fd = -1

    def __init__(self, loop, settings, on_closed):
        self.loop = loop
        self.turn = Turn.__new__(Turn)
        self.turn.loop = loop
        self.settings = settings
        self.on_closed = on_closed
        self.quiet = QuietLog(contract.log)
        self.listeners = []
        self.table = []
        self.pairs = Pairs(settings, self.turn)
        self.datagrams = Datagrams(settings)
        self.buffer = <char *>malloc(FIRST_READ)
        self.keepalive = settings.needs_keepalive
        if self.buffer == NULL:
            raise MemoryError
        self.effective_pipe = pipe_probe(settings.pipe_size)
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    cdef open(self):
        cdef int failed
        self.pid = getpid()
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise os_error(errno)
        failed = wheel_open(&self.wheel, self.epfd)
        if failed < 0:
            raise os_error(-failed)
        self.pairs.open(self.epfd, &self.wheel, self.datagrams)
        self.loop.add_reader(self.epfd, self.run_once)

    def __dealloc__(self):
        self.end()  # of an engine that nobody closed
        free(self.buffer)
        free(self.generations)
        free(self.free_indices)

    @property
    def name(self):
        return "native"

    def describe(self):
        settings = self.settings
        how = f"relay {settings.relay} "
        how += f"in {settings.relay_threads} thread" if self.pairs.threaded else "inline"
        if settings.relay_threads > 1:
            how += "s"
        if settings.relay == "copy" or not settings.max_pipes:
            return how + ", no pipes"
        if self.effective_pipe < PIPE_MIN:
            return how + ", no pipes to be had: this user's quota is used up"
        return how + f", {settings.max_pipes} pipes of {self.effective_pipe >> 10} KiB"

    # -- listening ---------------------------------------------------------

    def listen(self, sock, on_client):
        cdef int failed = 0
        sock.setblocking(False)
        if not self.listeners:
            self.accepting = True
        if self.accepting:
            failed = self.watch_listener(sock.fileno(), len(self.listeners))
        if failed < 0:
            raise os_error(-failed)
        # The number is made here: where accepting begins or ends nothing may want memory.
        self.listeners.append((sock, sock.fileno(), on_client))

    def stop_listening(self):
        timer_clear(&self.resume_timer)
        self.accepting = False
        for sock, fd, _ in self.listeners:
            # Where somebody else has it open too (a service manager, a forked child),
            # closing alone would leave it in the epoll, ready for ever.
            self.unwatch(fd)
            sock.close()
        self.listeners.clear()

    cdef set_accepting(self, bint accepting):
        cdef uint32_t count = len(self.listeners)
        cdef uint32_t number
        cdef uint32_t step
        cdef int failed = 0
        if accepting == self.accepting or self.pid != getpid():
            return  # a forked child leaves it: the epoll is its parent's as well
        self.accepting = accepting
        for step in range(count):
            # Each is first in its turn: one that makes accepting pause holds back the others.
            number = <uint32_t>((step + self.pauses) % count)
            _, fd, _ = self.listeners[number]
            # Asked for no events, one that others have shut down would be told of all the same.
            self.unwatch(fd)
            if accepting and failed == 0:
                failed = self.watch_listener(fd, number)
        if failed < 0:
            self.rest(-failed)

    cdef int watch_listener(self, int fd, uint32_t number) noexcept:
        """Level-triggered: what a turn's budget leaves in the backlog stays ready."""
        return watch(self.epfd, EPOLL_CTL_ADD, fd, EPOLLIN, TAG_LISTENER + number)

    cdef pause_accepting(self):
        self.pauses += 1
        self.set_accepting(False)

    cdef rest(self, int error):
        """The backlog keeps the clients; trying again at once would spin."""
        self.pause_accepting()
        timer_set(&self.wheel, &self.resume_timer, monotonic_ms() + ACCEPT_PAUSE_MS)
        self.quiet.warning("accept", contract.ACCEPTING_PAUSES, ACCEPT_PAUSE_MS,
                           os.strerror(error))

    cdef accept(self, uint32_t number):
        cdef Conn conn
        cdef Address address
        cdef socklen_t length
        cdef int fd
        cdef int error
        cdef int _attempt
        cdef uint32_t limit = self.settings.max_sessions
        if number >= <uint32_t>len(self.listeners):
            return
        _, descriptor, on_client = self.listeners[number]
        cdef int listener = descriptor
        for _attempt in range(ACCEPTS_PER_TURN):
            if not self.accepting:  # since a visit of this turn has run
                return
            if limit and self.sessions >= limit:
                self.quiet.warning("full", "all %d sessions are taken: not accepting more", limit)
                self.pause_accepting()
                return
            length = sizeof(address)
            fd = accept4(listener, &address.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd >= 0:
                self.accepted += 1
                try:
                    conn = self.enter(fd)
                except MemoryError:
                    self.rest(ENOMEM)
                    return
                conn.address = address
                conn.stage = NEW
                conn.on_client = on_client
                conn.counted = True
                self.sessions += 1
                if self.settings.handshake_timeout:
                    conn.deadline(self.settings.handshake_timeout)
                self.greet(conn)
                continue
            error = errno
            if error == EAGAIN or error == EBADF:
                return
            if error not in contract.ACCEPT_AGAIN:
                self.rest(error)
                return

    cdef greet(self, Conn conn):
        """Reads the first octets; only with them does Python get to know the client."""
        cdef bytes data
        conn.readable = True
        try:
            data = conn.read()
        except OSError:
            data = b""
        except MemoryError:
            conn.drop()
            self.rest(ENOMEM)
            return
        if data is None:
            try:
                conn.register()
            except OSError as error:
                conn.drop()  # nothing would ever be heard of it
                self.rest(error.errno)
        elif data:
            conn.stage = SESSION
            conn.stash = data
            on_client, conn.on_client = conn.on_client, None
            try:
                on_client(conn)
            except BaseException:
                conn.drop()  # it has no owner
                raise
        else:
            conn.drop()

    # -- the table of connections -------------------------------------------

    cdef Conn enter(self, int fd):
        """Takes over a socket, whatever happens."""
        cdef Conn conn
        try:
            conn = Conn.__new__(Conn)
            if not self.free_count:
                self.grow_table()
        except MemoryError:
            close(fd)
            raise
        conn.engine = self
        conn.fd = fd
        conn.stage = SESSION
        self.free_count -= 1
        conn.index = self.free_indices[self.free_count]
        conn.generation = self.generations[conn.index]
        conn.timer.owner = <void *>conn
        conn.readable = True
        self.table[conn.index] = conn
        return conn

    cdef void forget(self, Conn conn) noexcept:
        """Takes the connection off the front's epoll and table. Even a registration
        that has fired its one shot would cost every later wake-up of the socket."""
        if conn.registered:
            self.unwatch(conn.fd)
        self.generations[conn.index] += 1
        self.free_indices[self.free_count] = conn.index
        self.free_count += 1
        self.table[conn.index] = None

    cdef grow_table(self):
        """When none is free. All or nothing; what has been grown in vain is used the next time."""
        cdef Py_ssize_t before = PyList_GET_SIZE(self.table)
        cdef Py_ssize_t size = before * 2 or 256
        cdef Py_ssize_t i
        generations = <uint32_t *>realloc(self.generations, size * sizeof(uint32_t))
        if generations == NULL:
            raise MemoryError
        self.generations = generations
        indices = <uint32_t *>realloc(self.free_indices, size * sizeof(uint32_t))
        if indices == NULL:
            raise MemoryError
        self.free_indices = indices
        self.table.extend([None] * (size - before))
        for i in range(before, size):
            generations[i] = 0
            indices[self.free_count] = <uint32_t>i
            self.free_count += 1

    cdef void unwatch(self, int fd) noexcept:
        """A forked child leaves it: the epoll is its parent's as well."""
        if self.pid == getpid():
            watch(self.epfd, EPOLL_CTL_DEL, fd, 0, 0)

    # -- a turn of the front -------------------------------------------------

    def run_once(self):
        """Called by the loop when the front's epoll has something."""
        cdef epoll_event events[MAX_EVENTS]
        cdef int count
        if self.pid != getpid():
            return  # a forked child's copy: what has happened, and every octet, is the parent's
        count = epoll_wait(self.epfd, events, MAX_EVENTS, 0)
        if count < 0:
            return  # EINTR, after a stop of this process: nothing has been looked at
        self.turn.under_way = True
        try:
            self.take_turn(events, count)
        finally:
            self.turn.under_way = False

    cdef take_turn(self, epoll_event *events, int count):
        """Whatever a callback raises, the other events have their turn: those that are
        edge-triggered would not come again."""
        cdef int i
        cdef uint64_t data
        fatal = None
        try:
            if self.pairs.take_turn(events, count):
                self.drain_ended()
        except BaseException as error:
            fatal = self.turn.blame(error, fatal)
        for i in range(count):
            data = events[i].data.u64
            if data & ASSOCIATION or not data & FRONT:
                continue
            try:
                if data == TAG_ENDED:
                    self.listen_to_relays()
                elif data >> 32 == 0 and data >= TAG_LISTENER:
                    self.accept(<uint32_t>(data - TAG_LISTENER))
                else:
                    self.on_conn_event(data, events[i].events)
            except BaseException as error:
                fatal = self.turn.blame(error, fatal)
        try:
            self.expire()
        except BaseException as error:
            fatal = self.turn.blame(error, fatal)
        if fatal is not None:
            raise fatal

    cdef on_conn_event(self, uint64_t data, uint32_t events):
        cdef uint32_t index = <uint32_t>data & ~<uint32_t>FRONT
        cdef Conn conn  # a reference of its own: the table's may go during the event
        if index < PyList_GET_SIZE(self.table):
            conn = self.table[index]
            if conn is not None and conn.generation == <uint32_t>(data >> 32):
                conn.on_event(events)

    cdef expire(self):
        cdef Timer expired
        cdef Timer *timer
        cdef Conn conn
        if self.epfd < 0:
            return
        wheel_collect(&self.wheel, monotonic_ms(), &expired)
        try:
            while True:
                timer = ring_pop(&expired)
                if timer == NULL:
                    break
                if timer == &self.resume_timer:
                    self.set_accepting(True)
                elif timer == &self.memory_timer:
                    self.listen_to_relays()
                elif timer == &self.pairs.nudge_timer:
                    self.pairs.nudge()
                else:
                    conn = <Conn>timer.owner
                    conn.on_deadline()
        finally:
            # After a SystemExit of a Task that was resumed: the ring is on this stack.
            while True:
                timer = ring_pop(&expired)
                if timer == NULL:
                    break
                timer_set(&self.wheel, timer, 0)

    cdef session_over(self):
        self.sessions -= 1
        if not self.accepting and self.listeners and self.resume_timer.next == NULL:
            self.set_accepting(True)

    # -- dialling ------------------------------------------------------------

    def visit(self, session):
        return visit_of(self.turn, session)

    def adopt(self, sock):
        cdef Conn conn
        cdef int fd
        cdef int on = 1
        cdef linger at_once
        cdef socklen_t length = sizeof(Address)
        at_once.l_onoff = at_once.l_linger = 0
        if self.turn.closed:
            raise OSError(EBADF, "this engine is closed")
        fd = sock.detach()
        conn = self.enter(fd)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))  # not for Unix sockets
        # As its owner has set it, close() could wait, or throw away what is not sent yet.
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once))
        getpeername(fd, &conn.address.any, &length)
        return conn

    def dial(self, Conn client not None, tuple address, source, double timeout):
        cdef Address target
        cdef Conn remote
        cdef int fd
        cdef int failed
        cdef int on = 1
        host, port = address
        cdef socklen_t length
        if client.fd < 0 or client.reset or self.turn.closed:
            return settled(self.turn, None, ClientGone(contract.GONE_BEFORE_DIAL))
        fd = -1
        try:
            length = parse_address(host, port, &target)
            fd = socket(target.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
            if fd < 0:
                raise os_error(errno)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
            if self.keepalive:
                setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
            if source is not None:
                bind_source(fd, source, target.any.sa_family)
            failed = connect_now(fd, &target.any, length)
            if failed == EINPROGRESS:
                client.register()
            elif failed:
                raise os_error(failed)
        except OSError as error:
            if fd >= 0:
                close(fd)
            return settled(self.turn, None, error)
        remote = self.enter(fd)
        remote.address = target
        if not failed:
            return settled(self.turn, remote)
        remote.stage = DIALING
        remote.registered = remote.watched = True
        failed = watch(self.epfd, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLONESHOT, remote.tag())
        if failed < 0:
            remote.drop()
            return settled(self.turn, None, os_error(-failed))
        remote.client = client
        remote.older = client.dials
        client.dials = remote
        if timeout:
            remote.deadline(timeout)
        remote.waiting = CONNECT
        remote.waiter = unsettled(self.turn)
        remote.waiter.dialled = remote
        return remote.waiter

    # -- relaying ------------------------------------------------------------

    def relay(self, Conn client not None, Conn remote not None, flow, bytes early not None):
        cdef Pair *pair
        if client.fd < 0 or remote.fd < 0 or client is remote:
            raise OSError(EBADF, "relay takes two open connections of this engine")
        pair = self.pairs.prepare(remote.fd, early)
        if not client.counted:
            self.sessions += 1
        if remote.counted:  # accepted here too, and both are one session from now on
            self.session_over()
        client.counted = remote.counted = False
        client.become(&pair.end[CLIENT_END], pair.relay)
        remote.become(&pair.end[REMOTE_END], pair.relay)
        return self.pairs.begin(pair, flow)

    # -- datagrams -----------------------------------------------------------

    def open_udp(
        self, Conn client not None, str host not None, sources, on_ask, bint is_local=False
    ):
        if client.fd < 0:
            raise OSError(EBADF, "this connection is closed or was handed over")
        return self.datagrams.open(&client.address, host, sources, on_ask, is_local)

    def associate(self, Conn client not None, Association association not None, flow):
        cdef int fd
        cdef uint64_t handle
        if client.fd < 0 or association.fd < 0:
            raise OSError(EBADF, "associate takes an open connection and a new association")
        if not client.counted:
            self.sessions += 1
        client.counted = False
        client.stage = GONE
        fd = client.leave()
        keep_alive(fd)
        try:
            handle = self.datagrams.begin(association, fd, self.pairs.least_busy(), flow)
        except BaseException:
            close(fd)
            self.session_over()
            raise
        return handle  # outside, as to make a number of it may fail, and fd is the relay's now

    # -- ends ----------------------------------------------------------------

    def kill(self, uint64_t handle):
        if handle & ASSOCIATION:
            self.datagrams.kill(handle)
        else:
            self.pairs.kill(handle)

    def counters(self):
        totals = {"accepted": self.accepted, "accept_pauses": self.pauses}
        self.pairs.count(totals)
        self.datagrams.count(totals, self.pairs.relays, self.pairs.relay_count)
        return totals

    cdef drain_ended(self):
        """Tells of what the relays have ended, in one batch."""
        cdef list batch = []
        if not (self.pairs.drain(batch) and self.datagrams.drain(batch)):
            self.come_back()
        for _ in batch:
            self.session_over()
        if batch:
            self.on_closed(batch)

    cdef void come_back(self) noexcept:
        """To what waits still, as there is no memory to speak of it."""
        timer_set(&self.wheel, &self.memory_timer, monotonic_ms() + MEMORY_PAUSE_MS)

    cdef listen_to_relays(self):
        try:
            self.drain_ended()
        finally:
            try:
                self.datagrams.put_questions(self.turn)
            finally:
                # With one left, no further one would make itself known.
                if self.datagrams.lacks_memory:
                    self.come_back()
                elif self.datagrams.waiting != NULL:
                    eventfd_write(self.pairs.ended_fd, 1)

    def close(self):
        cdef Conn conn
        if self.epfd < 0 or self.pid != getpid():
            return  # where it is a forked child's copy, the sockets are the parent's
        # None that is resumed may go on within this, and make what would be left over.
        self.turn.closed = True
        self.turn.under_way = False
        self.stop_listening()
        for conn in [conn for conn in self.table if conn is not None]:
            conn.drop()
        self.loop.remove_reader(self.epfd)
        timer_clear(&self.pairs.nudge_timer)
        self.end()
        self.drain_ended()

    cdef void end(self) noexcept:
        """Ends the relays, whose porch is in this epoll, before what they use goes."""
        if self.pid != getpid():
            return  # a forked child's copy: the sockets are the parent's
        if self.pairs is not None:
            self.pairs.end()
        if self.datagrams is not None:
            self.datagrams.closed = True
        if self.turn is not None:
            self.turn.closed = True
        if self.epfd >= 0:
            close(self.wheel.fd)
            close(self.epfd)
        self.epfd = self.wheel.fd = -1


cdef int connect_now(int fd, sockaddr *address, socklen_t length) noexcept nogil:
    """0, EINPROGRESS or why not. To a remote on this machine the handshake is over
    before the first connect() returns, though it says EINPROGRESS; asking once more
    spares those sessions a registration, an event and a turn of the loop, and costs
    the others one more system call."""
    if connect(fd, address, length) == 0:
        return 0
    if errno != EINPROGRESS:
        return errno
    if connect(fd, address, length) == 0:
        return 0
    return EINPROGRESS if errno == EALREADY else errno


cdef void keep_alive(int fd) noexcept:
    """So that it ends some day after its client has; no error ends a session."""
    cdef int on = 1
    cdef int idle
    cdef int interval
    cdef int probes
    idle, interval, probes = CONTROL_KEEPALIVE
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval))
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes))


cdef int bind_source(int fd, str source, int family) except -1:
    """The port is left to connect(): reserving one here would use it up for every
    destination, and there are 28,000."""
    cdef Address address
    cdef int on = 1
    cdef socklen_t length = parse_address(source, 0, &address)
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    if address.any.sa_family != family:
        raise OSError(EAFNOSUPPORT, "the source address is of the other family")
    if bind(fd, &address.any, length) < 0:
        raise os_error(errno)
    return 0
