/*
 * What the load generators have in common: the command line, the poller, addresses, time,
 * latencies. It knows neither what the load is nor in which protocol. What a single message costs
 * is inline.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* One address pair has some 55,000 ports, and each short connection blocks one for a minute: both
 * legs spread over so many addresses. */
enum { SOURCES = 32, TARGETS = 16 };

void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* ----------------------------------------------------------------------------- the command line */

/* What one flag sets: exactly one of the pointers. A flag without an argument sets its integer to
 * 1. */
struct setting {
    const char *name;
    int has_arg;
    int *integer;
    double *real;
    uint32_t *host;
    const char **text;
};

/* What the flags set that every program has. */
extern struct common {
    uint32_t proxy_host;
    uint32_t source_host, origin_host; /* the first of SOURCES and of TARGETS */
    int socks;                         /* the proxy's port, if there is a proxy */
    double seconds, warmup;
} common;

/* Reads "client" or "origin" and the flags behind it, which are the program's own and those of
 * `common`. True for a client. */
bool parse_command(int argc, char **argv, const struct setting *settings, size_t count);

/* ----------------------------------------------------------------------- the poller and sockets */

extern int poller;

void prepare(rlim_t descriptors);
void watch(int operation, int fd, uint32_t events, uint64_t data);
int port_of(int fd);

static inline struct sockaddr_in address(uint32_t host, int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(host)};
}

static inline bool would_block(ssize_t result) {
    return result < 0 && (errno == EAGAIN || errno == EINTR);
}

/* --------------------------------------------------------------------------- time and latencies */

static inline uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* 64 buckets to each power of two, so a percentile is off by at most 1.6 %, from 1 ns to ages. */
enum { FINE = 64, FINE_BITS = 6, BUCKETS = (64 - FINE_BITS + 1) * FINE };

struct histogram {
    uint64_t count, longest;
    uint64_t buckets[BUCKETS];
};

static inline void note(struct histogram *seen, uint64_t ns) {
    unsigned shift = ns < FINE ? 0 : 63 - FINE_BITS - (unsigned)__builtin_clzll(ns);
    seen->buckets[(shift << FINE_BITS) + (ns >> shift)]++;
    seen->count++;
    if (ns > seen->longest) seen->longest = ns;
}

double percentile_us(const struct histogram *seen, double share);

#endif
