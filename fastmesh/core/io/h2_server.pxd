# HTTP/2 towards clients: the downstream End of an exchange is a stream (RFC 9113).
#
# What cannot be read as a request is answered where the stream allows it (RFC 9113 8.1.1), and reset. An answer
# that is whole before the request is ends the stream with NO_ERROR (8.1). A client's connection is counted at its
# listener until it closes.

from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmesh.core.base.list cimport list_empty
from fastmesh.core.base.reason cimport (
    R_BODY_TIMEOUT, R_DEADLINE, R_DOWNSTREAM_CLOSED, R_DOWNSTREAM_RESET, R_H2_OUTPUT_FLOOD, R_H2_PING_TIMEOUT,
    R_H2_RESET_FLOOD, R_HEADER_TIMEOUT, R_NONE, R_STREAM_RESET, R_STREAM_TIMEOUT, SIDE_DOWNSTREAM,
)
from fastmesh.core.base.timer cimport Timer
from fastmesh.core.io.account cimport exchange_keep_log
from fastmesh.core.io.age cimport conn_suffices
from fastmesh.core.io.answer cimport answer
from fastmesh.core.io.connection cimport conn_deadline, conn_dirty
from fastmesh.core.io.connection_input cimport conn_input
from fastmesh.core.io.downstream cimport (
    downstream_await, downstream_free, downstream_intercepted, downstream_is_old,
)
from fastmesh.core.io.exchange cimport (
    exchange_begin, exchange_cut, exchange_downstream_failed, exchange_free,
    exchange_open, exchange_request_data, exchange_request_end, exchange_writable,
)
from fastmesh.core.io.h2_conn cimport (
    h2_conn_blame, h2_conn_discards, h2_conn_drained, h2_conn_end, h2_conn_free, h2_conn_idle, h2_conn_leave,
    h2_conn_left, h2_conn_new, h2_conn_pack, h2_conn_ready, h2_conn_silent, h2_conn_wake, h2_conn_watch,
    h2_end_backlog, h2_end_data, h2_end_drop, h2_end_finish, h2_end_free, h2_end_new, h2_end_none, h2_end_of,
    h2_end_of_node, h2_end_of_timer, h2_end_resume, h2_end_timeout, h2_end_took,
)
from fastmesh.core.io.state cimport (
    C_CUT, C_DEAD, C_READABLE, C_TLS, Conn, ConnOps, Downstream, E_BAD, E_EXPECTS, E_GONE, E_HEAD_ONLY, E_IN_DONE,
    E_OUT_DONE, End, EndOps, Exchange, H2Conn, H2End, H2_DISCARD, H2_LEFT, H2_OPEN, Listener, Worker, X_EXTENDED,
    X_UNPROVEN,
)
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.counters cimport (
    K_H2_GOAWAYS_RECEIVED_DOWNSTREAM, K_H2_REFUSED_DOWNSTREAM, K_H2_RESETS_RECEIVED_DOWNSTREAM,
    K_H2_RESETS_SENT_DOWNSTREAM,
)
from fastmesh.core.wire.http2_receive cimport h2_block_of, h2_receive
from fastmesh.core.wire.http2_send cimport h2_reset, h2_reset_behind, h2_respond
from fastmesh.core.wire.http2_state cimport (
    H2, H2Extra, H2Hooks, H2Stream, H2_CANCEL, H2_INTERNAL_ERROR, H2_NO_ERROR, H2_PROTOCOL_ERROR, H2_SERVER,
)
from fastmesh.core.wire.message cimport (
    FRAMING_LENGTH, FRAMING_NONE, MSG_EXPECT_CONTINUE, MSG_HTTP10, MSG_HTTP2, M_HEAD, Message,
)


cdef inline H2Conn *h2_server_open(Worker *w, Conn *c, const Downstream *client) noexcept nogil:
    """Serve HTTP/2 on `c`; takes the references that `client` holds. NULL without memory: all stays the caller's."""
    cdef H2Conn *h = h2_conn_new(
        w, c, H2_SERVER, client.listener.conf.h2_max_streams, &w.ops.h2_server_hooks)
    if h == NULL:
        return NULL
    h.client = client[0]
    h.ping_ms = client.listener.conf.h2_ping_ms
    h.ping_timeout_ms = client.listener.conf.h2_ping_timeout_ms
    c.owner = h
    c.ops = &w.ops.h2_server
    conn_deadline(w, c, client.listener.conf.header_timeout_ms)     # for its preface
    h.heading = 1
    if w.draining or client.retired:
        h2_conn_leave(w, h)                      # it was on its way when the drain began, as its requests may be
    return h


cdef inline void _destroy(Worker *w, H2Conn *h) noexcept nogil:
    downstream_free(w, &h.client)
    h2_conn_free(w, h)


cdef inline void _fail_streams(Worker *w, H2Conn *h, int reason) noexcept nogil:
    """Its streams cannot go on."""
    cdef H2End *e
    while not list_empty(&h.streams):
        e = h2_end_of_node(h.streams.next)
        h2_reset(&h.h2, &e.s, H2_CANCEL)         # the codec may outlive it
        e.flags |= E_GONE
        if e.end.ex != NULL:
            exchange_downstream_failed(w, e.end.ex, reason)     # its End is let go of, and freed
        else:
            h2_end_free(w, e)


cdef inline void _idle(Worker *w, H2Conn *h) noexcept nogil:
    """No stream is left."""
    if h.state == H2_LEFT:
        h2_conn_end(w, h)
    elif h.state != H2_DISCARD and not h.heading:
        downstream_await(w, &h.client, h.conn)


cdef inline void _free_end(Worker *w, H2End *e) noexcept nogil:
    cdef H2Conn *h = e.on
    h2_end_free(w, e)
    if h.nstreams == 0:
        _idle(w, h)


cdef inline void _drop(Worker *w, H2End *e, uint32_t code) noexcept nogil:
    """Reset a stream that no exchange has any more."""
    cdef H2Conn *h = e.on
    h2_end_drop(w, e, code)
    if h.nstreams == 0:
        _idle(w, h)


# ---------------------------------------------------------------- what the codec tells

cdef inline H2Stream *_open(H2 *h2) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>h2
    cdef Worker *w = h.w
    cdef H2End *e
    if h.state >= H2_LEFT:
        w.row.counters[K_H2_REFUSED_DOWNSTREAM] += 1
        return NULL
    e = h2_end_new(w, h, &w.ops.h2_server_end, stream_timer)
    if e == NULL:
        return NULL
    if h.nstreams == 1 and not h.heading:        # the clock of a head goes on until that is whole
        h2_conn_watch(w, h)
    return &e.s


cdef inline void _head(H2 *h2, H2Stream *s, Message *m, bint end) noexcept nogil:
    """A request."""
    cdef H2Conn *h = <H2Conn *>h2
    cdef Worker *w = h.w
    cdef H2End *e = <H2End *>s
    cdef Listener *l = h.client.listener
    cdef Exchange *x
    if m.method == M_HEAD:
        e.flags |= E_HEAD_ONLY
    if m.flags & MSG_EXPECT_CONTINUE:
        e.flags |= E_EXPECTS
    m.whole = end
    if end:
        e.flags |= E_IN_DONE
    h2_end_timeout(w, e, l.conf.stream_idle_timeout_ms)
    x = exchange_open(w, &e.end, l, h.client.caller.facts.identity, &h.client.peer)
    if fm_unlikely(x == NULL):
        _drop(w, e, H2_INTERNAL_ERROR)
        return
    if fm_unlikely(not conn_suffices(l.conf, h.conn)):
        x.flags |= X_UNPROVEN
        h2_conn_leave(w, h)
    elif h.state == H2_OPEN and downstream_is_old(w, &h.client, h.conn):
        h2_conn_leave(w, h)
    x.secure = 1 if h.conn.flags & C_TLS else 0
    x.client_cert = h.client.client_cert
    downstream_intercepted(&h.client, h.conn)
    exchange_begin(w, x, m, &h.client.caller)
    if end and e.end.ex == x:
        exchange_request_end(w, x, NULL)


cdef inline void _data(H2 *h2, H2Stream *s, char *p, size_t n) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>h2
    cdef H2End *e = <H2End *>s
    cdef int r = 0
    if e.end.ex != NULL:
        r = exchange_request_data(h.w, e.end.ex, p, n)
        if r < 0:
            return                               # the exchange has ended, and the stream may have with it
    h2_end_took(h.w, e, r)


cdef inline void _end(H2 *h2, H2Stream *s, Message *trailers) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>h2
    cdef H2End *e = <H2End *>s
    e.flags |= E_IN_DONE
    if e.end.ex != NULL:
        exchange_request_end(h.w, e.end.ex, trailers)


cdef inline void _bad(H2 *h2, H2Stream *s, int reason) noexcept nogil:
    """What the client sent is no request, or goes on as none."""
    cdef H2Conn *h = <H2Conn *>h2
    cdef Worker *w = h.w
    cdef H2End *e = <H2End *>s
    cdef Exchange *x = e.end.ex
    e.flags |= E_BAD
    if x != NULL:
        exchange_downstream_failed(w, x, reason)
        return
    x = exchange_open(w, NULL, h.client.listener, h.client.caller.facts.identity, &h.client.peer)
    if x != NULL:                               # for the counters and the access log
        x.reason = <uint16_t>reason
        x.status = w.reasons[reason].status
        x.version = 20
        exchange_keep_log(w, x, NULL)
        exchange_free(w, x)
    if w.reasons[reason].status == 0 or answer(w, &e.end, NULL, reason) < 0:
        _drop(w, e, H2_PROTOCOL_ERROR)
        return
    h2_end_timeout(w, e, h.client.listener.conf.stream_idle_timeout_ms)
    h2_reset_behind(&h.h2, &e.s, H2_PROTOCOL_ERROR)
    w.row.counters[K_H2_RESETS_SENT_DOWNSTREAM] += 1
    conn_dirty(w, h.conn)


cdef inline void _closed(H2 *h2, H2Stream *s, uint32_t code, bint by_peer) noexcept nogil:
    """The stream is over."""
    cdef H2Conn *h = <H2Conn *>h2
    cdef Worker *w = h.w
    cdef H2End *e = <H2End *>s
    cdef Exchange *x = e.end.ex
    e.flags |= E_GONE
    if by_peer:
        w.row.counters[K_H2_RESETS_RECEIVED_DOWNSTREAM] += 1
    if x == NULL:
        _free_end(w, e)
        return
    if by_peer:
        x.reset = code
    exchange_downstream_failed(w, x, R_STREAM_RESET)
    # its End was let go of, and is freed


cdef inline void _writable(H2 *h2, H2Stream *s) noexcept nogil:
    cdef H2End *e = <H2End *>s
    if e.end.ex != NULL:
        exchange_writable((<H2Conn *>h2).w, e.end.ex, True)


cdef inline void _settings(H2 *h2) noexcept nogil:
    pass


cdef inline void _goaway(H2 *h2, int32_t last, uint32_t code) noexcept nogil:
    """The client will open no more streams."""
    cdef H2Conn *h = <H2Conn *>h2
    h.w.row.counters[K_H2_GOAWAYS_RECEIVED_DOWNSTREAM] += 1
    if h.state < H2_LEFT:
        h.state = H2_LEFT


# ---------------------------------------------------------------- the connection

cdef inline void _fail(Worker *w, H2Conn *h, int reason) noexcept nogil:
    """The connection cannot go on."""
    h2_conn_blame(w, h, reason, R_H2_RESET_FLOOD <= reason <= R_H2_OUTPUT_FLOOD)
    _fail_streams(w, h, R_DOWNSTREAM_RESET)
    h2_conn_end(w, h)


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    cdef uint32_t block
    cdef int r
    if h.state == H2_DISCARD:
        if not h2_conn_discards(w, h, n):
            c.flags |= C_CUT
            _destroy(w, h)
        return n
    h.h2.now_ms = w.now_ms
    r = h2_receive(&h.h2, p, n)
    if r < 0:
        _fail(w, h, -r)
        return n
    block = h2_block_of(&h.h2) if h.state != H2_DISCARD else 0
    if block:
        if h.heading != block:
            h.heading = block
            conn_deadline(w, c, h.client.listener.conf.header_timeout_ms)
    elif h.heading or h.pinged:
        h.heading = 0
        if h.nstreams > 0:
            h2_conn_watch(w, h)
        elif h.state < H2_LEFT:
            downstream_await(w, &h.client, c)
    if h.state == H2_LEFT and h.nstreams == 0:
        h2_conn_end(w, h)
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
    _fail_streams(w, h, R_DOWNSTREAM_CLOSED)
    _destroy(w, h)


cdef inline void _error(Worker *w, Conn *c, int reason) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    if reason and h.state != H2_DISCARD and h.nstreams == 0 and h.heading:
        w.row.reasons[reason] += 1
    _fail_streams(w, h, reason if reason else R_DOWNSTREAM_RESET)
    _destroy(w, h)


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    if h.state == H2_DISCARD:
        _destroy(w, h)
    elif h.heading:
        w.row.reasons[R_HEADER_TIMEOUT] += 1
        _fail_streams(w, h, R_DOWNSTREAM_RESET)
        h2_conn_left(w, h)
    elif h.nstreams == 0:
        downstream_is_old(w, &h.client, c)
        h2_conn_leave(w, h)
        if h.state == H2_LEFT:
            h2_conn_end(w, h)
    elif h2_conn_silent(w, h):
        c.flags |= C_CUT
        w.row.reasons[R_H2_PING_TIMEOUT] += 1
        _fail_streams(w, h, R_DOWNSTREAM_RESET)
        _destroy(w, h)


cdef inline void _expiry(Worker *w, Conn *c) noexcept nogil:
    cdef H2Conn *h = <H2Conn *>c.owner
    if h.nstreams == 0 and not h.heading and h.state == H2_OPEN:
        downstream_await(w, &h.client, c)


cdef inline void _drain(Worker *w, Conn *c) noexcept nogil:
    c.flags |= C_READABLE
    conn_input(w, c)                             # requests may wait unread: they are served
    if not c.flags & C_DEAD:
        h2_conn_leave(w, <H2Conn *>c.owner)


cdef inline void stream_timer(void *worker, Timer *t) noexcept nogil:
    """Nothing has moved on a stream for too long."""
    cdef Worker *w = <Worker *>worker
    cdef H2End *e = h2_end_of_timer(t)
    if e.end.ex == NULL:
        _drop(w, e, H2_CANCEL)                   # it does not take the rest of its answer
    elif h2_end_backlog(e):
        exchange_cut(w, e.end.ex, R_STREAM_TIMEOUT)
    elif e.flags & E_IN_DONE or e.s.held:
        h2_end_timeout(w, e, e.idle_ms)          # the endpoint's turn: its own clock runs
    else:
        exchange_downstream_failed(w, e.end.ex, R_BODY_TIMEOUT)


# ---------------------------------------------------------------- the End

cdef inline int _end_head(Worker *w, End *end, Message *m) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    cdef H2Conn *h = e.on
    cdef H2Extra extra
    cdef bint tunnel = end.ex != NULL and end.ex.flags & X_EXTENDED and m.status // 100 == 2
    # Where the endpoint speaks HTTP/2 its END_STREAM decides, with or without content: a stream that ended before it
    # would end the exchange as one that its client has left.
    cdef bint whole = m.status >= 200 and not tunnel and (m.whole or not m.flags & MSG_HTTP2 and (
        e.flags & E_HEAD_ONLY or m.framing == FRAMING_NONE or m.framing == FRAMING_LENGTH and m.length == 0))
    if e.flags & E_GONE:
        return 0
    memset(&extra, 0, sizeof(H2Extra))
    if m != &w.answer and h.client.listener.conf.via and m.status >= 200:
        extra.via = 20 if m.flags & MSG_HTTP2 else 10 if m.flags & MSG_HTTP10 else 11
    if whole:
        e.flags |= E_OUT_DONE
    h2_end_timeout(w, e, h.client.listener.conf.tcp_idle_timeout_ms if tunnel
                   else h.client.listener.conf.stream_idle_timeout_ms)
    conn_dirty(w, h.conn)
    return h2_respond(&h.h2, &e.s, m, &extra, whole)


cdef inline int _end_finish(Worker *w, End *end, Message *trailers) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    cdef int r = h2_end_finish(w, end, trailers)
    if r < 0:
        return r
    # A final answer instead of 100: the client keeps the body to itself (RFC 9110 10.1.1).
    return 1 if e.flags & E_EXPECTS and not e.flags & E_IN_DONE and end.ex != NULL and end.ex.bytes_in == 0 else 0


cdef inline void _end_release(Worker *w, End *end) noexcept nogil:
    """The answer is whole."""
    cdef H2End *e = h2_end_of(end)
    if e.flags & E_GONE:
        _free_end(w, e)
        return
    h2_end_timeout(w, e, e.on.client.listener.conf.stream_idle_timeout_ms)
    if not e.flags & E_IN_DONE:
        h2_reset_behind(&e.on.h2, &e.s, H2_PROTOCOL_ERROR if e.flags & E_BAD else H2_NO_ERROR)
        w.row.counters[K_H2_RESETS_SENT_DOWNSTREAM] += 1
    conn_dirty(w, e.on.conn)


cdef inline void _end_abort(Worker *w, End *end, int reason, uint32_t code) noexcept nogil:
    """The answer is not whole, and the client must see that."""
    _drop(w, h2_end_of(end), code if code else _code(w, reason))


cdef inline uint32_t _code(Worker *w, int reason) noexcept nogil:
    """The error code of a reset for `reason`."""
    if reason == R_NONE:
        return H2_NO_ERROR
    if reason == R_STREAM_TIMEOUT or reason == R_BODY_TIMEOUT or reason == R_DEADLINE:
        return H2_CANCEL
    return H2_PROTOCOL_ERROR if w.reasons[reason].side == SIDE_DOWNSTREAM else H2_INTERNAL_ERROR


cdef inline void h2_server_init(ConnOps *ops, EndOps *end, H2Hooks *hooks) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=h2_conn_drained, on_error=_error, on_ready=h2_conn_ready,
        on_timer=_timer, on_flush=_flush, on_drain=_drain, on_expiry=_expiry, idle=h2_conn_idle)
    end[0] = EndOps(
        head=_end_head, data=h2_end_data, finish=_end_finish, release=_end_release, abort=_end_abort,
        resume=h2_end_resume, raw=h2_end_none, detach=h2_end_none)
    hooks[0] = H2Hooks(
        open=_open, head=_head, data=_data, end=_end, bad=_bad, closed=_closed, writable=_writable,
        settings=_settings, goaway=_goaway)
