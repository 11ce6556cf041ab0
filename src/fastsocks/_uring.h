/* Of the kernel's io_uring what _ring.pyx needs, by hand: glibc has no names for these system
 * calls, and the headers that wheels are built with (Linux 4.18) are older than all of it.
 * The layouts and numbers are the kernel's (include/uapi/linux/io_uring.h). */
#ifndef FASTSOCKS_URING_H
#define FASTSOCKS_URING_H

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One mapping for both rings (5.4), and completions that can be left out (5.17): the latter for its
 * age alone, as from 5.13 on MSG_DONTWAIT means that a call is over when io_uring_enter() is. */
enum { FS_FEATURES_NEEDED = 1 << 0 | 1 << 11 };
enum fs_call { FS_SEND = 26, FS_RECV = 27 };
#define FS_OFFSET_RINGS 0
#define FS_OFFSET_ENTRIES 0x10000000

struct fs_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, msg_flags;
    uint64_t user_data, unused[3];
};

struct fs_cqe {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
};

/* Where in the mapping of the rings each field is. */
struct fs_sq_offsets { uint32_t head, tail, mask, entries, flags, dropped, array, unused[3]; };
struct fs_cq_offsets { uint32_t head, tail, mask, entries, overflow, entry, flags, unused[3]; };

struct fs_uring_params {
    uint32_t sq_entries, cq_entries, flags, cpu, idle, features, workers, unused[3];
    struct fs_sq_offsets sq;
    struct fs_cq_offsets cq;
};

/* The same numbers on every processor of 64 bits. */
static inline int fs_uring_setup(uint32_t entries, struct fs_uring_params *params)
{ return (int)syscall(425, entries, params); }

/* Takes so many entries, and waits until so many calls are over. */
static inline int fs_uring_enter(int fd, uint32_t submit, uint32_t complete)
{ return (int)syscall(426, fd, submit, complete, complete ? 1 : 0, (void *)0, (size_t)0); }

#endif
