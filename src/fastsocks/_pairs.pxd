# What the front (_front.pyx) needs of the loop's side of relayed sessions.

from libc.stdint cimport uint32_t, uint64_t

from fastsocks._datagrams cimport Datagrams
from fastsocks._linux cimport epoll_event
from fastsocks._relay cimport Arena, Order, Pair, Relay, Timer, Wheel
from fastsocks._visits cimport Turn


cdef class Pairs:
    cdef object settings
    cdef Turn turn              # the front's, as are the next two
    cdef int epfd
    cdef Wheel *wheel
    cdef Relay *relays          # first the one without a thread, then those with one
    cdef int relay_count
    cdef bint threaded
    cdef Arena arena
    cdef int ended_fd
    cdef void *ended            # Pair list, pushed by the relay threads
    cdef Timer nudge_timer      # newcomers that no event has made known
    cdef int large              # the higher, the more of the last sessions were large
    cdef uint64_t relayed
    cdef uint64_t moved_on      # from the porch

    cdef int open(self, int epfd, Wheel *wheel, Datagrams datagrams) except -1
    cdef int open_relay(self, Relay *relay) except -1
    cdef int start_thread(self, Relay *relay) except -1
    cdef int share_of_pipes(self, Relay *relay) except -1
    cdef void end(self) noexcept
    cdef Pair *prepare(self, int remote, bytes early) except NULL
    cdef bint send_early(self, Pair *pair, int fd, bytes early) except -1
    cdef uint64_t begin(self, Pair *pair, flow) except? 0
    cdef int join(self, Pair *pair) except -1
    cdef int nudge(self) except -1
    cdef bint take_turn(self, epoll_event *events, int count) except -1
    cdef int move_on(self) except -1
    cdef int kill(self, uint64_t handle) except -1
    cdef int order(self, Relay *relay, Order order, uint32_t index,
                   uint32_t generation) except -1
    cdef bint drain(self, list batch) noexcept
    cdef void learn(self, Pair *pair) noexcept
    cdef int count(self, dict totals) except -1
    cdef Relay *least_busy(self) noexcept
    cdef Pair *new_pair(self) except NULL
    cdef void free_pair(self, Pair *pair) noexcept
