/* The floor: what forwarding bytes costs on this machine when nothing is done with them.
 *
 * One thread: epoll_wait, recv, send, and one upstream connection for each client connection. No parsing, no
 * pool, no TLS, no timer. It is the unit of the bench: every proxy's CPU time per request is divided by this
 * program's, measured in the same round, so that the machine's own speed and noise cancel out.
 *
 * It must be fast, or the unit flatters everybody, and correct, or it measures something else: partial writes
 * are kept and stop the reader of the other side, each half closes on its own, an error closes both.
 *
 * Edge-triggered: level-triggered epoll polls every reported descriptor once more at the next epoll_wait. Each
 * descriptor is registered once for both directions; EPOLLOUT costs nothing until a send was short, because the
 * kernel only wakes writers who met a full socket buffer. A recv that fills less than the buffer has emptied the
 * socket (epoll(7)), which saves the second recv that would only say EAGAIN; EPOLLRDHUP says when that is not so.
 *
 * usage: floor LISTEN_PORT UPSTREAM_PORT    both on 127.0.0.1
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* 256 KiB: for bodies of 1 MiB, 64 KiB cost nearly twice as much and 1 MiB little less. Small ones do not care. */
enum { BATCH = 256, BUFFER = 256 * 1024 };

struct pair;

struct buffer {
    struct buffer *next; /* in the list of the unused ones */
    char bytes[BUFFER];
};

struct side {
    int fd;
    bool readable;       /* an edge said so and no recv has emptied the socket since */
    bool hangup;         /* the other end has sent its FIN: read on until recv returns 0 */
    bool writable;       /* connected, and no send has been short since */
    bool eof;            /* recv returned 0 */
    struct buffer *kept; /* what a short send left over: kept->bytes[sent..length); NULL if nothing */
    size_t sent, length;
    struct pair *pair;
    struct side *peer;
};

struct pair {
    struct side client, upstream;
    struct pair *next; /* in the list of the closed ones */
};

static int epoll_fd;
static struct sockaddr_in upstream_address;
static struct pair *closed; /* freed only after the batch: a later event of it may still name them */
static struct buffer *unused;
static struct buffer *current; /* every recv reads into this one; a short send keeps it and leaves another here */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void close_pair(struct pair *pair) {
    if (pair->client.fd < 0)
        return;
    close(pair->client.fd);
    close(pair->upstream.fd);
    pair->client.fd = pair->upstream.fd = -1;
    pair->next = closed;
    closed = pair;
}

static struct buffer *take(void) {
    struct buffer *buffer = unused;
    if (buffer)
        unused = buffer->next;
    else if (!(buffer = malloc(sizeof *buffer)))
        die("floor: malloc");
    return buffer;
}

static void give(struct buffer *buffer) {
    if (!buffer)
        return;
    buffer->next = unused;
    unused = buffer;
}

static void free_closed(void) {
    while (closed) {
        struct pair *pair = closed;
        closed = pair->next;
        give(pair->client.kept);
        give(pair->upstream.kept);
        free(pair);
    }
}

/* `from` has ended. pump() reads the end only when nothing is kept for the other side, so all it sent is there. */
static void end_of(struct side *from) {
    from->eof = true;
    if (from->peer->eof)
        close_pair(from->pair);
    else
        shutdown(from->peer->fd, SHUT_WR);
}

static void keep(struct side *to, size_t sent, size_t length) {
    to->kept = current;
    to->sent = sent;
    to->length = length;
    to->writable = false;
    current = take();
}

/* Moves bytes from one side to the other until one of them blocks. */
static void pump(struct side *from) {
    struct side *to = from->peer;
    while (from->readable && to->writable && !from->eof && from->fd >= 0) {
        ssize_t got = recv(from->fd, current->bytes, BUFFER, 0);
        if (got > 0) {
            if ((size_t)got < BUFFER && !from->hangup)
                from->readable = false;
            ssize_t sent = send(to->fd, current->bytes, (size_t)got, MSG_NOSIGNAL);
            if (sent == got)
                continue;
            if (sent < 0 && errno != EAGAIN) {
                close_pair(from->pair);
                return;
            }
            keep(to, sent < 0 ? 0 : (size_t)sent, (size_t)got);
        } else if (got == 0) {
            end_of(from);
        } else if (errno == EAGAIN) {
            from->readable = false;
        } else if (errno != EINTR) {
            close_pair(from->pair);
        }
    }
}

/* Sends what a short send left over. */
static void flush(struct side *to) {
    while (to->sent < to->length) {
        ssize_t sent = send(to->fd, to->kept->bytes + to->sent, to->length - to->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                close_pair(to->pair);
            return;
        }
        to->sent += (size_t)sent;
    }
    give(to->kept);
    to->kept = NULL;
    to->sent = to->length = 0;
    to->writable = true;
}

static void on_event(struct side *side, uint32_t events) {
    if (side->fd < 0)
        return;
    if (events & EPOLLERR) {
        close_pair(side->pair);
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP))
        side->hangup = true;
    if ((events & EPOLLOUT) && !side->writable) {
        flush(side);
        if (side->fd >= 0 && side->writable)
            pump(side->peer);
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) {
        side->readable = true;
        pump(side);
    }
}

static void watch(struct side *side) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = side};
    int on = 1;
    setsockopt(side->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, side->fd, &event))
        die("floor: epoll_ctl");
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN)
                return;
            if (errno == ECONNABORTED || errno == EINTR)
                continue;
            die("floor: accept");
        }
        struct pair *pair = calloc(1, sizeof *pair);
        if (!pair)
            die("floor: calloc");
        pair->client = (struct side){.fd = fd, .pair = pair, .peer = &pair->upstream, .writable = true};
        pair->upstream = (struct side){.pair = pair, .peer = &pair->client};
        pair->upstream.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (pair->upstream.fd < 0)
            die("floor: socket");
        if (connect(pair->upstream.fd, (struct sockaddr *)&upstream_address, sizeof upstream_address) &&
            errno != EINPROGRESS) {
            close_pair(pair);
            continue;
        }
        watch(&pair->client);
        watch(&pair->upstream);
    }
}

static struct sockaddr_in loopback(const char *port) {
    char *end;
    long number = strtol(port, &end, 10);
    if (*end || number < 1 || number > 65535) {
        fprintf(stderr, "floor: bad port: %s\n", port);
        exit(2);
    }
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)number),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: floor LISTEN_PORT UPSTREAM_PORT\n");
        return 2;
    }
    struct sockaddr_in address = loopback(argv[1]);
    upstream_address = loopback(argv[2]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("floor: listen");
    current = take();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event))
        die("floor: epoll_ctl");

    static struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, BATCH, -1);
        if (count < 0 && errno != EINTR)
            die("floor: epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                on_event(events[i].data.ptr, events[i].events);
            else
                accept_all(listener);
        }
        free_closed();
    }
}
