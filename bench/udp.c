/*
 * UDP load for the benchmarks: one program that is either the origin or the client of a run, as
 * load.c is for TCP. Endpoints are nearly free here too: datagrams come and go by the batch
 * (recvmmsg, sendmmsg, UDP_GRO, UDP_SEGMENT), bulk is swallowed without being copied.
 *
 *     udp origin [--origin A]
 *         Binds its ports, prints them as one JSON object, lives until stdin closes.
 *
 *     udp client --echo P --sink P --source P [--socks P] [--seconds S] [--warmup S]
 *                [--rr N | --up N | --down N] [--bytes B] [--window W] [--plain] [--merged]
 *                [--origin A] [--proxy A] [--from A]
 *         Opens N associations, each with its TCP connection and its own socket, keeps each busy
 *         from one loop, and prints as load.c does. Without --socks the origin is spoken to as it
 *         is.
 *
 * --rr: each association keeps W datagrams of B bytes on their way; the origin mirrors them, and
 * each that comes back is sent anew. They leave by sendmmsg as W datagrams, as from W small
 * programs, or with --merged by UDP_SEGMENT as one run; whatever the proxy merges, the other ends
 * take and return merged. A datagram not back after LOST_AFTER counts as lost, and its place is
 * taken by a new one.
 *
 * --up, --down: one way, as QUIC does it: the receiver says through the proxy how far it has come,
 * and the sender keeps at most W datagrams beyond that. So the rate is the proxy's own, not that of
 * a sender who overruns it, and what is lost all the same is counted. The sender sends runs by
 * UDP_SEGMENT, receivers take UDP_GRO; --plain does without both, at this end and the other.
 */
#define _GNU_SOURCE
#include "common.h"
#include <fcntl.h>
#include <netinet/udp.h>
#include <unistd.h>

enum {
    MAX_FDS = 4096,
    MAX_ASSOCIATIONS = 256,
    MAX_WINDOW = 1024,
    MAX_BYTES = 9000,
    BATCH = 64,        /* messages in one call */
    ROOM = 65536,      /* for one message, which GRO may have merged from many datagrams */
    RUN_BYTES = 65000, /* in one send by UDP_SEGMENT, of 64 datagrams at most */
    RUN = 64,
    HEADER = 10, /* RSV RSV FRAG ATYP, IPv4 address, port */
    BUFFER = 4 << 20,
};

static const uint64_t LOST_AFTER = 200 * 1000000u;
static const uint64_t STALLED_AFTER = 20 * 1000000u;
static const uint64_t TICK = 5 * 1000000u;

/* Begins every payload. Both ends are on one machine, so it has the machine's own byte order. */
struct label {
    uint32_t association;
    uint32_t place; /* --rr: which of the W; a grant: whether what is on its way is given up */
    uint64_t number;
};

static struct {
    int echo_port, sink_port, source_port;
    int rr, up, down;
    int bytes, window, plain, merged;
} option = {
    .bytes = 64,
    .window = 16,
};

static int open_socket(uint32_t host, bool merge) {
    struct sockaddr_in local = address(host, 0);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&local, sizeof local) < 0)
        die("a UDP socket: %s", strerror(errno));
    /* What is dropped shall be dropped by the proxy. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){BUFFER}, sizeof(int)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){BUFFER}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){BUFFER}, sizeof(int));
    if (merge) setsockopt(fd, IPPROTO_UDP, UDP_GRO, &(int){1}, sizeof(int));
    return fd;
}

/* ------------------------------------------------------------------------------------- batches */

/* What one recvmmsg brought. A message may be several datagrams of `size` each, the last perhaps
 * shorter. */
static struct {
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    struct sockaddr_in peers[BATCH];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control[BATCH];
    int size[BATCH];
    char *rooms;
} in;

/* The size of the datagrams that UDP_GRO merged, or 0 where it merged none. */
static int merged_size(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof size);
            return size;
        }
    return 0;
}

/* At most `wanted` bytes of each message are copied; msg_len is its true length all the same. */
static int receive(int fd, size_t wanted) {
    for (int i = 0; i < BATCH; i++) {
        in.parts[i] = (struct iovec){in.rooms + (size_t)i * ROOM, wanted};
        in.messages[i].msg_hdr = (struct msghdr){
            .msg_name = &in.peers[i],
            .msg_namelen = sizeof in.peers[i],
            .msg_iov = &in.parts[i],
            .msg_iovlen = 1,
            .msg_control = in.control[i].bytes,
            .msg_controllen = sizeof in.control[i].bytes,
        };
    }
    int got = recvmmsg(fd, in.messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
    for (int i = 0; i < got; i++) {
        int size = merged_size(&in.messages[i].msg_hdr);
        in.size[i] = size ? size : (int)in.messages[i].msg_len;
    }
    return got;
}

static struct label label_at(int message, size_t offset) {
    struct label label;
    memcpy(&label, (char *)in.parts[message].iov_base + offset, sizeof label);
    return label;
}

static int datagrams_in(int message) {
    int size = in.size[message], length = (int)in.messages[message].msg_len;
    return size ? (length + size - 1) / size : 0;
}

/* Adds UDP_SEGMENT to a message, which the kernel cuts into datagrams of that size as late as it
 * can. */
static void segment(struct msghdr *message, void *control, size_t control_size, uint16_t size) {
    message->msg_control = control;
    message->msg_controllen = control_size;
    struct cmsghdr *c = CMSG_FIRSTHDR(message);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof size);
    memcpy(CMSG_DATA(c), &size, sizeof size);
}

/* `count` datagrams of `size` bytes that lie one behind the other, to `peer`, or to whom the socket
 * is connected. Returns how many left. */
static int send_run(int fd, char *first, int count, int size, struct sockaddr_in *peer) {
    union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr aligned;
    } control;
    int sent = 0, most = RUN_BYTES / size < RUN ? RUN_BYTES / size : RUN;
    while (sent < count) {
        int run = count - sent < most ? count - sent : most;
        struct iovec part = {first + (size_t)sent * (size_t)size, (size_t)run * (size_t)size};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (peer) message.msg_name = peer, message.msg_namelen = sizeof *peer;
        if (run > 1) segment(&message, control.bytes, sizeof control.bytes, (uint16_t)size);
        if (sendmsg(fd, &message, 0) < 0) break;
        sent += run;
    }
    return sent;
}

static int send_singly(int fd, char *first, int count, int size, struct sockaddr_in *peer) {
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    int sent = 0;
    while (sent < count) {
        int batch = count - sent < BATCH ? count - sent : BATCH;
        for (int i = 0; i < batch; i++) {
            parts[i] = (struct iovec){first + (size_t)(sent + i) * (size_t)size, (size_t)size};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
            if (!peer) continue;
            messages[i].msg_hdr.msg_name = peer;
            messages[i].msg_hdr.msg_namelen = sizeof *peer;
        }
        int left = sendmmsg(fd, messages, (unsigned)batch, 0);
        if (left <= 0) break;
        sent += left;
    }
    return sent;
}

static int send_all(int fd, char *first, int count, int size, struct sockaddr_in *peer,
                    bool plain) {
    return (plain ? send_singly : send_run)(fd, first, count, size, peer);
}

static void label_run(char *first, int count, int size, int offset, struct label label) {
    for (int i = 0; i < count; i++, label.number++)
        memcpy(first + (size_t)i * (size_t)size + offset, &label, sizeof label);
}

/* ----------------------------------------------------------------------------------- the origin */

/* Sends back what came, as it came: merged, if it came merged. */
static void serve_echo(int fd) {
    static union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr aligned;
    } control[BATCH];
    int got = receive(fd, ROOM);
    for (int i = 0; i < got; i++) {
        struct msghdr *message = &in.messages[i].msg_hdr;
        in.parts[i].iov_len = in.messages[i].msg_len;
        message->msg_control = NULL;
        message->msg_controllen = 0;
        if (datagrams_in(i) > 1)
            segment(message, control[i].bytes, sizeof control[i].bytes, (uint16_t)in.size[i]);
    }
    for (int sent = 0; sent < got;) {
        int left = sendmmsg(fd, in.messages + sent, (unsigned)(got - sent), 0);
        /* What cannot leave is skipped: the client sees it as lost. */
        sent += left > 0 ? left : 1;
    }
}

static struct flow {
    struct sockaddr_in peer;
    uint64_t next;     /* the number of the datagram after the last that came, or that was sent */
    uint64_t reported; /* how far it was when the sender was last told */
    uint64_t received;
} sinks[MAX_ASSOCIATIONS], sources[MAX_ASSOCIATIONS];

/* What a sink tells its sender. */
struct report {
    struct label label; /* number: the next one it waits for */
    uint64_t received;
};

/* What a receiver asks its source for. */
struct request {
    struct label label; /* number: the last it may send, plus one */
    uint32_t bytes, plain;
};

static void serve_sink(int fd) {
    int got = receive(fd, sizeof(struct label) + sizeof(uint32_t));
    for (int i = 0; i < got; i++) {
        struct label label = label_at(i, 0);
        if (label.association >= MAX_ASSOCIATIONS) continue;
        struct flow *flow = &sinks[label.association];
        if (memcmp(&flow->peer, &in.peers[i], sizeof flow->peer) != 0)
            *flow = (struct flow){.peer = in.peers[i]}; /* another client's */
        uint64_t next = label.number + (uint64_t)datagrams_in(i);
        flow->received += (uint64_t)datagrams_in(i);
        if (next > flow->next) flow->next = next;
        uint32_t step = label.place; /* the sender says how often it wants to be told */
        if (flow->next - flow->reported < step) continue;
        flow->reported = flow->next;
        struct report report = {{label.association, 0, flow->next}, flow->received};
        sendto(fd, &report, sizeof report, 0, (struct sockaddr *)&flow->peer, sizeof flow->peer);
    }
}

static void serve_source(int fd) {
    static char run[MAX_WINDOW * MAX_BYTES];
    int got = receive(fd, sizeof(struct request));
    for (int i = 0; i < got; i++) {
        struct request request;
        memcpy(&request, in.parts[i].iov_base, sizeof request);
        uint32_t number = request.label.association;
        if (number >= MAX_ASSOCIATIONS || request.bytes > MAX_BYTES) continue;
        struct flow *flow = &sources[number];
        uint64_t end = request.label.number;
        /* What was on its way is lost, or its receiver would not say this: begin where it is. */
        if (request.label.place) flow->next = end - request.label.place;
        if (end <= flow->next || end - flow->next > MAX_WINDOW) continue;
        int count = (int)(end - flow->next), size = (int)request.bytes;
        label_run(run, count, size, 0, (struct label){number, 0, flow->next});
        flow->next += (uint64_t)send_all(fd, run, count, size, &in.peers[i], request.plain);
    }
}

static const struct role {
    const char *name;
    void (*serve)(int fd);
} roles[] = {{"echo", serve_echo}, {"sink", serve_sink}, {"source", serve_source}};

static void run_origin(void) {
    int fds[COUNT(roles)];
    printf("{");
    for (size_t i = 0; i < COUNT(roles); i++) {
        fds[i] = open_socket(common.origin_host, !option.plain);
        watch(EPOLL_CTL_ADD, fds[i], EPOLLIN, i);
        printf("%s\"%s\": %d", i ? ", " : "", roles[i].name, port_of(fds[i]));
    }
    printf("}\n");
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, COUNT(roles));
    for (;;) {
        struct epoll_event events[COUNT(roles) + 1];
        int ready = epoll_wait(poller, events, COUNT(events), -1);
        for (int i = 0; i < ready; i++) {
            uint64_t role = events[i].data.u64;
            char byte;
            if (role < COUNT(roles)) roles[role].serve(fds[role]);
            else if (read(STDIN_FILENO, &byte, 1) <= 0) return;
        }
    }
}

/* ------------------------------------------------------------------- the client: associations */

static struct association {
    int control, fd;
    uint32_t number;
    /* --rr */
    uint32_t turns[MAX_WINDOW]; /* the turn of each place, which its datagram carries */
    uint64_t sent_at[MAX_WINDOW];
    /* --up, --down */
    uint64_t next, reported, received;
    uint64_t progress_at;
} associations[MAX_ASSOCIATIONS];

static int association_count;
static uint64_t now;

/* Of everything measured; set back when the measuring begins. */
static struct {
    uint64_t sent, back, lost, late, strange, refused;
    struct histogram latency;
} seen;

static int header_size, wire_size;
static struct sockaddr_in target;
static char *run; /* W datagrams one behind the other, headers in place */

static void exchange(int fd, const void *said, size_t size, uint8_t *heard, size_t wanted,
                     const char *what) {
    if (send(fd, said, size, 0) != (ssize_t)size) die("%s: %s", what, strerror(errno));
    ssize_t got = recv(fd, heard, wanted, MSG_WAITALL);
    if (got < 0) die("%s: %s", what, strerror(errno));
    if (got != (ssize_t)wanted) die("%s: the proxy closed after %zd bytes", what, got);
}

/* The whole handshake, waiting: it is not what is measured. Returns where to send datagrams. */
static struct sockaddr_in associate(struct association *a, uint32_t host) {
    struct sockaddr_in local = address(host, 0), own;
    struct sockaddr_in proxy = address(common.proxy_host, common.socks);
    a->control = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(a->control, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){10, 0},
               sizeof(struct timeval));
    if (bind(a->control, (struct sockaddr *)&local, sizeof local) < 0 ||
        connect(a->control, (struct sockaddr *)&proxy, sizeof proxy) < 0)
        die("connecting to the proxy: %s", strerror(errno));
    uint8_t answer[10], request[10] = {5, 3, 0, 1};
    exchange(a->control, "\5\1\0", 3, answer, 2, "greeting");
    if (answer[0] != 5 || answer[1] != 0) die("greeting: the proxy wants another method");
    getsockname(a->fd, (struct sockaddr *)&own, &(socklen_t){sizeof own});
    memcpy(request + 4, &own.sin_addr, 4);
    memcpy(request + 8, &own.sin_port, 2);
    exchange(a->control, request, sizeof request, answer, sizeof answer, "UDP ASSOCIATE");
    if (answer[0] != 5 || answer[1] != 0)
        die("UDP ASSOCIATE: the proxy refuses with code %d", answer[1]);
    if (answer[3] != 1) die("UDP ASSOCIATE: no IPv4 address in the reply");
    struct sockaddr_in relay = proxy;
    memcpy(&relay.sin_port, answer + 8, 2);
    if (memcmp(answer + 4, "\0\0\0\0", 4) != 0) memcpy(&relay.sin_addr, answer + 4, 4);
    return relay;
}

static void open_association(void) {
    struct association *a = &associations[association_count];
    uint32_t host = common.source_host + (uint32_t)(association_count % SOURCES);
    a->number = (uint32_t)association_count++;
    a->fd = open_socket(host, !option.plain);
    struct sockaddr_in peer = common.socks ? associate(a, host) : target;
    if (connect(a->fd, (struct sockaddr *)&peer, sizeof peer) < 0)
        die("connecting a UDP socket: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, a->fd, EPOLLIN, a->number);
}

static int receive_own(struct association *a, size_t wanted) {
    int got = receive(a->fd, wanted);
    if (got < 0 && !would_block(got)) seen.refused++;
    return got;
}

/* --- round trips */

static void send_places(struct association *a, const uint32_t *places, int count) {
    for (int i = 0; i < count; i++) {
        struct label label = {a->number, places[i], ++a->turns[places[i]]};
        memcpy(run + (size_t)i * (size_t)wire_size + header_size, &label, sizeof label);
        a->sent_at[places[i]] = now;
    }
    /* What could not be sent will count as lost. */
    seen.sent += (uint64_t)count;
    (option.merged ? send_run : send_singly)(a->fd, run, count, wire_size, NULL);
}

static void begin_rr(struct association *a) {
    uint32_t places[MAX_WINDOW];
    for (int i = 0; i < option.window; i++) places[i] = (uint32_t)i;
    send_places(a, places, option.window);
}

/* True if this is the datagram its place waits for. */
static bool comes_back(struct association *a, struct label label) {
    bool own = label.association == a->number && label.place < (uint32_t)option.window;
    if (!own) seen.strange++;
    else if (label.number != a->turns[label.place]) seen.late++;
    else return true;
    return false;
}

static void turn_rr(struct association *a) {
    static uint32_t places[BATCH * ROOM / sizeof(struct label)];
    int got = receive_own(a, ROOM), back = 0;
    now = clock_ns();
    for (int i = 0; i < got; i++) {
        int length = (int)in.messages[i].msg_len;
        for (int at = 0; at + wire_size <= length; at += in.size[i]) {
            struct label label = label_at(i, (size_t)(at + header_size));
            if (!comes_back(a, label)) continue;
            note(&seen.latency, now - a->sent_at[label.place]);
            a->sent_at[label.place] = now;
            a->turns[label.place]++; /* a second copy within the batch is late */
            places[back++] = label.place;
        }
    }
    seen.back += (uint64_t)back;
    if (back) send_places(a, places, back);
}

static void tick_rr(struct association *a) {
    uint32_t places[MAX_WINDOW];
    int lost = 0;
    for (int i = 0; i < option.window; i++)
        if (now - a->sent_at[i] > LOST_AFTER) places[lost++] = (uint32_t)i;
    seen.lost += (uint64_t)lost;
    if (lost) send_places(a, places, lost);
}

/* --- bulk, upwards: `reported` is how far the sink has come, `next` what is sent next */

static uint32_t step_of(int window) {
    return (uint32_t)(window > 4 ? window / 4 : 1);
}

static void send_on(struct association *a) {
    int count = (int)(a->reported + (uint64_t)option.window - a->next);
    if (count <= 0) return;
    label_run(run, count, wire_size, header_size,
              (struct label){a->number, step_of(option.window), a->next});
    int sent = send_all(a->fd, run, count, wire_size, NULL, option.plain);
    a->next += (uint64_t)sent;
    seen.sent += (uint64_t)sent;
}

static void begin_up(struct association *a) {
    a->progress_at = now;
    send_on(a);
}

static void turn_up(struct association *a) {
    int got = receive_own(a, (size_t)header_size + sizeof(struct report));
    for (int i = 0; i < got; i++) {
        struct report report;
        memcpy(&report, (char *)in.parts[i].iov_base + header_size, sizeof report);
        if (report.label.association != a->number) {
            seen.strange++;
            continue;
        }
        if (report.label.number > a->reported) a->reported = report.label.number;
        if (report.received <= a->received) continue;
        seen.back += report.received - a->received;
        a->received = report.received;
        a->progress_at = now;
    }
    send_on(a);
}

/* What is on its way, or the word of its arrival, is lost: the sender counts on neither. */
static void tick_up(struct association *a) {
    if (now - a->progress_at < STALLED_AFTER) return;
    a->reported = a->next;
    begin_up(a);
}

/* --- bulk, downwards: `next` is the datagram after the last that came */

static void ask_for_more(struct association *a, bool give_up) {
    char datagram[HEADER + sizeof(struct request)];
    uint32_t window = (uint32_t)option.window;
    struct request request = {{a->number, give_up ? window : 0, a->next + window},
                              (uint32_t)option.bytes,
                              (uint32_t)option.plain};
    memcpy(datagram, run, HEADER);
    memcpy(datagram + header_size, &request, sizeof request);
    a->reported = a->next;
    send(a->fd, datagram, (size_t)header_size + sizeof request, 0);
}

static void begin_down(struct association *a) {
    a->progress_at = now;
    ask_for_more(a, true);
}

static void turn_down(struct association *a) {
    int got = receive_own(a, (size_t)header_size + sizeof(struct label));
    for (int i = 0; i < got; i++) {
        struct label label = label_at(i, (size_t)header_size);
        if (label.association != a->number) {
            seen.strange++;
            continue;
        }
        uint64_t count = (uint64_t)datagrams_in(i), end = label.number + count;
        seen.back += count;
        if (end <= a->next) seen.late += count;
        else seen.sent += end - a->next, a->next = end; /* gaps are what was lost */
        a->progress_at = now;
    }
    if (a->next - a->reported >= step_of(option.window)) ask_for_more(a, false);
}

static void tick_down(struct association *a) {
    if (now - a->progress_at >= STALLED_AFTER) begin_down(a);
}

/* ------------------------------------------------------------------------- the client: its loop */

static const struct load {
    const char *name;
    int *wanted, *port;
    void (*begin)(struct association *);
    void (*turn)(struct association *);
    void (*tick)(struct association *);
} loads[] = {
    {"rr", &option.rr, &option.echo_port, begin_rr, turn_rr, tick_rr},
    {"up", &option.up, &option.sink_port, begin_up, turn_up, tick_up},
    {"down", &option.down, &option.source_port, begin_down, turn_down, tick_down},
};

static double run_for(const struct load *load, double seconds) {
    static uint64_t next_tick;
    memset(&seen, 0, sizeof seen);
    uint64_t began = now = clock_ns(), end = began + (uint64_t)(seconds * 1e9);
    while (now < end) {
        struct epoll_event events[BATCH];
        int ready = epoll_wait(poller, events, BATCH, 1);
        now = clock_ns();
        for (int i = 0; i < ready; i++) load->turn(&associations[events[i].data.u64]);
        if (now < next_tick) continue;
        for (int i = 0; i < association_count; i++) load->tick(&associations[i]);
        next_tick = now + TICK;
    }
    return (double)(clock_ns() - began) / 1e9;
}

/* Ahead of every datagram that goes to a proxy: where it is to go. */
static void write_headers(void) {
    for (int i = 0; i < option.window && header_size; i++) {
        char *header = run + (size_t)i * (size_t)wire_size;
        memcpy(header, "\0\0\0\1", 4);
        memcpy(header + 4, &target.sin_addr, 4);
        memcpy(header + 8, &target.sin_port, 2);
    }
}

static void print_figures(const struct load *load, double seconds) {
    /* One way, what was sent and did not come is lost. With what is on its way at the beginning and
     * the end this is off by a window at most. */
    if (load->wanted != &option.rr) seen.lost = seen.sent > seen.back ? seen.sent - seen.back : 0;
    printf("{\"seconds\": %.4f, \"%s\": {\"sessions\": %d, \"count\": %llu, \"bytes\": %llu, "
           "\"lost\": %llu, \"late\": %llu, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"max_us\": %.1f}, \"errors\": {\"strange\": %llu, \"refused\": %llu}}\n",
           seconds, load->name, association_count, (unsigned long long)seen.back,
           (unsigned long long)seen.back * (unsigned long long)option.bytes,
           (unsigned long long)seen.lost, (unsigned long long)seen.late,
           percentile_us(&seen.latency, 0.5), percentile_us(&seen.latency, 0.99),
           (double)seen.latency.longest / 1000, (unsigned long long)seen.strange,
           (unsigned long long)seen.refused);
}

static void run_client(void) {
    const struct load *load = loads;
    while (load < loads + COUNT(loads) && !*load->wanted) load++;
    if (load == loads + COUNT(loads)) die("one of --rr, --up and --down is needed");
    if (*load->wanted > MAX_ASSOCIATIONS) die("at most %d associations", MAX_ASSOCIATIONS);
    target = address(common.origin_host, *load->port);
    header_size = common.socks ? HEADER : 0;
    wire_size = header_size + option.bytes;
    run = calloc((size_t)option.window, (size_t)wire_size);
    if (!run) die("setup: %s", strerror(errno));
    write_headers();
    for (int i = 0; i < *load->wanted; i++) open_association();
    now = clock_ns();
    for (int i = 0; i < association_count; i++) load->begin(&associations[i]);
    run_for(load, common.warmup);
    if (!seen.back) {
        printf("{\"failed\": \"no datagram came through\", \"errors\": {\"refused\": %llu}}\n",
               (unsigned long long)seen.refused);
        exit(1);
    }
    printf("begin\n");
    double seconds = run_for(load, common.seconds);
    printf("end\n");
    print_figures(load, seconds);
}

static const struct setting settings[] = {
    {.name = "echo", .has_arg = required_argument, .integer = &option.echo_port},
    {.name = "sink", .has_arg = required_argument, .integer = &option.sink_port},
    {.name = "source", .has_arg = required_argument, .integer = &option.source_port},
    {.name = "rr", .has_arg = required_argument, .integer = &option.rr},
    {.name = "up", .has_arg = required_argument, .integer = &option.up},
    {.name = "down", .has_arg = required_argument, .integer = &option.down},
    {.name = "bytes", .has_arg = required_argument, .integer = &option.bytes},
    {.name = "window", .has_arg = required_argument, .integer = &option.window},
    {.name = "plain", .has_arg = no_argument, .integer = &option.plain},
    {.name = "merged", .has_arg = no_argument, .integer = &option.merged},
};

int main(int argc, char **argv) {
    bool client = parse_command(argc, argv, settings, COUNT(settings));
    if (option.bytes < (int)sizeof(struct label) || option.bytes > MAX_BYTES)
        die("--bytes is between %zu and %d", sizeof(struct label), MAX_BYTES);
    if (option.window < 1 || option.window > MAX_WINDOW)
        die("--window is between 1 and %d", MAX_WINDOW);
    prepare(MAX_FDS);
    in.rooms = calloc(BATCH, ROOM);
    if (!in.rooms) die("setup: %s", strerror(errno));
    if (client) run_client();
    else run_origin();
    return 0;
}
