/*
 * The client of load: opens the sessions that are wanted, through whatever server there is, keeps
 * them busy from one loop, and counts. Of the server it knows the handshake only, and of the origin
 * which port answers how: it must not know how either does its work.
 *
 * A session's steps: CONNECTING -> GREETED (methods sent) [-> NAMED (user and password sent)] ->
 * ASKED (CONNECT sent) -> OPEN; any of them -> FAILED, which is counted by cause and tried again a
 * tick later. SOCKS4 goes from CONNECTING to ASKED, and without --socks to OPEN.
 */
#define _GNU_SOURCE
#include "load.h"
#include <poll.h>
#include <unistd.h>

/* -------------------------------------------------------------------------------------- figures */

enum trouble {
    REFUSED,
    RESET,
    CLOSED,
    DENIED,    /* the proxy answered, and its answer was no */
    NOT_SOCKS, /* it answered with something else */
    TIMED_OUT,
    NO_PORT,
    NO_DESCRIPTOR,
    OTHER,
    TROUBLES,
};
static const char *const trouble_names[TROUBLES] = {
    [REFUSED] = "refused",     [RESET] = "reset",
    [CLOSED] = "closed",       [DENIED] = "denied",
    [NOT_SOCKS] = "not_socks", [TIMED_OUT] = "timed_out",
    [NO_PORT] = "no_port",     [NO_DESCRIPTOR] = "no_descriptor",
    [OTHER] = "other",
};
static uint64_t troubles[TROUBLES];

static const struct {
    int error;
    enum trouble trouble;
} trouble_of[] = {
    {ECONNREFUSED, REFUSED}, {ECONNRESET, RESET},      {EPIPE, RESET},
    {ETIMEDOUT, TIMED_OUT},  {EADDRNOTAVAIL, NO_PORT}, {EADDRINUSE, NO_PORT},
    {EMFILE, NO_DESCRIPTOR}, {ENFILE, NO_DESCRIPTOR},
};

static enum trouble trouble_by_errno(void) {
    for (size_t i = 0; i < COUNT(trouble_of); i++)
        if (trouble_of[i].error == errno) return trouble_of[i].trouble;
    return OTHER;
}

/* ------------------------------------------------------------------------------------- sessions */

enum step { UNUSED, CONNECTING, GREETED, NAMED, ASKED, OPEN, FAILED };

enum { MAX_SESSIONS = 18000, GARBAGE_SLOTS = 8000, REPLY_ROOM = 22 };

struct session {
    int fd;
    uint8_t kind, step;
    uint8_t got_reply;         /* bytes of the proxy's current answer read so far */
    uint8_t reply[REPLY_ROOM]; /* as long as a reply that has an IPv6 address in it */
    uint32_t sent, got;        /* of the message under way */
    uint32_t number;           /* among all connections: decides addresses, and which garbage */
    uint64_t began;            /* of what is being timed: a round trip, or all since connect() */
};

static struct group {
    const char *name;
    int open;
    uint64_t bytes;
    struct histogram latency;
} groups[KINDS] = {{.name = "down"}, {.name = "up"},   {.name = "rr"},
                   {.name = "idle"}, {.name = "conn"}, {.name = "fetch"},
                   {.name = "garbage"}};

static struct session sessions[MAX_SESSIONS];
static int session_count;
static uint32_t connections;
static uint64_t now; /* read once per batch, and again where a latency is taken */

static struct {
    uint64_t started, left, stayed, ended_by_server, failed;
} garbage;
static uint64_t scanning_since;

static int port_for(enum kind kind) {
    switch (kind) {
    case DOWN: return option.source;
    case UP: return option.sink;
    case FETCH: return option.object;
    default: return option.echo;
    }
}

static struct sockaddr_in target_of(const struct session *s) {
    return address(option.target_host + s->number % TARGETS, port_for(s->kind));
}

static void drop(struct session *s, enum step next) {
    if (s->step == OPEN) groups[s->kind].open--;
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->step = next;
}

static void reset_on_close(struct session *s) {
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
}

/* Garbage is expected to be turned away; what becomes of it is counted, but is no trouble. */
static void fail(struct session *s, enum trouble trouble) {
    if (s->kind == GARBAGE) {
        garbage.failed++;
        drop(s, UNUSED);
        return;
    }
    troubles[trouble]++;
    drop(s, FAILED);
}

static void fail_by_errno(struct session *s) {
    fail(s, trouble_by_errno());
}

static void start(struct session *s) {
    s->number = connections++;
    s->began = clock_ns();
    s->got_reply = 0;
    s->sent = s->got = 0;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    s->step = CONNECTING;
    if (s->fd < 0) {
        fail_by_errno(s);
        return;
    }
    struct sockaddr_in local = address(common.source_host + s->number % SOURCES, 0);
    struct sockaddr_in peer =
        common.socks ? address(common.proxy_host, common.socks) : target_of(s);
    /* Lets connect() choose the port, by both addresses; bind() would want one that is free for any
     * peer. */
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    if (bind(s->fd, (struct sockaddr *)&local, sizeof local) < 0 ||
        (connect(s->fd, (struct sockaddr *)&peer, sizeof peer) < 0 && errno != EINPROGRESS)) {
        fail_by_errno(s);
        return;
    }
    watch(EPOLL_CTL_ADD, s->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, (uint64_t)(uintptr_t)s);
}

/* --- what an open session does, by kind: begin() when it opens, turn() at each event after that */

static bool push_message(struct session *s, uint32_t size) {
    while (s->sent < size) {
        ssize_t sent = send(s->fd, scratch, size - s->sent, 0);
        if (sent < 0) {
            if (!would_block(sent)) fail_by_errno(s);
            return false;
        }
        s->sent += (uint32_t)sent;
    }
    return true;
}

/* True once the whole message came back. */
static bool pull_message(struct session *s, uint32_t size) {
    while (s->got < size) {
        ssize_t got = recv(s->fd, scratch, size - s->got, 0);
        if (got == 0) fail(s, CLOSED);
        if (got < 0 && !would_block(got)) fail_by_errno(s);
        if (got <= 0) return false;
        s->got += (uint32_t)got;
    }
    return true;
}

static void begin_down(struct session *s) {
    watch(EPOLL_CTL_MOD, s->fd, EPOLLIN, (uint64_t)(uintptr_t)s);
}

static void turn_down(struct session *s) {
    ssize_t got = swallow(s->fd);
    if (got > 0) groups[DOWN].bytes += (uint64_t)got;
    if (got == 0) fail(s, CLOSED);
    if (got < 0 && !would_block(got)) fail_by_errno(s);
}

static void begin_up(struct session *s) {
    watch(EPOLL_CTL_MOD, s->fd, EPOLLOUT, (uint64_t)(uintptr_t)s);
}

static void turn_up(struct session *s) {
    ssize_t sent = send_bulk(s->fd, CHUNK);
    if (sent < 0 && !would_block(sent)) fail_by_errno(s);
}

static void begin_rr(struct session *s) {
    s->began = clock_ns();
    s->sent = s->got = 0;
    push_message(s, (uint32_t)option.bytes);
}

static void turn_rr(struct session *s) {
    uint32_t size = (uint32_t)option.bytes;
    if (s->sent < size && !push_message(s, size)) return;
    if (!pull_message(s, size)) return;
    note(&groups[RR].latency, clock_ns() - s->began);
    begin_rr(s);
}

/* One byte and back also proves that the session stands from end to end, which HAProxy's accept
 * alone does not. */
static void begin_echo(struct session *s) {
    push_message(s, 1);
}

static void turn_idle(struct session *s) {
    if (s->got == 0 && push_message(s, 1) && pull_message(s, 1))
        note(&groups[IDLE].latency, clock_ns() - s->began);
}

static void turn_conn(struct session *s) {
    if (!push_message(s, 1) || !pull_message(s, 1)) return;
    note(&groups[CONN].latency, clock_ns() - s->began);
    if (option.rst) reset_on_close(s);
    drop(s, UNUSED);
    start(s);
}

static void begin_fetch(struct session *s) {
    uint64_t size = (uint64_t)option.size;
    if (send(s->fd, &size, sizeof size, 0) != sizeof size) fail_by_errno(s);
}

static void turn_fetch(struct session *s) {
    while (s->got < (uint32_t)option.size) {
        ssize_t got = swallow(s->fd);
        if (got == 0) fail(s, CLOSED);
        if (got < 0 && !would_block(got)) fail_by_errno(s);
        if (got <= 0) return;
        groups[FETCH].bytes += (uint64_t)got;
        s->got += (uint32_t)got;
    }
    note(&groups[FETCH].latency, clock_ns() - s->began);
    if (option.rst) reset_on_close(s);
    drop(s, UNUSED);
    start(s);
}

static const struct {
    void (*begin)(struct session *);
    void (*turn)(struct session *);
} behaviours[] = {
    [DOWN] = {begin_down, turn_down}, [UP] = {begin_up, turn_up},     [RR] = {begin_rr, turn_rr},
    [IDLE] = {begin_echo, turn_idle}, [CONN] = {begin_echo, turn_conn},
    [FETCH] = {begin_fetch, turn_fetch},
};

/* --- what a session does before that */

static bool say(struct session *s, const void *bytes, size_t size) {
    ssize_t sent = send(s->fd, bytes, size, 0);
    if (sent == (ssize_t)size) return true;
    /* On a socket that is still connecting this is EAGAIN: the event comes again. */
    if (!would_block(sent)) fail_by_errno(s);
    return false;
}

/* Reads no further than `size`, since payload may follow at once. */
static bool hear(struct session *s, size_t size) {
    while (s->got_reply < size) {
        ssize_t got = recv(s->fd, s->reply + s->got_reply, size - s->got_reply, 0);
        if (got == 0) fail(s, CLOSED);
        if (got < 0 && !would_block(got)) fail_by_errno(s);
        if (got <= 0) return false;
        s->got_reply = (uint8_t)(s->got_reply + got);
    }
    return true;
}

static void opened(struct session *s) {
    s->step = OPEN;
    groups[s->kind].open++;
    behaviours[s->kind].begin(s);
}

static const struct dialect {
    const char *name;
    bool socks4, by_name, password;
} dialects[] = {
    {.name = "5"},
    {.name = "name", .by_name = true},
    {.name = "password", .password = true},
    {.name = "4", .socks4 = true},
    {.name = "4a", .socks4 = true, .by_name = true},
};
static const struct dialect *dialect;

void choose_dialect(const char *name) {
    for (size_t i = 0; i < COUNT(dialects); i++)
        if (!strcmp(name, dialects[i].name)) dialect = &dialects[i];
    if (!dialect) die("--as %s: it is 4, 4a, 5, name or password", name);
}

enum { LONGEST_REQUEST = 64 };

/* The names that the harness gives the origin's addresses, each with its NUL. */
static size_t write_name(char *to, const struct session *s) {
    return (size_t)sprintf(to, "origin-%u.bench", s->number % TARGETS + 1);
}

static size_t write_request4(uint8_t *request, const struct session *s) {
    struct sockaddr_in target = target_of(s);
    memcpy(request, "\4\1", 2);
    memcpy(request + 2, &target.sin_port, 2);
    memcpy(request + 4, dialect->by_name ? "\0\0\0\1" : (char *)&target.sin_addr, 4);
    request[8] = 0; /* no user id */
    return dialect->by_name ? 9 + write_name((char *)request + 9, s) + 1 : 9;
}

static size_t write_request5(uint8_t *request, const struct session *s) {
    struct sockaddr_in target = target_of(s);
    size_t size;
    if (dialect->by_name) {
        memcpy(request, "\5\1\0\3", 4);
        size = write_name((char *)request + 5, s);
        request[4] = (uint8_t)size;
        size += 5;
    } else {
        memcpy(request, "\5\1\0\1", 4);
        memcpy(request + 4, &target.sin_addr, 4);
        size = 8;
    }
    memcpy(request + size, &target.sin_port, 2);
    return size + 2;
}

static bool ask(struct session *s) {
    uint8_t request[LONGEST_REQUEST];
    size_t size = dialect->socks4 ? write_request4(request, s) : write_request5(request, s);
    s->got_reply = 0;
    if (!say(s, request, size)) return false;
    s->step = ASKED;
    return true;
}

static void greet(struct session *s) {
    /* Sending nothing asks whether the connection stands. */
    if (!common.socks && say(s, "", 0)) opened(s);
    if (!common.socks) return;
    if (dialect->socks4) ask(s);
    else if (say(s, dialect->password ? "\5\1\2" : "\5\1\0", 3)) s->step = GREETED;
}

static void hear_method(struct session *s) {
    if (!hear(s, 2)) return;
    if (s->reply[0] != 5 || s->reply[1] != (dialect->password ? 2 : 0)) {
        fail(s, NOT_SOCKS);
        return;
    }
    s->got_reply = 0;
    if (!dialect->password) ask(s);
    else if (say(s, "\1\5bench\5bench", 13)) s->step = NAMED;
}

static void hear_verdict(struct session *s) {
    if (!hear(s, 2)) return;
    if (s->reply[1] != 0) fail(s, DENIED);
    else ask(s);
}

static void hear_reply4(struct session *s) {
    enum { REPLY = 8, GRANTED = 90 };
    if (!hear(s, REPLY)) return;
    if (s->reply[0] != 0) fail(s, NOT_SOCKS);
    else if (s->reply[1] != GRANTED) fail(s, DENIED);
    else opened(s);
}

static void hear_reply5(struct session *s) {
    enum { SHORT_REPLY = 10, LONG_REPLY = 22, ATYP_IPV4 = 1, ATYP_IPV6 = 4 };
    if (!hear(s, SHORT_REPLY)) return;
    bool ipv4 = s->reply[3] == ATYP_IPV4;
    if (s->reply[0] != 5 || (!ipv4 && s->reply[3] != ATYP_IPV6)) fail(s, NOT_SOCKS);
    else if (s->reply[1] != 0) fail(s, DENIED);
    else if (ipv4 || hear(s, LONG_REPLY)) opened(s);
}

/* -------------------------------------------------------------------------- a port scan's noise */

static uint8_t random_bytes[64];

/* The start of a real ClientHello is all a server can need to know one. */
static const uint8_t client_hello[] = {
    0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03, 0x4d, 0x21, 0x9a, 0x07, 0x5c,
    0xe3, 0x18, 0xb0, 0x66, 0x2f, 0x91, 0xd4, 0x3a, 0x7e, 0x05, 0xc8, 0x52, 0xaf, 0x10, 0x6b, 0xf7,
    0x84, 0x39, 0xde, 0x73, 0x0c, 0x95, 0x41, 0xba, 0x68, 0x1d, 0xf2, 0x20, 0x00, 0x06, 0x13, 0x01,
};

static const struct {
    const void *bytes;
    size_t size;
} noises[] = {
    {"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: scan\r\n\r\n", 52},
    {client_hello, sizeof client_hello},
    {random_bytes, sizeof random_bytes},
    {"\5\2\0", 3},         /* half a greeting: two methods promised, one sent */
    {"\5\1\0\5\1\0\1", 7}, /* half a request */
    {"", 0},
};

enum manner { LEAVE_BY_FIN, LEAVE_BY_RST, STAY, MANNERS };

static void make_noise(struct session *s) {
    size_t noise = s->number % COUNT(noises);
    enum manner manner = (enum manner)(s->number / COUNT(noises) % MANNERS);
    if (noises[noise].size && !say(s, noises[noise].bytes, noises[noise].size)) return;
    if (manner == STAY) {
        garbage.stayed++;
        s->step = OPEN;
        groups[GARBAGE].open++;
        return;
    }
    if (manner == LEAVE_BY_RST) reset_on_close(s);
    garbage.left++;
    drop(s, UNUSED);
}

static void linger_on(struct session *s) {
    ssize_t got;
    while ((got = recv(s->fd, scratch, sizeof scratch, 0)) > 0) {}
    if (would_block(got)) return;
    garbage.ended_by_server++;
    drop(s, UNUSED);
}

/* Open loop: what is due is started, however the proxy fares. */
static void scan_on(void) {
    uint64_t due = (now - scanning_since) * (uint64_t)option.garbage_rate / 1000000000u;
    while (garbage.started < due) {
        struct session *s = &sessions[session_count + (int)(garbage.started++ % GARBAGE_SLOTS)];
        if (s->step != UNUSED) drop(s, UNUSED);
        s->kind = GARBAGE;
        start(s);
    }
}

/* ------------------------------------------------------------------------------------- the loop */

static void on_event(struct session *s) {
    switch ((enum step)s->step) {
    case CONNECTING:
        if (s->kind == GARBAGE) make_noise(s);
        else greet(s);
        break;
    case GREETED: hear_method(s); break;
    case NAMED: hear_verdict(s); break;
    case ASKED:
        if (dialect->socks4) hear_reply4(s);
        else hear_reply5(s);
        break;
    case OPEN:
        if (s->kind == GARBAGE) linger_on(s);
        else behaviours[s->kind].turn(s);
        break;
    case UNUSED:
    case FAILED: break;
    }
}

static const uint64_t TICK = 20 * 1000000u;
static const uint64_t PATIENCE = 5 * UINT64_C(1000000000); /* with what should take no time */

/* Failed sessions are tried again here and not at once, so that a dead server costs no storm of
 * connects. */
static void tick(void) {
    for (int i = 0; i < session_count; i++) {
        struct session *s = &sessions[i];
        bool hurried = s->step < OPEN || s->kind == CONN;
        if (s->step == FAILED) start(s);
        else if (s->step != UNUSED && hurried && now > s->began + PATIENCE) fail(s, TIMED_OUT);
    }
}

static void turn(void) {
    static uint64_t next_tick;
    struct epoll_event events[BATCH];
    int ready = epoll_wait(poller, events, BATCH, 1);
    for (int i = 0; i < ready; i++) on_event((struct session *)(uintptr_t)events[i].data.u64);
    now = clock_ns();
    if (option.garbage_rate) scan_on();
    if (now >= next_tick) {
        tick();
        next_tick = now + TICK;
    }
}

/* Opens every lasting session, few at a time: servers differ in the length of their accept queue,
 * and that is not what is measured. The short sessions of --conn and --fetch start last and all at
 * once, since their number is the load. */
static bool open_all(void) {
    enum { AT_A_TIME = 32, SECONDS = 30 };
    int lasting = session_count - option.wanted[CONN] - option.wanted[FETCH], started = 0, open = 0;
    uint64_t deadline = (now = clock_ns()) + SECONDS * UINT64_C(1000000000);
    while (open < lasting && now < deadline) {
        while (started < lasting && started < open + AT_A_TIME) start(&sessions[started++]);
        turn();
        open = 0;
        for (int kind = 0; kind < CONN; kind++) open += groups[kind].open;
    }
    if (open < lasting) return false;
    for (int i = lasting; i < session_count; i++) start(&sessions[i]);
    return true;
}

static uint64_t count_arrived(void) {
    static int fd = -1;
    uint64_t total = 0;
    struct sockaddr_in peer = address(common.origin_host, option.count);
    if (fd < 0) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0)
            die("count port: %s", strerror(errno));
    }
    if (send(fd, "?", 1, 0) != 1 || recv(fd, &total, sizeof total, MSG_WAITALL) != sizeof total)
        die("count port: %s", strerror(errno));
    return total;
}

/* Runs the load for so long, counting only what happens meanwhile; returns the seconds it really
 * took. */
static double run_for(double seconds) {
    uint64_t arrived = option.wanted[UP] ? count_arrived() : 0;
    for (int kind = 0; kind < KINDS; kind++) {
        groups[kind].bytes = 0;
        memset(&groups[kind].latency, 0, sizeof groups[kind].latency);
    }
    uint64_t began = now = clock_ns(), end = began + (uint64_t)(seconds * 1e9);
    while (now < end) turn();
    if (option.wanted[UP]) groups[UP].bytes = count_arrived() - arrived;
    return (double)(clock_ns() - began) / 1e9;
}

/* A session counts as idle once its one byte came back; whatever is missing after this shows in
 * "count". */
static void wait_for_echoes(void) {
    uint64_t deadline = now + PATIENCE;
    while (groups[IDLE].latency.count < (uint64_t)option.wanted[IDLE] && now < deadline) turn();
}

/* Sessions that went away while nobody looked. */
static int count_lost(void) {
    int lost = 0;
    for (int i = 0; i < session_count; i++) {
        ssize_t got = recv(sessions[i].fd, scratch, 1, MSG_DONTWAIT | MSG_PEEK);
        lost += !would_block(got);
    }
    return lost;
}

/* -------------------------------------------------------------------------------- the whole run */

static void print_groups(double seconds) {
    printf("\"seconds\": %.4f", seconds);
    for (int kind = 0; kind < GARBAGE; kind++) {
        const struct group *group = &groups[kind];
        if (!option.wanted[kind]) continue;
        printf(", \"%s\": {\"sessions\": %d, \"open\": %d, \"bytes\": %llu, \"count\": %llu, "
               "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}",
               group->name, option.wanted[kind], group->open, (unsigned long long)group->bytes,
               (unsigned long long)group->latency.count, percentile_us(&group->latency, 0.5),
               percentile_us(&group->latency, 0.99), (double)group->latency.longest / 1000);
    }
}

static void print_rest(void) {
    if (option.garbage_rate)
        printf(", \"garbage\": {\"started\": %llu, \"left\": %llu, \"stayed\": %llu, "
               "\"ended_by_server\": %llu, \"failed\": %llu}",
               (unsigned long long)garbage.started, (unsigned long long)garbage.left,
               (unsigned long long)garbage.stayed, (unsigned long long)garbage.ended_by_server,
               (unsigned long long)garbage.failed);
    printf(", \"errors\": {");
    for (int i = 0; i < TROUBLES; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", trouble_names[i], (unsigned long long)troubles[i]);
    printf("}}\n");
}

int run_client(void) {
    for (size_t i = 0; i < sizeof random_bytes; i++) random_bytes[i] = (uint8_t)(i * 167 + 89);
    for (int kind = 0; kind < GARBAGE; kind++)
        for (int i = 0; i < option.wanted[kind]; i++) {
            if (session_count >= MAX_SESSIONS - GARBAGE_SLOTS) die("too many sessions");
            sessions[session_count++] = (struct session){.fd = -1, .kind = (uint8_t)kind};
        }

    if (!open_all()) {
        printf("{\"failed\": \"not every session could be opened\", ");
        print_groups(0);
        print_rest();
        return 1;
    }
    if (option.wanted[IDLE]) wait_for_echoes();
    if (option.wanted[IDLE] && option.wanted[IDLE] == session_count) {
        printf("ready\n");
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        poll(&input, 1, (int)(common.seconds * 1000));
        printf("{\"lost\": %d, ", count_lost());
        print_groups(0);
        print_rest();
        return 0;
    }

    scanning_since = clock_ns();
    run_for(common.warmup);
    printf("begin\n");
    double seconds = run_for(common.seconds);
    printf("end\n{");
    print_groups(seconds);
    print_rest();
    return 0;
}
