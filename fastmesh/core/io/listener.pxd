# Listening sockets: accepting, the TLS handshake and the wait for first bytes, until a codec owns the Conn.
#
# A Listener does not own its descriptor (the supervisor keeps it open over our death). An accepted connection belongs
# to the listener (ops.accepted) while it shakes hands or while its first bytes are awaited: DETECT_MS or DETECT_BYTES, or
# until the client's end. Nothing is lost. What becomes of it is in `arrival`, and of those that stay silent in `late`.
#
# Handshakes are bounded: how long one may take, how many are under way on a listener, how many an address may
# begin in a second (IPv6: a /64, which is what one customer has), and how many go on in one turn (conn_shake). One
# over a limit costs an accept and a close. A client that has not said a word holds no TLS object.
#
# Where there are several workers, one that has more connections of a listener than a sibling hands the next to that
# one (handover), and takes what siblings hand over as if it had accepted it.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from fastmesh.core.base.list cimport list_empty
from fastmesh.core.base.rate cimport rate_allows, rate_key
from fastmesh.core.base.reason cimport (
    R_DOWNSTREAM_CLOSED, R_IDENTITY_EXPIRED, R_IDLE_TIMEOUT, R_NO_MEMORY, R_OVERLOADED, R_TLS_BUSY, R_TLS_HANDSHAKE,
    R_TLS_NOT_TLS, R_TLS_RATE, R_TLS_TIMEOUT,
)
from fastmesh.core.base.timer cimport Timer, timer_start, timer_stop
from fastmesh.core.io.age cimport conn_expires, identity_over
from fastmesh.core.io.arrival cimport (
    Arrival, JUDGED_HTTP, JUDGED_NOTHING, arrival_adopt, arrival_close, arrival_judge, arrival_judge_late, arrival_of,
    arrival_settle, arrival_unknown,
)
from fastmesh.core.io.connection cimport conn_deadline, conn_resume_input, conn_timeout
from fastmesh.core.io.connection_turn cimport conn_open
from fastmesh.core.io.downstream cimport DRAIN_GRACE_MS, peer_facts
from fastmesh.core.io.handover cimport (
    handover, inbox_take, listener_enter, listener_refuse, listener_takes,
)
from fastmesh.core.io.late cimport DETECT_MS, late_begin, late_known, late_timed_out
from fastmesh.core.io.original cimport is_own, original_destination
from fastmesh.core.io.state cimport (
    C_DEAD, C_HANDED, C_HANDSHAKE, C_LATE, C_RDHUP, C_READABLE, C_SNIFF_TLS, C_TLS, C_TRUNCATED, Conn, ConnOps,
    Listener, Source, Tunnel, WATCH_ENDED, WATCH_NONE, Worker,
)
from fastmesh.core.io.tunnel cimport tunnel_give_back
from fastmesh.core.sys.openssl cimport SSL_CTX
from fastmesh.core.sys.posix cimport (
    ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, accept4, c_close, epoll_ctl, epoll_event, errno, getpeername, sockaddr, sockaddr_storage,
    socklen_t,
)
from fastmesh.core.traffic.counters cimport (
    K_DOWNSTREAM_CONNECTIONS, K_DOWNSTREAM_REFUSED, K_HANDED_IN, area_detection,
)
from fastmesh.core.traffic.learned cimport detect_observe
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.traffic.route cimport route_server_name
from fastmesh.core.traffic.snapshot cimport (
    ListenerConf, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, TLS_MESH, TLS_PASSTHROUGH, TLS_PERMISSIVE, TLS_PUBLIC,
)
from fastmesh.core.traffic.transparent cimport choose
from fastmesh.core.wire.sniff cimport SNIFF_HELLO, SNIFF_MORE, SNIFF_NAME_MAX, SNIFF_NOT_TLS, sniff_hello
from fastmesh.core.wire.tls cimport TLS_ALPN_H1, TLS_ALPN_H2, TLS_ALPN_OPAQUE, tls_open

cdef enum:
    ACCEPT_BATCH = 64
    ACCEPT_BUSY = 8               # while handshakes wait: who asks for more of them can wait in the queue
    ACCEPT_PAUSE_MS = 100         # out of descriptors
    INBOUND_HANDSHAKE_MS = 5000


cdef inline void _ready(Worker *w, Conn *c) noexcept nogil:
    """Plaintext, or TLS with its handshake done."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    if c.flags & C_TLS:
        l.nhandshakes -= 1
    if l.conf.tls == TLS_PASSTHROUGH:
        conn_deadline(w, c, INBOUND_HANDSHAKE_MS)
    elif not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
    elif a.choice.reason or a.choice.protocol != PROTO_AUTO:
        arrival_settle(w, c, &a, a.choice.protocol != PROTO_TCP)
    else:
        _await(w, c, &a)


# ---------------------------------------------------------------- the first bytes

cdef inline void _await(Worker *w, Conn *c, const Arrival *a) noexcept nogil:
    """Its first bytes will tell, or whether there are any."""
    # with a byte there already nobody needs to know who speaks first
    if not (c.flags & C_READABLE and not c.flags & C_TLS) and late_known(w, c, a):
        return
    conn_deadline(w, c, DETECT_MS)


cdef inline void _await_plain_or_tls(Worker *w, Conn *c) noexcept nogil:
    """On a permissive listener the first byte tells TLS from everything else; where that may be the server's there is
    as little time for it as for a protocol. And as much, whatever is known of the server: its word would be faster than
    a hello from afar."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    if not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
    elif a.choice.reason or a.choice.protocol == PROTO_HTTP:
        conn_timeout(w, c, l.conf.idle_timeout_ms)
    else:
        conn_deadline(w, c, DETECT_MS)


cdef inline void _told(Worker *w, const Conn *c) noexcept nogil:
    """The protocol of a connection could be told in time; how long that took counts."""
    cdef uint64_t begun = c.timer.deadline - DETECT_MS
    if not c.flags & C_LATE:
        detect_observe(area_detection(w.area, w.slot), w.now_ms - begun if w.now_ms > begun else 0)


cdef inline int pass_on(ListenerConf *conf, const char *p, size_t n, int32_t *service) noexcept nogil:
    """Where TLS goes that passes through, by the bytes that it begins with: 1 and the service (-1: none), 0: it cannot
    be told yet, or a negative reason."""
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t name_len = 0
    cdef int found = sniff_hello(p, n, name, &name_len)
    if found == SNIFF_HELLO:
        service[0] = route_server_name(conf, name, name_len)
        return 1
    return 0 if found == SNIFF_MORE else -R_TLS_NOT_TLS if found == SNIFF_NOT_TLS else -R_TLS_HANDSHAKE


cdef inline size_t _hello(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """First bytes of a connection that passes through. Takes none: the service gets all of them."""
    cdef int32_t service = -1
    cdef Arrival a
    cdef int r = pass_on((<Listener *>c.owner).conf, p, n, &service)
    if r == 0 and not c.flags & C_RDHUP:
        return 0
    if r <= 0:
        arrival_close(w, c, -r if r < 0 else R_TLS_HANDSHAKE)
    elif not arrival_of(w, <Listener *>c.owner, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
    else:
        a.choice.service = service
        arrival_adopt(w, c, &a, False, WATCH_NONE)
    return n if c.flags & C_DEAD else 0


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """First bytes of a connection with `protocol: auto`. Takes none: the codec is offered them."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    cdef int found
    if l.conf.tls == TLS_PASSTHROUGH:
        return _hello(w, c, p, n)
    if not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
        return n
    found = arrival_judge(l, c, &a, p, n)
    if found == JUDGED_NOTHING:
        if c.idle_ms:                            # the first of them, late
            conn_deadline(w, c, DETECT_MS)
        return 0
    _told(w, c)
    arrival_settle(w, c, &a, found == JUDGED_HTTP)
    return n if c.flags & C_DEAD else 0


cdef inline void _eof(Worker *w, Conn *c) noexcept nogil:
    """The client ends without a word: a question to those that take opaque bytes, which they may answer."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    if l.conf.tls == TLS_PASSTHROUGH or c.flags & C_TRUNCATED or not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
        return
    _told(w, c)
    arrival_unknown(l, &a)
    if a.choice.reason or a.choice.protocol == PROTO_HTTP or not arrival_adopt(w, c, &a, False, WATCH_ENDED):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)


cdef inline void _error(Worker *w, Conn *c, int reason) noexcept nogil:
    arrival_close(w, c, reason)


cdef inline void _drained(Worker *w, Conn *c) noexcept nogil:
    pass


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    cdef Listener *l = <Listener *>c.owner
    if c.flags & C_HANDSHAKE:
        arrival_close(w, c, R_TLS_TIMEOUT)
    elif c.flags & C_SNIFF_TLS:
        if c.idle_ms or w.draining:
            arrival_close(w, c, R_IDLE_TIMEOUT)
        else:
            _silent(w, c)
    elif l.conf.tls == TLS_PASSTHROUGH:
        arrival_close(w, c, R_TLS_TIMEOUT)
    elif c.rx != NULL:
        _too_little(w, c)
    elif c.flags & C_LATE:
        arrival_close(w, c, R_IDLE_TIMEOUT)
    else:
        _silent(w, c)


cdef inline void _too_little(Worker *w, Conn *c) noexcept nogil:
    """What came in time does not tell the protocol: opaque, or nearly so."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    cdef bint http
    if not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
        return
    http = arrival_judge_late(l, &a, c.rx.data + c.rx.start, c.rx.end - c.rx.start) == JUDGED_HTTP
    if http:
        _told(w, c)
    elif not c.flags & C_LATE:
        late_timed_out(w, l, &a)
    arrival_settle(w, c, &a, http)
    if c.ops == &w.ops.h1_server and not c.flags & C_DEAD:
        conn_resume_input(w, c)


cdef inline void _silent(Worker *w, Conn *c) noexcept nogil:
    """Nothing came in time: perhaps the server is the one that speaks first."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    if not arrival_of(w, l, c, &a):
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
    elif c.flags & C_SNIFF_TLS and (a.choice.reason or a.choice.protocol == PROTO_HTTP):
        conn_timeout(w, c, l.conf.idle_timeout_ms)       # a reload has changed what is expected
    elif not c.flags & C_SNIFF_TLS and (a.choice.reason or a.choice.protocol != PROTO_AUTO):
        arrival_settle(w, c, &a, a.choice.protocol != PROTO_TCP)
    elif not late_begin(w, c, &a):
        conn_timeout(w, c, l.conf.idle_timeout_ms)


cdef inline bint _within_rate(Worker *w, Conn *c, uint32_t rate) noexcept nogil:
    """May the client's address begin a handshake? A second's worth may come at once."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef PolicyFacts facts
    if getpeername(c.src.fd, <sockaddr *>&address, &size) != 0:
        return True                              # it has gone: that is found in a moment
    peer_facts(c, &address, &facts)
    if facts.family == 0:
        return True                              # a Unix socket: all clients are this machine
    return rate_allows(
        &w.handshake_rates, rate_key(&w.handshake_rates, facts.address, 4 if facts.family == 4 else 8), w.now_us,
        1000000 // rate, 1000000 - 1000000 // rate)


cdef inline void start_tls(Worker *w, Conn *c) noexcept nogil:
    """Shake hands as the server, once the client has begun."""
    cdef Listener *l
    if c.ops == &w.ops.late:
        tunnel_give_back(w, <Tunnel *>c.owner)   # who speaks first inside is another question
    c.flags &= ~<uint32_t>C_LATE
    l = <Listener *>c.owner
    if l.conf.max_handshakes and l.nhandshakes >= l.conf.max_handshakes:
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        arrival_close(w, c, R_TLS_BUSY)
        return
    if l.conf.handshake_rate and not _within_rate(w, c, l.conf.handshake_rate):
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        arrival_close(w, c, R_TLS_RATE)
        return
    l.nhandshakes += 1
    c.flags |= C_TLS | C_HANDSHAKE
    conn_deadline(w, c, INBOUND_HANDSHAKE_MS)


cdef inline uint8_t _alpn(const Listener *l, const Conn *c) noexcept nogil:
    """What may be agreed on with a client of the listener (bits of tls_open)."""
    cdef const ListenerConf *conf = l.conf
    cdef uint8_t protocol = conf.protocol
    cdef Arrival a
    if conf.transparent and original_destination(c.src.fd, &l.bound, &a.to):
        choose(l.snapshot, conf, &a.to, is_own(&l.bound, &a.to), &a.choice)
        protocol = a.choice.protocol
    if protocol != PROTO_TCP:
        return TLS_ALPN_H1 | TLS_ALPN_H2 if conf.http2 else TLS_ALPN_H1
    # Opaque: what the file names; in the mesh HTTP/1.1 with those who offer it, and the others come in all the same.
    return TLS_ALPN_H1 | (TLS_ALPN_H2 if conf.tls == TLS_PUBLIC else TLS_ALPN_OPAQUE)


cdef inline bint open_tls(Worker *w, Conn *c) noexcept nogil:
    cdef Listener *l = <Listener *>c.owner
    cdef bint mesh = l.conf.tls != TLS_PUBLIC
    cdef void *ctx = w.snapshot.server_ctx if mesh else l.conf.tls_ctx
    if mesh and identity_over(w.snapshot):
        arrival_close(w, c, R_IDENTITY_EXPIRED)
        return False
    if ctx == NULL or tls_open(&w.tls, &c.tls, <SSL_CTX *>ctx, True, NULL, 0, NULL, _alpn(l, c)) != 0:
        arrival_close(w, c, R_TLS_HANDSHAKE)
        return False
    w.tls_open += 1
    if mesh:
        conn_expires(w, c, w.snapshot.not_after)
    return True


cdef inline void _accepted(Worker *w, Listener *l, int fd, uint32_t flags) noexcept nogil:
    """A new connection, accepted here or handed over by a sibling; the listener's word counts it already."""
    cdef Conn *c
    cdef uint32_t limit = l.conf.max_connections
    if limit and l.nconns >= limit:
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        w.row.reasons[R_OVERLOADED] += 1
        listener_refuse(w, l)
        c_close(fd)
        return
    c = conn_open(w, fd, flags)
    if c == NULL:
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        w.row.reasons[R_NO_MEMORY] += 1
        listener_refuse(w, l)
        c_close(fd)
        return
    w.row.counters[K_DOWNSTREAM_CONNECTIONS] += 1
    listener_enter(w, l)
    c.owner = l
    c.ops = &w.ops.accepted
    if l.conf.tls == TLS_MESH or l.conf.tls == TLS_PUBLIC:
        start_tls(w, c)
    elif l.conf.tls == TLS_PERMISSIVE:
        c.flags |= C_SNIFF_TLS
        _await_plain_or_tls(w, c)
    else:
        _ready(w, c)


cdef inline bint _accept(Worker *w, Listener *l) noexcept nogil:
    """Take the next connection that waits, for us or for a sibling. False: none waits, or none can be taken now."""
    cdef int fd
    while True:
        fd = accept4(l.src.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0 or (errno != EINTR and errno != ECONNABORTED):
            break
    if fd < 0:
        if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
            # The connection stays in the queue; asking again at once would only burn the CPU.
            w.row.reasons[R_OVERLOADED] += 1
            epoll_ctl(w.ep, EPOLL_CTL_DEL, l.src.fd, NULL)
            l.paused = True
            listener_takes(w, l, False)
            timer_start(&w.wheel, &l.timer, w.now_ms + ACCEPT_PAUSE_MS)
        return False
    if not handover(w, l, fd):
        _accepted(w, l, fd, 0)
    return True


cdef inline void listener_event(Worker *w, Source *s, uint32_t events) noexcept nogil:
    """Accept what waits, a bounded number a turn; the rest is reported again (level-triggered)."""
    cdef int i
    for i in range(ACCEPT_BATCH if list_empty(&w.shaking) else ACCEPT_BUSY):
        if not _accept(w, <Listener *>s):
            return


cdef inline void inbox_event(Worker *w, Source *s, uint32_t events) noexcept nogil:
    """Take what siblings hand us, as many as are accepted in a turn."""
    cdef Listener *l = NULL
    cdef int fd = -1
    cdef int i
    for i in range(ACCEPT_BATCH if list_empty(&w.shaking) else ACCEPT_BUSY):
        if not inbox_take(w, &l, &fd):
            return
        w.row.counters[K_HANDED_IN] += 1
        _accepted(w, l, fd, C_HANDED)


cdef inline void inbox_empty(Worker *w) noexcept nogil:
    """Take all that siblings have handed us."""
    cdef uint64_t before = ~<uint64_t>0
    while before != w.row.counters[K_HANDED_IN]:
        before = w.row.counters[K_HANDED_IN]
        inbox_event(w, &w.inbox.src, 0)


cdef inline bint listener_watch(Worker *w, Listener *l) noexcept nogil:
    cdef epoll_event ev
    ev.events = EPOLLIN
    ev.data.ptr = l
    l.paused = False
    if epoll_ctl(w.ep, EPOLL_CTL_ADD, l.src.fd, &ev) != 0:
        return False
    listener_takes(w, l, not w.inbox.paused)
    return True


cdef inline void listener_again(void *worker, Timer *t) noexcept nogil:
    cdef Worker *w = <Worker *>worker
    cdef Listener *l = <Listener *>(<char *>t - <size_t>&(<Listener *>NULL).timer)
    if l.src.fd >= 0 and not listener_watch(w, l):
        l.paused = True                          # no memory for that either: later, or never again
        timer_start(&w.wheel, &l.timer, w.now_ms + ACCEPT_PAUSE_MS)


cdef inline void listener_stop(Worker *w, Listener *l) noexcept nogil:
    """No more connections from here: all that wait in the queue are taken first, whoever gets them, because closing the
    socket resets them."""
    if l.src.fd < 0:
        return
    while _accept(w, l):
        pass
    listener_close(w, l)


cdef inline void listener_close(Worker *w, Listener *l) noexcept nogil:
    """No more connections from here: what waits in the queue is left to whoever else has the socket."""
    if l.src.fd < 0:
        return
    listener_takes(w, l, False)
    if not l.paused:
        epoll_ctl(w.ep, EPOLL_CTL_DEL, l.src.fd, NULL)
    timer_stop(&w.wheel, &l.timer)
    c_close(l.src.fd)
    l.src.fd = -1


cdef inline void _drain(Worker *w, Conn *c) noexcept nogil:
    if c.flags & C_SNIFF_TLS or c.flags & C_LATE and c.rx == NULL:
        conn_deadline(w, c, DRAIN_GRACE_MS)      # it has not said a word


cdef inline void listener_init(ConnOps *ops) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=_drained, on_error=_error, on_ready=_ready, on_timer=_timer,
        on_flush=NULL, on_drain=_drain, on_expiry=NULL, idle=NULL)
