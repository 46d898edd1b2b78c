/* What the two programs of `grpc-stream` share: an HTTP/2 connection on a non-blocking socket, driven by epoll.
 *
 * Neither program is measured: they only must be correct, and fast enough to keep a proxy busy. libnghttp2 frames;
 * windows are given back by hand, so that what is not taken stops the sender (RFC 9113, section 5.2).
 */
#ifndef FASTMESH_BENCH_STREAM_H
#define FASTMESH_BENCH_STREAM_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BATCH = 256,
    INPUT = 256 * 1024,
    OUTPUT = 64 * 1024,      /* frames are gathered up to here, then sent in one call */
    GRPC_HEAD = 5,           /* a flag and the length, in front of every gRPC message */
    LONGEST_MESSAGE = 32768, /* two of them with their heads fit a stream's window */
};

struct stream;

struct link {
    int fd;
    struct stream *streams;
    bool wants_out; /* a send was short: EPOLLOUT is asked for */
    nghttp2_session *session;
    size_t sent, length; /* output[sent..length) waits for the socket */
    uint8_t output[OUTPUT];
};

static int epoll_fd;

static void die(const char *what) {
    fprintf(stderr, "stream: %s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

static void must(ssize_t result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "stream: %s: %s\n", what, nghttp2_strerror((int)result));
        exit(1);
    }
}

static void *allocate(size_t size) {
    void *memory = calloc(1, size);
    if (!memory)
        die("calloc");
    return memory;
}

static long number(const char *text, const char *name, long least, long most) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || end == text || value < least || value > most) {
        fprintf(stderr, "stream: %s is not a number of %ld to %ld: %s\n", name, least, most, text);
        exit(2);
    }
    return value;
}

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)number(port, "port", 1, 65535)),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void start_epoll(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if ((epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
}

static void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event))
        die("epoll_ctl");
}

/* Sends what the session has to say. False: the connection is over. */
static bool link_flush(struct link *link) {
    for (;;) {
        while (link->sent < link->length) {
            ssize_t sent = send(link->fd, link->output + link->sent, link->length - link->sent, MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR)
                continue;
            if (sent < 0 && errno != EAGAIN)
                return false;
            if (sent < 0) {
                if (!link->wants_out)
                    watch(EPOLL_CTL_MOD, link->fd, EPOLLIN | EPOLLOUT, link);
                link->wants_out = true;
                return true;
            }
            link->sent += (size_t)sent;
        }
        link->sent = link->length = 0;
        /* A frame of nghttp2 is at most 16 KiB and its head: there is room for it while a quarter is left. */
        while (link->length < OUTPUT - OUTPUT / 2) {
            const uint8_t *bytes;
            ssize_t got = nghttp2_session_mem_send(link->session, &bytes);
            must(got, "mem_send");
            if (!got)
                break;
            if ((size_t)got > OUTPUT - link->length) {
                fprintf(stderr, "stream: a frame of %zd bytes\n", got);
                exit(1);
            }
            memcpy(link->output + link->length, bytes, (size_t)got);
            link->length += (size_t)got;
        }
        if (!link->length)
            break;
    }
    if (link->wants_out)
        watch(EPOLL_CTL_MOD, link->fd, EPOLLIN, link);
    link->wants_out = false;
    return nghttp2_session_want_read(link->session) || nghttp2_session_want_write(link->session);
}

/* Reads until the socket is empty. False: the connection is over. */
static bool link_read(struct link *link) {
    static uint8_t input[INPUT];
    for (;;) {
        ssize_t got = recv(link->fd, input, sizeof input, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EAGAIN;
        if (!got || nghttp2_session_mem_recv(link->session, input, (size_t)got) != got)
            return false;
        if ((size_t)got < sizeof input)
            return true;
    }
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static nghttp2_option *manual_windows(void) {
    nghttp2_option *option;
    must(nghttp2_option_new(&option), "option_new");
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_closed_streams(option, 1);
    return option;
}

#define FIELD(n, v)                                                                                                   \
    (nghttp2_nv) {                                                                                                    \
        .name = (uint8_t *)(n), .value = (uint8_t *)(v), .namelen = strlen(n), .valuelen = strlen(v),                 \
        .flags = NGHTTP2_NV_FLAG_NONE                                                                                 \
    }
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

#endif
