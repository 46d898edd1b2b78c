# Listening sockets: accepting, the TLS handshake and the choice of the protocol, until a codec owns the Conn.
#
# A Listener does not own its descriptor (the supervisor keeps it open over our death). An accepted
# connection belongs to the listener (ops.accepted) while it shakes hands or while its first bytes are awaited
# (`protocol: auto`: traffic/detect tells HTTP from everything else within DETECT_MS or DETECT_BYTES or by the client's
# end, and nothing is lost). Then it becomes an H1Server's or a Tunnel's. Where the server speaks
# first there is nothing to wait for: that is learned (traffic/learned).
#
# On a transparent listener the first question is where the client wanted to go (io/original): traffic/transparent
# knows what becomes of that, and whether anything has to be told from the first bytes. The kernel is asked again when
# they come: until then a connection holds nothing of it.
#
# Handshakes are bounded: how long one may take, how many are under way on a listener, how many an address may
# begin in a second (IPv6: a /64, which is what one customer has), and how many go on in one turn (conn_shake). One
# over a limit costs an accept and a close. A client that has not said a word holds no TLS object.
#
# Where there are several workers, one that has more connections of a listener than a sibling hands the next to that
# one (handover), and takes what siblings hand over as if it had accepted it.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.list cimport list_empty
from fastmesh.core.base.rate cimport rate_allows, rate_key
from fastmesh.core.base.reason cimport (
    R_DOWNSTREAM_CLOSED, R_IDENTITY_EXPIRED, R_IDLE_TIMEOUT, R_LOOP, R_NO_MEMORY, R_OVERLOADED, R_TLS_BUSY,
    R_TLS_HANDSHAKE, R_TLS_IDENTITY, R_TLS_NOT_TLS, R_TLS_RATE, R_TLS_TIMEOUT,
)
from fastmesh.core.base.shared cimport shared_get
from fastmesh.core.base.timer cimport Timer, timer_start, timer_stop
from fastmesh.core.io.age cimport conn_expires, conn_suffices, identity_over
from fastmesh.core.io.connection cimport conn_close, conn_deadline
from fastmesh.core.io.connection_turn cimport conn_open
from fastmesh.core.io.downstream cimport DRAIN_GRACE_MS, downstream_forget, peer_certificate, peer_facts, peer_text
from fastmesh.core.io.dialled cimport dialled_by_us
from fastmesh.core.io.h1_server cimport h1_server_open
from fastmesh.core.io.h2_server cimport h2_server_open
from fastmesh.core.io.handover cimport (
    handover, inbox_take, listener_enter, listener_leave, listener_refuse, listener_takes,
)
from fastmesh.core.io.original cimport destination_of, is_own, original_destination
from fastmesh.core.io.state cimport (
    C_CUT, C_DEAD, C_HANDED, C_HANDSHAKE, C_RDHUP, C_SNIFF_TLS, C_TLS, Conn, ConnOps, Downstream, Listener, Source,
    WATCH_LEARNED, WATCH_NONE, WATCH_SILENT, Worker,
)
from fastmesh.core.io.tunnel cimport detected_at, tunnel_accept
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.sys.openssl cimport SSL_CTX
from fastmesh.core.sys.posix cimport (
    ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, accept4, c_close, epoll_ctl, epoll_event, errno, getpeername, sockaddr, sockaddr_storage,
    socklen_t,
)
from fastmesh.core.traffic.counters cimport (
    K_DETECT_SKIPPED, K_DETECT_TIMEOUTS, K_DOWNSTREAM_CONNECTIONS, K_DOWNSTREAM_REFUSED, K_HANDED_IN, area_detection,
)
from fastmesh.core.traffic.destination cimport Destination, destination_loopback
from fastmesh.core.traffic.detect cimport detect, detect_last
from fastmesh.core.traffic.learned cimport detect_observe, learned_server_first, learned_timeout
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.traffic.snapshot cimport (
    FWD_APPEND, FWD_REPLACE, ListenerConf, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, Service, TLS_MESH, TLS_PASSTHROUGH,
    TLS_PERMISSIVE, TLS_PUBLIC,
)
from fastmesh.core.traffic.transparent cimport Choice, choose, choose_unknown, sharer_by_name
from fastmesh.core.wire.first_host cimport first_host
from fastmesh.core.traffic.route cimport route_server_name
from fastmesh.core.wire.sniff cimport SNIFF_HELLO, SNIFF_MORE, SNIFF_NAME_MAX, SNIFF_NOT_TLS, sniff_hello
from fastmesh.core.wire.preface cimport PREFACE_NOT, preface_here
from fastmesh.core.wire.tls cimport TLS_ALPN_H1, TLS_ALPN_H2, TLS_ALPN_OPAQUE, tls_alpn, tls_open, tls_peer
from fastmesh.core.wire.tls_facts cimport TlsFacts

cdef struct Arrival:              # on a transparent listener
    Destination to
    bint own                      # that is the listener itself
    Choice choice


cdef enum:
    ACCEPT_BATCH = 64
    ACCEPT_BUSY = 8               # while handshakes wait: who asks for more of them can wait in the queue
    ACCEPT_PAUSE_MS = 100         # out of descriptors
    DETECT_MS = 100
    INBOUND_HANDSHAKE_MS = 5000


cdef inline void _close(Worker *w, Conn *c, int reason) noexcept nogil:
    """Close a connection that has no codec yet."""
    cdef Listener *l = <Listener *>c.owner
    if c.flags & C_HANDSHAKE:
        l.nhandshakes -= 1
    # a peer that goes before it has said anything is no event
    if reason and reason != R_DOWNSTREAM_CLOSED and reason != R_IDLE_TIMEOUT:
        w.row.reasons[reason] += 1
    listener_leave(w, l)
    conn_close(w, c)


cdef inline bint _agreed_http2(Conn *c) noexcept nogil:
    return c.flags & C_TLS != 0 and tls_alpn(&c.tls) == TLS_ALPN_H2


cdef inline void _adopt(Worker *w, Conn *c, bint http, int watch) noexcept nogil:
    """The protocol is known: give the connection to its codec. `watch` (enum Watch) is about opaque bytes."""
    _adopt_for(w, c, http, (<Listener *>c.owner).conf.service, NULL, watch)


cdef inline void _adopt_for(Worker *w, Conn *c, bint http, int32_t service, const Arrival *a,
                            int watch) noexcept nogil:
    """Likewise; opaque bytes go to that service of the snapshot. `a`: on a transparent listener."""
    cdef Listener *l = <Listener *>c.owner
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef const TlsFacts *proved
    cdef bint named
    cdef bint served
    cdef Downstream d
    cdef PolicyFacts *facts = &d.caller.facts
    if getpeername(c.src.fd, <sockaddr *>&address, &size) != 0:
        _close(w, c, R_DOWNSTREAM_CLOSED)
        return
    if not conn_suffices(l.conf, c):             # the settings have changed since it was accepted
        _close(w, c, R_TLS_IDENTITY if c.flags & C_TLS else R_TLS_NOT_TLS)
        return
    memset(&d, 0, sizeof(Downstream))
    d.listener = l
    d.opened_ms = w.now_ms
    d.retired = 1 if w.withdrawn and l.conf.inbound else 0
    peer_text(&d.peer, &address)
    if a != NULL:
        destination_of(&address, &d.peer.caller)
        d.peer.caller.port = 0
    peer_facts(c, &address, facts)
    if a != NULL:
        d.peer.to = a.to
        d.peer.own = a.own
        facts.port = a.choice.port
    if c.flags & C_TLS and l.conf.tls != TLS_PUBLIC:
        proved = tls_peer(&c.tls)
        named = proved != NULL and proved.id_len > 0
        if named:
            facts.identity = shared_get(&w.identities, proved.id, proved.id_len)
        if facts.identity == NULL:
            _close(w, c, R_NO_MEMORY if named else R_TLS_IDENTITY)
            return
    if not http:
        tunnel_accept(w, c, l, service, facts, &d.peer, watch)
        downstream_forget(w, &d)
        return
    if facts.identity != NULL and (l.conf.client_cert == FWD_REPLACE or l.conf.client_cert == FWD_APPEND):
        d.client_cert = peer_certificate(w, c, facts.identity)
        if d.client_cert == NULL:
            downstream_forget(w, &d)
            _close(w, c, R_NO_MEMORY)
            return
    if _agreed_http2(c):
        served = h2_server_open(w, c, &d) != NULL
    else:
        served = h1_server_open(w, c, &d) != NULL
        if served and (w.draining or d.retired):
            conn_deadline(w, c, DRAIN_GRACE_MS)  # it was shaking hands when the drain began
    if not served:
        downstream_forget(w, &d)
        _close(w, c, R_NO_MEMORY)


cdef inline void _ready(Worker *w, Conn *c) noexcept nogil:
    """Plaintext, or TLS with its handshake done."""
    cdef Listener *l = <Listener *>c.owner
    if c.flags & C_TLS:
        l.nhandshakes -= 1
    if l.conf.tls == TLS_PASSTHROUGH:
        conn_deadline(w, c, INBOUND_HANDSHAKE_MS)
    elif fm_unlikely(l.conf.transparent):
        _arrived(w, c)
    elif l.conf.protocol == PROTO_AUTO and not _agreed_http2(c):
        if l.conf.service >= 0 and _server_first(w, l.conf, &l.snapshot.services[l.conf.service], NULL):
            _adopt(w, c, False, WATCH_LEARNED)
        else:
            conn_deadline(w, c, DETECT_MS)
    else:
        _adopt(w, c, l.conf.protocol != PROTO_TCP, WATCH_NONE)


# ---------------------------------------------------------------- what is remembered of beginnings

cdef inline bint _server_first(Worker *w, const ListenerConf *conf, const Service *s, const Arrival *a) noexcept nogil:
    """Does the server speak first there, as far as is known? Then nothing has to be waited for. Where there are rules
    nothing is skipped: what was learned once would refuse HTTP for good, without a look at the request."""
    cdef Destination nowhere
    cdef Destination to
    if conf.policy != NULL or s.policy != NULL:
        return False
    memset(&nowhere, 0, sizeof(Destination))
    detected_at(s, &a.to if a != NULL else &nowhere, &to)
    if not learned_server_first(area_detection(w.area, w.slot), &to, w.now_ms):
        return False
    w.row.counters[K_DETECT_SKIPPED] += 1
    return True


cdef inline void _told(Worker *w, const Conn *c) noexcept nogil:
    """The protocol of a connection could be told; how long that took counts."""
    cdef uint64_t begun = c.timer.deadline - DETECT_MS
    detect_observe(area_detection(w.area, w.slot), w.now_ms - begun if w.now_ms > begun else 0)


cdef inline void _timed_out(Worker *w, const Conn *c, const Service *s, const Arrival *a) noexcept nogil:
    """Nothing, or too little, came in time. `s`: whose the connection will be; NULL: nobody's."""
    cdef Destination nowhere
    cdef Destination to
    w.row.counters[K_DETECT_TIMEOUTS] += 1
    detect_observe(area_detection(w.area, w.slot), DETECT_MS)
    if s == NULL:
        return
    memset(&nowhere, 0, sizeof(Destination))
    detected_at(s, &a.to if a != NULL else &nowhere, &to)
    learned_timeout(area_detection(w.area, w.slot), &to, <int32_t>s.slot, w.now_ms)


# ---------------------------------------------------------------- transparent listeners

cdef inline bint _arrival(Worker *w, Conn *c, Arrival *a) noexcept nogil:
    """Where the client wanted to go, and what becomes of that. False: the connection has been closed."""
    cdef Listener *l = <Listener *>c.owner
    if not original_destination(c.src.fd, &l.bound, &a.to):
        _close(w, c, R_DOWNSTREAM_CLOSED)
        return False
    a.own = is_own(&l.bound, &a.to)
    choose(l.snapshot, l.conf, &a.to, a.own, &a.choice)
    # Inbound a peer may be us, by way of the network; the application is dialled at loopback.
    if (l.conf.outbound or destination_loopback(&a.to)) and dialled_by_us(w, c.src.fd, &a.to):
        a.choice.reason = R_LOOP
    return True


cdef inline void _settle(Worker *w, Conn *c, Arrival *a, bint http, int watch) noexcept nogil:
    """The protocol is known: to its codec, or refused, as chosen."""
    if a.choice.reason:
        c.flags |= C_CUT
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        _close(w, c, a.choice.reason)
    else:
        _adopt_for(w, c, http, a.choice.service, a, watch)


cdef inline void _arrived(Worker *w, Conn *c) noexcept nogil:
    """Plaintext, or TLS with its handshake done, on a transparent listener."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    if not _arrival(w, c, &a):
        return
    if a.choice.reason or a.choice.protocol != PROTO_AUTO or _agreed_http2(c):
        _settle(w, c, &a, a.choice.protocol != PROTO_TCP, WATCH_NONE)
    elif a.choice.shared == NULL and _server_first(w, l.conf, &l.snapshot.services[a.choice.service], &a):
        _settle(w, c, &a, False, WATCH_LEARNED)
    else:
        conn_deadline(w, c, DETECT_MS)


cdef inline int _shared(Listener *l, Arrival *a, const char *p, size_t n) noexcept nogil:
    """Whose opaque bytes are that came to a shared destination: by the name in a TLS hello, else nobody's. 0: it cannot
    be told yet."""
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t name_len = 0
    cdef int32_t service = -1
    cdef int found = sniff_hello(p, n, name, &name_len)
    if found == SNIFF_MORE:
        return 0
    if found == SNIFF_HELLO:
        service = sharer_by_name(l.snapshot, a.choice.shared, name, name_len)
    if service < 0:
        choose_unknown(l.snapshot, l.conf, &a.choice)
    else:
        a.choice.service = service
    return 1


cdef inline size_t _first_bytes(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """Of a connection to a transparent listener. Takes none."""
    cdef Listener *l = <Listener *>c.owner
    cdef bint more = not c.flags & C_RDHUP
    cdef int found
    cdef Arrival a
    if not _arrival(w, c, &a):
        return n
    if a.choice.reason or a.choice.protocol != PROTO_AUTO:
        found = 1 if a.choice.protocol != PROTO_TCP else -1      # a reload has changed what is expected
    else:
        found = detect(l.conf, p, n)
        if found == 0 and more:
            return 0
        if found == 0:
            found = detect_last(l.conf, p, n)
        if found <= 0 and a.choice.shared != NULL:
            if _shared(l, &a, p, n) == 0:
                if more:
                    return 0
                choose_unknown(l.snapshot, l.conf, &a.choice)
        elif found == 1 and a.choice.shared != NULL and not _agreed_http2(c):
            found = _by_host(l, &a, p, n)
            if found == 0 and more:
                return 0
    _told(w, c)
    _settle(w, c, &a, found == 1, WATCH_NONE)
    return n if c.flags & C_DEAD else 0


cdef inline int _by_host(Listener *l, Arrival *a, const char *p, size_t n) noexcept nogil:
    """Whose an HTTP/1 connection to a shared destination is, by the Host of its first request. 1: that of one who
    shares it, or it is HTTP/2; -1: nobody's, it is treated as opaque; 0: Host has not come yet."""
    cdef const char *host
    cdef size_t host_len
    if preface_here(p, n) != PREFACE_NOT:
        return 1
    if not first_host(p, n, &host, &host_len):
        return 0
    if sharer_by_name(l.snapshot, a.choice.shared, host, host_len) >= 0:
        return 1
    choose_unknown(l.snapshot, l.conf, &a.choice)
    return -1


cdef inline void _nothing_came(Worker *w, Conn *c) noexcept nogil:
    """On a transparent listener: opaque, perhaps a protocol in which the server speaks first."""
    cdef Listener *l = <Listener *>c.owner
    cdef Arrival a
    cdef int watch = WATCH_SILENT if c.rx == NULL else WATCH_NONE
    if not _arrival(w, c, &a):
        return
    if a.choice.reason or a.choice.protocol != PROTO_AUTO:
        _settle(w, c, &a, a.choice.protocol != PROTO_TCP, WATCH_NONE)
        return
    if _like_http(l, c):
        _told(w, c)
        _settle(w, c, &a, True, WATCH_NONE)      # slow; its requests will say whose it is
        return
    if a.choice.shared != NULL:
        choose_unknown(l.snapshot, l.conf, &a.choice)
        watch = WATCH_NONE
    _timed_out(w, c, &l.snapshot.services[a.choice.service] if a.choice.service >= 0 else NULL, &a)
    _settle(w, c, &a, False, watch)


# ---------------------------------------------------------------- the first bytes

cdef inline bint _like_http(const Listener *l, const Conn *c) noexcept nogil:
    """Has as much come in time as HTTP has to be told by?"""
    return c.rx != NULL and detect_last(l.conf, c.rx.data + c.rx.start, c.rx.end - c.rx.start) == 1


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
    cdef int r = pass_on((<Listener *>c.owner).conf, p, n, &service)
    if r == 0 and not c.flags & C_RDHUP:
        return 0
    if r > 0:
        _adopt_for(w, c, False, service, NULL, WATCH_NONE)
    else:
        _close(w, c, -r if r < 0 else R_TLS_HANDSHAKE)
    return n if c.flags & C_DEAD else 0


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """First bytes of a connection with `protocol: auto`. Takes none: the codec is offered them."""
    cdef Listener *l = <Listener *>c.owner
    cdef int found
    if l.conf.tls == TLS_PASSTHROUGH:
        return _hello(w, c, p, n)
    if fm_unlikely(l.conf.transparent):
        return _first_bytes(w, c, p, n)
    if l.conf.protocol != PROTO_AUTO:
        return 0
    found = detect(l.conf, p, n)
    if found == 0 and not c.flags & C_RDHUP:
        return 0
    if found == 0:                               # with the client's end there will be no more to tell it by
        found = detect_last(l.conf, p, n)
    _told(w, c)
    _adopt(w, c, found == 1, WATCH_NONE)
    return n if c.flags & C_DEAD else 0


cdef inline void _eof(Worker *w, Conn *c) noexcept nogil:
    cdef Listener *l = <Listener *>c.owner
    _close(w, c, R_DOWNSTREAM_CLOSED)


cdef inline void _error(Worker *w, Conn *c, int reason) noexcept nogil:
    _close(w, c, reason)


cdef inline void _drained(Worker *w, Conn *c) noexcept nogil:
    pass


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    cdef Listener *l = <Listener *>c.owner
    if c.flags & C_HANDSHAKE:
        _close(w, c, R_TLS_TIMEOUT)
    elif c.flags & C_SNIFF_TLS:
        _close(w, c, R_IDLE_TIMEOUT)
    elif l.conf.tls == TLS_PASSTHROUGH:
        _close(w, c, R_TLS_TIMEOUT)
    elif l.conf.transparent:
        _nothing_came(w, c)
    elif l.conf.protocol != PROTO_AUTO:
        _adopt(w, c, l.conf.protocol == PROTO_HTTP, WATCH_NONE)      # a reload has changed what is expected
    elif _like_http(l, c):
        _told(w, c)
        _adopt(w, c, True, WATCH_NONE)
    else:
        # Nothing, or too little, came in time: opaque, perhaps a protocol in which the server speaks first.
        _timed_out(w, c, &l.snapshot.services[l.conf.service] if l.conf.service >= 0 else NULL, NULL)
        _adopt(w, c, False, WATCH_SILENT if c.rx == NULL else WATCH_NONE)


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
    cdef Listener *l = <Listener *>c.owner
    if l.conf.max_handshakes and l.nhandshakes >= l.conf.max_handshakes:
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        _close(w, c, R_TLS_BUSY)
        return
    if l.conf.handshake_rate and not _within_rate(w, c, l.conf.handshake_rate):
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        _close(w, c, R_TLS_RATE)
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
        _close(w, c, R_IDENTITY_EXPIRED)
        return False
    if ctx == NULL or tls_open(&w.tls, &c.tls, <SSL_CTX *>ctx, True, NULL, 0, NULL, _alpn(l, c)) != 0:
        _close(w, c, R_TLS_HANDSHAKE)
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
        conn_deadline(w, c, l.conf.idle_timeout_ms)
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
    if c.flags & C_SNIFF_TLS:
        conn_deadline(w, c, DRAIN_GRACE_MS)      # it has not said a word


cdef inline void listener_init(ConnOps *ops) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=_drained, on_error=_error, on_ready=_ready, on_timer=_timer,
        on_flush=NULL, on_drain=_drain, on_expiry=NULL, idle=NULL)
