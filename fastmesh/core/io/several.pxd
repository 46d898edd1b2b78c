# The pools of an endpoint whose connections are not alike: one for each port that clients want (`keep_port`), for each
# client whose address is taken on (`keep_caller`), or for each destination (`original`).
#
# They are made when they are first wanted, found by a hash, and go with the endpoint's. There are KINDS_MAX at most:
# then the one makes room that was not used for longest and has nothing but idle connections, or none.

from libc.stdint cimport uint32_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_push, list_remove
from fastmesh.core.io.h1_client cimport h1_client_destroy, h1_client_of_idle
from fastmesh.core.io.h2_client cimport h2_client_retire, h2_client_unused
from fastmesh.core.io.h2_conn cimport h2_conn_of_pooled
from fastmesh.core.io.state cimport Peer, Upstream, Worker
from fastmesh.core.io.upstream cimport as_caller, upstream_new
from fastmesh.core.sys.atomic cimport fm_likely
from fastmesh.core.sys.openssl cimport SSL_SESSION_free
from fastmesh.core.traffic.counters cimport K_RETIRED_REPLACED
from fastmesh.core.traffic.destination cimport Destination, destination_equal, destination_hash
from fastmesh.core.traffic.snapshot cimport Endpoint

cdef enum:
    KINDS_MAX = 256               # pools of one endpoint
    KINDS_HASH = 64               # a power of two


cdef inline Upstream *_of_alike(Node *n) noexcept nogil:
    return <Upstream *>(<char *>n - <size_t>&(<Upstream *>NULL).alike)


cdef inline Upstream *_of_turn(Node *n) noexcept nogil:
    return <Upstream *>(<char *>n - <size_t>&(<Upstream *>NULL).turn)


cdef inline Node *_row(Upstream *base, const Destination *of) noexcept nogil:
    return &base.kinds[destination_hash(of) & (KINDS_HASH - 1)]


cdef inline Upstream *_find(Upstream *base, const Destination *of) noexcept nogil:
    cdef Node *row
    cdef Node *n
    if base.kinds == NULL:
        return NULL
    row = _row(base, of)
    n = row.next
    while n != row and not destination_equal(&_of_alike(n).of, of):
        n = n.next
    return _of_alike(n) if n != row else NULL


cdef inline Upstream *_make(Worker *w, Upstream *base) noexcept nogil:
    """A new one; NULL without memory."""
    cdef Upstream *u
    cdef uint32_t i
    if base.kinds == NULL:
        base.kinds = <Node *>malloc(KINDS_HASH * sizeof(Node))
        if base.kinds == NULL:
            return NULL
        for i in range(<uint32_t>KINDS_HASH):
            list_init(&base.kinds[i])
    u = upstream_new(w, b":|", base.key)         # no service has such a name: it is never taken for another
    if u != NULL:
        u.refs = 1
        base.nkinds += 1
    return u


cdef inline bint _only_idle(Upstream *u) noexcept nogil:
    cdef uint32_t idle = u.nidle
    cdef Node *n = u.h2.next
    while n != &u.h2:
        idle += h2_client_unused(h2_conn_of_pooled(n))
        n = n.next
    return idle >= u.nconns


cdef inline Upstream *_emptied(Worker *w, Upstream *base) noexcept nogil:
    """One that can serve something else from now on; NULL: all are in use."""
    cdef Node *n = base.used.prev
    cdef Upstream *u
    while n != &base.used and not _only_idle(_of_turn(n)):
        n = n.prev
    if n == &base.used:
        return NULL
    u = _of_turn(n)
    while u.nidle > 0:
        w.row.counters[K_RETIRED_REPLACED] += 1
        h1_client_destroy(w, h1_client_of_idle(u.idle.next))
    while not list_empty(&u.h2):
        w.row.counters[K_RETIRED_REPLACED] += 1
        h2_client_retire(w, h2_conn_of_pooled(u.h2.next))
    list_remove(&u.turn)
    list_remove(&u.alike)
    if u.session != NULL:
        SSL_SESSION_free(u.session)
        u.session = NULL
    u.speaks = 0
    u.spare_after_ms = 0
    return u


cdef inline Upstream *_pool_for(Worker *w, Upstream *base, const Destination *of) noexcept nogil:
    cdef Upstream *u = _find(base, of)
    if u != NULL:
        list_remove(&u.turn)
    else:
        u = _make(w, base) if base.nkinds < KINDS_MAX else _emptied(w, base)
        if u == NULL:
            return NULL
        u.of = of[0]
        list_append(_row(base, of), &u.alike)
    list_push(&base.used, &u.turn)
    return u


cdef inline Upstream *upstream_of(Worker *w, const Endpoint *e, const Peer *peer) noexcept nogil:
    """The pool of an endpoint, for that client; NULL: there is no room for one more. Clients beyond those whose address
    can be taken on share connections with our own."""
    cdef Upstream *base = <Upstream *>e.pool
    cdef Upstream *u
    cdef Destination of
    if fm_likely(not (e.keep_port or e.keep_caller or e.original)):
        return base
    memset(&of, 0, sizeof(Destination))
    if e.original:
        of = peer.to
    elif as_caller(e, &peer.caller):
        u = _pool_for(w, base, &peer.caller)
        return u if u != NULL else base
    elif e.keep_port:
        of.port = peer.to.port
    else:
        return base
    return _pool_for(w, base, &of)


cdef inline Upstream *several_take(Upstream *base) noexcept nogil:
    """One of them, which is none of them any more; NULL: there are none."""
    cdef Upstream *u
    if base.nkinds == 0:
        return NULL
    u = _of_turn(base.used.next)
    list_remove(&u.turn)
    list_remove(&u.alike)
    base.nkinds -= 1
    return u
