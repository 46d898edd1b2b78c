# HTTP/2 towards an endpoint: the upstream End of an exchange is a stream (RFC 9113).
#
# An H2Conn takes requests (Upstream.h2) until a GOAWAY, its certificates' end or the snapshot's takes it out of the
# pool; it closes with its last stream. Streams that the endpoint says it has not looked at (GOAWAY, REFUSED_STREAM:
# RFC 9113 8.7) fail as not sent: any request may be tried elsewhere.

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.list cimport list_append, list_empty, list_init, list_remove, node_linked
from fastmesh.core.base.reason cimport (
    R_NO_MEMORY, R_STREAM_TIMEOUT, R_UPSTREAM_CLOSED, R_UPSTREAM_H2_FLOOD, R_UPSTREAM_NO_UPGRADE,
    R_UPSTREAM_PING_TIMEOUT, R_UPSTREAM_RESET, R_UPSTREAM_STREAM_REFUSED, R_UPSTREAM_STREAM_RESET, R_UPSTREAM_TIMEOUT,
)
from fastmesh.core.base.timer cimport Timer
from fastmesh.core.io.connection cimport conn_dirty, conn_timeout
from fastmesh.core.io.exchange cimport (
    exchange_byte_seen, exchange_dial_again, exchange_drop_kept, exchange_play, exchange_response_data,
    exchange_response_end, exchange_response_head, exchange_upstream_failed, exchange_writable,
)
from fastmesh.core.io.forwarded cimport forwarded_fields
from fastmesh.core.io.h2_conn cimport (
    h2_conn_blame, h2_conn_discards, h2_conn_drained, h2_conn_end, h2_conn_free, h2_conn_idle, h2_conn_new,
    h2_conn_pack, h2_conn_ready, h2_conn_silent, h2_conn_wake, h2_conn_watch, h2_end_backlog, h2_end_data,
    h2_end_drop, h2_end_finish, h2_end_free, h2_end_new, h2_end_none, h2_end_of, h2_end_of_node, h2_end_of_timer,
    h2_end_resume, h2_end_timeout, h2_end_took,
)
from fastmesh.core.io.parked cimport parked_next
from fastmesh.core.io.state cimport (
    Conn, ConnOps, Dialling, E_GONE, E_IN_DONE, E_OUT_DONE, End, EndOps, Exchange, H2Conn, H2End, H2_DISCARD, H2_LEFT,
    H2_OPEN, LINES_SCRATCH, Parked, Upstream, Worker, X_BYTE_SEEN, X_EXTENDED, X_REQ_DONE, X_SHARED,
    X_UPGRADE,
)
from fastmesh.core.io.upstream cimport upstream_left
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.counters cimport (
    K_H2_GOAWAYS_RECEIVED_UPSTREAM, K_H2_GOAWAYS_SENT_UPSTREAM, K_H2_REFUSED_UPSTREAM,
    K_H2_RESETS_RECEIVED_UPSTREAM, K_HTTP2_UPSTREAM,
)
from fastmesh.core.traffic.snapshot cimport TLS_PUBLIC
from fastmesh.core.wire.http1_meaning cimport http1_field_named
from fastmesh.core.wire.http2 cimport h2_goaway, h2_may_open, h2_peer_extended
from fastmesh.core.wire.http2_receive cimport h2_receive
from fastmesh.core.wire.http2_send cimport h2_request, h2_reset, h2_sent_nothing
from fastmesh.core.wire.http2_state cimport (
    H2, H2Extra, H2Hooks, H2Stream, H2_CANCEL, H2_CLIENT, H2_NO_ERROR, H2_PROTOCOL_ERROR, H2_REFUSED,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_LENGTH, FRAMING_NONE, F_HOST, MSG_HAS_HOP, MSG_HTTP2, MSG_INTERIM, Message,
)


cdef inline H2Conn *h2_client_open(Worker *w, Conn *c, const Dialling *d) noexcept nogil:
    """Speak HTTP/2 on `c`, which stands; its upstream has counted it. NULL without memory: it stays the caller's."""
    cdef H2Conn *h = h2_conn_new(w, c, H2_CLIENT, 0, &w.ops.h2_client_hooks)
    if h == NULL:
        return NULL
    h.upstream = d.upstream
    h.pool = d.pool
    h.ping_ms = d.ping_ms
    h.ping_timeout_ms = d.ping_timeout_ms
    c.owner = h
    c.ops = &w.ops.h2_client
    list_append(&h.upstream.h2, &h.pooled)
    h.upstream.nh2 += 1
    list_init(&h.waiting)
    conn_timeout(w, c, h.pool.idle_ms)
    return h


cdef inline void _out_of_pool(H2Conn *h) noexcept nogil:
    if node_linked(&h.pooled):
        list_remove(&h.pooled)
        h.upstream.nh2 -= 1


cdef inline void _fail_waiting(Worker *w, H2Conn *h, int reason) noexcept nogil:
    cdef Exchange *x
    while True:
        x = parked_next(w, &h.waiting)
        if x == NULL:
            return
        exchange_upstream_failed(w, x, reason, False)


cdef inline void _destroy(Worker *w, H2Conn *h) noexcept nogil:
    cdef Upstream *u = h.upstream
    _out_of_pool(h)
    _fail_waiting(w, h, R_UPSTREAM_CLOSED)
    h2_conn_free(w, h)
    upstream_left(u)


cdef inline void _close(Worker *w, H2Conn *h) noexcept nogil:
    """Nothing is under way on it, and nothing will be."""
    _out_of_pool(h)
    if h.state < H2_LEFT:
        h.state = H2_LEFT
        h2_goaway(&h.h2, H2_NO_ERROR)
        w.row.counters[K_H2_GOAWAYS_SENT_UPSTREAM] += 1
        conn_dirty(w, h.conn)
    if h.state != H2_DISCARD:
        h2_conn_end(w, h)


cdef inline bint h2_client_unused(H2Conn *h) noexcept nogil:
    """Nobody has a stream on it, or waits for what the endpoint will say."""
    return h.nstreams == 0 and list_empty(&h.waiting)


cdef inline void h2_client_retire(Worker *w, H2Conn *h) noexcept nogil:
    """No more requests: it closes with the last that is under way."""
    _out_of_pool(h)
    if h2_client_unused(h):
        _close(w, h)
    elif h.state == H2_OPEN:
        h.state = H2_LEFT


cdef inline void h2_client_spare(Worker *w, H2Conn *h) noexcept nogil:
    """No stream is on it: it stays for a while, if it may."""
    if h.state == H2_DISCARD or not list_empty(&h.waiting):
        return
    if h.state == H2_LEFT or w.draining or h.pool.idle_max == 0 or not node_linked(&h.pooled):
        _close(w, h)
    else:
        conn_timeout(w, h.conn, h.pool.idle_ms)


cdef inline void _free_end(Worker *w, H2End *e) noexcept nogil:
    cdef H2Conn *h = e.on
    h2_end_free(w, e)
    if h.nstreams == 0:
        h2_client_spare(w, h)


cdef inline void _drop(Worker *w, H2End *e, uint32_t code) noexcept nogil:
    """Reset a stream that no exchange has any more."""
    cdef H2Conn *h = e.on
    h2_end_drop(w, e, code)
    if h.nstreams == 0:
        h2_client_spare(w, h)


cdef inline int h2_client_take(Worker *w, H2Conn *h, Exchange *x) noexcept nogil:
    """A stream for `x`; 0, or -1 without memory."""
    cdef H2End *e = h2_end_new(w, h, &w.ops.h2_client_end, stream_timer)
    if e == NULL:
        return -1
    if h.nstreams == 1:
        h2_conn_watch(w, h)
    e.end.ex = x
    x.up = &e.end
    x.flags |= X_SHARED
    w.row.counters[K_HTTP2_UPSTREAM] += 1
    h2_end_timeout(w, e, x.service.response_timeout_ms)
    return 0


cdef inline bint h2_client_usable(H2Conn *h) noexcept nogil:
    return h.state == H2_OPEN and h2_may_open(&h.h2)


cdef inline bint h2_client_must_wait(H2Conn *h, const Exchange *x) noexcept nogil:
    """Does it depend on what the endpoint has not said yet?"""
    return x.flags & X_EXTENDED != 0 and h2_peer_extended(&h.h2) < 0 and h.state == H2_OPEN


cdef inline void h2_client_wait(H2Conn *h, Parked *p) noexcept nogil:
    """Have it wait for the endpoint's SETTINGS."""
    list_remove(&p.node)
    list_append(&h.waiting, &p.node)


# ---------------------------------------------------------------- what the codec tells

cdef inline H2Stream *_open(H2 *h2) noexcept nogil:
    return NULL                                  # pushes are off


cdef inline void _lost(Worker *w, H2End *e, int reason, bint sent) noexcept nogil:
    """A stream is of no use any more, and its codec has forgotten it; its exchange hears why and decides."""
    cdef Exchange *x = e.end.ex
    e.end.ex = NULL
    _free_end(w, e)
    if x != NULL:
        exchange_upstream_failed(w, x, reason, sent)


cdef inline void _head(H2 *h2, H2Stream *s, Message *m, bint end) noexcept nogil:
    cdef Worker *w = (<H2Conn *>h2).w
    cdef H2End *e = <H2End *>s
    cdef Exchange *x = e.end.ex
    if x == NULL:
        return
    m.whole = end
    if not x.flags & X_BYTE_SEEN:
        exchange_byte_seen(w, x)
    if m.flags & MSG_INTERIM:
        exchange_response_head(w, x, m)
        return
    h2_end_timeout(w, e, x.conf.stream_idle_timeout_ms)
    if exchange_response_head(w, x, m) < 0:
        return
    exchange_drop_kept(w, x)                     # also that of an upgrade: the client has its answer
    if end:
        _complete(w, e, x, NULL)


cdef inline void _complete(Worker *w, H2End *e, Exchange *x, Message *trailers) noexcept nogil:
    """The answer is whole. What the client still sends is nobody's any more."""
    e.flags |= E_IN_DONE
    exchange_response_end(w, x, trailers, False)


cdef inline void _data(H2 *h2, H2Stream *s, char *p, size_t n) noexcept nogil:
    cdef Worker *w = (<H2Conn *>h2).w
    cdef H2End *e = <H2End *>s
    cdef int r = 0
    if e.end.ex != NULL:
        r = exchange_response_data(w, e.end.ex, p, n)
        if r < 0:
            return
    h2_end_took(w, e, r)


cdef inline void _end(H2 *h2, H2Stream *s, Message *trailers) noexcept nogil:
    cdef H2End *e = <H2End *>s
    if e.end.ex != NULL:
        _complete((<H2Conn *>h2).w, e, e.end.ex, trailers)


cdef inline void _bad(H2 *h2, H2Stream *s, int reason) noexcept nogil:
    """What the endpoint sent is no answer, or goes on as none."""
    cdef Worker *w = (<H2Conn *>h2).w
    cdef H2End *e = <H2End *>s
    cdef Exchange *x = e.end.ex
    e.end.ex = NULL
    _drop(w, e, H2_PROTOCOL_ERROR)
    if x != NULL:
        exchange_upstream_failed(w, x, reason, True)


cdef inline void _closed(H2 *h2, H2Stream *s, uint32_t code, bint by_peer) noexcept nogil:
    cdef H2End *e = <H2End *>s
    # One that waited for the endpoint's limit when its GOAWAY came is over without having left.
    cdef bint sent = code != H2_REFUSED and not h2_sent_nothing(s)
    e.flags |= E_GONE
    if by_peer:
        (<H2Conn *>h2).w.row.counters[K_H2_RESETS_RECEIVED_UPSTREAM if sent else K_H2_REFUSED_UPSTREAM] += 1
    if e.end.ex != NULL and by_peer and sent:
        e.end.ex.reset = code
    _lost((<H2Conn *>h2).w, e, R_UPSTREAM_STREAM_REFUSED if not sent else R_UPSTREAM_STREAM_RESET, sent)


cdef inline void _writable(H2 *h2, H2Stream *s) noexcept nogil:
    cdef H2End *e = <H2End *>s
    if e.end.ex != NULL:
        exchange_writable((<H2Conn *>h2).w, e.end.ex, False)


cdef inline void _settings(H2 *h2) noexcept nogil:
    """The endpoint has said what it takes: those that waited for that go on."""
    cdef H2Conn *h = <H2Conn *>h2
    cdef Worker *w = h.w
    cdef Exchange *x
    while True:
        x = parked_next(w, &h.waiting)
        if x == NULL:
            return
        if h2_peer_extended(h2) != 1:
            exchange_upstream_failed(w, x, R_UPSTREAM_NO_UPGRADE, False)
        elif h2_client_usable(h) and h2_client_take(w, h, x) == 0:
            exchange_play(w, x)
        else:
            exchange_dial_again(w, x)


cdef inline void _goaway(H2 *h2, int32_t last, uint32_t code) noexcept nogil:
    """The endpoint takes no more requests here."""
    cdef H2Conn *h = <H2Conn *>h2
    h.w.row.counters[K_H2_GOAWAYS_RECEIVED_UPSTREAM] += 1
    _out_of_pool(h)
    if h.state == H2_OPEN:
        h.state = H2_LEFT


# ---------------------------------------------------------------- the connection

cdef inline void _fail_streams(Worker *w, H2Conn *h, int reason) noexcept nogil:
    """Its streams cannot go on."""
    cdef H2End *e
    cdef bint sent
    _fail_waiting(w, h, reason)
    while not list_empty(&h.streams):
        e = h2_end_of_node(h.streams.next)
        sent = not h2_sent_nothing(&e.s)
        h2_reset(&h.h2, &e.s, H2_CANCEL)         # the codec may outlive it
        e.flags |= E_GONE
        _lost(w, e, reason, sent)


cdef inline void _fail(Worker *w, H2Conn *h, int reason) noexcept nogil:
    """The connection cannot go on."""
    h2_conn_blame(w, h, reason, reason == R_UPSTREAM_H2_FLOOD)
    _out_of_pool(h)
    h.state = H2_LEFT
    _fail_streams(w, h, reason)
    if h.state != H2_DISCARD:
        h2_conn_end(w, h)


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    cdef int r
    if h.state == H2_DISCARD:
        if not h2_conn_discards(w, h, n):
            _destroy(w, h)
        return n
    h.h2.now_ms = w.now_ms
    r = h2_receive(&h.h2, p, n)
    if r < 0:
        _fail(w, h, -r)
        return n
    if h.pinged and h.nstreams > 0:
        h2_conn_watch(w, h)
    if h.state == H2_LEFT and h2_client_unused(h):
        _close(w, h)
    h2_conn_wake(w, h)
    return n


cdef inline bint _flush(Worker *w, Conn *c) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    cdef int r = h2_conn_pack(w, h)
    if r < 0:
        _fail(w, h, -r)
    return r > 0


cdef inline void _eof(Worker *w, Conn *c) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    _out_of_pool(h)
    h.state = H2_DISCARD
    _fail_streams(w, h, R_UPSTREAM_CLOSED)
    _destroy(w, h)


cdef inline void _error(Worker *w, Conn *c, int reason) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    _out_of_pool(h)
    h.state = H2_DISCARD
    _fail_streams(w, h, reason if reason else R_UPSTREAM_RESET)
    _destroy(w, h)


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    if h.state == H2_DISCARD:
        _destroy(w, h)
    elif h.nstreams == 0:
        _close(w, h)
    elif h2_conn_silent(w, h):
        _error(w, c, R_UPSTREAM_PING_TIMEOUT)


cdef inline void stream_timer(void *worker, Timer *t) noexcept nogil:
    """Nothing has moved on a stream for too long."""
    cdef Worker *w = <Worker *>worker
    cdef H2End *e = h2_end_of_timer(t)
    cdef Exchange *x = e.end.ex
    cdef int reason = R_STREAM_TIMEOUT
    if x == NULL:
        _drop(w, e, H2_CANCEL)                   # it does not take the rest of the request
        return
    if e.s.held:
        h2_end_timeout(w, e, e.idle_ms)          # the client is slow to read: its clock runs
        return
    if not x.flags & X_BYTE_SEEN:
        if not x.flags & X_REQ_DONE and not h2_end_backlog(e):
            h2_end_timeout(w, e, e.idle_ms)      # the client is still sending: its clock runs
            return
        reason = R_UPSTREAM_TIMEOUT
    e.end.ex = NULL
    _drop(w, e, H2_CANCEL)
    exchange_upstream_failed(w, x, reason, True)


# ---------------------------------------------------------------- the End

cdef inline int _end_head(Worker *w, End *end, Message *m) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    cdef H2Conn *h = e.on
    cdef Exchange *x = end.ex
    cdef H2Extra extra
    cdef int key
    cdef bint whole = m.whole or m.framing == FRAMING_NONE or (
        m.framing == FRAMING_LENGTH and m.length == 0 and not m.flags & MSG_HTTP2)
    if fm_unlikely(<size_t>m.head_len + 4096 + (x.client_cert.len if x.client_cert != NULL else 0)
                   > LINES_SCRATCH):
        return -R_NO_MEMORY
    memset(&extra, 0, sizeof(H2Extra))
    extra.lines = w.lines
    extra.lines_len = forwarded_fields(w.lines, x, m, &extra.skip)
    extra.skip |= <uint64_t>1 << F_HOST
    if x.conf.via:
        extra.via = x.version
    if m.authority.len == 0:
        extra.authority = x.service.name.ptr     # HTTP/1.0 without Host
        extra.authority_len = x.service.name.len
    if m.scheme.len > 0 and x.service.tls != TLS_PUBLIC:
        extra.scheme = m.base + m.scheme.at
        extra.scheme_len = m.scheme.len
    elif x.service.tls == TLS_PUBLIC:
        extra.scheme = b"https"
        extra.scheme_len = 5
    else:
        extra.scheme = b"http"
        extra.scheme_len = 4
    if x.flags & X_EXTENDED:
        whole = False
        if x.flags & X_UPGRADE:
            # RFC 8441 5: an Upgrade becomes an extended CONNECT; the key is HTTP/1.1's alone.
            extra.protocol = m.base + m.upgrade.at
            extra.protocol_len = m.upgrade.len
            key = http1_field_named(m, b"sec-websocket-key", 17)
            if key >= 0:
                m.fields[key].flags |= FIELD_HOP
                m.flags |= MSG_HAS_HOP
    if whole:
        e.flags |= E_OUT_DONE
    conn_dirty(w, h.conn)
    return h2_request(&h.h2, &e.s, m, &extra, whole)


cdef inline void _end_release(Worker *w, End *end) noexcept nogil:
    """Both messages went well; the stream ends once all of the request has left."""
    cdef H2End *e = h2_end_of(end)
    if e.flags & E_GONE:
        _free_end(w, e)
    else:
        h2_end_timeout(w, e, e.on.pool.idle_ms)


cdef inline void _end_abort(Worker *w, End *end, int reason, uint32_t code) noexcept nogil:
    _drop(w, h2_end_of(end), code if code else H2_CANCEL)


cdef inline void h2_client_init(ConnOps *ops, EndOps *end, H2Hooks *hooks) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=h2_conn_drained, on_error=_error, on_ready=h2_conn_ready,
        on_timer=_timer, on_flush=_flush, on_drain=NULL, on_expiry=NULL, idle=h2_conn_idle)
    end[0] = EndOps(
        head=_end_head, data=h2_end_data, finish=h2_end_finish, release=_end_release, abort=_end_abort,
        resume=h2_end_resume, raw=h2_end_none, detach=h2_end_none)
    hooks[0] = H2Hooks(
        open=_open, head=_head, data=_data, end=_end, bad=_bad, closed=_closed, writable=_writable,
        settings=_settings, goaway=_goaway)
