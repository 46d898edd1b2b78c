# Connections to endpoints: dialling, pooling, handing over what another try left.
#
# An Upstream belongs to the worker and is named by snapshots (Endpoint.pool); it goes when no snapshot names
# it and its last connection has ended. Every try of an exchange gets a connection of its own at once (from the
# pool, or a new one), so nothing ever waits behind another request.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmesh.core.base.buffer cimport Queue, queue_move
from fastmesh.core.base.list cimport list_empty, list_remove
from fastmesh.core.base.reason cimport (
    R_CONNECT_FAILED, R_CONNECT_REFUSED, R_CONNECT_TIMEOUT, R_CONNECT_UNREACHABLE, R_IDENTITY_EXPIRED, R_NO_MEMORY,
    R_OVERLOADED, R_UPSTREAM_TLS_HANDSHAKE,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.age cimport conn_expired, conn_expires, identity_over
from fastmesh.core.io.connection cimport (
    conn_close, conn_deadline, conn_dirty, conn_queued_bytes, conn_resume_later, conn_timeout,
)
from fastmesh.core.io.connection_turn cimport conn_open
from fastmesh.core.io.h1_client cimport h1_client_destroy, h1_client_of_idle
from fastmesh.core.io.state cimport (
    C_CONNECTING, C_DEAD, C_EARLY, C_HANDSHAKE, C_OLD_TRUST, C_RDHUP, C_READABLE, C_TLS, C_TX_HIGH, C_UPSTREAM, Conn,
    Exchange, H1Client, H1_CONNECTING, H1_HEAD, TX_HIGH, Upstream, Worker, X_FRESH, X_REQ_DONE, X_REUSED, X_TUNNEL,
)
from fastmesh.core.sys.openssl cimport SSL_CTX, SSL_SESSION_free
from fastmesh.core.sys.posix cimport (
    AF_UNIX, EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINPROGRESS, EMFILE, ENETUNREACH, ENFILE, ENOENT, ETIMEDOUT,
    IPPROTO_TCP, MSG_PEEK, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_ERROR, TCP_NODELAY, c_close,
    c_connect, c_recv, c_socket, errno, getsockopt, setsockopt, sockaddr, socklen_t,
)
from fastmesh.core.traffic.counters cimport (
    G_UPSTREAM_IDLE, K_RETIRED_CERTIFICATE_UPSTREAM, K_RETIRED_REPLACED, K_UPSTREAM_CONNECTIONS,
    K_UPSTREAM_CONNECT_FAILURES,
)
from fastmesh.core.traffic.snapshot cimport Endpoint, Service, Snapshot, TLS_MESH, TLS_NONE, TLS_PUBLIC
from fastmesh.core.wire.tls cimport tls_open

cdef enum:
    HANDSHAKE_MS = 5000


cdef inline int connect_reason(int err) noexcept nogil:
    if err == ECONNREFUSED or err == ENOENT or err == EAGAIN:     # the last two: a unix socket without a server
        return R_CONNECT_REFUSED
    if err == ETIMEDOUT:
        return R_CONNECT_TIMEOUT
    if err == ENETUNREACH or err == EHOSTUNREACH:
        return R_CONNECT_UNREACHABLE
    if err == EMFILE or err == ENFILE:
        return R_OVERLOADED
    return R_CONNECT_FAILED


cdef inline Conn *upstream_connect(Worker *w, Service *s, Endpoint *e, int *reason) noexcept nogil:
    """A connection under way to `e`; its owner is set by the caller before the next turn. NULL and a reason."""
    cdef int one = 1
    cdef int family = e.address.ss_family
    cdef uint32_t flags = C_UPSTREAM | C_CONNECTING
    cdef Conn *c
    cdef int fd = c_socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        reason[0] = connect_reason(errno)
        return NULL
    if family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
    if c_connect(fd, <sockaddr *>&e.address, e.address_len) != 0 and errno != EINPROGRESS:
        reason[0] = connect_reason(errno)
        w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
        c_close(fd)
        return NULL
    c = conn_open(w, fd, flags)
    if c == NULL:
        c_close(fd)
        reason[0] = R_NO_MEMORY
        return NULL
    w.row.counters[K_UPSTREAM_CONNECTIONS] += 1
    conn_deadline(w, c, s.connect_timeout_ms)
    return c


cdef inline void upstream_connected(Worker *w, Conn *c) noexcept nogil:
    """epoll reports a connecting socket: it is connected, or has failed."""
    cdef int err = 0
    cdef socklen_t n = sizeof(int)
    getsockopt(c.src.fd, SOL_SOCKET, SO_ERROR, &err, &n)
    if err:
        w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
        c.ops.on_error(w, c, connect_reason(err))
        return
    c.flags &= ~<uint32_t>C_CONNECTING
    if c.flags & C_HANDSHAKE:
        c.flags |= C_EARLY                       # our hello goes first
        conn_deadline(w, c, HANDSHAKE_MS)
        conn_resume_later(w, c)
    else:
        c.ops.on_ready(w, c)
        if c.flags & C_READABLE and not c.flags & C_DEAD:
            conn_resume_later(w, c)              # it spoke first: this edge was the only one


cdef inline int upstream_tls(Worker *w, Conn *c, Snapshot *snapshot, Service *s, Upstream *u) noexcept nogil:
    """Speak TLS on `c` once it is connected; the peer must prove the service's identity, or its server's name. 0 or
    a reason."""
    cdef void *ctx = s.tls_ctx if s.tls == TLS_PUBLIC else snapshot.client_ctx
    cdef const char *id = NULL if s.tls == TLS_PUBLIC else s.spiffe_id.ptr
    c.tls.session_slot = &u.session
    if ctx == NULL or tls_open(
            &w.tls, &c.tls, <SSL_CTX *>ctx, False, id, s.spiffe_id.len if id != NULL else 0, u.session) != 0:
        return -R_UPSTREAM_TLS_HANDSHAKE
    w.tls_open += 1
    if s.tls != TLS_PUBLIC:
        conn_expires(w, c, snapshot.not_after)
        if snapshot != w.snapshot:
            c.flags |= C_OLD_TRUST
    c.flags |= C_TLS | C_HANDSHAKE
    return 0


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


cdef inline int dial(Worker *w, Exchange *x) noexcept nogil:
    """Give `x` an upstream End towards `x.endpoint`: a pooled connection or a new one. 0 or a reason."""
    cdef Upstream *u = <Upstream *>x.endpoint.pool
    cdef Service *s = x.service
    cdef H1Client *h
    cdef Conn *c
    cdef int reason = R_NO_MEMORY
    if not x.flags & (X_FRESH | X_TUNNEL):
        while not list_empty(&u.idle):
            h = h1_client_of_idle(u.idle.next)
            if conn_queued_bytes(h.conn) > 0:
                break                            # it, and all behind it, still have something to send
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
            h.state = H1_HEAD
            h.scan = 0
            h.end.ex = x
            x.up = &h.end
            x.flags |= X_REUSED
            conn_timeout(w, h.conn, s.response_timeout_ms)
            return 0
    if s.tls == TLS_MESH and identity_over(x.snapshot):
        return -R_IDENTITY_EXPIRED
    h = <H1Client *>slab_get(&w.clients)
    if h == NULL:
        return -R_NO_MEMORY
    c = upstream_connect(w, s, x.endpoint, &reason)
    if c == NULL:
        slab_put(&w.clients, h)
        return -reason
    memset(h, 0, sizeof(H1Client))
    if s.tls != TLS_NONE and upstream_tls(w, c, x.snapshot, s, u) != 0:
        conn_close(w, c)
        slab_put(&w.clients, h)
        return -R_UPSTREAM_TLS_HANDSHAKE
    h.end.ops = &w.ops.client_end
    h.end.ex = x
    h.conn = c
    h.upstream = u
    h.state = H1_CONNECTING
    h.pool_idle_ms = s.pool_idle_timeout_ms
    h.pool_idle_max = s.pool_idle_max
    u.nconns += 1
    c.owner = h
    c.ops = &w.ops.h1_client
    x.up = &h.end
    return 0


cdef inline void hand_over(Worker *w, Exchange *x, Queue *unsent) noexcept nogil:
    """Queue on `x.up`, just dialled, what a failed try did not get sent."""
    cdef H1Client *h = <H1Client *>x.up
    h.out_framing = x.framing
    h.request_done = 1 if x.flags & X_REQ_DONE else 0
    queue_move(&h.conn.tx, unsent)
    conn_dirty(w, h.conn)
    if h.conn.tx.bytes >= TX_HIGH:
        h.conn.flags |= C_TX_HIGH
    elif not x.flags & X_REQ_DONE:
        x.down.ops.resume(w, x.down)


cdef inline void _free_upstream(Upstream *u) noexcept nogil:
    list_remove(&u.all)
    if u.session != NULL:
        SSL_SESSION_free(u.session)
    free(u.key)
    free(u)


cdef inline void upstream_drop(Worker *w, void *pool) noexcept nogil:
    """A snapshot that named this endpoint has gone."""
    cdef Upstream *u = <Upstream *>pool
    u.refs -= 1
    if u.refs > 0:
        return
    while not list_empty(&u.idle):
        w.row.counters[K_RETIRED_REPLACED] += 1
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
    # Connections in flight hold their exchange, that its snapshot, and that a reference here: none is left.
    _free_upstream(u)


cdef inline void upstream_drain(Worker *w, Upstream *u) noexcept nogil:
    while not list_empty(&u.idle):
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
