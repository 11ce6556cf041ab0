/*
 * Where load.c, origin.c and client.c meet. An origin and a client are never the same process, so
 * they agree here on sizes and share what makes bytes free, and neither knows the other's state.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "common.h"

enum {
    MAX_FDS = 20000,
    BATCH = 256,             /* events taken per epoll_wait */
    CHUNK = 256 * 1024,      /* bulk bytes per turn: few, so that no other session waits */
    MAX_MESSAGE = 16 * 1024, /* fits a loopback socket's buffer: the echo never holds back */
};

/* ---------------------------------------------------------------------------------- from load.c */

/* What a client's sessions do. */
enum kind { DOWN, UP, RR, IDLE, CONN, FETCH, GARBAGE, KINDS };

/* What the flags of a client set; those of an origin are all in `common`. */
extern struct load_option {
    uint32_t target_host;           /* the origin, or what stands in for it */
    int source, sink, echo, object; /* its ports */
    int count;                      /* the origin's own port, always spoken to directly */
    int wanted[KINDS];              /* sessions of each kind but GARBAGE */
    int garbage_rate;               /* connections a second */
    int bytes, size, rst;
    const char *as;
} option;

extern char scratch[MAX_MESSAGE]; /* what messages are sent from and read into */

ssize_t send_bulk(int fd, size_t most);
ssize_t swallow(int fd);

/* ------------------------------------------------------------------- from origin.c and client.c */

void run_origin(void);

void choose_dialect(const char *name);
int run_client(void); /* the exit status */

#endif
