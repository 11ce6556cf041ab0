# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Relayed sessions as the loop's thread sees them: relays started, pairs of sockets
handed over to one, moved on from the porch, and taken back when they have ended.

    prepare -> begin --join--> Pair (_relay.pyx) -> ended list -> drain
                                porch, then perhaps a relay thread

Payload never comes by here but for what a client sent before its reply. It must not know
how a connection came to stand.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastsocks._address cimport os_error
from fastsocks._datagrams cimport Datagrams
from fastsocks._linux cimport (
    EAGAIN, EFD_CLOEXEC, EFD_NONBLOCK, EPOLLET, EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_DEL,
    EPOLL_CTL_MOD, MSG_DONTWAIT, MSG_NOSIGNAL, close, epoll_event, errno, eventfd,
    eventfd_write, load_u32, load_u64, pthread_create, pthread_join, pthread_setname_np,
    push_list, send, store_u32, swap_u32_if, take_list
)
from fastsocks._relay cimport (
    CHUNK, CHUNKS, Command, DOWN, Direction, FREE, JOINING, KILL, LIVE, Order, Pair, REMOTE_END,
    RUN, Relay, Stats, TAG_ENDED, Timer, UP, WATCH_IN, Wheel, arena_at, milliseconds, monotonic_ms,
    pair_data, pair_limit, pair_set_timer, relay_abandon, relay_close, relay_open, relay_order,
    relay_publish, relay_thread, relay_turn, timer_clear, timer_set, watch
)
from fastsocks._udp cimport udp_abandon, udp_close
from fastsocks._visits cimport Turn

from fastsocks import engine as contract

cdef tuple REASONS = contract.REASONS

cdef enum:
    # A session that never moves an octet gets its idle timer by this much late.
    NUDGE_MS = 1000
    # A session that moved this much had better begun on a thread: it costs 7 % less CPU
    # there at this size, 20 % at 1 MB and 15 % at 4 MB; one of 1 octet costs 15 % more.
    LARGE = 256 * 1024
    # Each large one that ends adds to a count, every other takes from it, from 0 to this;
    # in its upper half the next is taken to be large.
    SWAY = 16


@cython.final
cdef class Pairs:
    """The pairs of one engine, and the relays that have them; for _front.pyx alone."""

    def __cinit__(self):
        self.ended_fd = -1

    def __init__(self, settings, Turn turn not None):
        self.settings = settings
        self.turn = turn
        self.threaded = settings.relay_threads > 0
        self.relays = <Relay *>calloc(1 + settings.relay_threads, sizeof(Relay))
        if self.relays == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        free(self.relays)
        for i in range(self.arena.count // CHUNK):
            free(self.arena.chunks[i])

    # -- start and end -------------------------------------------------------

    cdef int open(self, int epfd, Wheel *wheel, Datagrams datagrams) except -1:
        """Where it fails end() closes what is open."""
        cdef int i
        cdef int failed
        self.epfd = epfd
        self.wheel = wheel
        self.ended_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.ended_fd < 0:
            raise os_error(errno)
        failed = watch(epfd, EPOLL_CTL_ADD, self.ended_fd, EPOLLIN | EPOLLET, TAG_ENDED)
        if failed < 0:
            raise os_error(-failed)
        for i in range(1 + self.settings.relay_threads):
            self.open_relay(&self.relays[i])
            datagrams.serve_on(&self.relays[i])
            self.start_thread(&self.relays[i])
        return 0

    cdef int open_relay(self, Relay *relay) except -1:
        cdef int failed
        settings = self.settings
        relay.arena = &self.arena
        relay.ended = &self.ended
        relay.ended_fd = self.ended_fd
        relay.epfd = relay.wake_fd = relay.wheel.fd = relay.ring.fd = -1
        if relay == &self.relays[0]:
            relay.inline_ = True
            relay.porch = self.threaded
            relay.epfd = self.epfd
        relay.pipe_size = settings.pipe_size
        relay.max_pipes = self.share_of_pipes(relay)
        relay.may_splice = settings.relay != "copy" and (relay.max_pipes or not relay.porch)
        relay.only_splice = settings.relay == "splice"
        relay.may_batch = settings.io_uring
        relay.idle_ms = milliseconds(settings.idle_timeout)
        relay.half_ms = milliseconds(settings.half_closed_timeout)
        self.relay_count += 1
        failed = relay_open(relay)
        if failed < 0:
            raise os_error(-failed)
        return 0

    cdef int start_thread(self, Relay *relay) except -1:
        cdef int failed
        if relay.inline_:
            return 0
        failed = pthread_create(&relay.thread, NULL, relay_thread, relay)
        if failed == EAGAIN:
            raise OSError(EAGAIN, "no relay thread can be started (ulimit -u, or a limit of the"
                                  " container's)")
        if failed:
            raise os_error(failed)
        relay.started = True
        pthread_setname_np(relay.thread, b"fastsocks-relay")
        return 0

    cdef int share_of_pipes(self, Relay *relay) except -1:
        """An eighth is for the porch, where few are held: none where there are hardly any.
        The threads share the rest, of which the first have one more where it leaves some."""
        cdef int every = self.settings.max_pipes
        cdef int threads = self.settings.relay_threads
        cdef int porch = every // 8
        if not threads:
            return every
        if relay.porch:
            return porch
        return (every - porch + threads - (relay - self.relays)) // threads

    cdef void end(self) noexcept:
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
        if self.ended_fd >= 0:
            close(self.ended_fd)
        self.ended_fd = -1

    # -- a pair begins -------------------------------------------------------

    cdef Pair *prepare(self, int remote, bytes early) except NULL:
        """A pair without sockets, for one whose remote will be this one. The remote has been
        sent what the client sent early, as far as it would go."""
        cdef Pair *pair = self.new_pair()
        try:
            pair.end[REMOTE_END].out_armed = self.send_early(pair, remote, early)
        except BaseException:
            self.free_pair(pair)
            raise
        return pair

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

    cdef uint64_t begin(self, Pair *pair, flow) except? 0:
        """Hands over a pair that has its sockets; returns the handle."""
        cdef uint64_t handle = (<uint64_t>pair.generation << 32) | pair.index
        Py_INCREF(flow)
        pair.flow = <void *>flow
        self.relayed += 1
        self.join(pair)
        return handle

    cdef int join(self, Pair *pair) except -1:
        """Puts a pair in the epoll of its relay. Whatever it has not dealt with makes an
        event at once."""
        cdef int failed = 0
        cdef int which
        # First of all: one from the porch is LIVE, and its new relay may find that it has
        # rested too long as soon as it stands among the newcomers.
        store_u32(&pair.state, JOINING)
        if pair.relay.inline_:
            pair_set_timer(pair.relay, pair)
        elif pair_limit(pair.relay, pair):
            # Before it can end, see relay_welcome(); without a wake-up, which would
            # cost every session more than its timer is worth.
            push_list(&pair.relay.newcomers, pair, <void **>&pair.next)
            if self.nudge_timer.next == NULL:
                timer_set(self.wheel, &self.nudge_timer,
                          pair.active_ms + min(pair_limit(pair.relay, pair), <uint64_t>NUDGE_MS))
        for which in range(2):
            if failed == 0:
                failed = watch(
                    pair.relay.epfd, EPOLL_CTL_MOD if pair.end[which].known else EPOLL_CTL_ADD,
                    pair.end[which].fd, WATCH_IN | (EPOLLOUT if pair.end[which].out_armed else 0),
                    pair_data(pair, which))
        if not swap_u32_if(&pair.state, JOINING, LIVE):
            store_u32(&pair.state, LIVE)
            try:
                self.order(pair.relay, RUN, pair.index, pair.generation)
            except MemoryError:
                # Takes none, and makes the event anew. The thread may have begun: what it has
                # asked for, or may have, is asked for here.
                for which in range(2):
                    watch(pair.relay.epfd, EPOLL_CTL_MOD, pair.end[which].fd,
                          WATCH_IN | EPOLLOUT, pair_data(pair, which))
        if failed < 0:
            self.order(pair.relay, KILL, pair.index, pair.generation)
        return 0

    cdef int nudge(self) except -1:
        """To the relays that may have newcomers they have not heard of."""
        cdef int i
        for i in range(1, self.relay_count):
            eventfd_write(self.relays[i].wake_fd, 1)
        return 0

    # -- the porch -----------------------------------------------------------

    cdef bint take_turn(self, epoll_event *events, int count) except -1:
        """A turn of the relay that has no thread; whether a pair has ended in it. Before
        the front's own turn, so that no pair of this batch is handed over, or freed,
        before its events are noted."""
        cdef Relay *relay = &self.relays[0]
        with nogil:
            relay_turn(relay, events, count)
        if relay.run_first != NULL:
            eventfd_write(relay.wake_fd, 1)
        if relay.leaving != NULL:
            self.move_on()
        if relay.batch == NULL:
            return False
        relay_publish(relay)
        return True

    cdef int move_on(self) except -1:
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
            porch.load -= 1
            pair.relay = self.least_busy()
            pair.relay.load += 1
            pair.leaving = 0
            self.moved_on += 1
            try:
                self.join(pair)
            except MemoryError as error:
                self.turn.report(error)  # the others have not joined yet
            pair = after
        return 0

    # -- a pair ends ---------------------------------------------------------

    cdef int kill(self, uint64_t handle) except -1:
        cdef uint32_t index = <uint32_t>handle
        cdef Pair *pair
        if index >= self.arena.count:
            return 0
        pair = arena_at(&self.arena, index)
        if pair.generation == <uint32_t>(handle >> 32) and load_u32(&pair.state) != FREE:
            self.order(pair.relay, KILL, index, pair.generation)
        return 0

    cdef int order(self, Relay *relay, Order order, uint32_t index,
                   uint32_t generation) except -1:
        cdef Command *command = <Command *>malloc(sizeof(Command))
        if command == NULL:
            raise MemoryError
        command.order = order
        command.index = index
        command.generation = generation
        relay_order(relay, command)
        return 0

    cdef bint drain(self, list batch) noexcept:
        """Moves the ended ones to ``batch`` and frees their slots. False if there is no memory
        for all: the others wait where they stood."""
        cdef Pair *pair = <Pair *>take_list(&self.ended)
        cdef Pair *last = pair
        cdef Pair *after
        while pair != NULL:
            after = pair.next
            flow = <object>pair.flow
            try:
                batch.append((flow, pair.dir[UP].moved, pair.dir[DOWN].moved,
                              REASONS[pair.reason], pair.error))
            except MemoryError:
                while last.next != NULL:
                    last = last.next
                push_list(&self.ended, pair, <void **>&last.next)
                return False
            self.learn(pair)
            Py_DECREF(flow)
            self.free_pair(pair)
            pair = last = after
        return True

    cdef void learn(self, Pair *pair) noexcept:
        if pair.dir[UP].moved + pair.dir[DOWN].moved < LARGE:
            self.large = max(self.large - 1, 0)
        else:
            self.large = min(self.large + 1, SWAY)

    cdef int count(self, dict totals) except -1:
        cdef Stats *stats
        cdef int i
        cdef tuple names = ("spliced", "copied", "batched", "pipes", "pipes_refused", "slots")
        totals["relayed"] = self.relayed
        totals["moved_on"] = self.moved_on
        for name in names:
            totals[name] = 0
        for i in range(self.relay_count):
            stats = &self.relays[i].stats
            for name, value in zip(names, (
                load_u64(&stats.spliced), load_u64(&stats.copied), load_u64(&stats.batched),
                load_u64(&stats.pipes), load_u64(&stats.refused), self.relays[i].load,
            ), strict=True):
                totals[name] += value
        return 0

    # -- slots ---------------------------------------------------------------

    cdef Relay *least_busy(self) noexcept:
        """Of those with a thread, where there are any."""
        cdef int first = 1 if self.threaded else 0
        cdef Relay *relay = &self.relays[first]
        cdef int i
        for i in range(first + 1, self.relay_count):
            if self.relays[i].load < relay.load:
                relay = &self.relays[i]
        return relay

    cdef Pair *new_pair(self) except NULL:
        """A cleared slot, given to the porch; where large sessions are the rule, or all is
        to be spliced, to the relay that has the fewest."""
        cdef Pair *pair = self.arena.free
        cdef Pair *chunk
        cdef Relay *relay = &self.relays[0]
        cdef int i
        if relay.only_splice or self.large > SWAY // 2:
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
        relay.load += 1
        pair.relay = relay
        pair.timer.owner = <void *>pair
        pair.next = NULL
        pair.active_ms = monotonic_ms()
        pair.dir[UP].splicing = pair.dir[DOWN].splicing = relay.only_splice
        return pair

    cdef void free_pair(self, Pair *pair) noexcept:
        cdef uint32_t generation = pair.generation
        pair.relay.load -= 1
        # The generation goes first: from then on no event or command finds the slot.
        store_u32(&pair.generation, generation + 1)
        store_u32(&pair.state, FREE)
        memset(&pair.timer, 0, sizeof(Timer))
        memset(pair.end, 0, sizeof(pair.end))
        memset(pair.dir, 0, sizeof(pair.dir))
        pair.queued = pair.leaving = pair.turns = 0
        pair.next = self.arena.free
        self.arena.free = pair
