# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The relay of the native engine (Linux): pairs of sockets, moved by threads that
never hold the GIL, and on the porch by the loop's thread, which releases it.

It must not know Python objects: every function here is nogil and noexcept, takes
the records of _relay.pxd, and answers with numbers. How a session came to be a pair
is not its business (_pairs.pyx); kernel facts are told where they matter.

A pair's turn, for each direction:

    flush what is held -> pass on a FIN -> fill (copy or splice) -> again

Where many pairs have a short message each, these are moved together before their turns, with
two system calls for all (_ring.pyx), where the kernel can; not on the porch, where sessions
are too short.

A pair begins on the porch, the relay whose turns are the front's, and is over there if it
is short. One that lasts or streams moves on to a relay with a thread: most sessions cost
no second thread's wake-up and no change of the epoll (a tenth of a short session's CPU),
and no long one costs the loop its time.

Invariants: nothing is read while something is held (so EAGAIN from splice means
an empty socket, never a full pipe); a FIN goes out only when nothing is held; a
pipe that holds octets is never pooled; a slot is reused only after the batch of
events in which it ended.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastsocks._linux cimport (
    CLOCK_MONOTONIC, EAGAIN, ECONNRESET, EFD_CLOEXEC, EFD_NONBLOCK, EINTR, EINVAL, EIO, ENOMEM,
    EPERM, EPIPE, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP,
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, ETIMEDOUT, F_GETPIPE_SZ, F_SETPIPE_SZ,
    IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, O_CLOEXEC, O_NONBLOCK, POLLIN, POLLOUT, SHUT_WR,
    SIG_SETMASK, SOL_SOCKET, SO_LINGER, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, TCP_QUICKACK,
    TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, TIOCOUTQ, clock_gettime, close, count_u64,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, eventfd, eventfd_write, fcntl, ioctl,
    itimerspec, linger, load_u32, pipe2, poll, pollfd, pthread_sigmask, push_list, read, recv,
    send, setsockopt, shutdown, sigfillset, sigset_t, splice, splice_quietly, store_u32,
    swap_u32_if, take_list, timerfd_create, timerfd_settime, timespec
)
from fastsocks._ring cimport (
    NOT_MADE, RECV, RING_CALLS, Ring, SEND, ring_add, ring_close, ring_make, ring_open
)


cdef enum:
    # Large enough that one system call moves what a fast sender has queued, small
    # enough to stay in the second-level cache.
    SCRATCH = 256 * 1024
    # What is read of a message that is moved together with others, each in a part of scratch;
    # and how many have to be there. Three cost as much that way, two cost more.
    MESSAGE_READ = SCRATCH // RING_CALLS
    MESSAGES_LEAST = 4
    # What a read takes before it is known whether this is a stream; from then on it is
    # spliced. To copy twice this or more first makes objects of 4 MB cost up to a quarter
    # more CPU; much less would be a message, and pay a pipe for nothing.
    STREAM_READ = 32 * 1024
    # Below this splice costs more than copying; this often in a row and it stops.
    THIN_SPLICE = 16 * 1024
    THIN_SPLICES = 8
    # One direction of one pair in one turn; then the others get theirs. A stream has one
    # round where a thread relays it: more of it comes meanwhile, and who plays ping-pong
    # beside it waits for two thirds as long (inline, each turn more costs a wake-up).
    TURN_ROUNDS = 4
    TURN_OCTETS = 1024 * 1024
    # And where it is the last one: what a socket's queue can hold (tcp_rmem is 6 MB, pipes
    # may be 64 KB), and a bound for a live end that is broken to us by want of memory.
    LAST_TURNS = 256
    # A direction that has rested for this long starts as copy again.
    REST_MS = 1000
    # What a session may have on the porch before it moves on. An object that takes no
    # more is there without a second thread having been woken for it; and the loop gives
    # no session more of its time.
    PORCH_MS = 1000
    PORCH_TURNS = 32
    PORCH_OCTETS = 1024 * 1024
    PIPE_RETRY_MS = 1000
    PIPE_USUAL = 64 * 1024      # what a pipe has by itself

# == time ====================================================================

cdef uint64_t monotonic_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef int wheel_open(Wheel *wheel, int epfd) noexcept nogil:
    cdef int i
    for i in range(SPOKES):
        wheel.spokes[i].next = wheel.spokes[i].prev = &wheel.spokes[i]
    wheel.tick = monotonic_ms() // TICK_MS
    wheel.armed = 0
    wheel.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    if wheel.fd < 0:
        return -errno
    return watch(epfd, EPOLL_CTL_ADD, wheel.fd, EPOLLIN | EPOLLET, TAG_TIMER)


cdef void wheel_arm(Wheel *wheel, uint64_t tick) noexcept nogil:
    cdef itimerspec when
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = tick * TICK_MS // 1000
    when.it_value.tv_nsec = (tick * TICK_MS % 1000) * 1000000
    timerfd_settime(wheel.fd, TFD_TIMER_ABSTIME, &when, NULL)
    wheel.armed = tick


cdef void timer_clear(Timer *timer) noexcept nogil:
    if timer.next != NULL:
        timer.next.prev = timer.prev
        timer.prev.next = timer.next
        timer.next = timer.prev = NULL


cdef void ring_append(Timer *head, Timer *timer) noexcept nogil:
    timer.prev = head.prev
    timer.next = head
    head.prev.next = timer
    head.prev = timer


cdef void timer_set(Wheel *wheel, Timer *timer, uint64_t due_ms) noexcept nogil:
    """Rounded up to a tick, so that a timer never fires early."""
    timer_clear(timer)
    timer.due = due_ms // TICK_MS + 1
    if timer.due <= wheel.tick:
        timer.due = wheel.tick + 1
    ring_append(&wheel.spokes[timer.due % SPOKES], timer)
    if wheel.armed == 0 or timer.due < wheel.armed:
        wheel_arm(wheel, timer.due)


cdef void wheel_collect(Wheel *wheel, uint64_t now_ms, Timer *expired) noexcept nogil:
    """Moves the timers that are due into the ring ``expired``, and arms the next."""
    cdef uint64_t now = now_ms // TICK_MS
    cdef uint64_t tick
    cdef Timer *head
    cdef Timer *timer
    cdef Timer *after
    expired.next = expired.prev = expired
    if wheel.armed == 0 or now < wheel.armed:
        return
    tick = wheel.tick + 1
    if now - wheel.tick > SPOKES:
        tick = now - SPOKES + 1
    while tick <= now:
        head = &wheel.spokes[tick % SPOKES]
        timer = head.next
        while timer != head:
            after = timer.next
            if timer.due <= now:
                timer_clear(timer)
                ring_append(expired, timer)
            timer = after
        tick += 1
    wheel.tick = now
    wheel.armed = 0
    for tick in range(now + 1, now + 1 + SPOKES):
        head = &wheel.spokes[tick % SPOKES]
        if head.next != head:
            wheel_arm(wheel, tick)
            break


cdef Timer *ring_pop(Timer *head) noexcept nogil:
    cdef Timer *timer = head.next
    if timer == head:
        return NULL
    timer_clear(timer)
    return timer


# == descriptors =============================================================

cdef int watch(int epfd, int operation, int fd, uint32_t events, uint64_t data) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = data
    return -errno if epoll_ctl(epfd, operation, fd, &event) < 0 else 0


cdef void reset_on_close(int fd) noexcept nogil:
    """Makes close() send a reset: truth for the peer, who would take a FIN for a
    complete stream, and no TIME_WAIT for us. Means nothing to a Unix socket."""
    cdef linger now
    now.l_onoff = 1
    now.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))


# == pipes ===================================================================

cdef void pipe_destroy(Relay *relay, Pipe *pipe) noexcept nogil:
    close(pipe.rfd)
    close(pipe.wfd)
    free(pipe)
    relay.pool_made -= 1
    count_u64(&relay.stats.pipes, <uint64_t>-1)


cdef Pipe *pipe_take(Relay *relay) noexcept nogil:
    """NULL where none is to be had: the caller copies."""
    cdef Pipe *pipe = relay.pool
    cdef int ends[2]
    if pipe != NULL:
        relay.pool = pipe.next
        return pipe
    if relay.pool_made >= relay.max_pipes or relay.now_ms < relay.no_pipe_until:
        count_u64(&relay.stats.refused, 1)
        return NULL
    pipe = <Pipe *>malloc(sizeof(Pipe))
    if pipe != NULL and pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0:
        free(pipe)
        pipe = NULL
    if pipe == NULL:
        relay.no_pipe_until = relay.now_ms + PIPE_RETRY_MS
        count_u64(&relay.stats.refused, 1)
        return NULL
    pipe.rfd = ends[0]
    pipe.wfd = ends[1]
    pipe_grow(pipe.wfd, relay.pipe_size)
    pipe.size = fcntl(pipe.wfd, F_GETPIPE_SZ)
    relay.pool_made += 1
    count_u64(&relay.stats.pipes, 1)
    if pipe.size < PIPE_MIN:
        pipe_destroy(relay, pipe)
        relay.no_pipe_until = relay.now_ms + PIPE_RETRY_MS
        count_u64(&relay.stats.refused, 1)
        return NULL
    return pipe


cdef void pipe_grow(int fd, int wanted) noexcept nogil:
    """To what is wanted, or as near as the kernel lets this user come. Above its limits
    (fs.pipe-max-size, and one for all of their pipes) it refuses, and leaves the size as it was:
    what counts is what it says then."""
    while fcntl(fd, F_SETPIPE_SZ, wanted) < 0 and errno == EPERM and wanted > PIPE_USUAL:
        wanted //= 2


cdef int pipe_probe(int wanted) noexcept nogil:
    """The size that the kernel grants a pipe of ours, 0 for none at all."""
    cdef int ends[2]
    cdef int size
    if pipe2(ends, O_CLOEXEC) < 0:
        return 0
    pipe_grow(ends[1], wanted)
    size = fcntl(ends[1], F_GETPIPE_SZ)
    close(ends[0])
    close(ends[1])
    return size


cdef void dir_return_pipe(Relay *relay, Direction *dir) noexcept nogil:
    """To the pool if clean; a dirty one would hand these octets to another session."""
    cdef Pipe *pipe = dir.pipe
    if pipe == NULL:
        return
    dir.pipe = NULL
    if dir.piped:
        pipe_destroy(relay, pipe)
        dir.piped = 0
    else:
        pipe.next = relay.pool
        relay.pool = pipe


cdef int dir_unpipe(Relay *relay, Direction *dir) noexcept nogil:
    """Takes what is held out of its pipe, which stays with its relay."""
    cdef size_t taken = 0
    cdef ssize_t got
    dir.spill = <char *>malloc(dir.piped)
    if dir.spill == NULL:
        return -ENOMEM
    while taken < dir.piped:
        got = read(dir.pipe.rfd, dir.spill + taken, dir.piped - taken)
        if got > 0:
            taken += got
        elif got == 0 or errno != EINTR:
            return -EIO
    dir.spill_from = 0
    dir.spill_to = taken
    dir.piped = 0
    dir_return_pipe(relay, dir)
    return 0

# == one direction ===========================================================

# What a step of a direction tells the one above it; a fault is -errno.
cdef enum Step:
    AGAIN               # progress: go on
    WAIT                # nothing to do until an event comes
    MORE                # the budget is used up: come back in the next turn


cdef int pair_fault(Pair *pair, int which, int error) noexcept nogil:
    """-errno of a system call that has failed on one end. A FIN of that end
    is no longer believed: it may only be what a reset has left of one. What it had sent
    before may be in its queue, though no event has told of it yet. EPIPE is what Linux calls
    a reset after a FIN."""
    pair.end[which].broken = 1
    pair.end[which].readable = pair.end[which].fresh = 1
    pair.reason = CLIENT_RESET if which == CLIENT_END else REMOTE_RESET
    return -(ECONNRESET if error == EPIPE else error)


cdef int end_blocked(Pair *pair, int which) noexcept nogil:
    """A send met EAGAIN. EPOLLOUT is asked for only from then on, once: most
    sessions never need it, and each would be woken by it at the start."""
    cdef End *end = &pair.end[which]
    end.writable = 0
    if end.out_armed:
        return WAIT
    end.out_armed = 1
    if watch(pair.relay.epfd, EPOLL_CTL_MOD, end.fd, WATCH_IN | EPOLLOUT,
             pair_data(pair, which)) < 0:
        return pair_fault(pair, which, errno)
    return WAIT


cdef void end_drained(End *end, bint streams) noexcept nogil:
    """Nothing is left to be read. Of a stream that is acknowledged at once: a sender that has
    not set TCP_NODELAY holds a last, partial segment back until then, and the kernel would
    take 40 ms (one in a thousand objects of 512 KB over loopback, and in some rhythms each).
    """
    cdef int on = 1
    end.readable = 0
    if streams and not end.fin and not end.pieces:
        setsockopt(end.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on))


cdef int dir_flush(Relay *relay, Pair *pair, int d) noexcept nogil:
    """Sends what is held until it is gone or the destination is full.

    A partial splice is tried again until EAGAIN: only that promises an event.
    """
    cdef Direction *dir = &pair.dir[d]
    cdef End *destination = &pair.end[1 - d]
    cdef ssize_t sent
    while dir.piped or dir.spill != NULL:
        if not destination.writable:
            return WAIT
        if dir.spill != NULL:
            sent = send(destination.fd, dir.spill + dir.spill_from,
                        dir.spill_to - dir.spill_from, MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            # No SPLICE_F_MORE: it corks the socket for 200 ms when nothing follows.
            if relay.inline_:
                sent = splice_quietly(dir.pipe.rfd, destination.fd, dir.piped,
                                      SPLICE_F_NONBLOCK | SPLICE_F_MOVE)
            else:
                sent = splice(dir.pipe.rfd, NULL, destination.fd, NULL, dir.piped,
                              SPLICE_F_NONBLOCK | SPLICE_F_MOVE)
        if sent < 0:
            if errno == EINTR:
                continue
            return end_blocked(pair, 1 - d) if errno == EAGAIN else pair_fault(pair, 1 - d, errno)
        dir_sent(relay, pair, d, sent)
        if dir.spill == NULL:
            count_u64(&relay.stats.spliced, sent)
            dir.piped -= sent
        else:
            count_u64(&relay.stats.copied, sent)
            dir.spill_from += sent
            if dir.spill_from == dir.spill_to:
                free(dir.spill)
                dir.spill = NULL
    return AGAIN


cdef inline void dir_sent(Relay *relay, Pair *pair, int d, size_t octets) noexcept nogil:
    pair.dir[d].moved += octets
    pair.active_ms = relay.now_ms


cdef int dir_copy(Relay *relay, Pair *pair, int d, size_t most) noexcept nogil:
    """One recv and, at once, one send; what is not taken is held in the spill."""
    cdef ssize_t got = recv(pair.end[d].fd, relay.scratch, most, MSG_DONTWAIT)
    cdef ssize_t sent
    cdef int step = dir_has_read(relay, pair, d, got if got >= 0 else -errno, most)
    if got <= 0:
        return step
    sent = send(pair.end[1 - d].fd, relay.scratch, got, MSG_DONTWAIT | MSG_NOSIGNAL)
    return dir_has_sent(relay, pair, d, relay.scratch, got, sent if sent >= 0 else -errno)


cdef int dir_has_read(Relay *relay, Pair *pair, int d, ssize_t got, size_t most) noexcept nogil:
    """What a recv of so many octets says: how many there were, or -errno."""
    cdef Direction *dir = &pair.dir[d]
    cdef End *source = &pair.end[d]
    source.fresh = 0
    if got == -EAGAIN:
        end_drained(source, dir.splicing)
        return AGAIN
    if got < 0:
        return AGAIN if got == -EINTR else pair_fault(pair, d, -got)
    if got == 0:
        dir.state = FIN_SEEN
        return AGAIN
    if <size_t>got < most and not source.urgent and not source.pieces:
        # The queue is empty: no EAGAIN or 0 has to be fetched. Not so with urgent
        # data about, where a read stops short at the mark.
        end_drained(source, dir.splicing or got >= STREAM_READ)
        if source.fin:
            dir.state = FIN_SEEN
    if got >= STREAM_READ and relay.may_splice and not source.urgent:
        dir.splicing = 1
    dir.short_ = got < MESSAGE_READ
    return AGAIN


cdef int dir_has_sent(Relay *relay, Pair *pair, int d, char *octets, size_t size,
                      ssize_t sent) noexcept nogil:
    """What a send of these octets says: how many it took, or -errno."""
    cdef Direction *dir = &pair.dir[d]
    if sent < 0:
        if sent != -EAGAIN and sent != -EINTR:
            return pair_fault(pair, 1 - d, -sent)
        sent = 0
    if sent:
        dir_sent(relay, pair, d, sent)
        count_u64(&relay.stats.copied, sent)
    if <size_t>sent < size:
        dir.spill = <char *>malloc(size - sent)
        if dir.spill == NULL:
            pair.reason = KILLED  # by neither end
            return -ENOMEM
        memcpy(dir.spill, octets + sent, size - sent)
        dir.spill_from = 0
        dir.spill_to = size - sent
    return AGAIN


cdef int dir_splice(Relay *relay, Pair *pair, int d) noexcept nogil:
    """Socket to pipe; the flush that follows is pipe to socket."""
    cdef Direction *dir = &pair.dir[d]
    cdef End *source = &pair.end[d]
    cdef ssize_t got
    cdef bint fresh = source.fresh
    if dir.pipe == NULL:
        dir.pipe = pipe_take(relay)
        if dir.pipe == NULL:
            dir_rest(relay, dir)
            return dir_copy(relay, pair, d, SCRATCH)
    source.fresh = 0
    # On the porch no more than copying may hold: it would move on as a spill.
    got = splice(source.fd, NULL, dir.pipe.wfd, NULL,
                 min(dir.pipe.size, SCRATCH) if relay.porch else dir.pipe.size,
                 SPLICE_F_NONBLOCK | SPLICE_F_MOVE)
    if got > 0:
        dir.piped = got
        if got >= THIN_SPLICE:
            dir.streak = 0
        else:
            dir.streak += 1
            if dir.streak >= THIN_SPLICES:
                dir_rest(relay, dir)
        return AGAIN
    if got < 0:
        if errno == EINTR:
            return AGAIN
        if errno == EAGAIN and not fresh:
            end_drained(source, dir.streak == 0)
            return AGAIN
        if errno != EAGAIN and errno != EINVAL:
            return pair_fault(pair, d, errno)
    # 0 (FIN, or urgent data with a FIN behind it), EAGAIN right after an event (urgent
    # data in front), or EINVAL (not now, not this socket): recv tells which it is.
    return dir_copy(relay, pair, d, SCRATCH)


cdef void dir_rest(Relay *relay, Direction *dir) noexcept nogil:
    """Back to copy, unless splice was asked for outright."""
    dir.splicing = relay.only_splice
    dir.streak = 0


cdef int dir_move(Relay *relay, Pair *pair, int d) noexcept nogil:
    """One direction's turn: WAIT, MORE, or the -errno of a fault that ends the pair."""
    cdef Direction *dir = &pair.dir[d]
    cdef End *source = &pair.end[d]
    cdef End *destination = &pair.end[1 - d]
    cdef uint64_t start = dir.moved
    cdef int most = 1 if dir.splicing and not relay.inline_ else TURN_ROUNDS
    cdef int rounds = 0
    cdef int step
    if dir.fault:
        return dir.fault
    if dir.state == DONE:
        return WAIT
    while True:
        step = dir_flush(relay, pair, d)
        if step != AGAIN:
            break
        if dir.state == FIN_SEEN:
            step = WAIT
            if source.broken:
                break  # a reset, which looks like a FIN to who asks for nothing else
            dir.state = DONE
            # When both directions are done close() sends the FIN anyway.
            if pair.dir[1 - d].state != DONE:
                shutdown(destination.fd, SHUT_WR)
                # From the FIN on: the last octet may be longer ago than this limit is.
                pair.active_ms = relay.now_ms
                pair_set_timer(relay, pair)
            break
        if not source.readable or not destination.writable:
            step = WAIT
            break
        if rounds >= most or dir.moved - start >= TURN_OCTETS:
            step = MORE
            break
        rounds += 1
        if dir.splicing and not source.urgent:
            step = dir_splice(relay, pair, d)
        else:
            step = dir_copy(relay, pair, d, STREAM_READ if relay.may_splice else SCRATCH)
        if step < 0:
            break
    if dir.piped == 0:
        dir_return_pipe(relay, dir)
    return step


# == one pair ================================================================

cdef uint64_t pair_data(Pair *pair, int which) noexcept nogil:
    return (<uint64_t>pair.generation << 32) | (pair.index << 1) | which


cdef Pair *arena_at(Arena *arena, uint32_t index) noexcept nogil:
    return &arena.chunks[index // CHUNK][index % CHUNK]


cdef void pair_set_timer(Relay *relay, Pair *pair) noexcept nogil:
    cdef uint64_t limit = pair_limit(relay, pair)
    if relay.porch and (limit == 0 or limit >= PORCH_MS):
        # Set once: it says that the pair has been here long enough.
        if pair.timer.next == NULL:
            timer_set(&relay.wheel, &pair.timer, pair.active_ms + PORCH_MS)
    elif limit:
        timer_set(&relay.wheel, &pair.timer, pair.active_ms + limit)
    else:
        timer_clear(&pair.timer)


cdef uint64_t pair_limit(Relay *relay, Pair *pair) noexcept nogil:
    """How long this pair may rest, in ms; 0 for as long as it likes."""
    cdef bint half = pair.dir[UP].state == DONE or pair.dir[DOWN].state == DONE
    return relay.half_ms if half else relay.idle_ms


cdef void pair_queue(Relay *relay, Pair *pair) noexcept nogil:
    if pair.queued:
        return
    pair.queued = 1
    pair.next = NULL
    if relay.run_last == NULL:
        relay.run_first = pair
    else:
        relay.run_last.next = pair
    relay.run_last = pair


cdef void pair_leave(Relay *relay, Pair *pair) noexcept nogil:
    """Off the porch, with nothing in its pipes; _pairs.pyx does it when the turn is over."""
    cdef int d
    cdef int failed = 0
    if pair.leaving:
        return
    for d in range(2):
        if pair.dir[d].pipe != NULL:
            failed = dir_unpipe(relay, &pair.dir[d])
        if failed < 0:
            pair_end(relay, pair, KILLED, -failed)
            return
    pair.leaving = 1
    pair.next = relay.leaving
    relay.leaving = pair


cdef bint pair_has_stayed(Pair *pair) noexcept nogil:
    """Long enough on the porch."""
    return (pair.turns >= PORCH_TURNS
            or pair.dir[UP].moved + pair.dir[DOWN].moved >= PORCH_OCTETS)


cdef bint pair_holds_pipe(Pair *pair) noexcept nogil:
    return pair.dir[UP].pipe != NULL or pair.dir[DOWN].pipe != NULL


cdef void pair_step(Relay *relay, Pair *pair) noexcept nogil:
    cdef int up = dir_move(relay, pair, UP)
    cdef int reason = pair.reason
    # Even when up failed: what the broken end had sent before is still in its queue.
    cdef int down = dir_move(relay, pair, DOWN)
    if up < 0:
        if down == MORE:
            pair_move_last(relay, pair, DOWN)
        pair_end(relay, pair, reason, -up)
    elif down < 0:
        reason = pair.reason
        pair_move_last(relay, pair, UP)  # for the same reason
        pair_end(relay, pair, reason, -down)
    elif (pair.dir[UP].state == DONE and pair.dir[DOWN].state == DONE
          and not pair.end[CLIENT_END].broken and not pair.end[REMOTE_END].broken):
        pair_end(relay, pair, FINISHED, 0)
    elif relay.porch and pair_has_stayed(pair) and not pair_holds_pipe(pair):
        pair_leave(relay, pair)
    elif up == MORE or down == MORE:
        pair_queue(relay, pair)
    elif pair.end[CLIENT_END].broken:
        pair_end(relay, pair, CLIENT_RESET, ECONNRESET)
    elif pair.end[REMOTE_END].broken:
        pair_end(relay, pair, REMOTE_RESET, ECONNRESET)


cdef void pair_move_last(Relay *relay, Pair *pair, int d) noexcept nogil:
    """All that an end has sent before it broke, as far as it is taken: there is no other turn."""
    cdef int _i
    for _i in range(LAST_TURNS):
        if dir_move(relay, pair, d) != MORE or not pair.end[d].broken:
            return


cdef void pair_end(Relay *relay, Pair *pair, int reason, int error) noexcept nogil:
    cdef int which
    for which in range(2):
        if reason != FINISHED:
            reset_on_close(pair.end[which].fd)
        close(pair.end[which].fd)
        pair.end[which].fd = -1
        dir_return_pipe(relay, &pair.dir[which])
        free(pair.dir[which].spill)
        pair.dir[which].spill = NULL
    timer_clear(&pair.timer)
    pair.reason = reason
    pair.error = error
    store_u32(&pair.state, ENDED)
    if pair.queued:
        # It stays on the run queue until that is next walked, and is handed over then.
        return
    pair_publish_later(relay, pair)


cdef void pair_publish_later(Relay *relay, Pair *pair) noexcept nogil:
    pair.next = relay.batch
    if relay.batch == NULL:
        relay.batch_last = pair
    relay.batch = pair


# == many short messages =====================================================

cdef struct Message:
    Pair *pair
    int d
    char *octets        # once it has been read
    size_t size


cdef bint dir_has_message(Pair *pair, int d) noexcept nogil:
    """Whether its turn would copy now, most likely one short message and no more."""
    cdef Direction *dir = &pair.dir[d]
    return (dir.short_ and dir.state == OPEN and not dir.splicing
            and dir.piped == 0 and dir.spill == NULL
            and pair.end[d].readable and pair.end[1 - d].writable)


cdef void relay_messages(Relay *relay) noexcept nogil:
    """Before the turns of the pairs on the queue: moves their short messages together. A turn
    comes all the same, and finds what it would have left behind by itself."""
    cdef Message messages[RING_CALLS]
    cdef Pair *pair = relay.run_first
    cdef int count
    cdef int d
    while pair != NULL:
        count = 0
        while pair != NULL and count <= RING_CALLS - 2:
            if load_u32(&pair.state) == LIVE:
                for d in range(2):
                    if dir_has_message(pair, d):
                        messages[count].pair = pair
                        messages[count].d = d
                        count += 1
            pair = pair.next
        if count >= MESSAGES_LEAST:
            messages_move(relay, messages, count)


cdef void messages_move(Relay *relay, Message *messages, int count) noexcept nogil:
    """What dir_copy() does, for all of them: one system call reads, another one sends."""
    cdef Ring *ring = &relay.ring
    cdef Message *message
    cdef Pair *pair
    cdef int i
    cdef int d
    cdef int step
    cdef int came = 0
    cdef ssize_t moved
    for i in range(count):
        message = &messages[i]
        message.octets = relay.scratch + i * MESSAGE_READ
        ring_add(ring, RECV, message.pair.end[message.d].fd, message.octets, MESSAGE_READ)
    ring_make(ring)
    for i in range(count):
        pair, d, moved = messages[i].pair, messages[i].d, ring.result[i]
        if moved == NOT_MADE:
            continue  # its turn will do it
        step = dir_has_read(relay, pair, d, moved, MESSAGE_READ)
        pair.dir[d].fault = min(step, 0)
        if moved > 0:
            messages[came] = messages[i]
            messages[came].size = moved
            came += 1
    for i in range(came):
        message = &messages[i]
        ring_add(ring, SEND, message.pair.end[1 - message.d].fd, message.octets, message.size)
    ring_make(ring)
    for i in range(came):
        pair, d, moved = messages[i].pair, messages[i].d, ring.result[i]
        if moved == NOT_MADE:
            moved = 0  # its turn will send what is held
        step = dir_has_sent(relay, pair, d, messages[i].octets, messages[i].size, moved)
        pair.dir[d].fault = min(step, 0)
        count_u64(&relay.stats.batched, max(moved, 0))


# == the relay's turn ========================================================

cdef void relay_event(Relay *relay, uint64_t data, uint32_t events) noexcept nogil:
    """Notes what happened to an end. A stale event (its socket closed, its slot
    used again) does not match the slot's generation."""
    cdef Pair *pair = arena_at(relay.arena, <uint32_t>data >> 1)
    cdef End *end = &pair.end[data & 1]
    cdef uint32_t state = load_u32(&pair.state)
    if state == ENDED or state == FREE or load_u32(&pair.generation) != <uint32_t>(data >> 32):
        return
    if events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        end.readable = end.fresh = 1
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        end.writable = 1
    if events & EPOLLRDHUP:
        end.fin = 1
    if events & EPOLLPRI:
        end.urgent = 1
    if events & EPOLLERR:
        end.broken = 1
    if state == JOINING and swap_u32_if(&pair.state, JOINING, SEEN):
        return  # the loop finds SEEN when it has joined both ends, and sends RUN
    if load_u32(&pair.state) == LIVE:
        pair_queue(relay, pair)


cdef void relay_order(Relay *relay, Command *command) noexcept nogil:
    if push_list(&relay.commands, command, &command.next):
        eventfd_write(relay.wake_fd, 1)


cdef void relay_obey(Relay *relay) noexcept nogil:
    """The commands of the loop thread, each for one generation of one slot. The state is
    looked at first: the loop may free the slot and use it again between the two looks."""
    cdef Command *command = <Command *>take_list(&relay.commands)
    cdef Command *after
    cdef Pair *pair
    # An order may be for a pair that was handed over after this turn's welcome.
    relay_welcome(relay)
    while command != NULL:
        pair = arena_at(relay.arena, command.index)
        after = <Command *>command.next
        if load_u32(&pair.state) == LIVE and load_u32(&pair.generation) == command.generation:
            if pair.relay != relay:
                # It has left the porch since the order was given.
                relay_order(pair.relay, command)
                command = after
                continue
            if command.order == RUN:
                pair_queue(relay, pair)
            else:
                pair_end(relay, pair, KILLED, 0)
        free(command)
        command = after


cdef void relay_run(Relay *relay) noexcept nogil:
    """Each pair that was on the queue gets one turn; who wants more queues again."""
    cdef Pair *pair = relay.run_first
    cdef Pair *after
    if relay.ring.fd >= 0:
        relay_messages(relay)
    relay.run_first = relay.run_last = NULL
    while pair != NULL:
        after = pair.next
        pair.queued = 0
        if load_u32(&pair.state) == ENDED:
            pair_publish_later(relay, pair)
        else:
            if relay.now_ms - pair.active_ms > REST_MS:
                dir_rest(relay, &pair.dir[UP])
                dir_rest(relay, &pair.dir[DOWN])
            if relay.porch and pair.turns < PORCH_TURNS:
                pair.turns += 1
            pair_step(relay, pair)
        pair = after


cdef void relay_expire(Relay *relay) noexcept nogil:
    """Timers are set once and checked late: moving an octet costs no timer work."""
    cdef Timer expired
    cdef Timer *timer
    cdef Pair *pair
    cdef uint64_t limit
    wheel_collect(&relay.wheel, relay.now_ms, &expired)
    while True:
        timer = ring_pop(&expired)
        if timer == NULL:
            return
        pair = <Pair *>timer.owner
        if relay.porch:
            # Long enough here; one with a turn due goes when it has had it.
            if pair.queued:
                timer_set(&relay.wheel, &pair.timer, relay.now_ms + TICK_MS)
            else:
                pair_leave(relay, pair)
            continue
        limit = pair_limit(relay, pair)
        if limit == 0 or pair.active_ms + limit > relay.now_ms:
            pair_set_timer(relay, pair)
        elif load_u32(&pair.state) != LIVE or pair_looks_again(relay, pair):
            # Not before the loop has joined it; nor for what has not been looked at yet, as
            # when this process was stopped and everything comes at once.
            timer_set(&relay.wheel, &pair.timer, relay.now_ms + TICK_MS)
        elif end_gets_on(&pair.end[CLIENT_END]) + end_gets_on(&pair.end[REMOTE_END]):
            # Both are looked at, hence no "or". When the last of them went is not known: at half
            # the limit there is another look.
            timer_set(&relay.wheel, &pair.timer, relay.now_ms + limit // 2 + 1)
        elif pair.dir[UP].state == DONE or pair.dir[DOWN].state == DONE:
            pair_end(relay, pair, HALF_CLOSED, ETIMEDOUT)
        else:
            pair_end(relay, pair, IDLE, ETIMEDOUT)


cdef bint end_gets_on(End *end) noexcept nogil:
    """Whether its kernel has been sending since the last look. It may hold megabytes, which
    take a slow peer longer than any limit; closing the socket would take them from it."""
    cdef int before = end.unsent
    end.unsent = 0
    ioctl(end.fd, TIOCOUTQ, &end.unsent)
    return end.unsent != 0 and end.unsent != before


cdef bint pair_looks_again(Relay *relay, Pair *pair) noexcept nogil:
    """Whether there is something to be done that no event has told of, or none that has been
    looked at: then it is noted here."""
    cdef pollfd ends[2]
    cdef bint found = False
    cdef int d
    for d in range(2):
        ends[d].fd = pair.end[d].fd
        ends[d].events = 0
        ends[d].revents = 0
        if pair.dir[d].state == OPEN and not pair.end[d].readable:
            ends[d].events |= POLLIN
        if pair.dir[1 - d].state != DONE and not pair.end[d].writable:
            ends[d].events |= POLLOUT
    poll(ends, 2, 0)
    for d in range(2):
        if ends[d].revents & ends[d].events & POLLIN:
            pair.end[d].readable = pair.end[d].fresh = 1
            found = True
        if ends[d].revents & ends[d].events & POLLOUT:
            pair.end[d].writable = 1
            found = True
    if found:
        pair_queue(relay, pair)
    return found


cdef void relay_publish(Relay *relay) noexcept nogil:
    """Only now may the loop reuse the slots: no event of this batch is left."""
    cdef Pair *first = relay.batch
    if first == NULL:
        return
    cdef Pair *last = relay.batch_last
    relay.batch = NULL
    if push_list(relay.ended, first, <void **>&last.next) and not relay.inline_:
        eventfd_write(relay.ended_fd, 1)


cdef void relay_welcome(Relay *relay) noexcept nogil:
    """Sets the timers of pairs handed over since the last welcome. A pair is on this
    list before it is in the epoll and before any order for it is given: whoever takes
    events or orders first and welcomes then has it off the list before it can end."""
    cdef Pair *pair = <Pair *>take_list(&relay.newcomers)
    cdef Pair *after
    while pair != NULL:
        after = pair.next
        pair_set_timer(relay, pair)
        pair = after


cdef void relay_turn(Relay *relay, epoll_event *events, int count) noexcept nogil:
    """One turn, with what its epoll has told."""
    cdef int i
    relay.now_ms = monotonic_ms()
    relay_welcome(relay)
    for i in range(count):
        if events[i].data.u64 & ASSOCIATION:
            relay.guests.on_event(relay, events[i].data.u64, events[i].events)
        elif events[i].data.u64 & FRONT:
            pass
        elif events[i].data.u64 == TAG_WAKE:
            relay_obey(relay)
            relay.guests.on_wake(relay)
        elif events[i].data.u64 != TAG_TIMER:
            relay_event(relay, events[i].data.u64, events[i].events)
    relay_run(relay)
    relay_expire(relay)
    if not relay.inline_:
        relay_publish(relay)
    relay.guests.on_turn_over(relay)


cdef void *relay_thread(void *argument) noexcept nogil:
    cdef Relay *relay = <Relay *>argument
    cdef epoll_event events[MAX_EVENTS]
    cdef int count
    cdef sigset_t every
    # Signals are for Python's thread; SIGPIPE from a splice becomes plain EPIPE.
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, NULL)
    while not load_u32(&relay.stopping):
        count = epoll_wait(relay.epfd, events, MAX_EVENTS, -1 if relay.run_first == NULL else 0)
        if count >= 0:  # else EINTR, after a stop of this process: nothing has been looked at
            relay_turn(relay, events, count)
    return NULL


cdef int relay_open(Relay *relay) noexcept nogil:
    cdef int failed
    relay.scratch = <char *>malloc(SCRATCH)
    if not relay.inline_:
        relay.epfd = epoll_create1(EPOLL_CLOEXEC)
    relay.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if relay.scratch == NULL:
        return -ENOMEM
    if relay.epfd < 0 or relay.wake_fd < 0:
        return -errno
    if relay.may_batch and not relay.porch:
        ring_open(&relay.ring)
    failed = wheel_open(&relay.wheel, relay.epfd)
    if failed < 0:
        return failed
    # Edge-triggered, so the eventfd is never read: each write is an edge.
    return watch(relay.epfd, EPOLL_CTL_ADD, relay.wake_fd, EPOLLIN | EPOLLET, TAG_WAKE)


cdef void relay_abandon(Relay *relay) noexcept nogil:
    """Ends every pair by reset, on whatever thread, after the relay's own is gone."""
    cdef Pair *pair
    cdef uint32_t state
    cdef uint32_t index
    relay_welcome(relay)
    while relay.run_first != NULL:
        pair = relay.run_first
        relay.run_first = pair.next
        pair.queued = 0
        if load_u32(&pair.state) == ENDED:
            pair_publish_later(relay, pair)
    relay.run_last = NULL
    for index in range(relay.arena.count):
        pair = arena_at(relay.arena, index)
        state = load_u32(&pair.state)
        if pair.relay == relay and state != FREE and state != ENDED:
            pair_end(relay, pair, KILLED, 0)
    relay_publish(relay)


cdef void relay_close(Relay *relay) noexcept nogil:
    """After the thread has ended and every pair with it."""
    cdef Command *command = <Command *>take_list(&relay.commands)
    cdef Command *after
    cdef Pipe *pipe
    while command != NULL:
        after = <Command *>command.next
        free(command)
        command = after
    while relay.pool != NULL:
        pipe = relay.pool
        relay.pool = pipe.next
        pipe_destroy(relay, pipe)
    if relay.wheel.fd >= 0:
        close(relay.wheel.fd)
    if relay.wake_fd >= 0:
        close(relay.wake_fd)
    if relay.epfd >= 0 and not relay.inline_:
        close(relay.epfd)
    if relay.ring.fd >= 0:
        ring_close(&relay.ring)
    free(relay.scratch)
