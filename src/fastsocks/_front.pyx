# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The native engine (Linux) as Python sees it: accept, handshake and dial.

    accept -> Conn --hand-over--> Pair (_relay.pyx) -> ended list -> on_closed
                                    porch, then perhaps a relay thread

Everything here runs on the event loop's thread, driven by an epoll of its own that
is nested in the loop by one add_reader: edge-triggered inside (one registration
serves a whole handshake), level-triggered outside (what a turn leaves undone makes
the loop come again). The porch, where pairs begin, shares this epoll and its turns. It
must not know SOCKS.
"""

import asyncio
import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetObject
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastsocks._address cimport Address, endpoint_of, os_error, parse_address
from fastsocks._datagrams cimport Association, Datagrams
from fastsocks._linux cimport *
from fastsocks._relay cimport *
from fastsocks._udp cimport udp_abandon, udp_close

from fastsocks import engine as contract
from fastsocks.errors import ClientGone
from fastsocks.quiet import QuietLog

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(object iterator, object value, PyObject **result) except PYGEN_ERROR

cdef tuple REASONS = (
    contract.FINISHED, contract.CLIENT_RESET, contract.REMOTE_RESET,
    contract.IDLE, contract.HALF_CLOSED, contract.KILLED,
)

cdef enum:
    FIRST_READ = 16 * 1024
    ACCEPTS_PER_TURN = 16
    ACCEPT_PAUSE_MS = 100
    # A refused client may send this much more before it is cut off.
    LINGER_OCTETS = 256 * 1024
    # A session that never moves an octet gets its idle timer by this much late.
    NUDGE_MS = 1000

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
cdef class Outcome:
    """What recv, send and dial return: often over before anybody awaits it.

    A future as asyncio.Task knows them, but one that resumes its Task in the turn
    of the event itself: no handle, no call_soon, no further turn of the loop.
    """

    cdef public bint _asyncio_future_blocking
    cdef Engine engine
    cdef bint over
    cdef object value
    cdef object error
    cdef Visit visit            # that waits for it
    cdef list callbacks         # (function, context) of others; made when there is one
    cdef Conn dialled           # what cancel() has to close, while it is under way

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.over:
            self._asyncio_future_blocking = True
            return self
        if self.error is not None:
            raise self.error
        # What is raised gets a traceback: 2,800 instructions, of a session's 77,000 in user
        # space. No value is a tuple, which would become the exception's arguments.
        PyErr_SetObject(StopIteration, self.value)
        raise StopIteration

    def get_loop(self):
        return self.engine.loop

    def done(self):
        return self.over

    def cancelled(self):
        return isinstance(self.error, asyncio.CancelledError)

    def result(self):
        if not self.over:
            raise asyncio.InvalidStateError("not over yet")
        if self.error is not None:
            raise self.error
        return self.value

    def exception(self):
        if not self.over:
            raise asyncio.InvalidStateError("not over yet")
        if self.cancelled():
            raise self.error
        return self.error

    def cancel(self, msg=None):
        cdef Conn remote = self.dialled
        if self.over:
            return False
        if remote is not None:
            remote.waiter = None
            remote.drop()
        self.settle(None, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def add_done_callback(self, function, *, context=None):
        if self.over:
            self.engine.loop.call_soon(function, self, context=context)
        elif self.callbacks is None:
            self.callbacks = [(function, context)]
        else:
            self.callbacks.append((function, context))

    def remove_done_callback(self, function):
        kept = [entry for entry in self.callbacks or () if entry[0] != function]
        removed = len(self.callbacks or ()) - len(kept)
        self.callbacks = kept
        return removed

    cdef settle(self, object value, object error):
        """Once; resumes whoever waits, and so must be the last thing its caller does."""
        if self.over:
            return
        self.over = True
        self.value = value
        self.error = error
        self.dialled = None
        visit, self.visit = self.visit, None
        if visit is not None:
            self.engine.go_on(visit)
        callbacks, self.callbacks = self.callbacks, None
        if callbacks is not None:
            for function, context in callbacks:
                self.engine.resume(function, context, self)


cdef Outcome settled(Engine engine, object value, object error=None):
    cdef Outcome outcome = Outcome.__new__(Outcome)
    outcome.engine = engine
    outcome.over = True
    outcome.value = value
    outcome.error = error
    return outcome


cdef Outcome unsettled(Engine engine):
    cdef Outcome outcome = Outcome.__new__(Outcome)
    outcome.engine = engine
    return outcome


@cython.final
@cython.freelist(256)
cdef class Visit:
    """See engine.Visit. Drives a coroutine as a Task does, and is none for as long as that
    waits for this engine only: a Task is entered in two registers, has a context of its
    own and begins by a handle of the loop, which took 12,000 of a session's 86,000
    instructions in user space.

    Once there has to be a Task, this is its coroutine.
    """

    cdef Engine engine
    cdef object session         # the coroutine that is driven
    cdef Outcome waits_for
    cdef object awaited         # by the session, when it became a Task
    cdef readonly object task

    def begin(self):
        self.engine.go_on(self)

    def cancel(self):
        if self.task is not None:
            self.task.cancel()
        elif self.waits_for is not None:
            self.waits_for.cancel()

    cpdef step(self):
        """To the next wait, or to the end."""
        cdef PyObject *result = NULL
        cdef PySendResult how
        self.waits_for = None
        try:
            how = PyIter_Send(self.session, None, &result)
        except asyncio.CancelledError:
            return
        awaited = <object>result
        Py_DECREF(awaited)
        if how == PYGEN_RETURN:
            return
        if type(awaited) is Outcome:
            self.waits_for = <Outcome>awaited
            self.waits_for._asyncio_future_blocking = False
            self.waits_for.visit = self
        else:
            self.awaited = awaited
            self.task = asyncio.Task(self, loop=self.engine.loop, name="fastsocks session")

    # -- what is left of it, for its Task ------------------------------------

    def __await__(self):
        return self

    def send(self, value):
        awaited, self.awaited = self.awaited, None
        return self.session.send(value) if awaited is None else awaited

    def throw(self, *error):
        self.awaited = None
        return self.session.throw(*error)

    def close(self):
        self.session.close()


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
    cdef Waiting waiting
    cdef Outcome waiter         # of what is under way, or the last that was
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

    cdef bint is_tcp(self) noexcept:
        return self.address.any.sa_family in (AF_INET, AF_INET6)

    def recv_now(self):
        cdef bytes data = self.stash
        self.check()
        if data is not None:
            self.stash = None
            return data
        return self.read()

    def recv(self):
        data = self.recv_now()
        return self.wait(RECV) if data is None else settled(self.engine, data)

    def send_now(self, bytes data not None):
        self.check()
        self.unsent = data
        self.pushed = 0
        return self.push()

    def sent(self):
        self.check()
        return settled(self.engine, None) if self.unsent is None else self.wait(SEND)

    def send(self, bytes data not None):
        return settled(self.engine, None) if self.send_now(data) else self.wait(SEND)

    def has_left(self):
        return self.was_reset() or self.fin

    def was_reset(self):
        if self.fd >= 0:
            self.watch()
        return self.fd < 0 or self.reset

    def deadline(self, double seconds):
        self.expired = False
        if self.fd < 0:
            return
        if seconds:
            timer_set(&self.engine.wheel, &self.timer, monotonic_ms() + <uint64_t>(seconds * 1000))
        else:
            timer_clear(&self.timer)

    def refuse(self, bytes last_words not None):
        if self.fd < 0 or self.stage == LINGERING:
            return
        self.stage = LINGERING
        if PyBytes_GET_SIZE(last_words):
            send(self.fd, PyBytes_AS_STRING(last_words), PyBytes_GET_SIZE(last_words),
                 MSG_DONTWAIT | MSG_NOSIGNAL)
        shutdown(self.fd, SHUT_WR)
        self.deadline(self.engine.settings.linger_timeout or 1.0)
        self.readable = True
        self.drain()
        if self.fd >= 0:
            self.watch()

    def close(self):
        if self.stage != LINGERING:
            self.drop()

    # -- for the engine ----------------------------------------------------

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
        self.waiter = unsettled(self.engine)
        self.watch()
        return self.waiter

    cdef int watch(self) except -1:
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

    cdef int leave(self):
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

    cdef untie(self):
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
        cdef Outcome waiter = self.waiter
        self.waiter = None
        self.waiting = NOTHING
        if waiter is not None:
            waiter.settle(value, error)

    cdef on_event(self, uint32_t events):
        cdef bytes data
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
        elif self.dials is not None and self.reset:
            while self.dials is not None:  # each takes itself off the list
                remote = self.dials
                remote.on_dial_failed(ClientGone("reset the connection during the dial"))
        elif self.waiter is None or self.waiter.over:
            pass  # nobody waits (any more): what came stays in the socket
        elif self.waiting == RECV:
            try:
                data = self.read()
            except OSError as error:
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
        cdef Outcome waiter = self.waiter
        self.waiter = None
        self.drop()
        if waiter is not None:
            waiter.settle(None, error)

    cdef on_deadline(self):
        if self.stage == NEW or self.stage == LINGERING:
            self.drop()
        elif self.stage == DIALING:
            self.on_dial_failed(os_error(ETIMEDOUT))
        elif self.waiter is not None and not self.waiter.over:
            self.expired = True
            self.finish(None, TimeoutError())
        else:
            self.expired = True


@cython.final
@cython.no_gc_clear  # what `datagrams` owns is in use until the relay threads are joined
cdef class Engine:
    """See engine.Engine. One loop, one front; the relay threads are its own."""

    cdef readonly object loop
    cdef readonly uint32_t sessions
    cdef object settings
    cdef object on_closed
    cdef object quiet
    cdef list listeners         # (socket, on_client)
    cdef bint accepting
    cdef int epfd
    cdef int ended_fd
    cdef void *ended            # Pair list, pushed by the relay threads
    cdef Wheel wheel
    cdef Timer resume_timer     # accepting goes on
    cdef Timer nudge_timer      # newcomers that no event has made known
    cdef char *buffer
    cdef PyObject **table       # Conn by index, NULL where free
    cdef uint32_t *generations
    cdef uint32_t table_size
    cdef list free_indices
    cdef Arena arena
    cdef Datagrams datagrams    # UDP associations, served by the same relays
    cdef Relay *relays          # first the one without a thread, then those with one
    cdef int relay_count
    cdef bint threaded
    cdef bint keepalive         # where nothing else ends a session with a dead peer
    cdef uint64_t accepted
    cdef uint64_t pauses
    cdef uint64_t relayed
    cdef uint64_t moved_on      # from the porch
    cdef int effective_pipe
    cdef bint resuming          # a turn is under way, and neither Task nor visit

    def __cinit__(self):
        self.epfd = self.ended_fd = -1
        self.wheel.fd = -1

    def __init__(self, loop, settings, on_closed):
        cdef int i
        self.loop = loop
        self.settings = settings
        self.on_closed = on_closed
        self.quiet = QuietLog(logging.getLogger("fastsocks"))
        self.listeners = []
        self.free_indices = []
        self.datagrams = Datagrams(settings)
        self.buffer = <char *>malloc(FIRST_READ)
        self.threaded = settings.relay_threads > 0
        self.keepalive = settings.needs_keepalive
        self.relays = <Relay *>calloc(1 + settings.relay_threads, sizeof(Relay))
        if self.buffer == NULL or self.relays == NULL:
            raise MemoryError
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        self.ended_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.epfd < 0 or self.ended_fd < 0 or wheel_open(&self.wheel, self.epfd) < 0:
            self.fail_to_start(errno)
        if watch(self.epfd, EPOLL_CTL_ADD, self.ended_fd, EPOLLIN | EPOLLET, TAG_ENDED) < 0:
            self.fail_to_start(errno)
        self.effective_pipe = pipe_probe(settings.pipe_size)
        for i in range(1 + settings.relay_threads):
            self.start_relay(&self.relays[i])
        self.loop.add_reader(self.epfd, self.run_once)

    def __dealloc__(self):
        cdef uint32_t i
        self.end_relays()  # of an engine that nobody closed
        free(self.buffer)
        free(self.relays)
        free(self.table)
        free(self.generations)
        for i in range(self.arena.count // CHUNK):
            free(self.arena.chunks[i])

    @property
    def name(self):
        return "native"

    def describe(self):
        settings = self.settings
        how = f"relay {settings.relay} "
        how += f"in {settings.relay_threads} thread" if self.threaded else "inline"
        if settings.relay_threads > 1:
            how += "s"
        if settings.relay == "copy" or not settings.max_pipes:
            return how + ", no pipes"
        if self.effective_pipe < PIPE_MIN:
            return how + ", no pipes to be had: this user's quota is used up"
        return how + f", {settings.max_pipes} pipes of {self.effective_pipe >> 10} KiB"

    def fileno(self):
        return self.epfd

    # -- listening ---------------------------------------------------------

    def listen(self, sock, on_client):
        cdef int failed
        sock.setblocking(False)
        if not self.listeners:
            self.accepting = True
        # Level-triggered: what a turn's budget leaves in the backlog stays ready.
        failed = watch(self.epfd, EPOLL_CTL_ADD, sock.fileno(), EPOLLIN if self.accepting else 0,
                       TAG_LISTENER + len(self.listeners))
        if failed < 0:
            raise os_error(-failed)
        self.listeners.append((sock, on_client))

    def stop_listening(self):
        timer_clear(&self.resume_timer)
        self.accepting = False
        for sock, _ in self.listeners:
            # Where somebody else has it open too (a service manager, a forked child),
            # closing alone would leave it in the epoll, ready for ever.
            watch(self.epfd, EPOLL_CTL_DEL, sock.fileno(), 0, 0)
            sock.close()
        self.listeners.clear()

    cdef set_accepting(self, bint accepting):
        cdef uint32_t number
        if accepting == self.accepting:
            return
        self.accepting = accepting
        for number, (sock, _) in enumerate(self.listeners):
            watch(self.epfd, EPOLL_CTL_MOD, sock.fileno(), EPOLLIN if accepting else 0,
                  TAG_LISTENER + number)

    cdef pause_accepting(self):
        self.pauses += 1
        self.set_accepting(False)

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
        sock, on_client = self.listeners[number]
        cdef int listener = sock.fileno()
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
                conn = self.enter(fd)
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
            if error == EAGAIN or error == EBADF or error == EINVAL:
                return
            if error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM:
                # The backlog keeps the clients; trying again at once would spin.
                self.quiet.warning("accept", "accepting pauses for %d ms: %s",
                                   ACCEPT_PAUSE_MS, os.strerror(error))
                self.pause_accepting()
                timer_set(&self.wheel, &self.resume_timer, monotonic_ms() + ACCEPT_PAUSE_MS)
                return
            # All else (ECONNABORTED, EPERM, network errors of the new socket) is about
            # one client that is gone already.

    cdef greet(self, Conn conn):
        """Reads the first octets; only with them does Python get to know the client."""
        cdef bytes data
        conn.readable = True
        try:
            data = conn.read()
        except OSError:
            data = b""
        if data is None:
            try:
                conn.watch()
            except OSError:
                conn.drop()  # nothing would ever be heard of it
                raise
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
        cdef Conn conn = Conn.__new__(Conn)
        if not self.free_indices:
            try:
                self.grow_table()
            except MemoryError:
                close(fd)
                raise
        conn.engine = self
        conn.fd = fd
        conn.stage = SESSION
        conn.index = self.free_indices.pop()
        conn.generation = self.generations[conn.index]
        conn.timer.owner = <void *>conn
        conn.readable = True
        Py_INCREF(conn)
        self.table[conn.index] = <PyObject *>conn
        return conn

    cdef forget(self, Conn conn):
        """Takes the connection off the front's epoll and table. Even a registration
        that has fired its one shot would cost every later wake-up of the socket."""
        if conn.registered:
            watch(self.epfd, EPOLL_CTL_DEL, conn.fd, 0, 0)
        self.table[conn.index] = NULL
        self.generations[conn.index] += 1
        self.free_indices.append(conn.index)
        Py_DECREF(conn)

    cdef grow_table(self):
        cdef uint32_t size = self.table_size * 2 if self.table_size else 256
        cdef uint32_t i
        table = <PyObject **>calloc(size, sizeof(PyObject *))
        generations = <uint32_t *>calloc(size, sizeof(uint32_t))
        if table == NULL or generations == NULL:
            free(table)
            free(generations)
            raise MemoryError
        for i in range(self.table_size):
            table[i] = self.table[i]
            generations[i] = self.generations[i]
        free(self.table)
        free(self.generations)
        self.table = table
        self.generations = generations
        self.free_indices.extend(range(<int>self.table_size, <int>size))
        self.table_size = size

    # -- a turn of the front -------------------------------------------------

    def run_once(self):
        """Called by the loop when the front's epoll has something."""
        cdef epoll_event events[MAX_EVENTS]
        cdef int count = epoll_wait(self.epfd, events, MAX_EVENTS, 0)
        if count < 0:
            return  # EINTR, after a stop of this process: nothing has been looked at
        self.resuming = True
        try:
            self.take_turn(events, count)
        finally:
            self.resuming = False

    cdef take_turn(self, epoll_event *events, int count):
        cdef int i
        cdef uint64_t data
        try:
            self.relay_inline(events, count)
        except Exception as error:
            self.report(error)
        for i in range(count):
            data = events[i].data.u64
            if data & ASSOCIATION or not data & FRONT:
                continue
            try:
                if data == TAG_ENDED:
                    try:
                        self.drain_ended()
                    finally:
                        # With one left, no further one would make itself known.
                        self.datagrams.put_questions(self.report)
                elif data >> 32 == 0 and data >= TAG_LISTENER:
                    self.accept(<uint32_t>(data - TAG_LISTENER))
                else:
                    self.on_conn_event(data, events[i].events)
            except Exception as error:
                self.report(error)
        try:
            self.expire()
        except Exception as error:
            self.report(error)

    def visit(self, session):
        cdef Visit visit = Visit.__new__(Visit)
        visit.engine = self
        visit.session = session
        return visit

    cdef resume(self, function, context, Outcome outcome):
        """Runs a callback at once where no Task is running, which is in a turn of the
        front but not in what that turn has resumed; else the loop does it soon."""
        if not self.resuming:
            self.loop.call_soon(function, outcome, context=context)
            return
        self.resuming = False
        try:
            if context is None:
                function(outcome)
            else:
                context.run(function, outcome)
        except Exception as error:
            self.report(error)
        finally:
            self.resuming = self.epfd >= 0

    cdef go_on(self, Visit visit):
        """The same for a visit."""
        if not self.resuming:
            self.loop.call_soon(visit.step)
            return
        self.resuming = False
        try:
            visit.step()
        except Exception as error:
            self.report(error)
        finally:
            self.resuming = self.epfd >= 0

    cdef on_conn_event(self, uint64_t data, uint32_t events):
        cdef uint32_t index = <uint32_t>data & ~<uint32_t>FRONT
        cdef Conn conn  # a reference of its own: the table's may go during the event
        if index < self.table_size and self.table[index] != NULL:
            if self.generations[index] == <uint32_t>(data >> 32):
                conn = <Conn>self.table[index]
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
                elif timer == &self.nudge_timer:
                    self.nudge()
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

    def report(self, error):
        self.loop.call_exception_handler(
            {"message": "fastsocks: error in a callback of the engine", "exception": error}
        )

    cdef session_over(self):
        self.sessions -= 1
        if not self.accepting and self.listeners and self.resume_timer.next == NULL:
            self.set_accepting(True)

    # -- dialling ------------------------------------------------------------

    def adopt(self, sock):
        cdef Conn conn
        cdef int fd
        cdef int on = 1
        cdef socklen_t length = sizeof(Address)
        if self.epfd < 0:
            raise OSError(EBADF, "this engine is closed")
        fd = sock.detach()
        conn = self.enter(fd)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))  # not for Unix sockets
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
        if client.fd < 0 or client.reset:
            return settled(self, None, ClientGone("reset the connection before the dial"))
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
                client.watch()
            elif failed:
                raise os_error(failed)
        except OSError as error:
            if fd >= 0:
                close(fd)
            return settled(self, None, error)
        remote = self.enter(fd)
        remote.address = target
        if not failed:
            return settled(self, remote)
        remote.stage = DIALING
        remote.registered = remote.watched = True
        failed = watch(self.epfd, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLONESHOT, remote.tag())
        if failed < 0:
            remote.drop()
            return settled(self, None, os_error(-failed))
        remote.client = client
        remote.older = client.dials
        client.dials = remote
        if timeout:
            remote.deadline(timeout)
        remote.waiting = CONNECT
        remote.waiter = unsettled(self)
        remote.waiter.dialled = remote
        return remote.waiter

    # -- relaying ------------------------------------------------------------

    def relay(self, Conn client not None, Conn remote not None, flow, bytes early not None):
        cdef Pair *pair
        if client.fd < 0 or remote.fd < 0 or client is remote:
            raise OSError(EBADF, "relay takes two open connections of this engine")
        pair = self.new_pair()
        try:
            pair.end[1].out_armed = self.send_early(pair, remote.fd, early)
        except BaseException:
            self.free_pair(pair)
            raise
        if not client.counted:
            self.sessions += 1
        client.counted = False
        self.relayed += 1
        client.become(&pair.end[0], pair.relay)
        remote.become(&pair.end[1], pair.relay)
        Py_INCREF(flow)
        pair.flow = <void *>flow
        handle = (<uint64_t>pair.generation << 32) | pair.index
        self.join(pair)
        return handle

    cdef join(self, Pair *pair):
        """Puts a pair in the epoll of its relay. Whatever it has not dealt with makes an
        event at once."""
        cdef int failed = 0
        cdef int which
        if pair.relay.inline_:
            pair_set_timer(pair.relay, pair)
        elif pair_limit(pair.relay, pair):
            # Before it can end, see relay_welcome(); without a wake-up, which would
            # cost every session more than its timer is worth.
            push_list(&pair.relay.newcomers, pair, <void **>&pair.next)
            if self.nudge_timer.next == NULL:
                timer_set(&self.wheel, &self.nudge_timer,
                          pair.active_ms + min(pair_limit(pair.relay, pair), <uint64_t>NUDGE_MS))
        store_u32(&pair.state, JOINING)
        for which in range(2):
            if failed == 0:
                failed = watch(
                    pair.relay.epfd, EPOLL_CTL_MOD if pair.end[which].known else EPOLL_CTL_ADD,
                    pair.end[which].fd, WATCH_IN | (EPOLLOUT if pair.end[which].out_armed else 0),
                    pair_data(pair, which))
        if not swap_u32_if(&pair.state, JOINING, LIVE):
            store_u32(&pair.state, LIVE)
            self.command(pair.relay, RUN, pair.index, pair.generation)
        if failed < 0:
            self.command(pair.relay, KILL, pair.index, pair.generation)

    cdef move_on(self):
        """From the porch to the relays with threads. Nothing knows these pairs meanwhile:
        the porch has noted all its events, and no thread has heard of them."""
        cdef Relay *porch = &self.relays[0]
        cdef Pair *pair = porch.leaving
        cdef Pair *after
        cdef int which
        porch.leaving = NULL
        while pair != NULL:
            after = pair.next
            timer_clear(&pair.timer)
            for which in range(2):
                watch(self.epfd, EPOLL_CTL_DEL, pair.end[which].fd, 0, 0)
                pair.end[which].known = 0
            porch.pairs -= 1
            pair.relay = self.least_busy()
            pair.relay.pairs += 1
            pair.leaving = 0
            self.moved_on += 1
            try:
                self.join(pair)
            except MemoryError as error:
                self.report(error)  # the others have not joined yet
            pair = after

    # -- datagrams -----------------------------------------------------------

    def open_udp(self, Conn client not None, str host not None, sources, on_ask):
        if client.fd < 0:
            raise OSError(EBADF, "this connection is closed or was handed over")
        return self.datagrams.open(&client.address, host, sources, on_ask)

    def associate(self, Conn client not None, Association association not None, flow):
        cdef int fd
        if client.fd < 0 or association.fd < 0:
            raise OSError(EBADF, "associate takes an open connection and a new association")
        if not client.counted:
            self.sessions += 1
        client.counted = False
        client.stage = GONE
        fd = client.leave()
        try:
            return self.datagrams.take(association, fd, self.least_busy(), flow)
        except BaseException:
            close(fd)
            self.session_over()
            raise

    def kill(self, uint64_t handle):
        cdef uint32_t index = <uint32_t>handle
        cdef Pair *pair
        if index & ASSOCIATION:
            self.datagrams.kill(handle)
            return
        if index >= self.arena.count:
            return
        pair = arena_at(&self.arena, index)
        if pair.generation == <uint32_t>(handle >> 32) and load_u32(&pair.state) != FREE:
            self.command(pair.relay, KILL, index, pair.generation)

    def counters(self):
        cdef int i
        totals = {
            "accepted": self.accepted, "accept_pauses": self.pauses, "relayed": self.relayed,
            "moved_on": self.moved_on, "spliced": 0, "copied": 0, "pipes": 0, "pipes_refused": 0,
            "slots": 0,
        }
        for i in range(self.relay_count):
            totals["spliced"] += load_u64(&self.relays[i].stats.spliced)
            totals["copied"] += load_u64(&self.relays[i].stats.copied)
            totals["pipes"] += load_u64(&self.relays[i].stats.pipes)
            totals["pipes_refused"] += load_u64(&self.relays[i].stats.refused)
            totals["slots"] += self.relays[i].pairs
        self.datagrams.count(totals, self.relays, self.relay_count)
        return totals

    cdef Pair *new_pair(self) except NULL:
        """A cleared slot, given to the relay that has the fewest."""
        cdef Pair *pair = self.arena.free
        cdef Pair *chunk
        cdef Relay *relay = &self.relays[0]
        cdef int i
        if relay.only_splice:
            relay = self.least_busy()
        if pair == NULL:
            if self.arena.count == CHUNK * CHUNKS:
                raise MemoryError
            chunk = <Pair *>calloc(CHUNK, sizeof(Pair))
            if chunk == NULL:
                raise MemoryError
            for i in range(CHUNK):
                chunk[i].index = self.arena.count + i
                chunk[i].next = &chunk[i + 1] if i + 1 < CHUNK else NULL
            self.arena.chunks[self.arena.count // CHUNK] = chunk
            self.arena.count += CHUNK
            pair = chunk
        self.arena.free = pair.next
        relay.pairs += 1
        pair.relay = relay
        pair.timer.owner = <void *>pair
        pair.next = NULL
        pair.active_ms = monotonic_ms()
        pair.dir[UP].splicing = pair.dir[DOWN].splicing = relay.only_splice
        return pair

    cdef Relay *least_busy(self):
        """Of those with a thread, where there are any."""
        cdef int first = 1 if self.threaded else 0
        cdef Relay *relay = &self.relays[first]
        cdef int i
        for i in range(first + 1, self.relay_count):
            if self.relays[i].pairs < relay.pairs:
                relay = &self.relays[i]
        return relay

    cdef free_pair(self, Pair *pair):
        cdef uint32_t generation = pair.generation
        pair.relay.pairs -= 1
        # The generation goes first: from then on no event or command finds the slot.
        store_u32(&pair.generation, generation + 1)
        store_u32(&pair.state, FREE)
        memset(&pair.timer, 0, sizeof(Timer))
        memset(pair.end, 0, sizeof(pair.end))
        memset(pair.dir, 0, sizeof(pair.dir))
        pair.queued = pair.leaving = pair.turns = 0
        pair.next = self.arena.free
        self.arena.free = pair

    cdef bint send_early(self, Pair *pair, int fd, bytes early) except -1:
        """Whether some of the client's early payload is left for the relay to send."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(early)
        cdef Direction *up = &pair.dir[UP]
        cdef ssize_t sent = 0
        if size:
            sent = send(fd, PyBytes_AS_STRING(early), size, MSG_DONTWAIT | MSG_NOSIGNAL)
            sent = max(sent, 0)  # an error comes back when the relay tries
            up.moved = sent
        if sent == size:
            return False
        up.spill = <char *>malloc(size - sent)
        if up.spill == NULL:
            raise MemoryError
        memcpy(up.spill, PyBytes_AS_STRING(early) + sent, size - sent)
        up.spill_to = size - sent
        return True

    cdef command(self, Relay *relay, Order order, uint32_t index, uint32_t generation):
        cdef Command *command = <Command *>malloc(sizeof(Command))
        if command == NULL:
            raise MemoryError
        command.order = order
        command.index = index
        command.generation = generation
        relay_order(relay, command)

    cdef nudge(self):
        cdef int i
        for i in range(1, self.relay_count):
            eventfd_write(self.relays[i].wake_fd, 1)

    cdef drain_ended(self):
        """Takes what the relays have ended, in one batch, and frees the slots."""
        cdef Pair *pair = <Pair *>take_list(&self.ended)
        cdef Pair *after
        cdef list batch = []
        while pair != NULL:
            after = pair.next
            flow = <object>pair.flow
            batch.append((flow, pair.dir[UP].moved, pair.dir[DOWN].moved,
                          REASONS[pair.reason], pair.error))
            Py_DECREF(flow)
            self.free_pair(pair)
            self.session_over()
            pair = after
        associations = self.datagrams.drain()
        for _ in associations:
            self.session_over()
        batch += associations
        if batch:
            self.on_closed(batch)

    # -- start and end -------------------------------------------------------

    cdef start_relay(self, Relay *relay):
        cdef int failed
        settings = self.settings
        relay.arena = &self.arena
        relay.ended = &self.ended
        relay.ended_fd = self.ended_fd
        relay.epfd = relay.wake_fd = relay.wheel.fd = -1
        if relay == &self.relays[0]:
            relay.inline_ = True
            relay.porch = self.threaded
            relay.epfd = self.epfd
        relay.pipe_size = settings.pipe_size
        relay.max_pipes = self.share_of_pipes(relay)
        relay.may_splice = settings.relay != "copy" and (relay.max_pipes or not relay.porch)
        relay.only_splice = settings.relay == "splice"
        relay.idle_ms = <uint64_t>(settings.idle_timeout * 1000)
        relay.half_ms = <uint64_t>(settings.half_closed_timeout * 1000)
        self.relay_count += 1
        failed = relay_open(relay)
        if failed < 0:
            self.fail_to_start(-failed)
        try:
            self.datagrams.serve_on(relay)
        except BaseException:
            self.close()
            raise
        if relay.inline_:
            return
        failed = pthread_create(&relay.thread, NULL, relay_thread, relay)
        if failed:
            self.fail_to_start(failed)
        relay.started = True
        pthread_setname_np(relay.thread, b"fastsocks-relay")

    cdef int share_of_pipes(self, Relay *relay):
        """An eighth is for the porch, where few are held: none where there are hardly any.
        A thread has one at least, if there are any."""
        cdef int every = self.settings.max_pipes
        cdef int threads = self.settings.relay_threads
        if not threads:
            return every
        if relay.porch:
            return every // 8
        return max(every // threads - every // threads // 8, 1 if every else 0)

    cdef relay_inline(self, epoll_event *events, int count):
        """A turn of the relay that has no thread: before the front's own, so that a pair
        of this batch is not handed over, or freed, before its events are noted."""
        cdef Relay *relay = &self.relays[0]
        with nogil:
            relay_take(relay, events, count)
        if relay.run_first != NULL:
            eventfd_write(relay.wake_fd, 1)
        if relay.leaving != NULL:
            self.move_on()
        if relay.batch != NULL:
            relay_publish(relay)
            self.drain_ended()

    cdef fail_to_start(self, int error):
        self.close()
        raise os_error(error)

    def close(self):
        cdef uint32_t index
        cdef Conn conn
        if self.epfd < 0:
            return
        self.stop_listening()
        timer_clear(&self.nudge_timer)
        for index in range(self.table_size):
            if self.table[index] != NULL:
                conn = <Conn>self.table[index]
                conn.drop()
        self.loop.remove_reader(self.epfd)
        self.end_relays()
        self.drain_ended()

    cdef void end_relays(self) noexcept:
        """Joins the threads, ends their pairs and closes what is left, once."""
        cdef Relay *relay
        cdef int i
        for i in range(self.relay_count):
            relay = &self.relays[i]
            store_u32(&relay.stopping, 1)
            if relay.started:
                eventfd_write(relay.wake_fd, 1)
                # Waiting with the GIL held is safe: a relay thread never wants it.
                pthread_join(relay.thread, NULL)
            relay_abandon(relay)
            udp_abandon(relay)
            udp_close(relay)
            relay_close(relay)
        self.relay_count = 0
        if self.datagrams is not None:
            self.datagrams.closed = True
        if self.epfd >= 0:
            close(self.wheel.fd)
            close(self.ended_fd)
            close(self.epfd)
        self.epfd = self.ended_fd = self.wheel.fd = -1


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


cdef int bind_source(int fd, str source, int family) except -1:
    """The port is left to connect(): reserving one here would use it up for every
    destination, and there are 28,000."""
    cdef Address address
    cdef int on = 1
    cdef socklen_t length = parse_address(source, 0, &address)
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on))
    if address.any.sa_family != family:
        raise OSError(97, "the source address is of the other family")
    if bind(fd, &address.any, length) < 0:
        raise os_error(errno)
    return 0
