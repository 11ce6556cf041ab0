/*
 * Load for the benchmarks: one program that is either the origin or the client of a run. Here are
 * its options and the bulk that both ends move. What an end does is in origin.c and client.c, whose
 * state is not known here.
 *
 * It must cost next to nothing, or it and not the proxy is measured: bulk bytes leave by sendfile
 * from a memfd and are swallowed by recv(MSG_TRUNC), so neither end ever touches a payload byte;
 * latencies go into a histogram of fixed size; nothing is allocated per session.
 *
 *     load origin [--origin A]
 *         Listens on a few ports of 127.0.2.1 .. 127.0.2.16 (A and on), prints them as one JSON
 *         object, lives until stdin closes.
 *
 *     load client --source P --sink P --echo P --object P --count P [--socks P [--as DIALECT]]
 *                 [--seconds S] [--warmup S] [--down N] [--up N] [--rr N [--bytes B]]
 *                 [--conn K [--rst]] [--fetch K [--size B]] [--idle N] [--garbage RATE]
 *                 [--origin A] [--target A] [--proxy A] [--from A]
 *         Opens what was asked for and keeps it busy from one loop. To see what one load does to
 *         another, run each as a client of its own with an origin of its own: in one loop they wait
 *         for each other whatever the proxy does (measured: 8 ping-pongs beside 16 handshakes, no
 *         proxy, 11,000 a second in one loop and 50,000 in two). With --socks every session starts
 *         with a SOCKS5 CONNECT to the proxy at 127.0.0.1, or with what --as says: 4, 4a, 5, name
 *         (SOCKS5, the target by name), password (SOCKS5, user "bench", password "bench"). Without
 *         it the ports are connected to as they are. --fetch has K sessions in flight, each of
 *         which asks for B bytes and is over when it has them. --target is where sessions go if not
 *         to the origin itself: to a relay's ports. Prints "begin" and "end" around what is
 *         counted, then the figures as one JSON object. With --idle alone it prints "ready" when
 *         all sessions stand and holds them until stdin closes, --seconds at most.
 */
#define _GNU_SOURCE
#include "load.h"
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

/* -------------------------------------------------------------------------------------- options */

struct load_option option = {
    .bytes = 64,
    .size = 1024,
    .as = "5",
};

static const struct setting settings[] = {
    {.name = "target", .has_arg = required_argument, .host = &option.target_host},
    {.name = "source", .has_arg = required_argument, .integer = &option.source},
    {.name = "sink", .has_arg = required_argument, .integer = &option.sink},
    {.name = "echo", .has_arg = required_argument, .integer = &option.echo},
    {.name = "object", .has_arg = required_argument, .integer = &option.object},
    {.name = "count", .has_arg = required_argument, .integer = &option.count},
    {.name = "down", .has_arg = required_argument, .integer = &option.wanted[DOWN]},
    {.name = "up", .has_arg = required_argument, .integer = &option.wanted[UP]},
    {.name = "rr", .has_arg = required_argument, .integer = &option.wanted[RR]},
    {.name = "idle", .has_arg = required_argument, .integer = &option.wanted[IDLE]},
    {.name = "conn", .has_arg = required_argument, .integer = &option.wanted[CONN]},
    {.name = "fetch", .has_arg = required_argument, .integer = &option.wanted[FETCH]},
    {.name = "garbage", .has_arg = required_argument, .integer = &option.garbage_rate},
    {.name = "bytes", .has_arg = required_argument, .integer = &option.bytes},
    {.name = "size", .has_arg = required_argument, .integer = &option.size},
    {.name = "rst", .has_arg = no_argument, .integer = &option.rst},
    {.name = "as", .has_arg = required_argument, .text = &option.as},
};

static void check_options(void) {
    enum { MAX_SIZE = 1 << 30 };

    if (option.bytes < 1 || option.bytes > MAX_MESSAGE)
        die("--bytes is between 1 and %d", MAX_MESSAGE);
    if (option.size < 1 || option.size > MAX_SIZE) die("--size is between 1 and %d", MAX_SIZE);
    if (!option.target_host) option.target_host = common.origin_host;
    choose_dialect(option.as);
}

/* ------------------------------------------------------------------- bulk that nobody looks at */

char scratch[MAX_MESSAGE];
static int bulk_file;

ssize_t send_bulk(int fd, size_t most) {
    return sendfile(fd, bulk_file, &(off_t){0}, most < CHUNK ? most : CHUNK);
}

ssize_t swallow(int fd) {
    return recv(fd, NULL, CHUNK, MSG_TRUNC);
}

static void prepare_bulk(void) {
    bulk_file = memfd_create("bulk", MFD_CLOEXEC);
    if (bulk_file < 0 || ftruncate(bulk_file, CHUNK) < 0) die("setup: %s", strerror(errno));
    /* Holes would be allocated at every read; written once, the pages stay. */
    for (int at = 0; at < CHUNK; at += MAX_MESSAGE)
        if (pwrite(bulk_file, scratch, MAX_MESSAGE, at) < 0) die("memfd: %s", strerror(errno));
}

/* ---------------------------------------------------------------------------------- the program */

int main(int argc, char **argv) {
    bool client = parse_command(argc, argv, settings, COUNT(settings));
    check_options();
    prepare(MAX_FDS);
    prepare_bulk();
    if (client) return run_client();
    run_origin();
    return 0;
}
