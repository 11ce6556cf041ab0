/* What Cython cannot say itself: atomics on plain fields and the lists made of them, a hash
 * whose key strangers do not know, splice() without SIGPIPE, and constants that old headers
 * lack. It must not know what a session is. */
#ifndef FASTSOCKS_COMPAT_H
#define FASTSOCKS_COMPAT_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* Of Linux 4.18 and 5.0; glibc 2.28, against which wheels are built, has neither. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* All are called fs_...: CPython's internal headers, which Cython includes, have short names
 * of their own. */

/* Acquire and release order what one thread wrote before it published a field
 * with what the other reads after it has seen that field. */
static inline uint32_t fs_load_u32(uint32_t *field)
{ return __atomic_load_n(field, __ATOMIC_ACQUIRE); }

static inline void fs_store_u32(uint32_t *field, uint32_t value)
{ __atomic_store_n(field, value, __ATOMIC_RELEASE); }

static inline int fs_swap_u32_if(uint32_t *field, uint32_t expected, uint32_t value)
{ return __atomic_compare_exchange_n(field, &expected, value, 0,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }

/* A counter has one writer, so load and store need no lock prefix; readers on
 * other threads see some recent value. */
static inline void fs_count_u64(uint64_t *counter, uint64_t by)
{ __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + by,
                   __ATOMIC_RELAXED); }

static inline uint64_t fs_load_u64(uint64_t *counter)
{ return __atomic_load_n(counter, __ATOMIC_RELAXED); }

/* For tables whose keys a stranger chooses: who does not know the key cannot make
 * them fall into one bucket. Each step folds a 64 by 64 bit product. */
static inline uint64_t fs_keyed_hash(const void *octets, size_t size, const uint64_t *key)
{
    const unsigned char *at = octets;
    uint64_t state = key[0] ^ size, word;
    unsigned __int128 product;
    for (;;) {
        word = 0;
        memcpy(&word, at, size < 8 ? size : 8);
        product = (unsigned __int128)(state ^ word) * (key[1] | 1);
        state = (uint64_t)product ^ (uint64_t)(product >> 64) ^ key[0];
        if (size <= 8)
            return state ^ state >> 32;
        at += 8;
        size -= 8;
    }
}

/* A list that many threads push to and one takes whole: with nobody popping
 * single nodes there is no ABA. Returns whether the list was empty, that is
 * whether the taker has to be woken. */
static inline int fs_push_list(void **head, void *first, void **last_next)
{
    void *seen = __atomic_load_n(head, __ATOMIC_RELAXED);
    do {
        *last_next = seen;
    } while (!__atomic_compare_exchange_n(head, &seen, first, 1,
                                          __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    return seen == 0;
}

static inline void *fs_take_list(void **head)
{ return __atomic_exchange_n(head, (void *)0, __ATOMIC_ACQUIRE); }

/* splice() to a socket without the SIGPIPE that it cannot be asked to leave out, for a
 * thread that is not ours: Python ignores that signal, but a program may have undone it. */
static inline ssize_t fs_splice_quietly(int from, int to, size_t octets, unsigned flags)
{
    sigset_t only, before;
    struct timespec at_once = {0, 0};
    ssize_t sent;
    int error;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &only, &before);
    sent = splice(from, 0, to, 0, octets, flags);
    error = errno;
    if (sent < 0 && error == EPIPE && !sigismember(&before, SIGPIPE))
        while (sigtimedwait(&only, 0, &at_once) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    errno = error;
    return sent;
}

#endif
