/* What sockmap would bring: an experiment beside the product, measured by `python -m bench.sockmap`.
 *
 * tunnel LISTEN UPSTREAM       opaque TCP on 127.0.0.1, moved by an sk_skb program (BPF_SK_SKB_VERDICT) once both
 *                              connections stand. What user space still does is what a tunnel cannot go without:
 *                              it counts bytes and passes on each half's end after the last of its bytes.
 * hop CGROUP BOTH|APPS FRONT BACK   an sk_msg program for the connections that processes of the cgroup (v2) make to
 *                              and accept on the ports FRONT (application to sidecar) and BACK (sidecar to
 *                              application) over IPv4: what is sent goes straight into the other socket's queue, past
 *                              TCP. APPS: only what the applications send. Says "attached", and holds until it ends.
 *
 * The programs are written as instructions: neither clang nor a library is needed. CAP_BPF and CAP_NET_ADMIN are.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BATCH = 256, SOCKETS = 65536 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* ---- bpf(2) ---- */

#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOVE(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LOAD(d, s, o) INSN(BPF_LDX | BPF_MEM | BPF_W, d, s, o, 0)
#define STORE(size, o, s) INSN(BPF_STX | BPF_MEM | (size), BPF_REG_10, s, o, 0) /* on the stack */
#define HOST_ORDER(d) INSN(BPF_ALU | BPF_END | BPF_TO_BE, d, 0, 0, 32)
#define IF(d, i, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, i)
#define UNLESS(d, i, o) INSN(BPF_JMP | BPF_JNE | BPF_K, d, 0, o, i)
#define COUNT_UP(d, s) INSN(BPF_STX | BPF_ATOMIC | BPF_DW, d, s, 0, BPF_ADD)
#define MAP(d, fd) INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)
#define STACK(d, o) MOVE(d, BPF_REG_10), ADD(d, o)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define RETURN INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static int bpf(enum bpf_cmd command, union bpf_attr *attr) {
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int map_new(enum bpf_map_type type, uint32_t key, uint32_t value) {
    union bpf_attr attr = {.map_type = type, .key_size = key, .value_size = value, .max_entries = SOCKETS};
    int fd = bpf(BPF_MAP_CREATE, &attr);
    if (fd < 0)
        die("sockmap: BPF_MAP_CREATE");
    return fd;
}

static int map_call(enum bpf_cmd command, int map, const void *key, const void *value) {
    union bpf_attr attr = {
        .map_fd = (uint32_t)map, .key = (uintptr_t)key, .value = (uintptr_t)value, .flags = BPF_ANY};
    return bpf(command, &attr);
}

static int program(enum bpf_prog_type type, const struct bpf_insn *code, size_t length) {
    static char log[65536];
    union bpf_attr attr = {.prog_type = type,
                           .insns = (uintptr_t)code,
                           .insn_cnt = (uint32_t)length,
                           .license = (uintptr_t)"GPL", /* sk_msg and sk_skb helpers are given to no other */
                           .log_buf = (uintptr_t)log,
                           .log_size = sizeof log,
                           .log_level = 1};
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0) {
        fputs(log, stderr);
        die("sockmap: BPF_PROG_LOAD");
    }
    return fd;
}

static void attach(int map, int code, enum bpf_attach_type type) {
    union bpf_attr attr = {
        .target_fd = (uint32_t)map, .attach_bpf_fd = (uint32_t)code, .attach_type = type};
    if (bpf(BPF_PROG_ATTACH, &attr))
        die("sockmap: BPF_PROG_ATTACH");
}

/* ---- tunnel ---- */

struct side {
    int fd;
    bool connected, mapped, eof, ending;
    uint64_t cookie;  /* the key of all maps */
    uint64_t written; /* bytes sent before it was mapped */
    struct pair *pair;
    struct side *peer;
    struct side *next; /* in the list of those that end */
};

struct pair {
    struct side client, upstream;
    bool closed;
    struct pair *next; /* in the list of the closed ones */
};

static int epoll_fd;
static int targets;  /* cookie of a socket -> the socket its bytes go to */
static int sources;  /* sockets whose bytes the program gets; filled after `targets`, or it met sockets without one */
static int counts;   /* cookie of a socket -> bytes that came from it */
static struct sockaddr_in upstream_address;
static struct pair *closed; /* freed only after the batch: a later event of it may still name them */
static struct side *ending; /* their FIN has come, but not all of what came before it has been sent on */

static void verdict_attach(void) {
    targets = map_new(BPF_MAP_TYPE_SOCKHASH, sizeof(uint64_t), sizeof(int));
    sources = map_new(BPF_MAP_TYPE_SOCKHASH, sizeof(uint64_t), sizeof(int));
    counts = map_new(BPF_MAP_TYPE_HASH, sizeof(uint64_t), sizeof(uint64_t));
    const struct bpf_insn code[] = {
        MOVE(BPF_REG_6, BPF_REG_1),
        LOAD(BPF_REG_7, BPF_REG_6, offsetof(struct __sk_buff, len)),
        /* A FIN without data: sent on after our shutdown(2) it is an EPIPE that breaks the socket. */
        UNLESS(BPF_REG_7, 0, 2),
        SET(BPF_REG_0, SK_DROP),
        RETURN,
        CALL(BPF_FUNC_get_socket_cookie),
        STORE(BPF_DW, -8, BPF_REG_0),
        MAP(BPF_REG_1, counts),
        STACK(BPF_REG_2, -8),
        CALL(BPF_FUNC_map_lookup_elem),
        IF(BPF_REG_0, 0, 1),
        COUNT_UP(BPF_REG_0, BPF_REG_7),
        MOVE(BPF_REG_1, BPF_REG_6),
        MAP(BPF_REG_2, targets),
        STACK(BPF_REG_3, -8),
        SET(BPF_REG_4, 0),
        CALL(BPF_FUNC_sk_redirect_hash),
        RETURN,
    };
    attach(sources, program(BPF_PROG_TYPE_SK_SKB, code, LENGTH(code)), BPF_SK_SKB_VERDICT);
}

/* Bytes ever sent on a socket, by whomever: what was acknowledged and what was not yet. */
static uint64_t written(const struct side *side) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    int waiting = 0;
    getsockopt(side->fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    ioctl(side->fd, SIOCOUTQ, &waiting);
    return info.tcpi_bytes_acked + (uint64_t)waiting;
}

static void close_pair(struct pair *pair, bool reset) {
    if (pair->closed)
        return;
    pair->closed = true;
    struct side *sides[] = {&pair->client, &pair->upstream};
    for (size_t i = 0; i < LENGTH(sides); i++) {
        struct linger now = {.l_onoff = 1};
        if (reset)
            setsockopt(sides[i]->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(sides[i]->fd); /* takes it out of the maps of sockets */
        map_call(BPF_MAP_DELETE_ELEM, counts, &sides[i]->cookie, NULL);
    }
    pair->next = closed;
    closed = pair;
}

/* Puts both sockets into the maps. Only established ones are taken: who has shut down already is refused here. */
static bool map_pair(struct pair *pair) {
    struct side *sides[] = {&pair->client, &pair->upstream};
    const uint64_t none = 0;
    const int one = 1;
    for (size_t i = 0; i < LENGTH(sides); i++) {
        socklen_t length = sizeof sides[i]->cookie;
        if (getsockopt(sides[i]->fd, SOL_SOCKET, SO_COOKIE, &sides[i]->cookie, &length))
            return false;
        sides[i]->written = written(sides[i]);
        if (map_call(BPF_MAP_UPDATE_ELEM, counts, &sides[i]->cookie, &none))
            return false;
    }
    for (size_t i = 0; i < LENGTH(sides); i++)
        if (map_call(BPF_MAP_UPDATE_ELEM, targets, &sides[i]->cookie, &sides[i]->peer->fd))
            return false;
    for (size_t i = 0; i < LENGTH(sides); i++) {
        /* Woken for ends only: the kernel would tell us of every segment that the program has moved. */
        struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = sides[i]};
        if (map_call(BPF_MAP_UPDATE_ELEM, sources, &sides[i]->cookie, &sides[i]->fd))
            return false;
        sides[i]->mapped = true;
        /* What had come before would wait for the next segment: this has the kernel announce it once more. */
        setsockopt(sides[i]->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
        if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, sides[i]->fd, &event))
            return false;
    }
    return true;
}

/* Passes the end of a half on if all its bytes have been sent: they go through a queue that nobody reports on. */
static bool ended(struct side *side) {
    uint64_t came = 0;
    map_call(BPF_MAP_LOOKUP_ELEM, counts, &side->cookie, &came);
    if (written(side->peer) - side->peer->written < came)
        return false;
    side->eof = true;
    if (side->peer->eof)
        close_pair(side->pair, false);
    else
        shutdown(side->peer->fd, SHUT_WR);
    return true;
}

static void on_event(struct side *side, uint32_t events) {
    if (side->pair->closed)
        return;
    if (events & EPOLLERR) {
        close_pair(side->pair, true);
        return;
    }
    if (events & EPOLLOUT && side == &side->pair->upstream && !side->connected) {
        side->connected = true;
        if (!map_pair(side->pair))
            close_pair(side->pair, true);
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP) && side->mapped && !side->eof && !side->ending && !ended(side)) {
        side->ending = true;
        side->next = ending;
        ending = side;
    }
}

static void end_all(void) {
    for (struct side **link = &ending; *link;) {
        struct side *side = *link;
        if (side->pair->closed || ended(side))
            *link = side->next;
        else
            link = &side->next;
    }
    while (closed) {
        struct pair *pair = closed;
        closed = pair->next;
        free(pair);
    }
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct pair *pair = calloc(1, sizeof *pair);
        int out = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (!pair || out < 0)
            die("sockmap: a connection");
        pair->client = (struct side){.fd = fd, .pair = pair, .peer = &pair->upstream};
        pair->upstream = (struct side){.fd = out, .pair = pair, .peer = &pair->client};
        struct side *sides[] = {&pair->client, &pair->upstream};
        int failed = connect(out, (struct sockaddr *)&upstream_address, sizeof upstream_address);
        if (failed && errno != EINPROGRESS) {
            close_pair(pair, true);
            continue;
        }
        for (size_t i = 0; i < LENGTH(sides); i++) {
            struct epoll_event event = {.events = (i ? EPOLLOUT : 0) | EPOLLET, .data.ptr = sides[i]};
            setsockopt(sides[i]->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, sides[i]->fd, &event))
                die("sockmap: epoll_ctl");
        }
    }
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void tunnel(int port, int upstream) {
    struct sockaddr_in address = loopback(port);
    upstream_address = loopback(upstream);
    verdict_attach();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("sockmap: listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event))
        die("sockmap: epoll_ctl");
    static struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, BATCH, ending ? 1 : -1); /* 1 ms: there is nothing to wait for */
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                on_event(events[i].data.ptr, events[i].events);
            else
                accept_all(listener);
        }
        end_all();
    }
}

/* ---- hop ---- */

/* Keys of the map: address and port of the own end, then of the other, ports in the host's order. */
enum { OWN = -16, OTHER = -8 };

#define END(at, type, address, port)                                                                                  \
    LOAD(BPF_REG_2, BPF_REG_6, offsetof(type, address)), STORE(BPF_W, at, BPF_REG_2), STORE(BPF_W, (at) + 4, port)

static int joiner(int map, int front, int back) {
    const struct bpf_insn code[] = {
        MOVE(BPF_REG_6, BPF_REG_1),
        LOAD(BPF_REG_2, BPF_REG_6, offsetof(struct bpf_sock_ops, op)),
        IF(BPF_REG_2, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, 3),
        IF(BPF_REG_2, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, 2),
        SET(BPF_REG_0, 1),
        RETURN,
        LOAD(BPF_REG_7, BPF_REG_6, offsetof(struct bpf_sock_ops, remote_port)),
        HOST_ORDER(BPF_REG_7),
        LOAD(BPF_REG_8, BPF_REG_6, offsetof(struct bpf_sock_ops, local_port)),
        IF(BPF_REG_7, front, 5),
        IF(BPF_REG_8, front, 4),
        IF(BPF_REG_7, back, 3),
        IF(BPF_REG_8, back, 2),
        SET(BPF_REG_0, 1),
        RETURN,
        END(OWN, struct bpf_sock_ops, local_ip4, BPF_REG_8),
        END(OTHER, struct bpf_sock_ops, remote_ip4, BPF_REG_7),
        MOVE(BPF_REG_1, BPF_REG_6),
        MAP(BPF_REG_2, map),
        STACK(BPF_REG_3, OWN),
        SET(BPF_REG_4, BPF_ANY),
        CALL(BPF_FUNC_sock_hash_update),
        SET(BPF_REG_0, 1),
        RETURN,
    };
    return program(BPF_PROG_TYPE_SOCK_OPS, code, LENGTH(code));
}

static int sender(int map, bool apps, int front, int back) {
    const struct bpf_insn code[] = {
        MOVE(BPF_REG_6, BPF_REG_1),
        LOAD(BPF_REG_7, BPF_REG_6, offsetof(struct sk_msg_md, remote_port)),
        HOST_ORDER(BPF_REG_7),
        LOAD(BPF_REG_8, BPF_REG_6, offsetof(struct sk_msg_md, local_port)),
        SET(BPF_REG_2, apps),
        IF(BPF_REG_2, false, 4),
        IF(BPF_REG_7, front, 3), /* an application that calls, to its sidecar */
        IF(BPF_REG_8, back, 2),  /* one that answers */
        SET(BPF_REG_0, SK_PASS),
        RETURN,
        END(OTHER, struct sk_msg_md, local_ip4, BPF_REG_8), /* the receiver's view */
        END(OWN, struct sk_msg_md, remote_ip4, BPF_REG_7),
        MOVE(BPF_REG_1, BPF_REG_6),
        MAP(BPF_REG_2, map),
        STACK(BPF_REG_3, OWN),
        SET(BPF_REG_4, BPF_F_INGRESS),
        CALL(BPF_FUNC_msg_redirect_hash),
        SET(BPF_REG_0, SK_PASS), /* one that is not in the map gets it by TCP */
        RETURN,
    };
    return program(BPF_PROG_TYPE_SK_MSG, code, LENGTH(code));
}

static void hop(const char *cgroup, bool apps, int front, int back) {
    int map = map_new(BPF_MAP_TYPE_SOCKHASH, 16, sizeof(int));
    attach(map, sender(map, apps, front, back), BPF_SK_MSG_VERDICT);
    int directory = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        die(cgroup);
    union bpf_attr attr = {.link_create = {.prog_fd = (uint32_t)joiner(map, front, back),
                                           .target_fd = (uint32_t)directory,
                                           .attach_type = BPF_CGROUP_SOCK_OPS}};
    if (bpf(BPF_LINK_CREATE, &attr) < 0) /* the link ends with this process */
        die("sockmap: BPF_LINK_CREATE");
    puts("attached");
    fflush(stdout);
    pause();
}

static int port(const char *word) {
    char *end;
    long number = strtol(word, &end, 10);
    if (*end || number < 1 || number > 65535) {
        fprintf(stderr, "sockmap: bad port: %s\n", word);
        exit(2);
    }
    return (int)number;
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 4 && !strcmp(argv[1], "tunnel"))
        tunnel(port(argv[2]), port(argv[3]));
    else if (argc == 6 && !strcmp(argv[1], "hop"))
        hop(argv[2], !strcmp(argv[3], "APPS"), port(argv[4]), port(argv[5]));
    fprintf(stderr, "usage: sockmap tunnel LISTEN UPSTREAM | sockmap hop CGROUP BOTH|APPS FRONT BACK\n");
    return 2;
}
