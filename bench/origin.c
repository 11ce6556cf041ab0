/*
 * The origin of load: it listens, and gives every connection what the port it came to stands for.
 * It must not know who connects, nor that there may be a proxy, nor what a client measures.
 *
 * A connection's role is looked up by its descriptor, and a role just tries its one piece of I/O,
 * whatever the event said: an event that outlived its descriptor within a batch then finds EAGAIN
 * and does no harm. A role returns what its last call returned: above 0 all is well, 0 or an error
 * (other than EAGAIN) closes.
 */
#define _GNU_SOURCE
#include "load.h"
#include <unistd.h>

static uint64_t swallowed;

static ssize_t serve_source(int fd) {
    return send_bulk(fd, CHUNK);
}

static ssize_t serve_sink(int fd) {
    ssize_t got = swallow(fd);
    if (got > 0) swallowed += (uint64_t)got;
    return got;
}

static ssize_t serve_echo(int fd) {
    ssize_t got = recv(fd, scratch, sizeof scratch, 0);
    if (got <= 0) return got;
    return send(fd, scratch, (size_t)got, 0) == got ? got : 0;
}

/* Bytes still to send, and of the request so far, by descriptor. */
static struct {
    uint64_t left;
    uint8_t asked;
    bool sending; /* waits for room, and no longer for the client */
} objects[MAX_FDS];

/* A size comes in, so many bytes go out, and the client closes. What is small leaves at once. */
static ssize_t serve_object(int fd) {
    if (objects[fd].asked < sizeof objects[fd].left) {
        ssize_t got = recv(fd, (char *)&objects[fd].left + objects[fd].asked,
                           sizeof objects[fd].left - objects[fd].asked, 0);
        if (got <= 0) return got;
        objects[fd].asked = (uint8_t)(objects[fd].asked + got);
        if (objects[fd].asked < sizeof objects[fd].left) return got;
    }
    if (!objects[fd].left) return recv(fd, scratch, 1, 0); /* until it has closed */
    ssize_t sent = send_bulk(fd, objects[fd].left);
    if (sent > 0) objects[fd].left -= (uint64_t)sent;
    bool sending = objects[fd].left > 0;
    if (sending != objects[fd].sending)
        watch(EPOLL_CTL_MOD, fd, sending ? EPOLLOUT : EPOLLIN, (uint64_t)fd);
    objects[fd].sending = sending;
    return sent;
}

/* What the sink has received so far: how a client that sends learns what arrived. Never asked
 * through a proxy. */
static ssize_t serve_count(int fd) {
    ssize_t got = recv(fd, scratch, 1, 0);
    return got <= 0 ? got : send(fd, &swallowed, sizeof swallowed, 0);
}

static const struct role {
    const char *name;
    ssize_t (*serve)(int fd);
    uint32_t events;
} roles[] = {
    {"source", serve_source, EPOLLOUT},
    {"sink", serve_sink, EPOLLIN},
    {"echo", serve_echo, EPOLLIN},
    {"object", serve_object, EPOLLIN},
    {"count", serve_count, EPOLLIN},
};

static const struct role *role_of[MAX_FDS];
static bool listening[MAX_FDS];

static int listen_on(uint32_t host, int port) {
    struct sockaddr_in local = address(host, port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0 || listen(fd, 4096) < 0)
        die("listening on port %d: %s", port, strerror(errno));
    return fd;
}

static void accept_from(int listener) {
    for (int i = 0; i < BATCH; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        role_of[fd] = role_of[listener];
        listening[fd] = false;
        memset(&objects[fd], 0, sizeof objects[fd]);
        watch(EPOLL_CTL_ADD, fd, role_of[fd]->events, (uint64_t)fd);
    }
}

void run_origin(void) {
    printf("{");
    for (size_t i = 0; i < COUNT(roles); i++) {
        int port = 0;
        for (uint32_t n = 0; n < TARGETS; n++) {
            int fd = listen_on(common.origin_host + n, port);
            port = port_of(fd);
            role_of[fd] = &roles[i];
            listening[fd] = true;
            watch(EPOLL_CTL_ADD, fd, EPOLLIN, (uint64_t)fd);
        }
        printf("%s\"%s\": %d", i ? ", " : "", roles[i].name, port);
    }
    printf("}\n");
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, STDIN_FILENO);

    for (;;) {
        struct epoll_event events[BATCH];
        int ready = epoll_wait(poller, events, BATCH, -1);
        for (int i = 0; i < ready; i++) {
            int fd = (int)events[i].data.u64;
            if (fd == STDIN_FILENO) {
                if (read(fd, scratch, sizeof scratch) <= 0) return;
            } else if (listening[fd]) {
                accept_from(fd);
            } else {
                ssize_t done = role_of[fd]->serve(fd);
                if (done <= 0 && !would_block(done)) close(fd);
            }
        }
    }
}
