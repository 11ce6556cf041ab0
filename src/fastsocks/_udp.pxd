# The C contract between the relay of datagrams and the loop's side of it: records,
# and what each field means.
#
# An Assoc has one owner at a time, as a Pair has: the loop fills it and hands it over
# by the order JOIN; from then on only its relay's thread touches it, until it comes
# back on the list of ended ones. Questions and answers are records of their own.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastsocks._address cimport Endpoint
from fastsocks._linux cimport iovec, mmsghdr, socklen_t
from fastsocks._relay cimport Guests, Relay, Timer, Wheel


cdef enum:
    # The wire form of a destination, ATYP to port, with a name of 255 octets.
    WIRE_MOST = 1 + 1 + 255 + 2


# The sockets of an association; the lowest two bits of its epoll data.
cdef enum:
    CONTROL             # the TCP connection it lives and dies with
    CLIENT              # datagrams with headers; connected once the client is known
    REMOTE4             # datagrams without; made when first needed
    REMOTE6
    LEGS


cdef enum Verdict:
    ASKED               # the question is with Python; datagrams wait
    ALLOWED             # which it stays while it is asked for again
    DENIED


cdef struct Destination:
    Destination *next           # in its bucket, by wire form
    Destination *address_next   # in its bucket, by address; while ALLOWED only
    Destination *newer          # by last use, towards Assoc.newest
    Destination *older
    uint64_t until_ms           # when to ask for the verdict again; 0: never, or it is asked for
    uint32_t hash
    uint32_t address_hash
    uint32_t held               # datagrams that wait for its verdict
    uint32_t held_octets
    Verdict verdict
    Endpoint address
    socklen_t address_length
    uint16_t wire_length
    char wire[WIRE_MOST]        # allocated only as far as it is used


cdef struct Held:               # a datagram that waits for the verdict on its destination
    Held *next
    Destination *destination
    size_t length
    char payload[1]             # as much as there is


cdef enum AssocState:
    VACANT
    ACTIVE
    OVER                        # sockets closed; the slot waits for the loop to take it


cdef struct Assoc:
    Timer timer
    uint32_t index
    uint32_t generation         # counts the associations of this slot
    uint32_t state              # AssocState
    int fd[LEGS]                # -1 where there is none
    uint32_t segment_most[LEGS]  # longest datagram worth trying UDP_SEGMENT with; 0: none
    Endpoint client             # the client's address; its port once it is known
    uint8_t pinned              # it is known, and the client's socket connected to it
    uint8_t full_cone
    uint8_t is_local            # the client is on this machine
    uint16_t own_port[LEGS]     # of the remote sockets, 0 where there is none
    Endpoint source[2]          # what to bind the remote sockets to; family 0: anything
    uint64_t active_ms          # when a datagram was last passed on
    uint64_t up                 # octets of payload passed on
    uint64_t down
    int reason                  # index into REASONS, once OVER
    int error
    Relay *relay
    Assoc *next                 # on a list of ended ones, or of free slots
    void *keeper                # a counted reference to Python's Association
    Destination **buckets       # bucket_count by wire form, as many by address
    uint32_t bucket_count
    uint32_t destinations
    Destination *newest
    Destination *oldest
    Held *held_first
    Held *held_last
    uint32_t held
    size_t held_octets


cdef enum UdpOrder:
    JOIN
    END
    ANSWER


cdef struct UdpCommand:
    UdpOrder order
    uint32_t index
    uint32_t generation
    void *next
    Verdict verdict             # the rest is ANSWER's
    uint64_t ttl_ms
    Endpoint address
    socklen_t address_length
    uint16_t wire_length
    char wire[WIRE_MOST]


cdef struct Question:
    uint32_t index
    uint32_t generation
    void *next
    Endpoint address            # the answer that has grown old; family 0: none
    uint16_t wire_length
    char wire[WIRE_MOST]


cdef enum:
    ASSOC_CHUNK = 64            # chunks never move, so threads may hold pointers
    ASSOC_CHUNKS = 1024


cdef enum:
    PORTS = 65536
    IN_USE = 0xFFFFFFFF


cdef struct AssocArena:
    Assoc *chunks[ASSOC_CHUNKS]
    uint32_t count
    Assoc *free                 # through Assoc.next; touched by the loop thread only
    # By family and port: until when (in seconds) what comes from there may be of a remote
    # socket of ours; IN_USE while there is one.
    uint32_t *own_ports


cdef struct UdpStats:
    uint64_t up                 # datagrams passed on
    uint64_t down
    uint64_t source             # dropped: not from the client's address
    uint64_t malformed
    uint64_t fragment
    uint64_t denied
    uint64_t stranger           # from where the client has sent nothing to
    uint64_t full               # no room: the socket's, or among those that wait
    uint64_t failed             # the kernel would not send it
    uint64_t gso                # sends of several datagrams in one


cdef enum:
    ATYP_IPV4 = 1
    ATYP_NAME = 3
    ATYP_IPV6 = 4


cdef enum:
    # Headers before a payload: RSV RSV FRAG ATYP, address, port.
    HEADER4 = 4 + 4 + 2
    HEADER6 = 4 + 16 + 2
    HEADROOM = HEADER6          # the longest of a reply
    BATCH = 16                  # messages received at once: 1 MB at most, one turn
    ROOM = 65536 + 640          # not a power of two: rooms would share cache sets
    MESSAGES = 64               # sent at once
    VECTORS = 1024
    CONTROL_WORDS = 4           # of a control message with one number in it


cdef struct Scratch:            # of one relay, for the turn of one association
    mmsghdr inbox[BATCH]
    iovec in_vector[BATCH]
    Endpoint sender[BATCH]
    uint64_t in_control[BATCH][CONTROL_WORDS]
    # What is going out, gathered until it is flushed:
    int fd
    int leg
    uint32_t count              # messages
    uint32_t vectors
    uint8_t run_open            # the last message can take one more datagram
    mmsghdr outbox[MESSAGES]
    iovec out_vector[VECTORS]
    uint64_t out_control[MESSAGES][CONTROL_WORDS]
    uint32_t segments[MESSAGES]  # datagrams in a message
    uint32_t segment[MESSAGES]  # octets in each of them but the last
    uint32_t total[MESSAGES]    # octets in all of them
    uint32_t payload[MESSAGES]  # the same without headers
    char *rooms                 # BATCH of ROOM octets


cdef struct Udp:
    Guests guests               # first, so that a Relay's pointer to it is one to us
    Wheel wheel
    AssocArena *arena
    void *commands              # UdpCommand list, pushed by the loop thread
    void **ended                # the loop's list of ended Assocs
    void **asked                # the loop's list of Questions
    Assoc *batch                # ended in this turn; published when the turn is over
    Assoc *batch_last
    uint64_t idle_ms
    uint64_t key[2]             # of the hash tables
    UdpStats stats
    Scratch *scratch            # made with the first association


cdef int udp_open(Relay *relay) noexcept nogil
cdef void udp_order(Relay *relay, UdpCommand *command) noexcept nogil
cdef void udp_abandon(Relay *relay) noexcept nogil
cdef void udp_close(Relay *relay) noexcept nogil
cdef Assoc *assoc_at(AssocArena *arena, uint32_t index) noexcept nogil
