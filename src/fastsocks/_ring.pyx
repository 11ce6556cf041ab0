# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many calls of recv() or send() made by one system call, where the kernel has io_uring.

    ring_add, once for each call -> ring_make -> ring.result

Nothing is ever left under way: each has MSG_DONTWAIT, and is over when ring_make() returns.
So this is no second way to wait; that is epoll's. It must not know what is read or
sent, or why.
"""

from libc.string cimport memset

from fastsocks._linux cimport (
    MADV_DONTFORK, MAP_FAILED, MAP_POPULATE, MAP_SHARED, MSG_DONTWAIT, MSG_NOSIGNAL, PROT_READ,
    PROT_WRITE, close, load_u32, madvise, mmap, munmap, store_u32
)

cdef extern from "_uring.h" nogil:
    enum:
        NEEDED "FS_FEATURES_NEEDED"
        OFFSET_RINGS "FS_OFFSET_RINGS"
        OFFSET_ENTRIES "FS_OFFSET_ENTRIES"
    struct SubmissionOffsets "fs_sq_offsets":
        uint32_t head
        uint32_t tail
        uint32_t mask
        uint32_t array
    struct CompletionOffsets "fs_cq_offsets":
        uint32_t head
        uint32_t tail
        uint32_t mask
        uint32_t entry
    struct Params "fs_uring_params":
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t features
        SubmissionOffsets sq
        CompletionOffsets cq
    int uring_setup "fs_uring_setup"(uint32_t entries, Params *params)
    int uring_enter "fs_uring_enter"(int fd, uint32_t submit, uint32_t complete)


cdef void ring_open(Ring *ring) noexcept nogil:
    """Leaves fd at -1 where none is to be had: the kernel is older, io_uring is switched off
    (kernel.io_uring_disabled) or denied (most containers), or memory is short."""
    cdef Params params
    cdef uint32_t *array
    cdef uint32_t i
    memset(&params, 0, sizeof(params))
    memset(ring, 0, sizeof(Ring))
    ring.fd = uring_setup(RING_CALLS, &params)
    if ring.fd < 0:
        ring.fd = -1
        return
    ring.rings_size = max(params.sq.array + params.sq_entries * sizeof(uint32_t),
                          params.cq.entry + params.cq_entries * sizeof(Completion))
    ring.entries_size = params.sq_entries * sizeof(Entry)
    ring.rings = <char *>ring_map(ring.fd, ring.rings_size, OFFSET_RINGS)
    ring.entries = <Entry *>ring_map(ring.fd, ring.entries_size, OFFSET_ENTRIES)
    if params.features & NEEDED != NEEDED or ring.rings == NULL or ring.entries == NULL:
        ring_close(ring)
        return
    ring.taken = <uint32_t *>(ring.rings + params.sq.head)
    ring.added = <uint32_t *>(ring.rings + params.sq.tail)
    ring.mask = (<uint32_t *>(ring.rings + params.sq.mask))[0]
    ring.seen = <uint32_t *>(ring.rings + params.cq.head)
    ring.over = <uint32_t *>(ring.rings + params.cq.tail)
    ring.completion_mask = (<uint32_t *>(ring.rings + params.cq.mask))[0]
    ring.completions = <Completion *>(ring.rings + params.cq.entry)
    # The kernel reads the entries by way of a second ring, of their numbers.
    array = <uint32_t *>(ring.rings + params.sq.array)
    for i in range(params.sq_entries):
        array[i] = i


cdef void *ring_map(int fd, size_t size, int64_t offset) noexcept nogil:
    """Not for a forked child, whose calls would be its parent's."""
    cdef void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                             offset)
    if mapped == MAP_FAILED:
        return NULL
    madvise(mapped, size, MADV_DONTFORK)
    return mapped


cdef void ring_close(Ring *ring) noexcept nogil:
    if ring.rings != NULL:
        munmap(ring.rings, ring.rings_size)
    if ring.entries != NULL:
        munmap(ring.entries, ring.entries_size)
    if ring.fd >= 0:
        close(ring.fd)
    ring.rings = NULL
    ring.entries = NULL
    ring.fd = -1


cdef void ring_add(Ring *ring, Call call, int fd, char *octets, uint32_t size) noexcept nogil:
    """Of its batch this call is the one with the number ``calls``, as it was before."""
    cdef Entry *entry = &ring.entries[(ring.added[0] + ring.calls) & ring.mask]
    memset(entry, 0, sizeof(Entry))
    entry.opcode = call
    entry.fd = fd
    entry.addr = <uint64_t>octets
    entry.len = size
    entry.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL
    entry.user_data = ring.calls
    ring.result[ring.calls] = NOT_MADE
    ring.calls += 1


cdef void ring_make(Ring *ring) noexcept nogil:
    """Makes the calls of the batch. Those for which the kernel finds no memory stay NOT_MADE."""
    cdef uint32_t before = ring.added[0]
    cdef uint32_t awaited
    store_u32(ring.added, before + ring.calls)
    uring_enter(ring.fd, ring.calls, 0)
    # What it has not taken must not be taken with the next batch.
    awaited = load_u32(ring.taken) - before
    store_u32(ring.added, before + awaited)
    awaited -= ring_reap(ring)
    while awaited:  # never yet seen; but what is under way has our memory
        uring_enter(ring.fd, 0, awaited)
        awaited -= ring_reap(ring)
    ring.calls = 0


cdef uint32_t ring_reap(Ring *ring) noexcept nogil:
    """Notes the results that have come; how many."""
    cdef uint32_t first = ring.seen[0]
    cdef uint32_t end = load_u32(ring.over)
    cdef uint32_t at
    cdef Completion *completion
    for at in range(end - first):
        completion = &ring.completions[(first + at) & ring.completion_mask]
        ring.result[completion.user_data] = completion.result
    store_u32(ring.seen, end)
    return end - first
