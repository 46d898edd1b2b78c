# A connection to an endpoint under way, and the exchanges that wait for it.
#
# A Dialling owns its Conn until the connection stands, with TLS if asked. Until then nobody knows what will be
# spoken on it, so an exchange that waits has a Parked for its upstream End, which takes nothing: what the client
# sends is kept by the exchange. Then the codec takes the Conn over, and what was kept is played into its End.
#
# A Dialling that nobody waits for any more is left to the next exchange that needs one (Upstream.unclaimed), and is
# spare if none comes: who asks and resets again and again is not to fill an endpoint's accept queue. Each Upstream has
# UNCLAIMED_MAX at most; the oldest are closed.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_push, list_remove, node_linked
from fastmesh.core.base.reason cimport (
    R_CONNECT_TIMEOUT, R_IDENTITY_EXPIRED, R_NO_MEMORY, R_UPSTREAM_CLOSED, R_UPSTREAM_NOT_HTTP2,
    R_UPSTREAM_TLS_HANDSHAKE, R_UPSTREAM_TLS_TIMEOUT,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.age cimport identity_over
from fastmesh.core.io.connection cimport conn_close, conn_deadline
from fastmesh.core.io.exchange cimport exchange_dial_again, exchange_play, exchange_upstream_failed
from fastmesh.core.io.h1_client cimport (
    h1_client_destroy, h1_client_open, h1_client_spare, h1_client_take, h1_client_tunnel,
)
from fastmesh.core.io.h2_client cimport (
    h2_client_must_wait, h2_client_open, h2_client_spare, h2_client_take, h2_client_usable, h2_client_wait,
)
from fastmesh.core.io.parked cimport parked_next, parked_of
from fastmesh.core.io.state cimport (
    C_CONNECTING, C_HANDSHAKE, C_TLS, Conn, ConnOps, Dialling, End, EndOps, Exchange, H1Client, H2Conn, Parked,
    SPEAKS_H1, SPEAKS_H2, TX_HIGH, Upstream, Worker, X_EXTENDED, X_PARKED, X_TUNNEL,
)
from fastmesh.core.io.upstream cimport upstream_connect, upstream_left, upstream_tls
from fastmesh.core.traffic.counters cimport K_UPSTREAM_CONNECT_FAILURES, S_CONNECTS
from fastmesh.core.traffic.snapshot cimport Service, TLS_MESH, TLS_NONE
from fastmesh.core.wire.message cimport Message
from fastmesh.core.wire.tls cimport TLS_ALPN_H2, tls_alpn


cdef enum:
    UNCLAIMED_MS = 100            # a packet of an older one may be lost: the next exchange begins its own
    UNCLAIMED_MAX = 64


cdef inline Dialling *dialling_of_all(Node *n) noexcept nogil:
    return <Dialling *>(<char *>n - <size_t>&(<Dialling *>NULL).all)


cdef inline Dialling *_of_left(Node *n) noexcept nogil:
    return <Dialling *>(<char *>n - <size_t>&(<Dialling *>NULL).left)


cdef inline void _claim(Dialling *d) noexcept nogil:
    if node_linked(&d.left):
        list_remove(&d.left)
        d.upstream.nunclaimed -= 1


cdef inline void _free(Worker *w, Dialling *d) noexcept nogil:
    """Nobody waits any more, and the connection has another owner or none."""
    _claim(d)
    list_remove(&d.all)
    slab_put(&w.diallings, d)


cdef inline void dialling_close(Worker *w, Dialling *d) noexcept nogil:
    """Give it up. Nobody waits for it any more."""
    cdef Upstream *u = d.upstream
    conn_close(w, d.conn)
    _free(w, d)
    upstream_left(u)


cdef inline void _left(Worker *w, Dialling *d) noexcept nogil:
    """The last that waited for it has gone."""
    cdef Upstream *u = d.upstream
    if w.draining or u.refs == 0:
        dialling_close(w, d)
        return
    if u.nunclaimed == UNCLAIMED_MAX:
        dialling_close(w, _of_left(u.unclaimed.prev))
    list_push(&u.unclaimed, &d.left)
    u.nunclaimed += 1


cdef inline bint dialling_stale(Worker *w, Dialling *d) noexcept nogil:
    """Nobody waits for it, and beginning another is better than joining it."""
    return node_linked(&d.left) and w.now_ms - d.begun_ms >= UNCLAIMED_MS


cdef inline Dialling *dialling_unclaimed(Worker *w, Upstream *u, int offers) noexcept nogil:
    """One that nobody waits for and that would speak exactly `offers`; NULL: there is none."""
    cdef Node *n = u.unclaimed.next
    while n != &u.unclaimed:
        if _of_left(n).offers == offers and not dialling_stale(w, _of_left(n)):
            return _of_left(n)
        n = n.next
    return NULL


cdef inline bint dialling_any(Upstream *u) noexcept nogil:
    """One is under way that is for somebody, or for those that come later."""
    cdef Node *n = u.dialling.next
    while n != &u.dialling and node_linked(&dialling_of_all(n).left):
        n = n.next
    return n != &u.dialling


cdef inline void dialling_close_unclaimed(Worker *w, Upstream *u) noexcept nogil:
    while not list_empty(&u.unclaimed):
        dialling_close(w, _of_left(u.unclaimed.next))


cdef inline void _waiting_away(Dialling *d, Node *waiting) noexcept nogil:
    """Move those that wait to a list that stands by itself."""
    cdef Parked *p
    list_init(waiting)
    while not list_empty(&d.waiting):
        p = parked_of(d.waiting.next)
        list_remove(&p.node)
        p.on = NULL
        list_append(waiting, &p.node)


cdef inline void _failed(Worker *w, Conn *c, int reason) noexcept nogil:
    """There is no connection: those that wait hear why, and decide."""
    cdef Dialling *d = <Dialling *>c.owner
    cdef Node waiting
    cdef Exchange *x
    _waiting_away(d, &waiting)
    dialling_close(w, d)
    while True:
        x = parked_next(w, &waiting)
        if x == NULL:
            return
        exchange_upstream_failed(w, x, reason, False)


cdef inline Dialling *dialling_begin(Worker *w, Upstream *u, Exchange *x, int offers, int *reason) noexcept nogil:
    """Begin to connect to the endpoint of `x`, whose pool is `u`, to speak one of `offers` (enum Speaks); nobody waits
    yet. NULL and a reason."""
    cdef Service *s = x.service
    cdef Dialling *d
    cdef Conn *c
    if s.tls == TLS_MESH and identity_over(x.snapshot):
        reason[0] = R_IDENTITY_EXPIRED
        return NULL
    d = <Dialling *>slab_get(&w.diallings)
    if d == NULL:
        reason[0] = R_NO_MEMORY
        return NULL
    c = upstream_connect(w, s, x.endpoint, &x.peer.to, &u.of, reason)
    if c == NULL:
        slab_put(&w.diallings, d)
        return NULL
    if s.tls != TLS_NONE and upstream_tls(w, c, x.snapshot, s, u, <uint8_t>offers) != 0:
        conn_close(w, c)
        slab_put(&w.diallings, d)
        reason[0] = R_UPSTREAM_TLS_HANDSHAKE
        return NULL
    memset(d, 0, sizeof(Dialling))
    d.conn = c
    d.upstream = u
    d.row = s.row
    d.pool.idle_ms = s.pool_idle_timeout_ms
    d.pool.idle_max = s.pool_idle_max
    d.ping_ms = s.h2_ping_ms
    d.ping_timeout_ms = s.h2_ping_timeout_ms
    d.begun_ms = w.now_ms
    d.offers = <uint8_t>offers
    list_init(&d.waiting)
    list_append(&u.dialling, &d.all)
    u.nconns += 1
    c.owner = d
    c.ops = &w.ops.dialling
    return d


cdef inline int dialling_wait(Worker *w, Dialling *d, Exchange *x) noexcept nogil:
    """Have `x` wait for `d`: 0 or a reason."""
    cdef Parked *p = <Parked *>slab_get(&w.parked)
    if p == NULL:
        if list_empty(&d.waiting):
            dialling_close(w, d)
        return -R_NO_MEMORY
    memset(p, 0, sizeof(Parked))
    p.end.ops = &w.ops.parked_end
    p.end.ex = x
    p.on = d
    if node_linked(&d.left):
        _claim(d)
        if d.conn.flags & C_CONNECTING:          # how long it takes is up to whom it is for
            conn_deadline(w, d.conn, x.service.connect_timeout_ms)
    d.tunnel = x.flags & X_TUNNEL != 0
    list_append(&d.waiting, &p.node)
    x.up = &p.end
    x.flags |= X_PARKED
    return 0


# ---------------------------------------------------------------- the connection

cdef inline void _ready(Worker *w, Conn *c) noexcept nogil:
    """It stands: what waited goes on it, and leaves with this turn's flush."""
    cdef Dialling *d = <Dialling *>c.owner
    cdef bint h2 = tls_alpn(&c.tls) == TLS_ALPN_H2 if c.flags & C_TLS else d.offers == SPEAKS_H2
    if d.offers == SPEAKS_H2 and not h2:
        _failed(w, c, R_UPSTREAM_NOT_HTTP2)
        return
    d.row.counters[S_CONNECTS] += 1
    if d.offers & SPEAKS_H2 and c.flags & C_TLS:
        d.upstream.speaks = SPEAKS_H2 if h2 else SPEAKS_H1
    if h2:
        _ready_h2(w, d)
    else:
        _ready_h1(w, d)


cdef inline void _ready_h2(Worker *w, Dialling *d) noexcept nogil:
    """As many as the endpoint takes for now go on it as streams."""
    cdef Node waiting
    cdef Exchange *x
    cdef H2Conn *h = h2_client_open(w, d.conn, d)
    if h == NULL:
        _failed(w, d.conn, R_NO_MEMORY)
        return
    _waiting_away(d, &waiting)
    _free(w, d)
    if list_empty(&waiting):
        h2_client_spare(w, h)
        return
    while True:
        if not list_empty(&waiting) and h2_client_must_wait(h, parked_of(waiting.next).end.ex):
            h2_client_wait(h, parked_of(waiting.next))
            continue
        x = parked_next(w, &waiting)
        if x == NULL:
            return
        if h2_client_usable(h) and h2_client_take(w, h, x) == 0:
            exchange_play(w, x)
        else:
            exchange_dial_again(w, x)


cdef inline void _ready_h1(Worker *w, Dialling *d) noexcept nogil:
    """The first that waits gets it; the others, who had hoped to share it, one of their own."""
    cdef Node waiting
    cdef Exchange *x
    cdef bint tunnel = d.tunnel
    cdef H1Client *h = h1_client_open(w, d.conn, d.upstream, &d.pool)
    if h == NULL:
        _failed(w, d.conn, R_NO_MEMORY)
        return
    _waiting_away(d, &waiting)
    _free(w, d)
    x = parked_next(w, &waiting)
    if x == NULL:
        if tunnel:
            h1_client_destroy(w, h)
        else:
            h1_client_spare(w, h)
        return
    h1_client_take(w, h, x)
    if x.flags & X_TUNNEL:
        x.flags &= ~<uint32_t>X_PARKED
        if x.flags & X_EXTENDED:
            h1_client_tunnel(w, h, x)
        else:
            w.ops.upgrade(w, x, NULL, 0)
    else:
        exchange_play(w, x)
    while True:
        x = parked_next(w, &waiting)
        if x == NULL:
            return
        exchange_dial_again(w, x)


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    return 0                                     # never: nothing is offered before on_ready


cdef inline void _eof(Worker *w, Conn *c) noexcept nogil:
    _failed(w, c, R_UPSTREAM_CLOSED)


cdef inline void _drained(Worker *w, Conn *c) noexcept nogil:
    pass


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    if c.flags & C_CONNECTING:
        w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
    _failed(w, c, R_UPSTREAM_TLS_TIMEOUT if c.flags & C_HANDSHAKE and not c.flags & C_CONNECTING
            else R_CONNECT_TIMEOUT)


# ---------------------------------------------------------------- the End of those that wait

cdef inline int _end_head(Worker *w, End *e, Message *m) noexcept nogil:
    return 0                                     # never: it is kept


cdef inline int _end_data(Worker *w, End *e, const char *p, size_t n) noexcept nogil:
    return 1 if e.ex.kept.body.bytes >= TX_HIGH else 0


cdef inline int _end_finish(Worker *w, End *e, Message *trailers) noexcept nogil:
    return 0


cdef inline void _end_abort(Worker *w, End *e, int reason, uint32_t code) noexcept nogil:
    cdef Parked *p = <Parked *>e
    cdef Dialling *d = p.on
    list_remove(&p.node)
    slab_put(&w.parked, p)
    if d != NULL and list_empty(&d.waiting):
        _left(w, d)


cdef inline void _end_release(Worker *w, End *e) noexcept nogil:
    _end_abort(w, e, 0, 0)


cdef inline void _end_resume(Worker *w, End *e) noexcept nogil:
    pass


cdef inline Conn *_end_none(Worker *w, End *e) noexcept nogil:
    return NULL


cdef inline void dialling_init(ConnOps *ops, EndOps *end) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=_drained, on_error=_failed, on_ready=_ready, on_timer=_timer,
        on_flush=NULL, on_drain=NULL, on_expiry=NULL, idle=NULL)
    end[0] = EndOps(
        head=_end_head, data=_end_data, finish=_end_finish, release=_end_release, abort=_end_abort,
        resume=_end_resume, raw=_end_none, detach=_end_none)
