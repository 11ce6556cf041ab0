# The C contract between the relay and the loop's thread: records, and what each field means.
#
# A record has one owner at a time. The loop's thread (_pairs.pyx) fills a Pair and hands it
# over by entering its sockets in the relay's epoll. While it is JOINING the relay only notes
# events; from LIVE on only the relay's thread touches it (on the porch that is the loop's own),
# until it comes back on the ended list.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastsocks._linux cimport EPOLLET, EPOLLIN, EPOLLPRI, EPOLLRDHUP, epoll_event, pthread_t
from fastsocks._ring cimport Ring


cdef struct Timer:
    Timer *next         # NULL when not set
    Timer *prev
    uint64_t due        # the tick at which it fires
    void *owner         # a Pair of a relay, a Conn of the front


cdef enum:
    TICK_MS = 100
    SPOKES = 512        # ticks: 51 s for one turn of the wheel


cdef struct Wheel:
    Timer spokes[SPOKES]    # heads of rings; a timer sits at due % SPOKES
    uint64_t tick       # the last tick that was looked at
    uint64_t armed      # the tick the timerfd is set to, 0 for none
    int fd              # a timerfd, watched by the epoll of the wheel's owner


# How a session ended: indices of REASONS in engine.py.
cdef enum:
    FINISHED
    CLIENT_RESET
    REMOTE_RESET
    IDLE
    HALF_CLOSED
    KILLED


# What stands in the low half of epoll's 64 bits where it is not {index, end} of a pair:
# no index is ever that high.
cdef enum:
    TAG_WAKE = 0x3FFFFFF0
    TAG_TIMER
    FRONT = 0x40000000          # set in whatever is the front's, whose epoll is the porch's
    TAG_LISTENER = 0x7FFF0000   # plus the listener's number
    TAG_ENDED = 0x7FFFFFF0
    ASSOCIATION = 0x80000000    # set where a guest of the relay is meant


cdef enum:
    MAX_EVENTS = 256
    # Smaller pipes (an unprivileged user above the quota gets two pages) lose to copy.
    PIPE_MIN = 64 * 1024
    WATCH_IN = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET


cdef struct Pipe:
    int rfd
    int wfd
    int size            # octets, as the kernel granted
    Pipe *next          # in the pool


# Where a pair stands. The loop thread makes it JOINING, LIVE or FREE; the relay
# thread SEEN or ENDED; _compat.h's atomics decide who was first.
cdef enum PairState:
    FREE
    JOINING             # one of its sockets may not be in the relay's epoll yet
    SEEN                # an event came while JOINING: the loop must send RUN
    LIVE
    ENDED               # sockets closed; the slot waits for the loop to take it


# Where a direction stands.
cdef enum DirState:
    OPEN
    FIN_SEEN            # its source has ended; held bytes, then the FIN, go out
    DONE                # FIN passed on


# A direction's source is the end of the same number: pair.end[d] to pair.end[1 - d].
cdef enum:
    UP = 0
    DOWN = 1


cdef enum:
    CLIENT_END = 0
    REMOTE_END = 1


cdef struct End:
    int fd
    int unsent          # octets that its kernel held at the last look
    uint8_t readable    # no EAGAIN since the last event
    uint8_t writable
    uint8_t fin         # EPOLLRDHUP: all that will ever come is in the queue
    uint8_t broken      # EPOLLERR
    uint8_t urgent      # URG seen: a short read no longer means an empty queue
    uint8_t pieces      # Unix: a read stops short behind descriptors that are passed
    uint8_t fresh       # an event came and nothing has been read since
    uint8_t out_armed   # EPOLLOUT is asked for
    uint8_t known       # its relay's epoll has it already, from its time at the front


cdef struct Direction:
    Pipe *pipe          # borrowed; kept beyond a turn only while it holds octets
    size_t piped        # octets in the pipe
    char *spill         # what copy could not send; NULL when nothing is held
    size_t spill_from
    size_t spill_to
    uint64_t moved      # octets that have left towards the other end
    uint8_t state       # DirState
    uint8_t splicing
    uint8_t streak      # thin reads in a row while splicing
    uint8_t short_      # its last read was a short message
    int fault           # -errno that was met outside its turn, which has to tell it


cdef struct Pair:
    Timer timer
    uint32_t index
    uint32_t generation  # counts the sessions of this slot; part of the epoll data
    uint32_t state      # PairState
    uint8_t queued      # on the run queue
    uint8_t leaving     # the porch, at the end of this turn
    uint8_t turns       # that it has had on the porch
    End end[2]
    Direction dir[2]
    uint64_t active_ms  # when the last octet moved
    int reason          # index into REASONS, once ENDED
    int error
    Relay *relay
    Pair *next          # on the run queue, or a list of pairs that leave or have ended
    void *flow          # a counted reference to Python's record of the session


cdef enum Order:
    KILL
    RUN


cdef struct Command:
    Order order
    uint32_t index
    uint32_t generation
    void *next


cdef enum:
    CHUNK = 256         # pairs; chunks never move, so threads may hold pointers
    CHUNKS = 8192


cdef struct Arena:
    Pair *chunks[CHUNKS]
    uint32_t count      # slots that exist
    Pair *free          # through Pair.next; touched by the loop thread only


cdef struct Stats:
    uint64_t copied
    uint64_t spliced
    uint64_t batched    # of those copied, with one system call for many
    uint64_t pipes
    uint64_t refused    # pipes


# What a relay's turn serves besides pairs (see _udp.pyx). Three pointers, so that
# the relay of streams need not know the relay of datagrams.
cdef struct Guests:
    void (*on_event)(Relay *relay, uint64_t data, uint32_t events) noexcept nogil
    void (*on_wake)(Relay *relay) noexcept nogil
    void (*on_turn_over)(Relay *relay) noexcept nogil


cdef struct Relay:
    int epfd
    int wake_fd         # an eventfd: commands wait
    int ended_fd        # an eventfd of the front: ended pairs wait
    uint32_t stopping
    uint32_t load       # sessions and associations it has; loop thread only
    uint8_t started     # there is a thread to be joined
    uint8_t inline_     # it has none: its turns are the front's, its epoll as well
    uint8_t porch       # and what lasts or streams leaves it, for a relay with a thread
    pthread_t thread
    Wheel wheel
    Arena *arena
    Guests *guests
    void *commands      # Command list, pushed by the loop thread
    void *newcomers     # Pair list, pushed by the loop thread without a wake-up
    void **ended        # the front's list of ended Pairs
    Pair *batch         # ended in this turn; published when the turn is over
    Pair *batch_last
    Pair *run_first
    Pair *run_last
    Pair *leaving       # the porch
    char *scratch
    Ring ring
    Pipe *pool
    uint32_t pool_made
    uint32_t max_pipes
    int pipe_size
    uint64_t no_pipe_until  # ms; after a refusal the kernel is not asked at once
    uint8_t may_splice
    uint8_t only_splice
    uint8_t may_batch
    uint64_t idle_ms
    uint64_t half_ms
    uint64_t now_ms
    Stats stats


cdef inline uint64_t milliseconds(double seconds) noexcept nogil:
    """Of a limit, where 0 is none and the shortest one must not become none. The longest
    is 300 years, as more would not fit."""
    return <uint64_t>(min(seconds, 1e10) * 1000) or <uint64_t>(seconds > 0)


cdef uint64_t monotonic_ms() noexcept nogil
cdef int watch(int epfd, int operation, int fd, uint32_t events, uint64_t data) noexcept nogil
cdef void reset_on_close(int fd) noexcept nogil

cdef int wheel_open(Wheel *wheel, int epfd) noexcept nogil
cdef void wheel_collect(Wheel *wheel, uint64_t now_ms, Timer *expired) noexcept nogil
cdef void timer_set(Wheel *wheel, Timer *timer, uint64_t due_ms) noexcept nogil
cdef void timer_clear(Timer *timer) noexcept nogil
cdef Timer *ring_pop(Timer *head) noexcept nogil

cdef int pipe_probe(int wanted) noexcept nogil

cdef uint64_t pair_data(Pair *pair, int which) noexcept nogil
cdef Pair *arena_at(Arena *arena, uint32_t index) noexcept nogil

cdef int relay_open(Relay *relay) noexcept nogil
cdef void *relay_thread(void *argument) noexcept nogil
cdef void relay_turn(Relay *relay, epoll_event *events, int count) noexcept nogil
cdef uint64_t pair_limit(Relay *relay, Pair *pair) noexcept nogil
cdef void pair_set_timer(Relay *relay, Pair *pair) noexcept nogil
cdef void relay_order(Relay *relay, Command *command) noexcept nogil
cdef void relay_publish(Relay *relay) noexcept nogil
cdef void relay_abandon(Relay *relay) noexcept nogil
cdef void relay_close(Relay *relay) noexcept nogil
