# The connections of a worker to an endpoint: which one a request gets, and their end.
#
# An Upstream belongs to the worker and is named by snapshots (Endpoint.pool); it goes when no snapshot names
# it and its last connection has ended. Every try of an exchange gets a connection at once (from the pool, or a
# new one), so nothing ever waits behind another request.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free

from fastmesh.core.base.list cimport list_empty, list_remove
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.age cimport conn_expired
from fastmesh.core.io.connection cimport conn_queued_bytes
from fastmesh.core.io.dialling cimport dialling_begin, dialling_wait
from fastmesh.core.io.h1_client cimport h1_client_destroy, h1_client_of_idle, h1_client_take
from fastmesh.core.io.state cimport (
    C_RDHUP, C_READABLE, Conn, Dialling, Exchange, H1Client, Upstream, Worker, X_FRESH, X_REUSED, X_TUNNEL,
)
from fastmesh.core.sys.openssl cimport SSL_SESSION_free
from fastmesh.core.sys.posix cimport EAGAIN, MSG_PEEK, c_recv, errno
from fastmesh.core.traffic.counters cimport G_UPSTREAM_IDLE, K_RETIRED_CERTIFICATE_UPSTREAM, K_RETIRED_REPLACED


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


cdef inline int dial(Worker *w, Exchange *x) noexcept nogil:
    """Give `x` an upstream End towards `x.endpoint`: a pooled connection, or one to wait for. 0 or a reason."""
    cdef H1Client *h
    cdef Dialling *d
    cdef int reason = R_NO_MEMORY
    if not x.flags & (X_FRESH | X_TUNNEL):
        h = _pooled(w, <Upstream *>x.endpoint.pool)
        if h != NULL:
            h1_client_take(w, h, x)
            x.flags |= X_REUSED
            return 0
    d = dialling_begin(w, x, &reason)
    return dialling_wait(w, d, x) if d != NULL else -reason


cdef inline void pool_drain(Worker *w, Upstream *u) noexcept nogil:
    """Close what is idle."""
    while not list_empty(&u.idle):
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))


cdef inline void pool_drop(Worker *w, void *pool) noexcept nogil:
    """A snapshot that named this endpoint has gone."""
    cdef Upstream *u = <Upstream *>pool
    u.refs -= 1
    if u.refs > 0:
        return
    while not list_empty(&u.idle):
        w.row.counters[K_RETIRED_REPLACED] += 1
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
    # Connections in flight hold their exchange, that its snapshot, and that a reference here: none is left.
    list_remove(&u.all)
    if u.session != NULL:
        SSL_SESSION_free(u.session)
    free(u.key)
    free(u)
