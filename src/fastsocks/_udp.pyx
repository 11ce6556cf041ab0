# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The relay of datagrams of the native engine (Linux): SOCKS5's UDP associations
(RFC 1928, 7), served by the relay threads beside the pairs of _relay.pyx.

It must not know Python objects, nor judge a destination: that is asked for, once, and
the datagrams wait (a few of them). What goes up loses its header, what comes down gets
one; the payload stays where recvmmsg has put it.

    client --CLIENT--> header off, destination found --REMOTE4/6--> target
    client <--CLIENT-- header on <-- source known? <--REMOTE4/6-- target

Sockets are level-triggered: one batch is received per event, and what is left makes
epoll come again, behind the others. Nothing is queued on the way out: a datagram that
the kernel does not take is dropped and counted, as any router would.

Invariants: the client's port is taken from its first valid datagram and never changes;
a source is checked on every datagram, since one queued before connect() is not the
kernel's to filter; no error of a datagram socket ends an association.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from fastsocks._linux cimport (
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, EAGAIN, ECONNRESET,
    EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP,
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, ETIMEDOUT, IN6_IS_ADDR_UNSPECIFIED, IPPROTO_IPV6,
    IPV6_V6ONLY, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, POLLIN, SOCK_CLOEXEC, SOCK_DGRAM,
    SOCK_NONBLOCK, SOL_SOCKET, SOL_UDP, SO_ERROR, SO_RCVBUF, SO_SNDBUF, UDP_GRO, UDP_SEGMENT,
    bind, close, cmsghdr, connect, count_u64, errno, eventfd_write, getsockname, getsockopt,
    iovec, keyed_hash, load_u32, mmsghdr, msghdr, ntohs, poll, pollfd, push_list, recv,
    recvmmsg, sendmmsg, sendmsg, sendto, setsockopt, sockaddr, sockaddr_in, sockaddr_in6,
    socket, socklen_t, store_u32, take_list
)
from fastsocks._relay cimport (
    ASSOCIATION, CLIENT_RESET, FINISHED, IDLE, KILLED, Relay, TICK_MS, Timer, reset_on_close,
    ring_pop, timer_clear, timer_set, watch, wheel_collect, wheel_open
)


cdef enum:
    DESTINATIONS = 1024         # remembered by one association; then the least used goes
    FIRST_BUCKETS = 16
    # Datagrams that wait for verdicts, in one association. A destination may have more of them
    # while it has fewer than are free, so that one slow name does not keep out all others.
    HELD_MOST = 32
    HELD_OCTETS = 128 * 1024
    # Of them those for names, so that addresses need not wait for a name server that is silent.
    NAMED_MOST = 24
    NAMED_OCTETS = 96 * 1024
    # Datagrams that the kernel cuts out of one send (UDP_MAX_SEGMENTS was 64 at first).
    SEGMENTS = 64
    # What they may add up to: the length field has 16 bits, headers included.
    RUN_OCTETS = 65000
    # As asked for; 212 KB by default, which a burst overruns.
    BUFFER = 512 * 1024
    # A fault of UDP_SEGMENT with datagrams beyond this is the path's MTU, not the socket.
    MTU_LEAST = 1200
    # How long a datagram may wait in a socket, in seconds, where a turn takes milliseconds; for
    # so long a client that the kernel gives the port to would not be heard.
    WAITING_S = 1

# == addresses ===============================================================

cdef inline bint same_host(Endpoint *one, Endpoint *other) noexcept nogil:
    if one.any.sa_family != other.any.sa_family:
        return False
    if one.any.sa_family == AF_INET:
        return one.v4.sin_addr.s_addr == other.v4.sin_addr.s_addr
    if memcmp(&one.v6.sin6_addr, &other.v6.sin6_addr, 16) != 0:
        return False
    # Of fe80::/10 each link has hosts of its own.
    return not is_link_local(one) or one.v6.sin6_scope_id == other.v6.sin6_scope_id


cdef inline bint is_any(Endpoint *endpoint) noexcept nogil:
    if endpoint.any.sa_family == AF_INET:
        return endpoint.v4.sin_addr.s_addr == 0
    return IN6_IS_ADDR_UNSPECIFIED(&endpoint.v6.sin6_addr)


cdef inline bint is_link_local(Endpoint *endpoint) noexcept nogil:
    cdef uint8_t *octets = <uint8_t *>&endpoint.v6.sin6_addr
    return octets[0] == 0xFE and octets[1] & 0xC0 == 0x80


cdef inline uint16_t port_of(Endpoint *endpoint) noexcept nogil:
    """In network order; it is in the same place in both families."""
    return endpoint.v4.sin_port


cdef uint32_t address_hash_of(Udp *udp, Endpoint *endpoint) noexcept nogil:
    cdef char packed[18]
    memcpy(packed, &endpoint.v4.sin_port, 2)
    if endpoint.any.sa_family == AF_INET:
        memcpy(packed + 2, &endpoint.v4.sin_addr, 4)
        return <uint32_t>keyed_hash(packed, 6, udp.key)
    memcpy(packed + 2, &endpoint.v6.sin6_addr, 16)
    return <uint32_t>keyed_hash(packed, 18, udp.key)

# == destinations ============================================================

cdef inline Destination **bucket_by_wire(Assoc *assoc, uint32_t hash) noexcept nogil:
    return &assoc.buckets[hash & (assoc.bucket_count - 1)]


cdef inline Destination **bucket_by_address(Assoc *assoc, uint32_t hash) noexcept nogil:
    return &assoc.buckets[assoc.bucket_count + (hash & (assoc.bucket_count - 1))]


cdef Destination *find_by_wire(Assoc *assoc, uint32_t hash, const char *wire,
                               size_t length) noexcept nogil:
    cdef Destination *found
    if assoc.bucket_count == 0:
        return NULL
    found = bucket_by_wire(assoc, hash)[0]
    while found != NULL:
        if found.hash == hash and found.wire_length == length:
            if memcmp(found.wire, wire, length) == 0:
                return found
        found = found.next
    return NULL


cdef Destination *find_by_address(Udp *udp, Assoc *assoc, Endpoint *source) noexcept nogil:
    """Who has this address and port: what the client has sent to, nobody else."""
    cdef Destination *found = assoc.newest
    cdef uint32_t hash
    if found == NULL:
        return NULL
    if found.verdict == ALLOWED and port_of(&found.address) == port_of(source):
        if same_host(&found.address, source):
            return found
    hash = address_hash_of(udp, source)
    found = bucket_by_address(assoc, hash)[0]
    while found != NULL:
        if found.address_hash == hash and port_of(&found.address) == port_of(source):
            if same_host(&found.address, source):
                return found
        found = found.address_next
    return NULL


cdef void link_newest(Assoc *assoc, Destination *destination) noexcept nogil:
    destination.newer = NULL
    destination.older = assoc.newest
    if assoc.newest != NULL:
        assoc.newest.newer = destination
    else:
        assoc.oldest = destination
    assoc.newest = destination


cdef void unlink_use(Assoc *assoc, Destination *destination) noexcept nogil:
    if destination.newer != NULL:
        destination.newer.older = destination.older
    else:
        assoc.newest = destination.older
    if destination.older != NULL:
        destination.older.newer = destination.newer
    else:
        assoc.oldest = destination.newer


cdef inline void use(Assoc *assoc, Destination *destination) noexcept nogil:
    if assoc.newest != destination:
        unlink_use(assoc, destination)
        link_newest(assoc, destination)


cdef void forget_address(Assoc *assoc, Destination *destination) noexcept nogil:
    """Takes it out of the table by address, where only the allowed ones are."""
    cdef Destination **at
    if destination.verdict != ALLOWED:
        return
    at = bucket_by_address(assoc, destination.address_hash)
    while at[0] != destination:
        at = &at[0].address_next
    at[0] = destination.address_next
    destination.verdict = DENIED


cdef void evict(Assoc *assoc) noexcept nogil:
    """The one that has not been used for longest; one that datagrams wait for stays,
    and those are few, as nothing is asked where nothing can wait."""
    cdef Destination *victim = assoc.oldest
    cdef Destination **at
    while victim != NULL and victim.verdict == ASKED:
        victim = victim.newer
    if victim == NULL:
        return
    forget_address(assoc, victim)
    at = bucket_by_wire(assoc, victim.hash)
    while at[0] != victim:
        at = &at[0].next
    at[0] = victim.next
    unlink_use(assoc, victim)
    assoc.destinations -= 1
    free(victim)


cdef bint grow(Assoc *assoc) noexcept nogil:
    cdef uint32_t count = assoc.bucket_count * 2 if assoc.bucket_count else FIRST_BUCKETS
    cdef Destination **buckets = <Destination **>calloc(2 * count, sizeof(Destination *))
    cdef Destination **at
    cdef Destination *one = assoc.oldest
    if buckets == NULL:
        return False
    free(assoc.buckets)
    assoc.buckets = buckets
    assoc.bucket_count = count
    while one != NULL:
        at = bucket_by_wire(assoc, one.hash)
        one.next = at[0]
        at[0] = one
        if one.verdict == ALLOWED:
            at = bucket_by_address(assoc, one.address_hash)
            one.address_next = at[0]
            at[0] = one
        one = one.newer
    return True


cdef Destination *remember(Assoc *assoc, uint32_t hash, const char *wire,
                           size_t length) noexcept nogil:
    """A new destination, about to be asked for; NULL without memory."""
    cdef Destination *made
    cdef Destination **at
    if assoc.destinations >= DESTINATIONS:
        evict(assoc)
    if assoc.destinations >= assoc.bucket_count and not grow(assoc) and not assoc.bucket_count:
        return NULL
    made = <Destination *>malloc(sizeof(Destination) - WIRE_MOST + length)
    if made == NULL:
        return NULL
    made.hash = hash
    made.verdict = ASKED
    made.until_ms = 0
    made.held = made.held_octets = 0
    made.address_next = NULL
    made.wire_length = <uint16_t>length
    memcpy(made.wire, wire, length)
    at = bucket_by_wire(assoc, hash)
    made.next = at[0]
    at[0] = made
    link_newest(assoc, made)
    assoc.destinations += 1
    return made


cdef void ask(Relay *relay, Assoc *assoc, Destination *destination) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Question *question = <Question *>malloc(sizeof(Question))
    if question == NULL:
        if destination.verdict == ASKED:
            destination.verdict = DENIED
        destination.until_ms = relay.now_ms  # asked for again with the next datagram
        return
    question.index = assoc.index
    question.generation = assoc.generation
    question.address.any.sa_family = 0
    if destination.verdict == ALLOWED:
        question.address = destination.address
    question.wire_length = destination.wire_length
    memcpy(question.wire, destination.wire, destination.wire_length)
    if push_list(udp.asked, question, &question.next):
        eventfd_write(relay.ended_fd, 1)


cdef bint can_hold(Assoc *assoc, char atyp, Destination *destination,
                   size_t length) noexcept nogil:
    """One more for this destination, NULL for a new one."""
    cdef bint named = atyp == ATYP_NAME
    cdef Py_ssize_t most = (NAMED_MOST if named else HELD_MOST) - <Py_ssize_t>assoc.held
    cdef Py_ssize_t octets = (NAMED_OCTETS if named else HELD_OCTETS) \
        - <Py_ssize_t>assoc.held_octets
    if destination == NULL:
        return most > 0 and <Py_ssize_t>length <= octets
    return destination.held < most and <Py_ssize_t>(destination.held_octets + length) <= octets


cdef bint hold(Assoc *assoc, Destination *destination, char *payload,
               size_t length) noexcept nogil:
    """Keeps a datagram until the verdict; False where there is no room."""
    cdef Held *held
    if not can_hold(assoc, destination.wire[0], destination, length):
        return False
    held = <Held *>malloc(sizeof(Held) + length)
    if held == NULL:
        return False
    held.next = NULL
    held.destination = destination
    held.length = length
    memcpy(held.payload, payload, length)
    if assoc.held_last == NULL:
        assoc.held_first = held
    else:
        assoc.held_last.next = held
    assoc.held_last = held
    assoc.held += 1
    assoc.held_octets += length
    destination.held += 1
    destination.held_octets += <uint32_t>length
    return True


cdef void settle(Relay *relay, Assoc *assoc, UdpCommand *answer) noexcept nogil:
    """Takes the verdict on a destination, and with it the datagrams that waited."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef uint32_t hash = <uint32_t>keyed_hash(answer.wire, answer.wire_length, udp.key)
    cdef Destination *destination = find_by_wire(assoc, hash, answer.wire, answer.wire_length)
    cdef Destination **at
    cdef Held *held = assoc.held_first
    cdef Held *after
    cdef Held **link = &assoc.held_first
    if destination == NULL:
        return
    forget_address(assoc, destination)
    destination.verdict = answer.verdict
    destination.until_ms = relay.now_ms + answer.ttl_ms if answer.ttl_ms else 0
    if answer.verdict == ALLOWED:
        destination.address = answer.address
        destination.address_length = answer.address_length
        destination.address_hash = address_hash_of(udp, &answer.address)
        at = bucket_by_address(assoc, destination.address_hash)
        destination.address_next = at[0]
        at[0] = destination
    assoc.held_last = NULL
    while held != NULL:
        after = held.next
        if held.destination != destination:
            link[0] = held
            link = &held.next
            assoc.held_last = held
        else:
            assoc.held -= 1
            assoc.held_octets -= held.length
            destination.held -= 1
            destination.held_octets -= <uint32_t>held.length
            if answer.verdict == ALLOWED:
                send_up(relay, assoc, destination, held.payload, held.length)
                flush(relay, assoc)
            else:
                count_u64(&udp.stats.denied, 1)
            free(held)
        held = after
    link[0] = NULL

# == what goes out ===========================================================

cdef void passed_on(Relay *relay, Assoc *assoc, int leg, uint64_t datagrams,
                    uint64_t octets) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    assoc.active_ms = relay.now_ms
    if leg == CLIENT:
        assoc.down += octets
        count_u64(&udp.stats.down, datagrams)
    else:
        assoc.up += octets
        count_u64(&udp.stats.up, datagrams)


cdef void add(Relay *relay, Assoc *assoc, int leg, Destination *destination, char *header,
              size_t header_length, char *payload, size_t length) noexcept nogil:
    """Puts one datagram with what goes out. ``header`` is sent before the payload, from
    where it is; nothing is sent before the flush.

    Datagrams of one size to one destination, the last perhaps shorter, become one
    message that the kernel cuts up (UDP_SEGMENT): one walk through its stack for all.
    """
    cdef Scratch *out = (<Udp *>relay.guests).scratch
    cdef size_t size = header_length + length
    cdef uint32_t last = out.count - 1
    cdef msghdr *message
    if out.count and (out.fd != assoc.fd[leg] or out.vectors + 2 > VECTORS):
        flush(relay, assoc)
    if out.count and out.run_open and size and size <= out.segment[last] \
            and out.segment[last] <= assoc.segment_most[leg] \
            and out.segments[last] < SEGMENTS and out.total[last] + size <= RUN_OCTETS \
            and (destination == NULL or
                 out.outbox[last].msg_hdr.msg_name == <void *>&destination.address):
        out.segments[last] += 1
        out.run_open = size == out.segment[last]
        message = &out.outbox[last].msg_hdr
    else:
        if out.count == MESSAGES:
            flush(relay, assoc)
        last = out.count
        out.count += 1
        out.fd = assoc.fd[leg]
        out.leg = leg
        out.run_open = True
        out.segments[last] = 1
        out.segment[last] = <uint32_t>size
        out.total[last] = out.payload[last] = 0
        message = &out.outbox[last].msg_hdr
        message.msg_iov = &out.out_vector[out.vectors]
        message.msg_iovlen = 0
        message.msg_name = NULL
        message.msg_namelen = 0
        if destination != NULL:
            message.msg_name = &destination.address
            message.msg_namelen = destination.address_length
    out.total[last] += <uint32_t>size
    out.payload[last] += <uint32_t>length
    if header_length and header + header_length != payload:
        out.out_vector[out.vectors].iov_base = header
        out.out_vector[out.vectors].iov_len = header_length
        out.vectors += 1
        message.msg_iovlen += 1
    else:
        payload -= header_length
        length += header_length
    out.out_vector[out.vectors].iov_base = payload
    out.out_vector[out.vectors].iov_len = length
    out.vectors += 1
    message.msg_iovlen += 1


cdef void mark_segments(Scratch *out) noexcept nogil:
    """Tells the kernel where to cut, in those messages that hold several datagrams."""
    cdef uint32_t i
    cdef msghdr *message
    cdef cmsghdr *control
    for i in range(out.count):
        message = &out.outbox[i].msg_hdr
        message.msg_control = NULL
        message.msg_controllen = 0
        if out.segments[i] > 1:
            control = <cmsghdr *>out.out_control[i]
            control.cmsg_level = SOL_UDP
            control.cmsg_type = UDP_SEGMENT
            control.cmsg_len = CMSG_LEN(sizeof(uint16_t))
            (<uint16_t *>CMSG_DATA(control))[0] = <uint16_t>out.segment[i]
            message.msg_control = control
            message.msg_controllen = sizeof(out.out_control[i])


cdef int send_some(Scratch *out, uint32_t first) noexcept nogil:
    """How many messages were sent, or -1; the short way where there is one datagram."""
    cdef msghdr *message = &out.outbox[first].msg_hdr
    cdef ssize_t sent
    if first + 1 < out.count or message.msg_iovlen > 1:
        return sendmmsg(out.fd, &out.outbox[first], out.count - first,
                        MSG_DONTWAIT | MSG_NOSIGNAL)
    sent = sendto(out.fd, message.msg_iov.iov_base, message.msg_iov.iov_len,
                  MSG_DONTWAIT | MSG_NOSIGNAL, <sockaddr *>message.msg_name,
                  message.msg_namelen)
    return -1 if sent < 0 else 1


cdef void flush(Relay *relay, Assoc *assoc) noexcept nogil:
    """Sends what has been added. Nothing can fail that would concern anybody but the
    datagram itself, and that is dropped."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef Scratch *out = udp.scratch
    cdef uint32_t at = 0
    cdef bint again = False
    cdef int sent
    if out.count:
        mark_segments(out)
    while at < out.count:
        sent = send_some(out, at)
        if sent > 0:
            again = False
            while sent:
                passed_on(relay, assoc, out.leg, out.segments[at], out.payload[at])
                if out.segments[at] > 1:
                    count_u64(&udp.stats.gso, 1)
                at += 1
                sent -= 1
        elif errno == EINTR:
            continue
        elif errno == EAGAIN or errno == ENOBUFS:
            count_u64(&udp.stats.full, out.segments[at])
            at += 1
        elif out.segments[at] > 1 and (errno == EINVAL or errno == EMSGSIZE or errno == EIO):
            send_apart(relay, assoc, at)
            at += 1
        elif not again and errno != EMSGSIZE:
            # It may be what ICMP said of an earlier datagram, told once.
            again = True
        else:
            count_u64(&udp.stats.failed, out.segments[at])
            again = False
            at += 1
    out.count = out.vectors = 0


cdef void send_apart(Relay *relay, Assoc *assoc, uint32_t which) noexcept nogil:
    """The kernel will not cut this message up: its datagrams are sent one by one, and
    the socket is not asked again. It also refuses (EINVAL, on newer ones EMSGSIZE)
    datagrams longer than the path's packets, so shorter ones get their chance."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef Scratch *out = udp.scratch
    cdef msghdr message = out.outbox[which].msg_hdr
    cdef iovec *vector = message.msg_iov
    cdef iovec *end = vector + message.msg_iovlen
    cdef uint32_t segment = out.segment[which]
    cdef uint32_t header = (out.total[which] - out.payload[which]) // out.segments[which]
    cdef size_t size
    assoc.segment_most[out.leg] = \
        segment - 1 if errno != EIO and segment > MTU_LEAST else 0
    message.msg_control = NULL
    message.msg_controllen = 0
    while vector < end:
        message.msg_iov = vector
        message.msg_iovlen = 0
        size = 0
        while vector < end and size + vector.iov_len <= segment:
            size += vector.iov_len
            vector += 1
            message.msg_iovlen += 1
        if sendmsg(out.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            passed_on(relay, assoc, out.leg, 1, size - header)
        elif errno == EAGAIN or errno == ENOBUFS:
            count_u64(&udp.stats.full, 1)
        else:
            count_u64(&udp.stats.failed, 1)

# == what comes in ===========================================================

cdef bint scratch_ready(Udp *udp) noexcept nogil:
    cdef Scratch *scratch = udp.scratch
    cdef int i
    if scratch != NULL:
        return True
    scratch = <Scratch *>calloc(1, sizeof(Scratch))
    if scratch == NULL:
        return False
    # Pages that no datagram reaches are never touched.
    scratch.rooms = <char *>malloc(BATCH * ROOM)
    if scratch.rooms == NULL:
        free(scratch)
        return False
    for i in range(BATCH):
        scratch.in_vector[i].iov_base = scratch.rooms + i * ROOM + HEADROOM
        scratch.in_vector[i].iov_len = 65536
        scratch.inbox[i].msg_hdr.msg_iov = &scratch.in_vector[i]
        scratch.inbox[i].msg_hdr.msg_iovlen = 1
        scratch.inbox[i].msg_hdr.msg_name = &scratch.sender[i]
        scratch.inbox[i].msg_hdr.msg_control = scratch.in_control[i]
    inbox_ready(scratch, BATCH)
    udp.scratch = scratch
    return True


cdef void inbox_ready(Scratch *scratch, int count) noexcept nogil:
    """Gives recvmmsg back the room it has used."""
    cdef int i
    for i in range(count):
        scratch.inbox[i].msg_hdr.msg_namelen = sizeof(Endpoint)
        scratch.inbox[i].msg_hdr.msg_controllen = CONTROL_WORDS * sizeof(uint64_t)


cdef size_t segment_of(mmsghdr *message) noexcept nogil:
    """How long each datagram of a message is (UDP_GRO), the last perhaps less."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(&message.msg_hdr)
    while control != NULL:
        if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
            return (<int *>CMSG_DATA(control))[0]
        control = CMSG_NXTHDR(&message.msg_hdr, control)
    return message.msg_len


cdef uint64_t datagrams_in(size_t length, size_t segment) noexcept nogil:
    return (length + segment - 1) // segment if length else 1


cdef void receive_up(Relay *relay, Assoc *assoc) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Scratch *scratch = udp.scratch
    cdef int count = recvmmsg(assoc.fd[CLIENT], scratch.inbox, BATCH, MSG_DONTWAIT, NULL)
    cdef int i
    cdef char *at
    cdef size_t left
    cdef size_t segment
    for i in range(count):
        at = <char *>scratch.in_vector[i].iov_base
        left = scratch.inbox[i].msg_len
        segment = segment_of(&scratch.inbox[i])
        if not is_client(relay, assoc, &scratch.sender[i]):
            count_u64(&udp.stats.source, datagrams_in(left, segment))
            continue
        while True:
            pass_up(relay, assoc, at, min(segment, left), &scratch.sender[i])
            if left <= segment:
                break
            at += segment
            left -= segment
    if count > 0:
        inbox_ready(scratch, count)
    flush(relay, assoc)


cdef bint is_client(Relay *relay, Assoc *assoc, Endpoint *sender) noexcept nogil:
    if not same_host(&assoc.client, sender):
        return False
    if assoc.is_local and is_own_socket(relay, assoc, sender):
        return False  # somebody else sends through this proxy to the port of a client of it
    return not assoc.pinned or port_of(&assoc.client) == port_of(sender)


cdef inline uint32_t *own_port_at(Udp *udp, Endpoint *endpoint) noexcept nogil:
    cdef uint32_t family = PORTS if endpoint.any.sa_family == AF_INET6 else 0
    return &udp.arena.own_ports[family + ntohs(port_of(endpoint))]


cdef bint is_own_socket(Relay *relay, Assoc *assoc, Endpoint *sender) noexcept nogil:
    """Whether a remote socket has that address. Where they are bound to a source, others of
    this machine may have their ports."""
    cdef Endpoint *source = &assoc.source[sender.any.sa_family == AF_INET6]
    cdef uint32_t until = load_u32(own_port_at(<Udp *>relay.guests, sender))
    if source.any.sa_family != 0 and not is_any(source) and not same_host(source, sender):
        return False
    return until != 0 and until >= relay.now_ms // 1000


cdef void pass_up(Relay *relay, Assoc *assoc, char *datagram, size_t length,
                  Endpoint *sender) noexcept nogil:
    """One datagram of the client's: RSV RSV FRAG ATYP address port payload. RSV is not
    looked at, as in requests: who sets it works elsewhere."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef Destination *destination
    cdef size_t start = payload_start(<uint8_t *>datagram, length)
    if start == 0:
        count_u64(&udp.stats.malformed, 1)
        return
    if datagram[2]:
        count_u64(&udp.stats.fragment, 1)
        return
    if not assoc.pinned and not pin(assoc, sender):
        count_u64(&udp.stats.failed, 1)
        return
    destination = destination_for(relay, assoc, datagram + 3, start - 3, length - start)
    if destination == NULL:
        count_u64(&udp.stats.full, 1)
    elif destination.verdict == ALLOWED:
        send_up(relay, assoc, destination, datagram + start, length - start)
    elif destination.verdict == DENIED:
        count_u64(&udp.stats.denied, 1)
    elif not hold(assoc, destination, datagram + start, length - start):
        count_u64(&udp.stats.full, 1)


cdef Destination *destination_for(Relay *relay, Assoc *assoc, char *wire, size_t wire_length,
                                  size_t payload_length) noexcept nogil:
    """With a verdict, or one that has been asked for; NULL where neither it nor the payload
    has room."""
    cdef Destination *destination = assoc.newest
    cdef uint32_t hash
    if destination == NULL or destination.wire_length != wire_length \
            or memcmp(destination.wire, wire, wire_length) != 0:
        hash = <uint32_t>keyed_hash(wire, wire_length, (<Udp *>relay.guests).key)
        destination = find_by_wire(assoc, hash, wire, wire_length)
        if destination == NULL:
            if can_hold(assoc, wire[0], NULL, payload_length):
                # Of those in the outbox one may be about to be evicted.
                flush(relay, assoc)
                destination = remember(assoc, hash, wire, wire_length)
            if destination == NULL:
                return NULL
            ask(relay, assoc, destination)
        use(assoc, destination)
    if destination.until_ms and destination.until_ms <= relay.now_ms \
            and destination.verdict != ASKED:
        if destination.verdict == DENIED:
            if not can_hold(assoc, wire[0], destination, payload_length):
                return NULL
            destination.verdict = ASKED
        # A flow that stands goes on meanwhile: its replies would be nobody's.
        destination.until_ms = 0
        ask(relay, assoc, destination)
    return destination


cdef size_t payload_start(uint8_t *datagram, size_t length) noexcept nogil:
    """Where the header ends, 0 if there is none to speak of."""
    cdef size_t start
    if length < 5:
        return 0
    if datagram[3] == ATYP_IPV4:
        start = HEADER4
    elif datagram[3] == ATYP_IPV6:
        start = HEADER6
    elif datagram[3] == ATYP_NAME and datagram[4]:
        start = 4 + 1 + datagram[4] + 2
    else:
        return 0
    # Port 0 is nobody's, and the kernel would call it EINVAL.
    if length < start or not (datagram[start - 2] or datagram[start - 1]):
        return 0
    return start


cdef bint pin(Assoc *assoc, Endpoint *sender) noexcept nogil:
    """The client is known from now on: the kernel drops what others send, and our
    sends need neither an address nor a look at the routes."""
    cdef socklen_t length = sizeof(sockaddr_in)
    if sender.any.sa_family == AF_INET6:
        length = sizeof(sockaddr_in6)
    if connect(assoc.fd[CLIENT], &sender.any, length) < 0:
        return False
    assoc.client = sender[0]
    assoc.pinned = 1
    return True


cdef void send_up(Relay *relay, Assoc *assoc, Destination *destination, char *payload,
                  size_t length) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef int leg = REMOTE4 if destination.address.any.sa_family == AF_INET else REMOTE6
    if assoc.fd[leg] < 0 and remote_open(relay, assoc, leg) < 0:
        count_u64(&udp.stats.failed, 1)
        return
    add(relay, assoc, leg, destination, NULL, 0, payload, length)


cdef int remote_open(Relay *relay, Assoc *assoc, int leg) noexcept nogil:
    """The socket towards targets of one family, bound to the configured source."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef Endpoint source = assoc.source[leg - REMOTE4]
    cdef socklen_t length = sizeof(sockaddr_in) if leg == REMOTE4 else sizeof(sockaddr_in6)
    cdef int on = 1
    cdef int fd
    source.any.sa_family = AF_INET if leg == REMOTE4 else AF_INET6
    fd = socket(source.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    if leg == REMOTE6:
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on))
    socket_ready(fd)
    if bind(fd, &source.any, length) < 0 \
            or watch(relay.epfd, EPOLL_CTL_ADD, fd, EPOLLIN, assoc_data(assoc, leg)) < 0:
        close(fd)
        return -1
    if getsockname(fd, &source.any, &length) == 0:
        assoc.own_port[leg] = port_of(&source)
        store_u32(own_port_at(udp, &source), IN_USE)
    assoc.fd[leg] = fd
    return 0


cdef void socket_ready(int fd) noexcept nogil:
    """Options that are good to have and no loss where the kernel refuses them."""
    cdef int size = BUFFER
    cdef int on = 1
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size))
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size))
    setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on))


cdef void receive_down(Relay *relay, Assoc *assoc, int leg) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Scratch *scratch = udp.scratch
    cdef int count = recvmmsg(assoc.fd[leg], scratch.inbox, BATCH, MSG_DONTWAIT, NULL)
    cdef int i
    cdef char *at
    cdef char *header
    cdef size_t header_length
    cdef size_t left
    cdef size_t segment
    cdef Destination *destination
    for i in range(count):
        at = <char *>scratch.in_vector[i].iov_base
        left = scratch.inbox[i].msg_len
        segment = segment_of(&scratch.inbox[i])
        destination = find_by_address(udp, assoc, &scratch.sender[i])
        if destination != NULL:
            use(assoc, destination)
        elif not assoc.full_cone:
            count_u64(&udp.stats.stranger, datagrams_in(left, segment))
            continue
        header_length = HEADER4 if leg == REMOTE4 else HEADER6
        header = at - header_length
        write_header(header, &scratch.sender[i])
        while True:
            # The header of the first stands right before it and serves the others too.
            add(relay, assoc, CLIENT, NULL, header, header_length, at, min(segment, left))
            if left <= segment:
                break
            at += segment
            left -= segment
    if count > 0:
        inbox_ready(scratch, count)
    flush(relay, assoc)


cdef void write_header(char *header, Endpoint *source) noexcept nogil:
    """Of a reply: only ATYP 1 and 4, as clients that read fixed sizes fail on names."""
    header[0] = header[1] = header[2] = 0
    if source.any.sa_family == AF_INET:
        header[3] = ATYP_IPV4
        memcpy(header + 4, &source.v4.sin_addr, 4)
        memcpy(header + 8, &source.v4.sin_port, 2)
    else:
        header[3] = ATYP_IPV6
        memcpy(header + 4, &source.v6.sin6_addr, 16)
        memcpy(header + 20, &source.v6.sin6_port, 2)

# == one association =========================================================

cdef uint64_t assoc_data(Assoc *assoc, int leg) noexcept nogil:
    return ASSOCIATION | (assoc.index << 2) | leg


cdef Assoc *assoc_at(AssocArena *arena, uint32_t index) noexcept nogil:
    return &arena.chunks[index // ASSOC_CHUNK][index % ASSOC_CHUNK]


cdef void assoc_join(Relay *relay, Assoc *assoc) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef int failed
    assoc.active_ms = relay.now_ms
    if not scratch_ready(udp):
        assoc_end(relay, assoc, KILLED, ENOMEM)
        return
    socket_ready(assoc.fd[CLIENT])
    assoc_set_timer(udp, assoc)
    failed = watch(relay.epfd, EPOLL_CTL_ADD, assoc.fd[CLIENT], EPOLLIN,
                   assoc_data(assoc, CLIENT))
    if failed == 0:
        failed = watch(relay.epfd, EPOLL_CTL_ADD, assoc.fd[CONTROL], EPOLLIN | EPOLLRDHUP,
                       assoc_data(assoc, CONTROL))
    if failed < 0:
        assoc_end(relay, assoc, KILLED, -failed)


cdef void assoc_set_timer(Udp *udp, Assoc *assoc) noexcept nogil:
    if udp.idle_ms:
        timer_set(&udp.wheel, &assoc.timer, assoc.active_ms + udp.idle_ms)


cdef void watch_over(Relay *relay, Assoc *assoc, uint32_t events) noexcept nogil:
    """The control connection: what the client says on it means nothing, that it ends
    means everything."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    cdef bint over = events & (EPOLLRDHUP | EPOLLHUP)
    cdef ssize_t got = 1
    if events & EPOLLERR:
        getsockopt(assoc.fd[CONTROL], SOL_SOCKET, SO_ERROR, &error, &length)
        assoc_end(relay, assoc, CLIENT_RESET, error if error else ECONNRESET)
        return
    while got > 0:
        # MSG_TRUNC: TCP throws the octets away where they are.
        got = recv(assoc.fd[CONTROL], udp.scratch.rooms, ROOM, MSG_DONTWAIT | MSG_TRUNC)
        if not over:
            break
    # All that came before a FIN has been read now: for the rest close() would send a reset.
    if got == 0 or over:
        assoc_end(relay, assoc, FINISHED, 0)
    elif got < 0 and errno != EAGAIN and errno != EINTR:
        assoc_end(relay, assoc, CLIENT_RESET, errno)


cdef void disown_port(Relay *relay, Assoc *assoc, int leg) noexcept nogil:
    """What came from there may still wait in the socket of another association."""
    cdef Endpoint place
    if assoc.own_port[leg] == 0:
        return
    place.any.sa_family = AF_INET if leg == REMOTE4 else AF_INET6
    place.v4.sin_port = assoc.own_port[leg]
    store_u32(own_port_at(<Udp *>relay.guests, &place),
              <uint32_t>(relay.now_ms // 1000) + WAITING_S)


cdef void assoc_end(Relay *relay, Assoc *assoc, int reason, int error) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Destination *destination = assoc.newest
    cdef Held *held = assoc.held_first
    cdef void *after
    cdef int leg
    if reason != FINISHED:
        reset_on_close(assoc.fd[CONTROL])
    for leg in range(LEGS):
        disown_port(relay, assoc, leg)  # which another relay may be given once it is closed
        if assoc.fd[leg] >= 0:
            # Where somebody else has it open too (a child between fork and exec), closing
            # alone would leave it in the epoll, and this relay without rest.
            watch(relay.epfd, EPOLL_CTL_DEL, assoc.fd[leg], 0, 0)
            close(assoc.fd[leg])
        assoc.fd[leg] = -1
    while destination != NULL:
        after = destination.older
        free(destination)
        destination = <Destination *>after
    while held != NULL:
        after = held.next
        free(held)
        held = <Held *>after
    free(assoc.buckets)
    timer_clear(&assoc.timer)
    assoc.reason = reason
    assoc.error = error
    store_u32(&assoc.state, OVER)
    assoc.next = udp.batch
    if udp.batch == NULL:
        udp.batch_last = assoc
    udp.batch = assoc

# == the relay's turn ========================================================

cdef void on_event(Relay *relay, uint64_t data, uint32_t events) noexcept nogil:
    """Of an association that has ended in this turn nothing is left to be told, and of
    older ones nothing comes: their sockets were off the epoll before the slot was free."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef uint32_t low = <uint32_t>data & ~<uint32_t>ASSOCIATION
    cdef Assoc *assoc = assoc_at(udp.arena, low >> 2)
    cdef int leg = <int>(low & 3)
    cdef int error
    cdef socklen_t length = sizeof(error)
    if load_u32(&assoc.state) != ACTIVE:
        return
    if leg == CONTROL:
        watch_over(relay, assoc, events)
        return
    if events & EPOLLERR:
        # What ICMP said of some datagram, taken off here so that it is told once.
        getsockopt(assoc.fd[leg], SOL_SOCKET, SO_ERROR, &error, &length)
    if events & EPOLLIN:
        if leg == CLIENT:
            receive_up(relay, assoc)
        else:
            receive_down(relay, assoc, leg)


cdef void on_wake(Relay *relay) noexcept nogil:
    """The orders of the loop thread, in the order they were given."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef UdpCommand *command = <UdpCommand *>take_list(&udp.commands)
    cdef UdpCommand *first = NULL
    cdef UdpCommand *after
    while command != NULL:  # the list has the last one first
        after = <UdpCommand *>command.next
        command.next = first
        first = command
        command = after
    while first != NULL:
        obey(relay, first)
        after = <UdpCommand *>first.next
        free(first)
        first = after


cdef void obey(Relay *relay, UdpCommand *command) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Assoc *assoc = assoc_at(udp.arena, command.index)
    # In this order: the loop may free the slot and use it again between the two looks.
    if load_u32(&assoc.state) != ACTIVE or load_u32(&assoc.generation) != command.generation:
        return
    if command.order == JOIN:
        assoc_join(relay, assoc)
    elif command.order == END:
        assoc_end(relay, assoc, KILLED, 0)
    else:
        settle(relay, assoc, command)


cdef void on_turn_over(Relay *relay) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    cdef Timer expired
    cdef Timer *timer
    cdef Assoc *assoc
    wheel_collect(&udp.wheel, relay.now_ms, &expired)
    while True:
        timer = ring_pop(&expired)
        if timer == NULL:
            break
        assoc = <Assoc *>timer.owner
        if assoc.active_ms + udp.idle_ms > relay.now_ms:
            assoc_set_timer(udp, assoc)
        elif assoc.held or assoc_has_news(assoc):
            timer_set(&udp.wheel, &assoc.timer, relay.now_ms + TICK_MS)
        else:
            assoc_end(relay, assoc, IDLE, ETIMEDOUT)
    publish(relay)


cdef bint assoc_has_news(Assoc *assoc) noexcept nogil:
    """Whether datagrams wait that have not been looked at, as when this process was
    stopped and everything comes at once."""
    cdef pollfd legs[LEGS]
    cdef int leg
    for leg in range(LEGS):
        legs[leg].fd = assoc.fd[leg]
        legs[leg].events = POLLIN if leg != CONTROL else 0
    return poll(legs, LEGS, 0) > 0


cdef void publish(Relay *relay) noexcept nogil:
    """Only now may the loop reuse the slots: no event of this batch is left."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef Assoc *first = udp.batch
    if first == NULL:
        return
    udp.batch = NULL
    if push_list(udp.ended, first, <void **>&udp.batch_last.next):
        eventfd_write(relay.ended_fd, 1)

# == for the loop thread =====================================================

cdef int udp_open(Relay *relay) noexcept nogil:
    """Makes a relay whose epoll is there serve associations; 0 or -errno. The caller
    fills in what is the loop's: arena, lists, limit and key."""
    cdef Udp *udp = <Udp *>calloc(1, sizeof(Udp))
    if udp == NULL:
        return -ENOMEM
    udp.guests.on_event = on_event
    udp.guests.on_wake = on_wake
    udp.guests.on_turn_over = on_turn_over
    relay.guests = &udp.guests
    return wheel_open(&udp.wheel, relay.epfd)


cdef void udp_order(Relay *relay, UdpCommand *command) noexcept nogil:
    cdef Udp *udp = <Udp *>relay.guests
    if push_list(&udp.commands, command, &command.next):
        eventfd_write(relay.wake_fd, 1)


cdef void udp_abandon(Relay *relay) noexcept nogil:
    """Ends every association, on whatever thread, after the relay's own is gone."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef uint32_t index
    cdef Assoc *assoc
    if udp == NULL:
        return
    for index in range(udp.arena.count):
        assoc = assoc_at(udp.arena, index)
        if assoc.relay == relay and load_u32(&assoc.state) == ACTIVE:
            assoc_end(relay, assoc, KILLED, 0)
    publish(relay)


cdef void udp_close(Relay *relay) noexcept nogil:
    """After the thread has ended and every association with it."""
    cdef Udp *udp = <Udp *>relay.guests
    cdef UdpCommand *command
    cdef UdpCommand *after
    if udp == NULL:
        return
    command = <UdpCommand *>take_list(&udp.commands)
    while command != NULL:
        after = <UdpCommand *>command.next
        free(command)
        command = after
    if udp.wheel.fd >= 0:
        close(udp.wheel.fd)
    if udp.scratch != NULL:
        free(udp.scratch.rooms)
    free(udp.scratch)
    free(udp)
    relay.guests = NULL
