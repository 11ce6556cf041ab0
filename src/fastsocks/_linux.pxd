# The system calls and constants of Linux that the native engine uses, and the helpers of
# _compat.h, all nogil. Declarations only: what for is the business of the .pyx files.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "_compat.h" nogil:
    uint32_t load_u32 "fs_load_u32"(uint32_t *field)
    void store_u32 "fs_store_u32"(uint32_t *field, uint32_t value)
    bint swap_u32_if "fs_swap_u32_if"(uint32_t *field, uint32_t expected, uint32_t value)
    void count_u64 "fs_count_u64"(uint64_t *counter, uint64_t by)
    uint64_t load_u64 "fs_load_u64"(uint64_t *counter)
    uint64_t keyed_hash "fs_keyed_hash"(const void *octets, size_t size, uint64_t *key)
    bint push_list "fs_push_list"(void **head, void *first, void **last_next)
    void *take_list "fs_take_list"(void **head)
    ssize_t splice_quietly "fs_splice_quietly"(int source, int target, size_t octets,
                                               unsigned int flags)

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EACCES
        EADDRINUSE
        EAFNOSUPPORT
        EAGAIN
        EALREADY
        EBADF
        ECONNRESET
        EINPROGRESS
        EINTR
        EINVAL
        EIO
        EMSGSIZE
        ENOBUFS
        ENOMEM
        EPERM
        EPIPE
        ETIMEDOUT

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLOUT
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLLIN
        EPOLLPRI
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLLET
        EPOLLONESHOT
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC
    int eventfd(unsigned int initval, int flags)
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)

cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_NONBLOCK
        TFD_CLOEXEC
        TFD_TIMER_ABSTIME
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, itimerspec *value, itimerspec *old)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        SOCK_DGRAM
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ERROR
        SO_KEEPALIVE
        SO_LINGER
        SO_RCVBUF
        SO_SNDBUF
        SHUT_WR
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_TRUNC
    ctypedef uint32_t socklen_t
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    struct linger:
        int l_onoff
        int l_linger
    int socket(int domain, int type, int protocol)
    int bind(int fd, sockaddr *address, socklen_t length)
    int connect(int fd, sockaddr *address, socklen_t length)
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    int getsockname(int fd, sockaddr *address, socklen_t *length)
    int getpeername(int fd, sockaddr *address, socklen_t *length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int name, void *value, socklen_t length)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    ssize_t send(int fd, void *buffer, size_t length, int flags)
    ssize_t sendto(int fd, void *buffer, size_t length, int flags,
                   sockaddr *address, socklen_t address_length)
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *header)
    cmsghdr *CMSG_NXTHDR(msghdr *header, cmsghdr *control)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t length)
    ssize_t sendmsg(int fd, msghdr *header, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_IP
        IPPROTO_IPV6
        IPPROTO_TCP
        IPV6_V6ONLY
        IP_BIND_ADDRESS_NO_PORT
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        pass
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    bint IN6_IS_ADDR_UNSPECIFIED(in6_addr *address)
    bint IN6_IS_ADDR_V4MAPPED(in6_addr *address)

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_KEEPCNT
        TCP_KEEPIDLE
        TCP_KEEPINTVL
        TCP_NODELAY
        TCP_QUICKACK

cdef extern from "_compat.h" nogil:
    enum:
        SOL_UDP
        UDP_GRO
        UDP_SEGMENT

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t length, unsigned int flags)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, void *address, char *text, socklen_t size)
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)

cdef extern from "<net/if.h>" nogil:
    unsigned int if_nametoindex(const char *name)

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_GETFL
        F_SETFL
        F_GETPIPE_SZ
        F_SETPIPE_SZ
        O_CLOEXEC
        O_NONBLOCK
        SPLICE_F_MOVE
        SPLICE_F_NONBLOCK
    int fcntl(int fd, int command, ...)
    ssize_t splice(int fd_in, int64_t *off_in, int fd_out, int64_t *off_out,
                   size_t length, unsigned int flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t length)
    int close(int fd)
    int getpid()
    int pipe2(int *ends, int flags)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MADV_DONTFORK
        MAP_POPULATE
        MAP_SHARED
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    int madvise(void *address, size_t length, int advice)
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)

cdef extern from "<sys/ioctl.h>" nogil:
    enum:
        TIOCOUTQ
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<signal.h>" nogil:
    enum:
        SIG_SETMASK
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *mask)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes,
                       void *(*run)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    int pthread_sigmask(int how, sigset_t *mask, sigset_t *old)
    int pthread_setname_np(pthread_t thread, const char *name)
