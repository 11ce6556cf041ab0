# What the front (_front.pyx) needs of the loop's side of UDP associations.

from libc.stdint cimport uint32_t, uint64_t

from fastsocks._address cimport Address, Endpoint
from fastsocks._relay cimport Relay
from fastsocks._udp cimport Assoc, AssocArena, Question, UdpCommand, UdpOrder
from fastsocks._visits cimport Turn


cdef class Association:
    cdef readonly tuple sockname
    cdef Datagrams owner
    cdef int fd                 # the client's datagram socket; -1 once given away
    cdef Endpoint client        # the client's address, as its TCP connection has it
    cdef Endpoint source[2]     # where to send from, per family; family 0: anywhere
    cdef object on_ask
    cdef bint is_local          # the client is on this machine
    cdef object flow
    cdef Relay *relay           # NULL before the hand-over and after the end
    cdef uint32_t index
    cdef uint32_t generation


cdef class Datagrams:
    cdef object settings
    cdef AssocArena arena
    cdef void *ended            # Assoc list, pushed by the relay threads
    cdef void *asked            # Question list, likewise
    cdef Question *waiting      # taken from there, oldest first
    cdef Question *waiting_last
    cdef bint lacks_memory      # to put them
    cdef uint64_t key[2]
    cdef uint64_t made
    cdef uint32_t next_port
    cdef bint closed            # the relays are gone

    cdef int bind_client_socket(self, str host) except -1
    cdef UdpCommand *new_command(self, Association association, UdpOrder order) except NULL
    cdef Assoc *new_slot(self) except NULL
    cdef int free_slot(self, Assoc *assoc) except -1
    cdef int serve_on(self, Relay *relay) except -1
    cdef Association open(self, Address *client, str host, sources, on_ask, bint is_local)
    cdef uint64_t begin(self, Association association, int control, Relay *relay, flow) except 0
    cdef int kill(self, uint64_t handle) except -1
    cdef bint drain(self, list batch) noexcept
    cdef void take_questions(self) noexcept
    cdef Question *next_question(self) noexcept
    cdef int put_questions(self, Turn turn) except -1
    cdef put(self, Question *question, Turn turn, fatal)
    cdef int count(self, dict totals, Relay *relays, int relay_count) except -1
