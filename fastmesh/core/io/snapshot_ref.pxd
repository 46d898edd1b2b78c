# References on snapshots, and their end.

from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport strlen

from fastmesh.core.io.state cimport Listener, Worker
from fastmesh.core.sys.openssl cimport SSL_CTX, SSL_CTX_free
from fastmesh.core.traffic.policy cimport Policy, policy_list_free
from fastmesh.core.traffic.snapshot cimport Block, ListenerConf, Snapshot, listener_named


cdef inline void snapshot_ref(Snapshot *s) noexcept nogil:
    s.refs += 1


cdef inline void snapshot_unref(Worker *w, Snapshot *s) noexcept nogil:
    """Drop a reference; the last one frees the snapshot and lets go of its endpoints' pools."""
    cdef Block *b
    cdef Policy *policy
    cdef uint32_t i
    cdef uint32_t k
    s.refs -= 1
    if s.refs > 0:
        return
    for i in range(s.nlisteners):
        if s.listeners[i].tls_ctx != NULL:
            SSL_CTX_free(<SSL_CTX *>s.listeners[i].tls_ctx)
    for i in range(s.nservices):
        if s.services[i].tls_ctx != NULL:
            SSL_CTX_free(<SSL_CTX *>s.services[i].tls_ctx)
        for k in range(s.services[i].nendpoints):
            if s.services[i].endpoints[k].pool != NULL:
                w.ops.pool_drop(w, s.services[i].endpoints[k].pool)
    if s.server_ctx != NULL:
        SSL_CTX_free(<SSL_CTX *>s.server_ctx)
    if s.client_ctx != NULL:
        SSL_CTX_free(<SSL_CTX *>s.client_ctx)
    policy = s.policies
    while policy != NULL:
        policy_list_free(&policy.allow)
        policy_list_free(&policy.deny)
        policy = policy.next
    while s.blocks != NULL:
        b = <Block *>s.blocks
        s.blocks = b.next
        free(b)
    free(s)
    w.snapshots -= 1


cdef inline bint listener_bind(Worker *w, Listener *l, Snapshot *s) noexcept nogil:
    """The listener does from now on what the snapshot says of it; False: that does not name it."""
    cdef ListenerConf *conf = listener_named(s, l.name, strlen(l.name))
    if conf == NULL:
        return False
    snapshot_ref(s)
    if l.snapshot != NULL:
        snapshot_unref(w, l.snapshot)
    l.snapshot = s
    l.conf = conf
    return True
