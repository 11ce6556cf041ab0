/*
 * What the load generators share: time, addresses, latencies, the command line. Each program is one
 * translation unit, so everything here is static.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdarg.h>
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

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct sockaddr_in address(uint32_t host, int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(host)};
}

static int port_of(int fd) {
    struct sockaddr_in local;
    socklen_t size = sizeof local;
    getsockname(fd, (struct sockaddr *)&local, &size);
    return ntohs(local.sin_port);
}

static bool would_block(ssize_t result) {
    return result < 0 && (errno == EAGAIN || errno == EINTR);
}

static void raise_descriptor_limit(rlim_t wanted) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/*
 * Latencies: 64 buckets to each power of two, so a percentile is off by at most 1.6 %, from 1 ns to
 * ages.
 */
enum { FINE = 64, FINE_BITS = 6, BUCKETS = (64 - FINE_BITS + 1) * FINE };

struct histogram {
    uint64_t count, longest;
    uint64_t buckets[BUCKETS];
};

static void note(struct histogram *seen, uint64_t ns) {
    unsigned shift = ns < FINE ? 0 : 63 - FINE_BITS - (unsigned)__builtin_clzll(ns);
    seen->buckets[(shift << FINE_BITS) + (ns >> shift)]++;
    seen->count++;
    if (ns > seen->longest) seen->longest = ns;
}

static double percentile_us(const struct histogram *seen, double share) {
    uint64_t wanted = (uint64_t)((double)seen->count * share), passed = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        passed += seen->buckets[i];
        if (passed <= wanted) continue;
        /* The inverse of note(): from the second power of two on, an index carries its shift plus
         * one. */
        unsigned shift = i < 2 * FINE ? 0 : i / FINE - 1;
        return (double)((uint64_t)(i - shift * FINE) << shift) / 1000.0;
    }
    return 0;
}

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

enum { MAX_SETTINGS = 40 };

static void set_host(const struct setting *setting, const char *text) {
    struct in_addr parsed;
    if (inet_pton(AF_INET, text, &parsed) != 1)
        die("--%s %s: no IPv4 address", setting->name, text);
    *setting->host = ntohl(parsed.s_addr);
}

static void set_number(const struct setting *setting, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || value < 0 || value > 1e9)
        die("--%s %s: no number", setting->name, text);
    if (setting->integer) *setting->integer = (int)value;
    else *setting->real = value;
}

static void parse_settings(int argc, char **argv, const struct setting *settings, size_t count) {
    struct option named[MAX_SETTINGS + 1] = {0};
    for (size_t i = 0; i < count; i++)
        named[i] = (struct option){settings[i].name, settings[i].has_arg, NULL, 0};
    for (int chosen = 0, seen; (seen = getopt_long(argc, argv, "", named, &chosen)) != -1;) {
        if (seen == '?') exit(2);
        const struct setting *setting = &settings[chosen];
        const char *text = optarg ? optarg : "1";
        if (setting->text) *setting->text = text;
        else if (setting->host) set_host(setting, text);
        else set_number(setting, text);
    }
}

#endif
