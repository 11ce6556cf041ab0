/* What common.h declares and no message waits for: before a run, and after it. */
#define _GNU_SOURCE
#include "common.h"
#include <signal.h>
#include <stdarg.h>

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* ----------------------------------------------------------------------------- the command line */

struct common common = {
    .proxy_host = 0x7f000001,  /* 127.0.0.1 */
    .source_host = 0x7f000101, /* 127.0.1.1 and on */
    .origin_host = 0x7f000201, /* 127.0.2.1 and on */
    .seconds = 3,
    .warmup = 0.5,
};

static const struct setting common_settings[] = {
    {.name = "proxy", .has_arg = required_argument, .host = &common.proxy_host},
    {.name = "from", .has_arg = required_argument, .host = &common.source_host},
    {.name = "origin", .has_arg = required_argument, .host = &common.origin_host},
    {.name = "socks", .has_arg = required_argument, .integer = &common.socks},
    {.name = "seconds", .has_arg = required_argument, .real = &common.seconds},
    {.name = "warmup", .has_arg = required_argument, .real = &common.warmup},
};

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

static void parse_settings(int argc, char **argv, const struct setting *own, size_t count) {
    enum { MAX_SETTINGS = 40 };
    struct option named[MAX_SETTINGS + 1] = {0};
    const struct setting *settings[MAX_SETTINGS];
    for (size_t i = 0; i < count + COUNT(common_settings); i++) {
        settings[i] = i < count ? &own[i] : &common_settings[i - count];
        named[i] = (struct option){settings[i]->name, settings[i]->has_arg, NULL, 0};
    }
    for (int chosen = 0, seen; (seen = getopt_long(argc, argv, "", named, &chosen)) != -1;) {
        if (seen == '?') exit(2);
        const struct setting *setting = settings[chosen];
        const char *text = optarg ? optarg : "1";
        if (setting->text) *setting->text = text;
        else if (setting->host) set_host(setting, text);
        else set_number(setting, text);
    }
}

bool parse_command(int argc, char **argv, const struct setting *settings, size_t count) {
    const char *name = program_invocation_short_name, *end = argc > 1 ? argv[1] : "";
    bool client = !strcmp(end, "client");
    if (!client && strcmp(end, "origin"))
        die("usage: %s origin | %s client OPTIONS (see the head of %s.c)", name, name, name);
    parse_settings(argc - 1, argv + 1, settings, count);
    if (common.seconds > 600 || common.warmup > 600) die("ten minutes is the most");
    return client;
}

/* ----------------------------------------------------------------------- the poller and sockets */

int poller;

static void raise_descriptor_limit(rlim_t wanted) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

void prepare(rlim_t descriptors) {
    raise_descriptor_limit(descriptors);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("setup: %s", strerror(errno));
}

void watch(int operation, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    if (epoll_ctl(poller, operation, fd, &event) < 0) die("epoll_ctl: %s", strerror(errno));
}

int port_of(int fd) {
    struct sockaddr_in local;
    socklen_t size = sizeof local;
    getsockname(fd, (struct sockaddr *)&local, &size);
    return ntohs(local.sin_port);
}

/* ------------------------------------------------------------------------------------ latencies */

double percentile_us(const struct histogram *seen, double share) {
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
