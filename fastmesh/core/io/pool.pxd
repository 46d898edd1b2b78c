# The connections of a worker to an endpoint: which one a request gets, and their end.
#
# An Upstream belongs to the worker and is named by snapshots (Endpoint.pool); it goes when no snapshot names
# it and its last connection has ended. Every try of an exchange gets a connection at once (from the pool, or a
# new one), so nothing ever waits behind another request.

from libc.stdint cimport uint32_t

from fastmesh.core.base.list cimport Node, list_empty, list_remove
from fastmesh.core.base.reason cimport R_NO_MEMORY, R_OVERLOADED
from fastmesh.core.io.age cimport conn_expired
from fastmesh.core.io.connection cimport conn_queued_bytes
from fastmesh.core.io.dialling cimport (
    dialling_any, dialling_begin, dialling_close, dialling_close_unclaimed, dialling_of_all, dialling_stale,
    dialling_unclaimed, dialling_wait,
)
from fastmesh.core.io.h1_client cimport h1_client_destroy, h1_client_of_idle, h1_client_take
from fastmesh.core.io.h2_client cimport h2_client_retire, h2_client_take, h2_client_unused, h2_client_usable
from fastmesh.core.io.h2_conn cimport h2_conn_of_pooled
from fastmesh.core.io.state cimport (
    C_RDHUP, C_READABLE, Conn, Dialling, Exchange, H1Client, H2Conn, SPEAKS_H1, SPEAKS_H2, Upstream, Worker,
    X_EXTENDED, X_FRESH, X_GRPC, X_REUSED, X_TUNNEL, X_UPGRADE,
)
from fastmesh.core.io.several cimport several_take, upstream_of
from fastmesh.core.io.upstream cimport upstream_left
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.sys.posix cimport EAGAIN, MSG_PEEK, c_recv, errno
from fastmesh.core.traffic.counters cimport G_UPSTREAM_IDLE, K_RETIRED_CERTIFICATE_UPSTREAM, K_RETIRED_REPLACED
from fastmesh.core.traffic.snapshot cimport SVC_HTTP1, SVC_HTTP2, TLS_NONE
from fastmesh.core.wire.http2 cimport h2_peer_extended


cdef enum:
    SPARE_MS = 100                # between connections that nobody waits for: one may fail, or be HTTP/1.1


cdef inline bint _still_open(Conn *c) noexcept nogil:
    """An idle connection can be used: neither its end nor anything else waits to be read on it."""
    cdef char byte
    if c.flags & C_RDHUP:
        return False
    if c.flags & C_READABLE:
        if c_recv(c.src.fd, &byte, 1, MSG_PEEK) >= 0 or errno != EAGAIN:
            return False
        c.flags &= ~<uint32_t>C_READABLE
    return True


cdef inline H1Client *_pooled(Worker *w, Upstream *u) noexcept nogil:
    """The idle connection that was used last and still stands, out of the pool; NULL: there is none."""
    cdef H1Client *h
    while not list_empty(&u.idle):
        h = h1_client_of_idle(u.idle.next)
        if conn_queued_bytes(h.conn) > 0:
            return NULL                          # it, and all behind it, still have something to send
        if conn_expired(w, h.conn):
            w.row.counters[K_RETIRED_CERTIFICATE_UPSTREAM] += 1
            h1_client_destroy(w, h)
            continue
        if not _still_open(h.conn):
            h1_client_destroy(w, h)
            continue
        list_remove(&h.idle)
        u.nidle -= 1
        w.row.counters[G_UPSTREAM_IDLE] -= 1
        return h
    return NULL


cdef inline H2Conn *_shared(Worker *w, Upstream *u, const Exchange *x) noexcept nogil:
    """The connection with the fewest streams of those that take one more; NULL: there is none."""
    cdef Node *n = u.h2.next
    cdef Node *following
    cdef H2Conn *best = NULL
    cdef H2Conn *h
    while n != &u.h2:
        following = n.next
        h = h2_conn_of_pooled(n)
        if conn_expired(w, h.conn):
            w.row.counters[K_RETIRED_CERTIFICATE_UPSTREAM] += 1
            h2_client_retire(w, h)
        elif (not h.conn.flags & C_RDHUP and h2_client_usable(h) and (best == NULL or h.nstreams < best.nstreams)
                and (not x.flags & X_EXTENDED or h2_peer_extended(&h.h2) == 1)):
            best = h
        n = following
    return best


cdef inline Dialling *_joinable(Worker *w, Upstream *u) noexcept nogil:
    """A connection under way that may turn out to be one to share."""
    cdef Node *n = u.dialling.next
    while n != &u.dialling:
        if dialling_of_all(n).offers & SPEAKS_H2 and not dialling_stale(w, dialling_of_all(n)):
            return dialling_of_all(n)
        n = n.next
    return NULL


cdef inline int _offers(const Exchange *x) noexcept nogil:
    """What may be spoken with the endpoint of `x`: enum Speaks."""
    cdef int protocol = x.service.protocol
    if x.flags & X_TUNNEL or protocol == SVC_HTTP1 or x.flags & X_UPGRADE and protocol != SVC_HTTP2:
        return SPEAKS_H1                         # an upgraded connection is nobody else's
    if protocol == SVC_HTTP2:
        return SPEAKS_H2
    if x.service.tls != TLS_NONE:
        return SPEAKS_H1 | SPEAKS_H2
    # In the clear nothing is agreed on. gRPC is HTTP/2 always.
    return SPEAKS_H2 if x.flags & X_GRPC else SPEAKS_H1


cdef inline int dial(Worker *w, Exchange *x) noexcept nogil:
    """Give `x` an upstream End towards `x.endpoint`: on a connection that stands, or one to wait for. 0 or a reason."""
    cdef Upstream *u = upstream_of(w, x.endpoint, x.peer)
    cdef int offers = _offers(x)
    cdef int reason = R_NO_MEMORY
    cdef H2Conn *shared
    cdef H1Client *h
    cdef Dialling *d = NULL
    if fm_unlikely(u == NULL):
        return -R_OVERLOADED
    if x.flags & X_UPGRADE and offers == SPEAKS_H2:
        x.flags |= X_EXTENDED
    if offers & SPEAKS_H2:
        shared = _shared(w, u, x)
        if shared != NULL:
            if (u.nh2 < x.service.mesh_connections and shared.nstreams > 0 and not dialling_any(u)
                    and w.now_ms >= u.spare_after_ms):
                u.spare_after_ms = w.now_ms + SPARE_MS
                dialling_begin(w, u, x, offers, &reason)  # for those that come later
            if h2_client_take(w, shared, x) != 0:
                return -R_NO_MEMORY
            if not x.flags & X_FRESH:
                x.flags |= X_REUSED
            return 0
        if x.flags & X_EXTENDED and offers & SPEAKS_H1:
            offers = SPEAKS_H1                   # whether the endpoint takes them over HTTP/2 is not known yet
        elif u.speaks != SPEAKS_H1 or not offers & SPEAKS_H1:
            d = _joinable(w, u)
    if offers & SPEAKS_H1 and not x.flags & (X_FRESH | X_TUNNEL):
        h = _pooled(w, u)
        if h != NULL:
            h1_client_take(w, h, x)
            x.flags |= X_REUSED
            return 0
    if d == NULL:
        d = dialling_unclaimed(w, u, offers)
    if d == NULL:
        d = dialling_begin(w, u, x, offers, &reason)
    return dialling_wait(w, d, x) if d != NULL else -reason


cdef inline void pool_drain(Worker *w, Upstream *u) noexcept nogil:
    """Close what is idle."""
    cdef Node *n = u.h2.next
    cdef Node *following
    while not list_empty(&u.idle):
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
    dialling_close_unclaimed(w, u)
    while n != &u.h2:
        following = n.next
        if h2_client_unused(h2_conn_of_pooled(n)):
            h2_client_retire(w, h2_conn_of_pooled(n))
        n = following


cdef inline void pool_drop(Worker *w, void *pool) noexcept nogil:
    """A snapshot that named this endpoint has gone."""
    cdef Upstream *u = <Upstream *>pool
    cdef Upstream *one
    u.refs -= 1
    if u.refs > 0:
        return
    while True:
        one = several_take(u)
        if one == NULL:
            break
        pool_drop(w, one)
    u.nconns += 1                                # it stays until all is closed that is idle
    while not list_empty(&u.idle):
        w.row.counters[K_RETIRED_REPLACED] += 1
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
    while not list_empty(&u.h2):
        w.row.counters[K_RETIRED_REPLACED] += 1
        h2_client_retire(w, h2_conn_of_pooled(u.h2.next))
    while not list_empty(&u.dialling):
        dialling_close(w, dialling_of_all(u.dialling.next))     # for nobody in particular
    # Connections in flight hold their exchange, that its snapshot, and that a reference here: what is left lingers.
    upstream_left(u)
