# Many calls made by one system call; see _ring.pyx.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "_uring.h" nogil:
    enum Call "fs_call":
        RECV "FS_RECV"
        SEND "FS_SEND"
    struct Entry "fs_sqe":
        uint8_t opcode
        int32_t fd
        uint64_t addr
        uint32_t len
        uint32_t msg_flags
        uint64_t user_data
    struct Completion "fs_cqe":
        uint64_t user_data
        int32_t result


cdef enum:
    RING_CALLS = 64             # that one batch can have
    NOT_MADE = -0x7FFFFFFF      # the result of no call


cdef struct Ring:
    int fd                      # -1 where there is none: then nothing else is to be used
    uint32_t calls              # in the batch so far
    int32_t result[RING_CALLS]  # of each call: octets, or -errno
    # Memory that is shared with the kernel. Counters run on, and are masked to be indices.
    char *rings
    size_t rings_size
    Entry *entries
    size_t entries_size
    uint32_t mask
    uint32_t *added             # entries that are ours to be taken
    uint32_t *taken             # by the kernel
    Completion *completions
    uint32_t completion_mask
    uint32_t *over              # calls, by the kernel
    uint32_t *seen              # by us


cdef void ring_open(Ring *ring) noexcept nogil
cdef void ring_close(Ring *ring) noexcept nogil
cdef void ring_add(Ring *ring, Call call, int fd, char *octets, uint32_t size) noexcept nogil
cdef void ring_make(Ring *ring) noexcept nogil
