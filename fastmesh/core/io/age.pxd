# How long what a connection was made with is good: our certificate, the peer's, the trust in it, and what its
# listener asks for.
#
# The wall clock is read when a connection is made, and turned into the worker's own clock there: afterwards
# it costs a comparison. Below `connection`, which asks at the end of each handshake.

from libc.stdint cimport int64_t, uint64_t

from fastmesh.core.io.state cimport C_TLS, C_UPSTREAM, Conn, Worker
from fastmesh.core.sys.openssl cimport SSL_CTX
from fastmesh.core.sys.posix cimport CLOCK_REALTIME, clock_gettime, timespec
from fastmesh.core.traffic.snapshot cimport ListenerConf, Snapshot, TLS_MESH, TLS_PUBLIC
from fastmesh.core.wire.tls cimport tls_of_mesh, tls_peer
from fastmesh.core.wire.tls_context cimport tls_policy
from fastmesh.core.wire.tls_facts cimport TlsFacts, now_seconds
from fastmesh.core.wire.tls_trust cimport trust_denies


cdef inline bint identity_over(const Snapshot *s) noexcept nogil:
    """Is our own certificate over? As OpenSSL has it: the second of notAfter is out of time already."""
    return s.not_after > 0 and now_seconds() >= s.not_after


cdef inline void conn_expires(Worker *w, Conn *c, int64_t end) noexcept nogil:
    """What the connection rests on ends at `end` (Unix seconds); the earliest end counts. 0 or less: never."""
    cdef timespec now
    cdef int64_t left
    cdef uint64_t at
    if end <= 0:
        return
    clock_gettime(CLOCK_REALTIME, &now)
    left = (end - now.tv_sec) * 1000 - now.tv_nsec // 1000000 - 1     # both clocks were cut: never late
    at = w.now_ms + (<uint64_t>left if left > 0 else 1)
    if c.expires_ms == 0 or at < c.expires_ms:
        c.expires_ms = at


cdef inline void conn_expires_with_peer(Worker *w, Conn *c) noexcept nogil:
    """After the handshake: with the first certificate of the peer's chain."""
    cdef const TlsFacts *peer = tls_peer(&c.tls)
    if peer != NULL:
        conn_expires(w, c, peer.until if peer.until > 0 else 1)


cdef inline bint conn_expired(Worker *w, const Conn *c) noexcept nogil:
    return c.expires_ms != 0 and w.now_ms >= c.expires_ms


cdef inline int conn_denied(Worker *w, Conn *c) noexcept nogil:
    """After the handshake: 0, or why the peer would not be let in under the trust that is in force now."""
    cdef const TlsFacts *peer
    if w.snapshot == NULL or w.snapshot.server_ctx == NULL or not tls_of_mesh(&c.tls):
        return 0
    peer = tls_peer(&c.tls)
    if peer == NULL:
        return 0
    return trust_denies(tls_policy(<SSL_CTX *>w.snapshot.server_ctx), peer, not c.flags & C_UPSTREAM)


cdef inline bint conn_suffices(const ListenerConf *conf, Conn *c) noexcept nogil:
    """Is a client's connection, its handshake over, one that the listener would still make? Its settings may be
    others than when the connection was accepted."""
    if conf.tls == TLS_MESH:
        return c.flags & C_TLS != 0 and tls_of_mesh(&c.tls)
    if conf.tls == TLS_PUBLIC:
        return c.flags & C_TLS != 0 and not tls_of_mesh(&c.tls) and (
            tls_peer(&c.tls) != NULL or not tls_policy(<SSL_CTX *>conf.tls_ctx).demands)
    return True
