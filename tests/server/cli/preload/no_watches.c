/* A machine on which epoll has no room for one more connection (fs.epoll.max_user_watches). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;

    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_ctl");
    if (operation == EPOLL_CTL_ADD
        && getpeername(descriptor, (struct sockaddr *) &peer, &length) == 0
        && peer.ss_family == AF_INET) {
        errno = ENOSPC;
        return -1;
    }
    return real(epoll, operation, descriptor, event);
}
