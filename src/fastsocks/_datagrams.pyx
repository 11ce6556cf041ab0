# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""UDP associations of the native engine as Python sees them: opened and handed over on
the loop's thread, asked about, and reported when they have ended.

    open_udp -> Association --JOIN--> Assoc (_udp.pyx) -> ended list -> on_closed
                            <--Question-- a destination's first datagram
                            --ANSWER-->

Datagrams never come by here. It must not know who may send where: ``on_ask`` does.
"""

import random

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastsocks._address cimport (
    Address, Endpoint, endpoint_of, os_error, parse_endpoint, to_endpoint
)
from fastsocks._linux cimport (
    AF_INET6, EACCES, EADDRINUSE, EINVAL, IPPROTO_IPV6, IPV6_V6ONLY, SOCK_CLOEXEC, SOCK_DGRAM,
    SOCK_NONBLOCK, bind, close, errno, getrandom, getsockname, htons, load_u64, push_list,
    setsockopt, socket, socklen_t, store_u32, take_list
)
from fastsocks._relay cimport ASSOCIATION, Relay, Timer, milliseconds
from fastsocks._udp cimport (
    ACTIVE, ALLOWED, ANSWER, ASSOC_CHUNK, ASSOC_CHUNKS, ATYP_NAME, Assoc, CLIENT, CONTROL,
    DENIED, END, JOIN, LEGS, PORTS, Question, Udp, UdpCommand, UdpOrder, UdpStats, VACANT, assoc_at,
    udp_open, udp_order
)
from fastsocks._visits cimport Turn

from fastsocks import engine as contract

cdef tuple REASONS = contract.REASONS

cdef int QUESTIONS_PER_TURN = contract.QUESTIONS_PER_TURN
cdef tuple UDP_COUNTERS = contract.UDP_COUNTERS

cdef enum:
    DENIED_FOR = 1              # seconds, after an error in on_ask


@cython.final
cdef class Association:
    """See engine.Association."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def answer(self, int atyp, bytes raw not None, int port, address, double ttl):
        cdef UdpCommand *command
        cdef Endpoint target
        cdef socklen_t length = 0
        cdef Py_ssize_t size = PyBytes_GET_SIZE(raw)
        cdef char *wire
        if self.relay == NULL or self.owner.closed or size > 255:
            return
        if address is not None:
            length = parse_endpoint(address[0], address[1], &target)
        command = self.owner.new_command(self, ANSWER)
        command.verdict = DENIED if address is None else ALLOWED
        if address is not None:
            command.address = target
        command.address_length = length
        command.ttl_ms = milliseconds(ttl)
        wire = command.wire
        wire[0] = <char>atyp
        if atyp == ATYP_NAME:
            wire += 1
            wire[0] = <char>size
        memcpy(wire + 1, PyBytes_AS_STRING(raw), size)
        wire[size + 1] = <char>(port >> 8)
        wire[size + 2] = <char>port
        command.wire_length = wire - command.wire + size + 3
        udp_order(self.relay, command)

    def close(self):
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1


@cython.final
cdef class Datagrams:
    """The associations of one engine; for _front.pyx alone."""

    def __init__(self, settings):
        self.settings = settings
        if getrandom(self.key, sizeof(self.key), 0) < <ssize_t>sizeof(self.key):
            raise os_error(errno)
        self.next_port = random.randrange(1 << 16)
        self.arena.own_ports = <uint32_t *>calloc(2 * PORTS, sizeof(uint32_t))
        if self.arena.own_ports == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        cdef Question *question
        self.take_questions()
        while self.waiting != NULL:
            question = self.next_question()
            free(question)
        for i in range(self.arena.count // ASSOC_CHUNK):
            free(self.arena.chunks[i])
        free(self.arena.own_ports)

    cdef int serve_on(self, Relay *relay) except -1:
        cdef int failed = udp_open(relay)
        cdef Udp *udp = <Udp *>relay.guests
        if udp == NULL:
            raise MemoryError
        udp.arena = &self.arena
        udp.ended = &self.ended
        udp.asked = &self.asked
        udp.idle_ms = milliseconds(self.settings.udp_timeout)
        udp.key[0], udp.key[1] = self.key[0], self.key[1]
        if failed < 0:
            raise os_error(-failed)
        return 0

    # -- an association begins -----------------------------------------------

    cdef Association open(self, Address *client, str host, sources, on_ask, bint is_local):
        cdef Association association = Association.__new__(Association)
        cdef Address address
        cdef Endpoint source
        cdef socklen_t length
        association.owner = self
        association.on_ask = on_ask
        association.is_local = is_local
        if not to_endpoint(client, &association.client):
            raise OSError(EINVAL, "the client's connection has no IP address")
        for literal in sources:
            parse_endpoint(literal, 0, &source)
            association.source[source.any.sa_family == AF_INET6] = source
        association.fd = self.bind_client_socket(host)
        length = sizeof(address)
        if getsockname(association.fd, &address.any, &length) < 0:
            raise os_error(errno)
        association.sockname = endpoint_of(&address)
        return association

    cdef int bind_client_socket(self, str host) except -1:
        """Any free port, or the next free one of the configured range."""
        cdef Endpoint address
        cdef socklen_t length = parse_endpoint(host, 0, &address)
        cdef int on = 1
        cdef int error = 0
        cdef uint32_t low = 0, ports = 1, _attempt
        cdef int fd = socket(address.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            raise os_error(errno)
        if address.any.sa_family == AF_INET6:
            setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on))
        if self.settings.udp_ports is not None:
            low = self.settings.udp_ports[0]
            ports = self.settings.udp_ports[1] - low + 1
        for _attempt in range(ports):
            if low:
                self.next_port += 1
                address.v4.sin_port = htons(low + self.next_port % ports)
            if bind(fd, &address.any, length) == 0:
                return fd
            error = errno
            # EACCES: below net.ipv4.ip_unprivileged_port_start, where the others need not be.
            if error != EADDRINUSE and error != EACCES:
                break
        close(fd)
        raise os_error(EADDRINUSE if error == EACCES else error)

    cdef uint64_t begin(self, Association association, int control, Relay *relay, flow) except 0:
        """Hands it over to a relay; returns the handle."""
        cdef Assoc *assoc
        cdef UdpCommand *command
        cdef int leg
        assoc = self.new_slot()
        association.index = assoc.index
        association.generation = assoc.generation
        try:
            command = self.new_command(association, JOIN)
        except MemoryError:
            self.free_slot(assoc)
            raise
        for leg in range(LEGS):
            assoc.fd[leg] = -1
            assoc.segment_most[leg] = 65535
        assoc.fd[CONTROL] = control
        assoc.fd[CLIENT] = association.fd
        assoc.client = association.client
        assoc.source[0], assoc.source[1] = association.source[0], association.source[1]
        assoc.full_cone = self.settings.udp_full_cone
        assoc.is_local = association.is_local
        assoc.relay = relay
        assoc.timer.owner = assoc
        association.fd = -1
        association.relay = relay
        association.flow = flow
        Py_INCREF(association)
        assoc.keeper = <void *>association
        relay.load += 1
        self.made += 1
        store_u32(&assoc.state, ACTIVE)
        udp_order(relay, command)
        return (<uint64_t>assoc.generation << 32) | ASSOCIATION | assoc.index

    cdef int kill(self, uint64_t handle) except -1:
        cdef uint32_t index = <uint32_t>handle & ~<uint32_t>ASSOCIATION
        cdef Assoc *assoc
        if index >= self.arena.count:
            return 0
        assoc = assoc_at(&self.arena, index)
        if assoc.generation == <uint32_t>(handle >> 32) and assoc.keeper != NULL:
            udp_order(assoc.relay, self.new_command(<Association>assoc.keeper, END))
        return 0

    cdef UdpCommand *new_command(self, Association association, UdpOrder order) except NULL:
        cdef UdpCommand *command = <UdpCommand *>malloc(sizeof(UdpCommand))
        if command == NULL:
            raise MemoryError
        command.order = order
        command.index = association.index
        command.generation = association.generation
        return command

    # -- what the relays have to say -----------------------------------------

    cdef bint drain(self, list batch) noexcept:
        """Moves the ended ones to ``batch`` and frees their slots. False if there is no memory
        for all: the others wait where they stood."""
        cdef Assoc *assoc = <Assoc *>take_list(&self.ended)
        cdef Assoc *last = assoc
        cdef Assoc *after
        cdef Association association
        while assoc != NULL:
            after = assoc.next
            association = <Association>assoc.keeper
            try:
                batch.append((association.flow, assoc.up, assoc.down, REASONS[assoc.reason],
                              assoc.error))
            except MemoryError:
                while last.next != NULL:
                    last = last.next
                push_list(&self.ended, assoc, <void **>&last.next)
                return False
            association.relay = NULL
            association.flow = association.on_ask = None
            assoc.relay.load -= 1
            self.free_slot(assoc)
            Py_DECREF(association)
            assoc = last = after
        return True

    cdef void take_questions(self) noexcept:
        """From the list, where the newest is first, to those that wait."""
        cdef Question *question = <Question *>take_list(&self.asked)
        cdef Question *last = question
        cdef Question *first = NULL
        cdef Question *after
        while question != NULL:
            after = <Question *>question.next
            question.next = first
            first = question
            question = after
        if first == NULL:
            return
        if self.waiting == NULL:
            self.waiting = first
        else:
            self.waiting_last.next = first
        self.waiting_last = last

    cdef Question *next_question(self) noexcept:
        cdef Question *question = self.waiting
        self.waiting = <Question *>question.next
        return question

    cdef int put_questions(self, Turn turn) except -1:
        """Asks, as many as a turn may; ``waiting`` are those of the next one."""
        cdef int _i
        fatal = None
        self.lacks_memory = False
        self.take_questions()
        for _i in range(QUESTIONS_PER_TURN):
            if self.waiting == NULL:
                break
            try:
                fatal = self.put(self.waiting, turn, fatal)
            except MemoryError:
                self.lacks_memory = True  # it waits where it stood
                break
            free(self.next_question())
        if fatal is not None:
            raise fatal
        return 0

    cdef put(self, Question *question, Turn turn, fatal):
        """Of an association that has ended nothing is asked. Where asking fails the answer
        is no, for a moment: nothing may wait for ever."""
        cdef Assoc *assoc = assoc_at(&self.arena, question.index)
        cdef Association association
        cdef int head = 2 if question.wire[0] == ATYP_NAME else 1
        if assoc.generation != question.generation:
            return fatal
        association = <Association>assoc.keeper
        raw = PyBytes_FromStringAndSize(question.wire + head, question.wire_length - head - 2)
        port = (<uint8_t>question.wire[question.wire_length - 2] << 8
                | <uint8_t>question.wire[question.wire_length - 1])
        address = None
        if question.address.any.sa_family:
            address = endpoint_of(<Address *>&question.address)
        try:
            association.on_ask(association, question.wire[0], raw, port, address)
        except BaseException as error:
            fatal = turn.blame(error, fatal)
            association.answer(question.wire[0], raw, port, None, DENIED_FOR)
        return fatal

    cdef int count(self, dict totals, Relay *relays, int relay_count) except -1:
        cdef UdpStats *stats
        cdef int i
        totals["udp_associations"] = self.made
        for name in UDP_COUNTERS:
            totals[name] = 0
        for i in range(relay_count):
            stats = &(<Udp *>relays[i].guests).stats
            for name, value in zip(UDP_COUNTERS, (
                load_u64(&stats.up), load_u64(&stats.down), load_u64(&stats.source),
                load_u64(&stats.malformed), load_u64(&stats.fragment),
                load_u64(&stats.denied), load_u64(&stats.stranger), load_u64(&stats.full),
                load_u64(&stats.failed), load_u64(&stats.gso),
            ), strict=True):
                totals[name] += value
        return 0

    # -- slots ---------------------------------------------------------------

    cdef Assoc *new_slot(self) except NULL:
        cdef Assoc *assoc = self.arena.free
        cdef Assoc *chunk
        cdef int i
        if assoc == NULL:
            if self.arena.count == ASSOC_CHUNK * ASSOC_CHUNKS:
                raise MemoryError
            chunk = <Assoc *>calloc(ASSOC_CHUNK, sizeof(Assoc))
            if chunk == NULL:
                raise MemoryError
            for i in range(ASSOC_CHUNK):
                chunk[i].index = self.arena.count + i
                chunk[i].next = &chunk[i + 1] if i + 1 < ASSOC_CHUNK else NULL
            self.arena.chunks[self.arena.count // ASSOC_CHUNK] = chunk
            self.arena.count += ASSOC_CHUNK
            assoc = chunk
        self.arena.free = assoc.next
        assoc.next = NULL
        return assoc

    cdef int free_slot(self, Assoc *assoc) except -1:
        cdef uint32_t index = assoc.index
        cdef uint32_t generation = assoc.generation
        # The generation goes first: from then on no event or command finds the slot.
        store_u32(&assoc.generation, generation + 1)
        store_u32(&assoc.state, VACANT)
        memset(<char *>&assoc.fd, 0, sizeof(Assoc) - (<char *>&assoc.fd - <char *>assoc))
        memset(&assoc.timer, 0, sizeof(Timer))
        assoc.index = index
        assoc.next = self.arena.free
        self.arena.free = assoc
        return 0
