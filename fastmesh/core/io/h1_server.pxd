# HTTP/1.1 towards a client: the downstream End of an exchange (RFC 9112).
#
# One exchange at a time; further requests that arrive meanwhile stay in the connection's receive buffer and
# are answered in order. The H1Server owns its Conn; either ends with the other. A request that cannot be
# read is answered and the connection closed; what the client still sends then is thrown away for a bounded
# time, so that it can read our answer (RFC 9112 9.6).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmesh.core.base.buffer cimport queue_commit, queue_reserve
from fastmesh.core.base.reason cimport (
    R_BODY_TIMEOUT, R_DOWNSTREAM_CLOSED, R_HEADER_TIMEOUT, R_NO_MEMORY, R_STREAM_TIMEOUT,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.account cimport exchange_keep_log
from fastmesh.core.io.age cimport conn_suffices
from fastmesh.core.io.answer cimport answer
from fastmesh.core.io.connection cimport (
    conn_backlog, conn_close, conn_deadline, conn_end_output, conn_finish, conn_held_up, conn_pause,
    conn_queued_bytes, conn_resume, conn_resume_input, conn_timeout,
)
from fastmesh.core.io.connection_input cimport conn_input
from fastmesh.core.io.connection_output cimport conn_queued, conn_write_body
from fastmesh.core.io.downstream cimport (
    DRAIN_GRACE_MS, downstream_await, downstream_forget, downstream_free, downstream_intercepted, downstream_is_old,
)
from fastmesh.core.io.exchange cimport (
    exchange_begin, exchange_cut, exchange_downstream_failed, exchange_drop_kept, exchange_free, exchange_open,
    exchange_request_data, exchange_request_end, exchange_writable,
)
from fastmesh.core.io.flow cimport flow_free, flow_open, flow_possible
from fastmesh.core.io.h1_output cimport h1_chunk, h1_last_chunk
from fastmesh.core.io.h2_server cimport h2_server_open
from fastmesh.core.io.kept cimport message_of
from fastmesh.core.io.state cimport (
    C_BULK, C_CUT, C_DEAD, C_EOF_TOLD, C_LINGER, C_PAUSED, C_READABLE, C_TLS, C_TRUNCATED, C_TX_HIGH, Conn, ConnOps,
    Downstream, End, EndOps, Exchange, Flow, H1Server, H1_BODY, H1_DISCARD, H1_DONE, H1_HEAD, H1_TRAILERS,
    INPUT_SCRATCH, LINGER_BYTES, Listener, SPLICE_MIN, Worker, X_EXTENDED, X_UNPROVEN,
)
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.wire.http1 cimport http1_parse_request
from fastmesh.core.wire.http1_chunked cimport (
    HTTP1_DATA, HTTP1_END, HTTP1_MORE, Http1Chunked, http1_chunked, http1_parse_trailers,
)
from fastmesh.core.wire.http1_meaning cimport http1_field_named, http1_offers_http
from fastmesh.core.wire.http1_write cimport (
    http1_copy_fields, http1_copy_fields_skip, http1_has_field, http1_head_bound, http1_write_status_line,
    http1_write_upgrade, http1_write_via,
)
from fastmesh.core.wire.message cimport (
    FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, F_CONTENT_LENGTH, LENGTH_UNKNOWN,
    MSG_EXPECT_CONTINUE, MSG_HTTP10, MSG_HTTP2, MSG_KEEP_ALIVE, MSG_UPGRADE, M_CONNECT, M_HEAD, Message,
)
from fastmesh.core.wire.preface cimport PREFACE_HERE, PREFACE_MORE, preface_here
from fastmesh.core.wire.websocket cimport WEBSOCKET_ACCEPT, websocket_accept


cdef enum:
    SKIP_BYTES = 65536            # most of a body that is read away to keep the connection


cdef inline H1Server *h1_server_open(Worker *w, Conn *c, const Downstream *client) noexcept nogil:
    """Serve HTTP/1.1 on `c`; takes the references that `client` holds. NULL without memory: all stays the caller's."""
    cdef H1Server *h = <H1Server *>slab_get(&w.servers)
    if h == NULL:
        return NULL
    memset(h, 0, sizeof(H1Server))
    h.end.ops = &w.ops.server_end
    h.conn = c
    h.client = client[0]
    h.state = H1_HEAD
    c.owner = h
    c.ops = &w.ops.h1_server
    downstream_await(w, &h.client, c)
    return h


cdef inline void h1_server_expiry(Worker *w, Conn *c) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    if h.state == H1_HEAD and h.end.ex == NULL and h.conn.rx == NULL and not h.client.retired:
        downstream_await(w, &h.client, h.conn)


cdef inline void h1_server_destroy(Worker *w, H1Server *h) noexcept nogil:
    """Close the connection and free the codec. No exchange is attached any more."""
    if h.conn != NULL:
        conn_close(w, h.conn)
    downstream_free(w, &h.client)
    slab_put(&w.servers, h)


cdef inline void _linger(Worker *w, H1Server *h) noexcept nogil:
    """Close once the answer has left: half-close, throw away what still comes, until the client's end."""
    cdef Conn *c = h.conn
    conn_timeout(w, c, h.client.listener.conf.stream_idle_timeout_ms)    # for a client that does not take the answer
    if c.flags & C_EOF_TOLD:
        conn_finish(w, c)
        return
    h.state = H1_DISCARD
    h.left = 0
    c.flags |= C_LINGER
    conn_end_output(w, c)
    conn_resume(w, c)


cdef inline void _refuse(Worker *w, H1Server *h, int reason) noexcept nogil:
    """What the client sent is no request: say so and close."""
    cdef Exchange *x = exchange_open(w, NULL, h.client.listener, h.client.caller.facts.identity, &h.client.peer)
    if x != NULL:                               # for the counters and the access log
        x.reason = <uint16_t>reason
        x.status = w.reasons[reason].status
        x.version = 11
        exchange_keep_log(w, x, NULL)
        exchange_free(w, x)
    h.state = H1_HEAD
    h.keep_alive = 0
    h.head_only = 0
    h.http10 = 0
    answer(w, &h.end, NULL, reason)
    _linger(w, h)


# ---------------------------------------------------------------- input

cdef inline size_t h1_server_input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    cdef Exchange *x
    cdef size_t used = 0
    cdef size_t k
    cdef size_t got
    cdef const char *data
    cdef int r
    while True:
        if h.state == H1_HEAD:
            if used == n:
                return n
            if c.flags & C_TX_HIGH:             # it does not read its answers: no more requests until it does
                conn_pause(c)
                return used
            if fm_unlikely(not h.served) and h.client.listener.conf.http2:
                r = preface_here(p + used, n - used)
                if r == PREFACE_HERE:
                    _go_http2(w, h)
                    return n if c.flags & C_DEAD else used
                if r == PREFACE_MORE:
                    if c.idle_ms:
                        conn_deadline(w, c, h.client.listener.conf.header_timeout_ms)
                    return used
            r = http1_parse_request(p + used, n - used, &h.scan, &w.msg)
            if r <= 0:
                if r == 0:
                    if c.idle_ms:               # its first bytes: the clock of the whole head starts
                        conn_deadline(w, c, h.client.listener.conf.header_timeout_ms)
                    return used
                _refuse(w, h, -r)
                return n
            h.scan = 0
            used += r
            if not _begin(w, h):
                return n
        elif h.state == H1_BODY or h.state == H1_TRAILERS:
            if used == n:
                return n
            x = h.end.ex
            if x == NULL:
                used += _skip(w, h, p + used, n - used)
                if c.flags & C_DEAD:
                    return n
                if h.state == H1_BODY or h.state == H1_TRAILERS:
                    return used
                continue
            if h.state == H1_TRAILERS:
                r = http1_parse_trailers(p + used, n - used, &h.scan, &w.msg)
                if r == 0:
                    return used
                if r < 0:
                    h.keep_alive = 0
                    exchange_downstream_failed(w, x, -r)
                    return n
                used += r
                h.scan = 0
                c.flags &= ~<uint32_t>C_BULK
                h.state = H1_DONE
                exchange_request_end(w, x, &w.msg if w.msg.nfields else NULL)
            elif h.framing == FRAMING_CLOSE:
                r = exchange_request_data(w, x, p + used, n - used)
                if r > 0:
                    conn_pause(c)
                return n
            elif h.framing == FRAMING_LENGTH:
                k = n - used
                if k > h.left:
                    k = <size_t>h.left
                h.left -= k
                r = exchange_request_data(w, x, p + used, k)
                used += k
                if c.flags & C_DEAD:
                    return n
                if h.end.ex != x:
                    continue
                if h.left == 0:
                    c.flags &= ~<uint32_t>C_BULK
                    h.state = H1_DONE
                    exchange_request_end(w, x, NULL)
                elif r > 0:
                    conn_pause(c)
                    return used
                elif used == n:
                    _splice(w, h, x)
                    return n
            else:
                r = http1_chunked(&h.chunked, p + used, n - used, &k, &data, &got)
                used += k
                if r == HTTP1_DATA:
                    r = exchange_request_data(w, x, data, got)
                    if c.flags & C_DEAD:
                        return n
                    if h.end.ex != x:
                        continue
                    if r > 0:
                        conn_pause(c)
                        return used
                elif r == HTTP1_END:
                    h.state = H1_TRAILERS
                    h.scan = 0
                elif r < 0:
                    h.keep_alive = 0
                    exchange_downstream_failed(w, x, -r)
                    return n
                else:
                    return used
            if c.flags & C_DEAD:
                return n
        elif h.state == H1_DONE:
            if used < n:
                conn_pause(c)                   # the next request waits for this one's answer
            return used
        else:                                   # H1_DISCARD
            h.left += n - used
            if h.left > LINGER_BYTES:
                c.flags |= C_CUT
                h1_server_destroy(w, h)
            return n


cdef inline void _go_http2(Worker *w, H1Server *h) noexcept nogil:
    """The client begins with HTTP/2's preface (RFC 9113 3.3): it gets the codec for it."""
    if h2_server_open(w, h.conn, &h.client) == NULL:
        h1_server_destroy(w, h)
    else:
        slab_put(&w.servers, h)


cdef inline size_t _skip(Worker *w, H1Server *h, const char *p, size_t n) noexcept nogil:
    """Read away what is left of the body of a request that has been answered. How many bytes were taken."""
    cdef size_t used = 0
    cdef size_t k
    cdef size_t got
    cdef const char *data
    cdef int r
    if h.framing == FRAMING_LENGTH:
        used = n if n < h.left else <size_t>h.left
        h.left -= used
        if h.left > 0:
            return used
    else:
        while h.state == H1_BODY:
            r = http1_chunked(&h.chunked, p + used, n - used, &k, &data, &got)
            used += k
            h.left += got if r == HTTP1_DATA else 0
            if r < 0 or h.left > SKIP_BYTES:
                _linger(w, h)
                return n
            if r == HTTP1_MORE:
                return used
            if r == HTTP1_END:
                h.state = H1_TRAILERS
                h.scan = 0
        r = http1_parse_trailers(p + used, n - used, &h.scan, &w.msg)
        if r < 0:
            _linger(w, h)
            return n
        if r == 0:
            return used
        used += r
    h.scan = 0
    h.state = H1_HEAD
    h.conn.flags &= ~<uint32_t>C_BULK
    downstream_await(w, &h.client, h.conn)
    return used


cdef inline bint _begin(Worker *w, H1Server *h) noexcept nogil:
    """A whole head is in w.msg: start its exchange. False: the connection is gone."""
    cdef Conn *c = h.conn
    cdef Message *m = &w.msg
    cdef Exchange *x
    cdef Listener *l = h.client.listener
    cdef bint unproven = not conn_suffices(l.conf, c)
    h.served = 1
    h.framing = m.framing
    h.head_only = m.method == M_HEAD
    h.http10 = 1 if m.flags & MSG_HTTP10 else 0
    h.expects = 1 if m.flags & MSG_EXPECT_CONTINUE else 0
    # A CONNECT that is refused: what its client has sent behind it was meant for the tunnel.
    h.keep_alive = 1 if m.flags & MSG_KEEP_ALIVE and m.method != M_CONNECT and not w.draining else 0
    if fm_unlikely(unproven):
        h.keep_alive = 0
    h.out_framing = FRAMING_NONE
    if fm_unlikely(m.flags & MSG_UPGRADE) and http1_offers_http(m.base + m.upgrade.at, m.upgrade.len):
        # Requests inside a tunnel would pass no rule and no route. The offer ends here (RFC 9110 7.8).
        m.flags &= ~<uint8_t>MSG_UPGRADE
    if m.framing == FRAMING_NONE or (m.framing == FRAMING_LENGTH and m.length == 0):
        h.state = H1_DONE
    else:
        h.state = H1_BODY
        h.left = m.length
        memset(&h.chunked, 0, sizeof(Http1Chunked))
        if m.framing == FRAMING_CHUNKED or m.length >= INPUT_SCRATCH:
            c.flags |= C_BULK
    conn_timeout(w, c, l.conf.stream_idle_timeout_ms)
    x = exchange_open(w, &h.end, l, h.client.caller.facts.identity, &h.client.peer)
    if fm_unlikely(x == NULL):
        c.flags |= C_CUT
        h1_server_destroy(w, h)
        return False
    if fm_unlikely(unproven):
        x.flags |= X_UNPROVEN
    x.secure = 1 if c.flags & C_TLS else 0
    x.client_cert = h.client.client_cert
    downstream_intercepted(&h.client, c)
    exchange_begin(w, x, m, &h.client.caller)
    if c.flags & C_DEAD:
        return False
    if h.end.ex == x and h.state == H1_DONE and not x.flags & X_EXTENDED:
        exchange_request_end(w, x, NULL)
    return not c.flags & C_DEAD


cdef inline void _spliced(Worker *w, Flow *f, int reason) noexcept nogil:
    """A long request body has been moved, or its client has gone."""
    cdef H1Server *h = <H1Server *>f.owner
    cdef Conn *c = h.conn
    cdef Exchange *x = h.end.ex
    x.bytes_in += f.moved
    h.left = f.left
    flow_free(w, f)
    if h.left > 0:
        h.keep_alive = 0
        exchange_downstream_failed(w, x, R_DOWNSTREAM_CLOSED)
    else:
        c.flags &= ~<uint32_t>C_BULK
        h.state = H1_DONE
        exchange_request_end(w, x, NULL)
    if not c.flags & C_DEAD:
        conn_resume_input(w, c)


cdef inline void _splice(Worker *w, H1Server *h, Exchange *x) noexcept nogil:
    """Let the kernel move the rest of a long body where both sides are plaintext."""
    cdef Conn *up
    if h.left < SPLICE_MIN or x.up == NULL or h.conn.flags & C_TLS:
        return
    up = x.up.ops.raw(w, x.up)
    if flow_possible(h.conn, up):
        if flow_open(w, h.conn, up, h.left, h, _spliced) != NULL:
            exchange_drop_kept(w, x)          # nobody sees what goes now
            h.left = LENGTH_UNKNOWN             # until it ends only the flow knows


cdef inline void h1_server_eof(Worker *w, Conn *c) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    if h.end.ex != NULL and h.state == H1_BODY and h.framing == FRAMING_CLOSE and not c.flags & C_TRUNCATED:
        h.state = H1_DONE
        exchange_request_end(w, h.end.ex, NULL)
    elif h.end.ex != NULL and (h.state == H1_BODY or h.state == H1_TRAILERS):
        h.keep_alive = 0
        exchange_downstream_failed(w, h.end.ex, R_DOWNSTREAM_CLOSED)
    elif h.state == H1_DONE:
        h.keep_alive = 0                        # it has shut its side and waits for the answer
    elif conn_queued_bytes(c) == 0:
        h1_server_destroy(w, h)
    else:
        conn_finish(w, c)                       # it still waits for answers


cdef inline void h1_server_error(Worker *w, Conn *c, int reason) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    cdef Exchange *x = h.end.ex
    if x != NULL:
        exchange_cut(w, x, reason)              # the End is aborted, which destroys h
    else:
        if reason and h.state != H1_DISCARD and (c.rx != NULL or h.state != H1_HEAD):
            w.row.reasons[reason] += 1
        h1_server_destroy(w, h)


cdef inline void h1_server_drained(Worker *w, Conn *c) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    if h.end.ex != NULL:
        exchange_writable(w, h.end.ex, True)
    else:
        conn_resume(w, c)                       # the next request, or what is read away


cdef inline void h1_server_timer(Worker *w, Conn *c) noexcept nogil:
    cdef H1Server *h = <H1Server *>c.owner
    if h.state == H1_HEAD:
        if c.rx != NULL and not c.flags & C_PAUSED:
            _refuse(w, h, R_HEADER_TIMEOUT)
        elif not h.client.retired and downstream_is_old(w, &h.client, c):
            conn_timeout(w, c, DRAIN_GRACE_MS)  # a request may be on its way: it is served
        else:
            h1_server_destroy(w, h)
    elif h.state == H1_DISCARD or h.end.ex == NULL:
        h1_server_destroy(w, h)
    elif conn_backlog(c):
        exchange_cut(w, h.end.ex, R_STREAM_TIMEOUT)  # it does not read what it asked for
    elif h.state == H1_DONE or conn_held_up(c):
        conn_timeout(w, c, h.client.listener.conf.stream_idle_timeout_ms)   # the endpoint's turn: its own clock runs
    else:
        h.keep_alive = 0
        exchange_downstream_failed(w, h.end.ex, R_BODY_TIMEOUT)


cdef inline void h1_server_ready(Worker *w, Conn *c) noexcept nogil:
    pass                                        # never: a server's connection is ready before it has a codec


# ---------------------------------------------------------------- the End

cdef inline int _switch(Worker *w, H1Server *h, Exchange *x, Message *m) noexcept nogil:
    """An endpoint has said yes to the extended CONNECT that an Upgrade became (RFC 8441 5): tell the client so, and pass
    bytes as they are from here on."""
    cdef Message *asked = message_of(x.kept.head)
    cdef int key = http1_field_named(asked, b"sec-websocket-key", 17)
    cdef Conn *c = h.conn
    cdef size_t n
    cdef char *p = queue_reserve(&w.pool, &c.tx, http1_head_bound(m, asked.upgrade.len + 192))
    if p == NULL:
        return -R_NO_MEMORY
    memcpy(p, b"HTTP/1.1 101 Switching Protocols\r\n", 34)
    n = 34 + http1_copy_fields_skip(p + 34, m, <uint64_t>1 << F_CONTENT_LENGTH)
    n += http1_write_upgrade(p + n, asked)
    if key >= 0 and websocket_accept(
            p + n + 22, asked.base + asked.fields[key].value_at, asked.fields[key].value_len):
        memcpy(p + n, b"sec-websocket-accept: ", 22)
        memcpy(p + n + 22 + WEBSOCKET_ACCEPT, b"\r\n", 2)
        n += 24 + WEBSOCKET_ACCEPT
    memcpy(p + n, b"\r\n", 2)
    queue_commit(&c.tx, n + 2)
    x.status = 101
    exchange_drop_kept(w, x)
    h.keep_alive = 0
    h.out_framing = FRAMING_CLOSE
    h.framing = FRAMING_CLOSE
    h.state = H1_BODY
    c.flags |= C_BULK
    conn_timeout(w, c, x.conf.tcp_idle_timeout_ms)
    conn_resume(w, c)
    return conn_queued(w, c)


cdef inline int _end_head(Worker *w, End *e, Message *m) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    cdef Conn *c = h.conn
    cdef size_t n
    cdef char *p = queue_reserve(&w.pool, &c.tx, http1_head_bound(m, 128))
    if fm_unlikely(p == NULL):
        return -R_NO_MEMORY
    if fm_unlikely(e.ex != NULL and e.ex.flags & X_EXTENDED) and m.status // 100 == 2:
        return _switch(w, h, e.ex, m)
    n = http1_write_status_line(p, m)
    n += http1_copy_fields(p + n, m)
    if m.upgrade.len > 0:                       # 101, 426
        n += http1_write_upgrade(p + n, m)
    if m.status >= 200:
        h.out_framing = m.framing
        if m.framing == FRAMING_CHUNKED or m.framing == FRAMING_CLOSE:
            if h.http10:
                h.out_framing = FRAMING_CLOSE
                h.keep_alive = 0
            else:
                h.out_framing = FRAMING_CHUNKED
                memcpy(p + n, b"transfer-encoding: chunked\r\n", 28)
                n += 28
        elif fm_unlikely(m.whole and m.framing == FRAMING_LENGTH and not http1_has_field(m, F_CONTENT_LENGTH)):
            memcpy(p + n, b"content-length: 0\r\n", 19)
            n += 19
        if (w.draining or downstream_is_old(w, &h.client, c)
                or (h.state == H1_BODY or h.state == H1_TRAILERS) and not _rest_is_worth_it(w, h, m)):
            h.keep_alive = 0
        if m != &w.answer and h.client.listener.conf.via:
            n += http1_write_via(
                p + n, 20 if m.flags & MSG_HTTP2 else 10 if m.flags & MSG_HTTP10 else 11)
        if not h.keep_alive:
            memcpy(p + n, b"connection: close\r\n", 19)
            n += 19
        elif h.http10:
            memcpy(p + n, b"connection: keep-alive\r\n", 24)
            n += 24
    memcpy(p + n, b"\r\n", 2)
    queue_commit(&c.tx, n + 2)
    return conn_queued(w, c)


cdef inline bint _rest_is_worth_it(Worker *w, H1Server *h, Message *m) noexcept nogil:
    """A final answer goes out while the request's body still comes: can the connection serve another?

    Not if the endpoint will not read on, if the client may keep the body to itself (RFC 9110 10.1.1), or,
    with our own answer or one of HTTP/2, behind which the endpoint gets no more of the request, if reading the rest
    away costs more than a new connection.
    """
    if not m.flags & MSG_KEEP_ALIVE or h.expects:
        return False
    return (m != &w.answer and not m.flags & MSG_HTTP2) or h.framing == FRAMING_CHUNKED or h.left <= SKIP_BYTES


cdef inline int _end_data(Worker *w, End *e, const char *p, size_t n) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    if n == 0 or h.head_only or h.out_framing == FRAMING_NONE:
        return 0
    if h.out_framing == FRAMING_CHUNKED:
        return h1_chunk(w, h.conn, p, n)
    return conn_write_body(w, h.conn, p, n)


cdef inline int _end_finish(Worker *w, End *e, Message *trailers) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    cdef int r
    if h.out_framing == FRAMING_CHUNKED and not h.head_only:
        r = h1_last_chunk(w, h.conn, trailers)
        if r < 0:
            return r
    # A final answer instead of 100: the client keeps the body to itself (RFC 9110 10.1.1), and waits for the
    # close that the answer has told of.
    return 1 if h.expects and h.state == H1_BODY and e.ex.bytes_in == 0 else 0


cdef inline void _end_release(Worker *w, End *e) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    cdef Conn *c = h.conn
    if c.flow_in != NULL:
        h.left = c.flow_in.left
        flow_free(w, c.flow_in)
    if not h.keep_alive or (h.state != H1_DONE and h.framing == FRAMING_LENGTH and h.left > SKIP_BYTES):
        c.flags &= ~<uint32_t>C_BULK
        _linger(w, h)
        return
    if h.state == H1_DONE:
        h.state = H1_HEAD
        downstream_await(w, &h.client, h.conn)
    elif h.framing == FRAMING_CHUNKED:
        h.left = 0                              # counts what is read away
    if not c.flags & C_TX_HIGH:
        conn_resume(w, c)


cdef inline void _end_abort(Worker *w, End *e, int reason, uint32_t code) noexcept nogil:
    """The response is not whole: a reset tells the client so even where its framing would not."""
    cdef H1Server *h = <H1Server *>e
    h.conn.flags |= C_CUT
    h1_server_destroy(w, h)


cdef inline void _end_resume(Worker *w, End *e) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    if h.state == H1_BODY:
        conn_resume(w, h.conn)


cdef inline Conn *_end_raw(Worker *w, End *e) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    return h.conn if h.out_framing == FRAMING_LENGTH and not h.head_only else NULL


cdef inline Conn *_end_detach(Worker *w, End *e) noexcept nogil:
    cdef H1Server *h = <H1Server *>e
    cdef Conn *c = h.conn
    c.owner = NULL
    c.ops = NULL
    e.ex.client_cert = NULL
    downstream_forget(w, &h.client)
    slab_put(&w.servers, h)
    return c


cdef inline void h1_server_drain(Worker *w, Conn *c) noexcept nogil:
    """The worker drains: an idle connection closes, a busy one after its exchange."""
    cdef H1Server *h
    c.flags |= C_READABLE
    if not c.flags & C_PAUSED:
        conn_input(w, c)                        # a request may wait unread: it is served
    if c.flags & C_DEAD or c.ops != &w.ops.h1_server:
        return
    h = <H1Server *>c.owner
    h.keep_alive = 0
    if h.state == H1_HEAD and h.end.ex == NULL and c.rx == NULL:
        conn_deadline(w, c, DRAIN_GRACE_MS)     # a request may be on its way: it is served


cdef inline bint h1_server_idle(Conn *c) noexcept nogil:
    return (<H1Server *>c.owner).end.ex == NULL


cdef inline void h1_server_init(ConnOps *ops, EndOps *end) noexcept nogil:
    ops[0] = ConnOps(
        on_input=h1_server_input, on_eof=h1_server_eof, on_drained=h1_server_drained, on_error=h1_server_error,
        on_ready=h1_server_ready, on_timer=h1_server_timer, on_flush=NULL, on_drain=h1_server_drain,
        on_expiry=h1_server_expiry, idle=h1_server_idle)
    end[0] = EndOps(
        head=_end_head, data=_end_data, finish=_end_finish, release=_end_release, abort=_end_abort,
        resume=_end_resume, raw=_end_raw, detach=_end_detach)
