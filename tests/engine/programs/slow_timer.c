/* Preloaded, it makes the main thread sleep for MICROSECONDS in each timerfd_settime(), as a thread
 * does that the kernel has taken the CPU from: whatever other threads may do meanwhile, they do. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

int timerfd_settime(int fd, int flags, const struct itimerspec *wanted, struct itimerspec *before)
{
    int (*real)(int, int, const struct itimerspec *, struct itimerspec *) =
        dlsym(RTLD_NEXT, "timerfd_settime");
    int result = real(fd, flags, wanted, before);
    if (gettid() == getpid())
        usleep(atoi(getenv("MICROSECONDS")));
    return result;
}
