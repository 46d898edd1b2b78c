# What the kernel and libc offer that Cython does not declare: sockets, epoll, splice, clocks.
# Declarations only.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "<errno.h>" nogil:
    int errno
    enum: EAGAIN, EINTR, EINPROGRESS, ECONNREFUSED, ETIMEDOUT, ENETUNREACH, EHOSTUNREACH, ECONNRESET, EPIPE
    enum: ENOENT, EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED, EINVAL, EADDRNOTAVAIL, EACCES, EPERM

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    ssize_t c_read "read"(int fd, void *buf, size_t n)
    ssize_t c_write "write"(int fd, const void *buf, size_t n)
    int pipe2(int *fds, int flags)

cdef extern from "<fcntl.h>" nogil:
    enum: O_NONBLOCK, O_CLOEXEC, F_SETPIPE_SZ, F_GETFL, F_SETFL, F_GETFD, F_DUPFD_CLOEXEC
    enum: SPLICE_F_MOVE, SPLICE_F_NONBLOCK, SPLICE_F_MORE
    int fcntl(int fd, int cmd, ...)
    ssize_t splice(int fd_in, void *off_in, int fd_out, void *off_out, size_t n, unsigned int flags)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET
    enum: SO_ERROR, SO_LINGER, SO_KEEPALIVE, SO_SNDBUF, SO_RCVBUF, SO_MARK
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, MSG_PEEK, MSG_MORE, SHUT_RD, SHUT_WR, SHUT_RDWR
    enum: MSG_CMSG_CLOEXEC, SCM_RIGHTS
    ctypedef uint32_t socklen_t
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    struct linger:
        int l_onoff
        int l_linger
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int c_socket "socket"(int family, int kind, int protocol)
    int c_bind "bind"(int fd, const sockaddr *address, socklen_t n)
    int c_connect "connect"(int fd, const sockaddr *address, socklen_t n)
    int accept4(int fd, sockaddr *address, socklen_t *n, int flags)
    int c_shutdown "shutdown"(int fd, int how)
    ssize_t c_recv "recv"(int fd, void *buf, size_t n, int flags)
    ssize_t c_send "send"(int fd, const void *buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *c)
    unsigned char *CMSG_DATA(cmsghdr *c)
    size_t CMSG_LEN(size_t n)
    int getpeername(int fd, sockaddr *address, socklen_t *n)
    int getsockname(int fd, sockaddr *address, socklen_t *n)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *n)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t n)

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP, SOL_IP, SOL_IPV6, INET_ADDRSTRLEN, INET6_ADDRSTRLEN
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t htons(uint16_t v)
    uint16_t ntohs(uint16_t v)

cdef extern from * nogil:
    """
    /* <linux/netfilter_ipv4.h> and its twin, which do not go together with <netinet/in.h> */
    #define FM_SO_ORIGINAL_DST 80
    #define FM_IP6T_SO_ORIGINAL_DST 80
    /* <linux/in.h> and its twin, likewise */
    #define FM_IP_TRANSPARENT 19
    #define FM_IPV6_TRANSPARENT 75
    #define FM_IP_BIND_ADDRESS_NO_PORT 24
    """
    enum: IP_BIND_ADDRESS_NO_PORT "FM_IP_BIND_ADDRESS_NO_PORT"
    enum: IP_TRANSPARENT "FM_IP_TRANSPARENT", IPV6_TRANSPARENT "FM_IPV6_TRANSPARENT"
    enum: SO_ORIGINAL_DST "FM_SO_ORIGINAL_DST", IP6T_SO_ORIGINAL_DST "FM_IP6T_SO_ORIGINAL_DST"

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY, TCP_QUICKACK

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        uint16_t sun_family
        char sun_path[108]

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *out)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t n)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLEXCLUSIVE
    # the flag does not fit a signed enum
    uint32_t EPOLLET
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int op, int fd, epoll_event *event)
    int epoll_wait(int ep, epoll_event *events, int n, int timeout_ms)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_REALTIME_COARSE
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MFD_CLOEXEC, MADV_DONTNEED
    void *MAP_FAILED
    void *mmap(void *address, size_t n, int prot, int flags, int fd, long offset)
    int munmap(void *address, size_t n)
    int memfd_create(const char *name, unsigned int flags)

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NAME
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
