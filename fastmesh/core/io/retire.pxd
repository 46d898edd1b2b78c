# Connections that must not go on under a new snapshot: those of peers that it has on its deny list, or of a trust
# domain that it does not trust any more.

from fastmesh.core.base.list cimport Node, node_linked
from fastmesh.core.base.reason cimport R_TLS_REVOKED, R_UPSTREAM_TLS_REVOKED
from fastmesh.core.io.age cimport conn_denied
from fastmesh.core.io.connection cimport conn_bury, conn_of_all
from fastmesh.core.io.connection_output cimport conn_flush_all
from fastmesh.core.io.h2_conn cimport h2_bury
from fastmesh.core.io.state cimport C_CUT, C_DEAD, C_HANDSHAKE, C_OLD_TRUST, C_TLS, Conn, Worker
from fastmesh.core.sys.openssl cimport SSL_CTX
from fastmesh.core.traffic.counters cimport (
    K_RETIRED_REVOKED_DOWNSTREAM, K_RETIRED_REVOKED_UPSTREAM, K_RETIRED_UNTRUSTED_DOWNSTREAM,
    K_RETIRED_UNTRUSTED_UPSTREAM,
)
from fastmesh.core.traffic.snapshot cimport Snapshot
from fastmesh.core.wire.tls_context cimport tls_policy
from fastmesh.core.wire.tls_state cimport TlsPolicy
from fastmesh.core.wire.tls_trust cimport trust_shrinks


cdef inline void _close_denied(Worker *w, Conn *c, bint up, int reason) noexcept nogil:
    if reason == R_TLS_REVOKED or reason == R_UPSTREAM_TLS_REVOKED:
        w.row.counters[K_RETIRED_REVOKED_UPSTREAM if up else K_RETIRED_REVOKED_DOWNSTREAM] += 1
    else:
        w.row.counters[K_RETIRED_UNTRUSTED_UPSTREAM if up else K_RETIRED_UNTRUSTED_DOWNSTREAM] += 1
    c.flags |= C_CUT
    # Where a request is under way it has the reason, and counts it.
    if c.ops.idle != NULL and c.ops.idle(c):
        w.row.reasons[reason] += 1
        reason = 0
    c.ops.on_error(w, c, reason)


cdef inline void _retire_list(Worker *w, Node *head, bint up) noexcept nogil:
    cdef Node *n = head.next
    cdef Node *following
    cdef Conn *c
    cdef int reason
    while n != head:
        following = n.next
        c = conn_of_all(n)
        if c.flags & C_HANDSHAKE:
            c.flags |= C_OLD_TRUST               # judged again at its end
        elif c.flags & C_TLS and not c.flags & C_DEAD:
            reason = conn_denied(w, c)
            if reason:
                _close_denied(w, c, up, reason)
                if following != head and not node_linked(following):
                    following = head.next        # its end has ended that one too: begin again
        n = following


cdef inline void retire_denied(Worker *w, const Snapshot *old) noexcept nogil:
    """Close every connection whose peer the snapshot in force, which follows `old`, would not let in."""
    cdef TlsPolicy *now
    if w.snapshot.server_ctx == NULL or old.server_ctx == NULL:
        return
    now = tls_policy(<SSL_CTX *>w.snapshot.server_ctx)
    if now.nrevoked == 0 and not trust_shrinks(tls_policy(<SSL_CTX *>old.server_ctx), now):
        return
    _retire_list(w, &w.downs, False)
    _retire_list(w, &w.ups, True)
    conn_flush_all(w)
    conn_bury(w)
    h2_bury(w)
