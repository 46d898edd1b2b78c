# HTTP/1.1 towards an endpoint: the upstream End of an exchange (RFC 9112).
#
# An H1Client owns its Conn and serves one exchange at a time; between exchanges it waits in its Upstream's
# pool. What an endpoint sends unasked closes the connection: nobody could say whose answer it is.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmesh.core.base.buffer cimport Buf, queue_commit, queue_reserve
from fastmesh.core.base.list cimport list_append, list_push, list_remove, node_linked
from fastmesh.core.base.reason cimport (
    R_INTERNAL, R_NO_MEMORY, R_STREAM_TIMEOUT, R_UPSTREAM_BAD_RESPONSE, R_UPSTREAM_CLOSED, R_UPSTREAM_TIMEOUT,
    R_UPSTREAM_TRUNCATED,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.connection cimport (
    conn_backlog, conn_close, conn_dirty, conn_end_output, conn_finish, conn_held_up, conn_pause, conn_queued_bytes,
    conn_resume, conn_resume_input, conn_timeout,
)
from fastmesh.core.io.connection_output cimport conn_write_body
from fastmesh.core.io.exchange cimport (
    exchange_byte_seen, exchange_cut, exchange_drop_kept, exchange_response_data, exchange_response_end,
    exchange_response_head, exchange_upstream_failed, exchange_writable,
)
from fastmesh.core.io.flow cimport flow_free, flow_open, flow_possible
from fastmesh.core.io.forwarded cimport forwarded_fields, list_field
from fastmesh.core.io.h1_output cimport h1_chunk, h1_last_chunk
from fastmesh.core.io.kept cimport message_of
from fastmesh.core.io.state cimport (
    C_BULK, C_CUT, C_DEAD, C_EOF, C_PAUSED, C_RDHUP, C_TLS, C_TRUNCATED, Conn, ConnOps, End, EndOps, Exchange, Flow,
    H1Client, H1_BODY, H1_DONE, H1_HEAD, H1_IDLE, H1_TRAILERS, INPUT_SCRATCH, PoolConf, SPLICE_MIN, Upstream, Worker,
    X_BYTE_SEEN, X_EXTENDED, X_REQ_DONE, X_REUSED, X_UPGRADE,
)
from fastmesh.core.io.upstream cimport upstream_left
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.counters cimport G_UPSTREAM_IDLE, K_HTTP11_UPSTREAM
from fastmesh.core.wire.http1 cimport http1_parse_response
from fastmesh.core.wire.http1_chunked cimport HTTP1_DATA, HTTP1_END, Http1Chunked, http1_chunked, http1_parse_trailers
from fastmesh.core.wire.http1_meaning cimport http1_field_named, http1_same
from fastmesh.core.wire.http1_scan cimport http1_equal
from fastmesh.core.wire.http1_write cimport (
    http1_copy_fields, http1_copy_fields_skip, http1_head_bound, http1_write_request_line, http1_write_upgrade,
    http1_write_via,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, F_HOST, Field, LENGTH_UNKNOWN,
    MSG_HAS_HOP, MSG_INTERIM, MSG_KEEP_ALIVE, MSG_TE_TRAILERS, MSG_UPGRADE, M_CONNECT, Message,
)
from fastmesh.core.wire.websocket cimport (
    WEBSOCKET_ACCEPT, WEBSOCKET_KEY, websocket_accept, websocket_key,
)


cdef inline H1Client *h1_client_of_idle(void *node) noexcept nogil:
    return <H1Client *>(<char *>node - <size_t>&(<H1Client *>NULL).idle)


cdef inline H1Client *h1_client_open(Worker *w, Conn *c, Upstream *u, const PoolConf *pool) noexcept nogil:
    """Speak HTTP/1.1 on `c`, which stands; `u` has counted it. NULL without memory: it stays the caller's."""
    cdef H1Client *h = <H1Client *>slab_get(&w.clients)
    if h == NULL:
        return NULL
    memset(h, 0, sizeof(H1Client))
    h.end.ops = &w.ops.client_end
    h.conn = c
    h.upstream = u
    h.pool = pool[0]
    c.owner = h
    c.ops = &w.ops.h1_client
    return h


cdef inline void h1_client_take(Worker *w, H1Client *h, Exchange *x) noexcept nogil:
    """It serves `x` now; it is in no pool."""
    h.state = H1_HEAD
    h.scan = 0
    h.queued = 0
    h.end.ex = x
    x.up = &h.end
    w.row.counters[K_HTTP11_UPSTREAM] += 1
    conn_timeout(w, h.conn, x.service.response_timeout_ms)


cdef inline void h1_client_destroy(Worker *w, H1Client *h) noexcept nogil:
    """Close the connection, out of the pool if it is there. No exchange is attached any more."""
    if node_linked(&h.idle):
        list_remove(&h.idle)
        h.upstream.nidle -= 1
        w.row.counters[G_UPSTREAM_IDLE] -= 1
    if h.conn != NULL:
        conn_close(w, h.conn)
    upstream_left(h.upstream)
    slab_put(&w.clients, h)


cdef inline bint _all_here(H1Client *h, Exchange *x) noexcept nogil:
    """On a reused connection: is all of the request, as far as it has come, still to be sent?"""
    return x.flags & X_REUSED and x.kept.head != NULL and h.conn.tx.bytes == h.queued


cdef inline void h1_client_lost(Worker *w, H1Client *h, int reason) noexcept nogil:
    """The connection is of no use; its exchange, if any, hears why and decides."""
    cdef Exchange *x = h.end.ex
    cdef bint sent = True
    if x != NULL:
        h.end.ex = NULL
        sent = not _all_here(h, x)
    h1_client_destroy(w, h)
    if x != NULL:
        exchange_upstream_failed(w, x, reason, sent)


# ---------------------------------------------------------------- input

cdef inline void _head_clock(H1Client *h) noexcept nogil:
    """The final head is not here yet, but something has come: from now on that puts its clock ahead no more.
    As long as the request is still being sent, its progress does."""
    if h.request_done and conn_queued_bytes(h.conn) == 0:
        h.conn.idle_ms = 0


cdef inline size_t h1_client_input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    cdef H1Client *h = <H1Client *>c.owner
    cdef Exchange *x = h.end.ex
    cdef size_t used = 0
    cdef size_t k
    cdef size_t got
    cdef const char *data
    cdef int r
    while used < n:
        if h.state == H1_HEAD:
            if not x.flags & X_BYTE_SEEN:
                if fm_unlikely(_all_here(h, x)):
                    # Its next request has not left yet: this was sent unasked, and answers nothing.
                    h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
                    return n
                exchange_byte_seen(w, x)
            r = http1_parse_response(p + used, n - used, &h.scan, x.method, &w.msg)
            if r == 0:
                _head_clock(h)
                return used
            if r < 0:
                h1_client_lost(w, h, -r)
                return n
            h.scan = 0
            used += r
            if fm_unlikely(x.flags & X_EXTENDED) and not w.msg.flags & MSG_INTERIM:
                if not _switched(w, h, x):
                    if not c.flags & C_DEAD:
                        h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
                    return n
                if h.raw:
                    continue
            elif w.msg.status == 101:
                # Asked for, behind the whole request, and with the protocol's name (RFC 9110 7.8, 15.2.2).
                if (not x.flags & X_UPGRADE or not x.flags & X_REQ_DONE or w.msg.upgrade.len == 0
                        or exchange_response_head(w, x, &w.msg) < 0):
                    if not c.flags & C_DEAD:
                        h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
                    return n
                w.ops.upgrade(w, x, p + used, n - used)      # takes the rest
                return n
            if w.msg.flags & MSG_INTERIM:
                _head_clock(h)
                r = exchange_response_head(w, x, &w.msg)
                if r < 0:
                    return n
                if r > 0:
                    conn_pause(c)
                    return used
                continue
            h.framing = w.msg.framing
            # A refused upgrade of HTTP/2: what its client still sends is nobody's, so nothing is waited for.
            h.keep_alive = 1 if w.msg.flags & MSG_KEEP_ALIVE and not x.flags & X_EXTENDED else 0
            h.left = w.msg.length
            h.state = H1_BODY
            if exchange_response_head(w, x, &w.msg) < 0:
                return n
            if h.framing == FRAMING_NONE or (h.framing == FRAMING_LENGTH and h.left == 0):
                _complete(w, h, x, NULL)
                if c.flags & C_DEAD:
                    return n
                continue
            if h.framing != FRAMING_LENGTH or h.left >= INPUT_SCRATCH:
                c.flags |= C_BULK
            if h.framing == FRAMING_CHUNKED:
                memset(&h.chunked, 0, sizeof(Http1Chunked))
            conn_timeout(w, c, x.conf.stream_idle_timeout_ms)
        elif h.state == H1_BODY:
            if h.framing == FRAMING_CHUNKED:
                r = http1_chunked(&h.chunked, p + used, n - used, &k, &data, &got)
                used += k
                if r == HTTP1_DATA:
                    r = exchange_response_data(w, x, data, got)
                    if r < 0:
                        return n
                    if r > 0:
                        conn_pause(c)
                        return used
                elif r == HTTP1_END:
                    h.state = H1_TRAILERS
                    h.scan = 0
                elif r < 0:
                    h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
                    return n
                else:
                    return used
                continue
            k = n - used
            if h.framing == FRAMING_LENGTH:
                if k > h.left:
                    k = <size_t>h.left
                h.left -= k
            r = exchange_response_data(w, x, p + used, k)
            if r < 0:
                return n
            used += k
            if h.framing == FRAMING_LENGTH and h.left == 0:
                _complete(w, h, x, NULL)
                if c.flags & C_DEAD:
                    return n
            elif r > 0:
                conn_pause(c)
                return used
            elif used == n:
                _splice(w, h, x)
                return n
        elif h.state == H1_TRAILERS:
            r = http1_parse_trailers(p + used, n - used, &h.scan, &w.msg)
            if r == 0:
                return used
            if r < 0:
                h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
                return n
            used += r
            h.scan = 0
            _complete(w, h, x, &w.msg if w.msg.nfields else NULL)
            if c.flags & C_DEAD:
                return n
        else:                                   # in the pool, or the answer was whole: nobody asked for this
            h1_client_lost(w, h, R_UPSTREAM_BAD_RESPONSE)
            return n
    return n


cdef inline bint _raw(Worker *w, H1Client *h, Exchange *x) noexcept nogil:
    """From here on bytes pass as they are; first those that came before the endpoint was ready for them. False without
    memory for these: the exchange has ended."""
    cdef Buf *b = x.kept.body.head
    h.raw = 1
    h.state = H1_BODY
    h.framing = FRAMING_CLOSE
    h.out_framing = FRAMING_CLOSE
    h.keep_alive = 0
    h.conn.flags |= C_BULK
    conn_timeout(w, h.conn, x.conf.tcp_idle_timeout_ms)
    while b != NULL:
        if conn_write_body(w, h.conn, b.data + b.start, b.end - b.start) < 0:
            exchange_cut(w, x, R_NO_MEMORY)
            return False
        b = b.next
    exchange_drop_kept(w, x)
    if x.flags & X_REQ_DONE:
        conn_end_output(w, h.conn)
    else:
        x.down.ops.resume(w, x.down)
    return True


cdef inline bint _switched(Worker *w, H1Client *h, Exchange *x) noexcept nogil:
    """The answer to an upgrade that came as an extended CONNECT is in w.msg (RFC 8441 5). False: it is none, or the
    exchange has ended."""
    cdef Message *m = &w.msg
    cdef Message *asked = message_of(x.kept.head)
    cdef const char *protocol = asked.base + asked.protocol.at
    cdef Field *f
    cdef int i
    if m.status != 101:
        exchange_drop_kept(w, x)
        return m.status // 100 != 2              # without the switch no 2xx says yes
    if m.upgrade.len != asked.protocol.len or not http1_same(m.base + m.upgrade.at, protocol, m.upgrade.len):
        return False
    if _is_websocket(asked):
        i = http1_field_named(m, b"sec-websocket-accept", 20)
        if i < 0:
            return False
        f = &m.fields[i]
        if f.value_len != WEBSOCKET_ACCEPT or memcmp(m.base + f.value_at, h.accept, WEBSOCKET_ACCEPT) != 0:
            return False
        f.flags |= FIELD_HOP
        m.flags |= MSG_HAS_HOP
    m.status = 200
    m.upgrade.len = 0
    m.framing = FRAMING_CHUNKED
    m.length = LENGTH_UNKNOWN
    return exchange_response_head(w, x, m) >= 0 and _raw(w, h, x)


cdef inline bint h1_client_tunnel(Worker *w, H1Client *h, Exchange *x) noexcept nogil:
    """A CONNECT that came over HTTP/2: the endpoint is reached. False: the exchange has ended."""
    cdef uint32_t scan = 0
    http1_parse_response(b"HTTP/1.1 200 OK\r\n\r\n", 19, &scan, M_CONNECT, &w.answer)
    w.answer.framing = FRAMING_CHUNKED
    return exchange_response_head(w, x, &w.answer) >= 0 and _raw(w, h, x)


cdef inline bint _is_websocket(const Message *m) noexcept nogil:
    return m.protocol.len == 9 and http1_equal(m.base + m.protocol.at, b"websocket", 9)


cdef inline size_t _extended_fields(H1Client *h, char *out, const Message *m) noexcept nogil:
    """What an extended CONNECT is in HTTP/1.1: an Upgrade, with a key of our own if it is WebSocket's. 0: there is no
    randomness."""
    cdef char key[WEBSOCKET_KEY]
    cdef size_t n = 30
    memcpy(out, b"connection: upgrade\r\nupgrade: ", 30)
    memcpy(out + n, m.base + m.protocol.at, m.protocol.len)
    n += m.protocol.len
    memcpy(out + n, b"\r\n", 2)
    n += 2
    if _is_websocket(m):
        if not websocket_key(key) or not websocket_accept(h.accept, key, WEBSOCKET_KEY):
            return 0
        memcpy(out + n, b"sec-websocket-key: ", 19)
        memcpy(out + n + 19, key, WEBSOCKET_KEY)
        memcpy(out + n + 19 + WEBSOCKET_KEY, b"\r\n", 2)
        n += 21 + WEBSOCKET_KEY
    return n


cdef inline void _complete(Worker *w, H1Client *h, Exchange *x, Message *trailers) noexcept nogil:
    """The response is whole. Afterwards h is in the pool or gone."""
    h.state = H1_DONE
    h.conn.flags &= ~<uint32_t>C_BULK
    exchange_response_end(w, x, trailers, h.keep_alive)


cdef inline void _spliced(Worker *w, Flow *f, int reason) noexcept nogil:
    """A long response body has been moved, or its endpoint has ended early."""
    cdef H1Client *h = <H1Client *>f.owner
    cdef Conn *c = h.conn
    cdef Exchange *x = h.end.ex
    x.bytes_out += f.moved
    h.left = f.left
    flow_free(w, f)
    if h.left > 0:
        h1_client_lost(w, h, R_UPSTREAM_TRUNCATED)
        return
    _complete(w, h, x, NULL)
    if not c.flags & C_DEAD:
        conn_resume_input(w, c)


cdef inline void _splice(Worker *w, H1Client *h, Exchange *x) noexcept nogil:
    """Let the kernel move the rest of a long body where both sides are plaintext."""
    cdef Conn *down
    if h.framing != FRAMING_LENGTH or h.left < SPLICE_MIN or h.conn.flags & C_TLS:
        return
    down = x.down.ops.raw(w, x.down)
    if flow_possible(h.conn, down):
        flow_open(w, h.conn, down, h.left, h, _spliced)


cdef inline void h1_client_eof(Worker *w, Conn *c) noexcept nogil:
    cdef H1Client *h = <H1Client *>c.owner
    cdef Exchange *x = h.end.ex
    if x == NULL:
        h1_client_destroy(w, h)
    elif h.state == H1_BODY and h.framing == FRAMING_CLOSE and not c.flags & C_TRUNCATED:
        _complete(w, h, x, NULL)
    elif h.state == H1_HEAD:
        h1_client_lost(w, h, R_UPSTREAM_CLOSED)
    else:
        h1_client_lost(w, h, R_UPSTREAM_TRUNCATED)


cdef inline void h1_client_error(Worker *w, Conn *c, int reason) noexcept nogil:
    h1_client_lost(w, <H1Client *>c.owner, reason)


cdef inline void h1_client_drained(Worker *w, Conn *c) noexcept nogil:
    cdef H1Client *h = <H1Client *>c.owner
    if h.end.ex != NULL:
        exchange_writable(w, h.end.ex, False)


cdef inline void h1_client_ready(Worker *w, Conn *c) noexcept nogil:
    pass                                        # never: it is ready before it has a codec


cdef inline void h1_client_timer(Worker *w, Conn *c) noexcept nogil:
    cdef H1Client *h = <H1Client *>c.owner
    cdef Exchange *x = h.end.ex
    if x == NULL:
        h1_client_destroy(w, h)
    elif h.state == H1_HEAD:
        if c.flags & C_PAUSED:
            conn_timeout(w, c, x.conf.stream_idle_timeout_ms)     # interim answers that the client does not read
        elif h.request_done or conn_backlog(c):
            h1_client_lost(w, h, R_UPSTREAM_TIMEOUT)
        else:
            conn_timeout(w, c, x.service.response_timeout_ms)     # the client is still sending: its clock runs
    elif conn_held_up(c):
        conn_timeout(w, c, x.conf.stream_idle_timeout_ms)         # the client is slow to read: its clock runs
    else:
        h1_client_lost(w, h, R_STREAM_TIMEOUT)


# ---------------------------------------------------------------- the End

cdef inline bint _names_host(Message *m) noexcept nogil:
    """Is there a Host field with a value?"""
    cdef uint32_t i
    for i in range(m.nfields):
        if m.fields[i].id == F_HOST:
            return m.fields[i].value_len > 0
    return False


cdef inline int _end_head(Worker *w, End *e, Message *m) noexcept nogil:
    cdef H1Client *h = <H1Client *>e
    cdef Conn *c = h.conn
    cdef Exchange *x = e.ex
    cdef uint64_t skip
    cdef uint64_t hosted = 0
    cdef size_t n
    cdef size_t k
    cdef char *p = queue_reserve(&w.pool, &c.tx, http1_head_bound(
        m, 1400 + x.service.name.len + (x.client_cert.len + 32 if x.client_cert != NULL else 0)))
    if fm_unlikely(p == NULL):
        return -R_NO_MEMORY
    n = http1_write_request_line(p, m)
    if fm_unlikely(x.flags & X_EXTENDED):
        k = _extended_fields(h, p + n, m)
        if k == 0:
            return -R_INTERNAL
        n += k
    if fm_unlikely(x.version == 10 and not _names_host(m)):
        # HTTP/1.0 without Host: the next hop speaks HTTP/1.1 and wants one (RFC 9112 3.2)
        if m.authority.len > 0:
            n += list_field(p + n, b"host: ", 6, m, 0, m.base + m.authority.at, m.authority.len)
        else:
            n += list_field(p + n, b"host: ", 6, m, 0, x.service.name.ptr, x.service.name.len)
        hosted = <uint64_t>1 << F_HOST
    # The added fields come first: what they replace is then left out of the copy.
    n += forwarded_fields(p + n, x, m, &skip)
    skip |= hosted
    if skip:
        n += http1_copy_fields_skip(p + n, m, skip)
    else:
        n += http1_copy_fields(p + n, m)
    if x.conf.via:
        # Behind the ones received: the field tells the order of the hops (RFC 9110 7.6.3).
        n += http1_write_via(p + n, x.version)
    if fm_unlikely(m.flags & (MSG_TE_TRAILERS | MSG_UPGRADE)):
        if m.flags & MSG_UPGRADE:
            n += http1_write_upgrade(p + n, m)
        if m.flags & MSG_TE_TRAILERS:
            memcpy(p + n, b"connection: te\r\nte: trailers\r\n", 30)
            n += 30
    h.out_framing = FRAMING_NONE if x.flags & X_EXTENDED else m.framing
    h.request_done = 0
    if h.out_framing == FRAMING_CHUNKED:
        memcpy(p + n, b"transfer-encoding: chunked\r\n", 28)
        n += 28
    memcpy(p + n, b"\r\n", 2)
    queue_commit(&c.tx, n + 2)
    h.queued += n + 2
    conn_dirty(w, c)
    return 0


cdef inline int _end_data(Worker *w, End *e, const char *p, size_t n) noexcept nogil:
    cdef H1Client *h = <H1Client *>e
    cdef size_t before = h.conn.tx.bytes
    cdef int r
    if n == 0:
        return 0
    if fm_unlikely(e.ex.flags & X_EXTENDED and not h.raw):
        return 1                                # kept until the endpoint has switched
    if h.out_framing == FRAMING_CHUNKED:
        r = h1_chunk(w, h.conn, p, n)
    else:
        r = conn_write_body(w, h.conn, p, n)
    h.queued += h.conn.tx.bytes - before
    return r


cdef inline int _end_finish(Worker *w, End *e, Message *trailers) noexcept nogil:
    cdef H1Client *h = <H1Client *>e
    cdef size_t before = h.conn.tx.bytes
    cdef int r
    h.request_done = 1
    if h.raw:
        conn_end_output(w, h.conn)
        return 0
    if h.out_framing == FRAMING_CHUNKED:
        r = h1_last_chunk(w, h.conn, trailers)
        h.queued += h.conn.tx.bytes - before
        return r if r < 0 else 0
    return 0


cdef inline void _end_release(Worker *w, End *e) noexcept nogil:
    """Into the pool, in front: the connection used last is the least likely to have been closed meanwhile."""
    cdef H1Client *h = <H1Client *>e
    cdef Upstream *u = h.upstream
    cdef Conn *c = h.conn
    cdef bint unsent = conn_queued_bytes(c) > 0
    cdef bint unwanted = w.draining or h.pool.idle_max == 0
    if not h.keep_alive or h.state != H1_DONE or c.flags & (C_EOF | C_RDHUP) or unwanted and not unsent:
        h1_client_destroy(w, h)
        return
    h.state = H1_IDLE
    if unsent:
        # Answered early, and the end of the request's body still has to leave: behind all others, not to be
        # used (see dial) until then.
        list_append(&u.idle, &h.idle)
    else:
        list_push(&u.idle, &h.idle)
    u.nidle += 1
    w.row.counters[G_UPSTREAM_IDLE] += 1
    conn_timeout(w, c, h.pool.idle_ms)
    conn_resume(w, c)
    if unwanted:
        conn_finish(w, c)
    elif u.nidle > h.pool.idle_max:
        h1_client_destroy(w, h1_client_of_idle(u.idle.prev))


cdef inline void h1_client_spare(Worker *w, H1Client *h) noexcept nogil:
    """Nobody wants it right now: into the pool."""
    h.keep_alive = 1
    h.state = H1_DONE
    _end_release(w, &h.end)


cdef inline void _end_abort(Worker *w, End *e, int reason, uint32_t code) noexcept nogil:
    """What the endpoint does not take is not left to the kernel, behind which it would not see the end: a reset."""
    cdef H1Client *h = <H1Client *>e
    if conn_queued_bytes(h.conn) > 0:
        h.conn.flags |= C_CUT
    h1_client_destroy(w, h)


cdef inline void _end_resume(Worker *w, End *e) noexcept nogil:
    conn_resume(w, (<H1Client *>e).conn)


cdef inline Conn *_end_raw(Worker *w, End *e) noexcept nogil:
    cdef H1Client *h = <H1Client *>e
    return h.conn if h.out_framing == FRAMING_LENGTH else NULL


cdef inline Conn *_end_detach(Worker *w, End *e) noexcept nogil:
    cdef H1Client *h = <H1Client *>e
    cdef Conn *c = h.conn
    c.owner = NULL
    c.ops = NULL
    upstream_left(h.upstream)                    # the tunnel's exchange holds it
    slab_put(&w.clients, h)
    return c


cdef inline bint h1_client_idle(Conn *c) noexcept nogil:
    return (<H1Client *>c.owner).end.ex == NULL


cdef inline void h1_client_init(ConnOps *ops, EndOps *end) noexcept nogil:
    ops[0] = ConnOps(
        on_input=h1_client_input, on_eof=h1_client_eof, on_drained=h1_client_drained, on_error=h1_client_error,
        on_ready=h1_client_ready, on_timer=h1_client_timer, on_flush=NULL, on_drain=NULL, on_expiry=NULL,
        idle=h1_client_idle)
    end[0] = EndOps(
        head=_end_head, data=_end_data, finish=_end_finish, release=_end_release, abort=_end_abort,
        resume=_end_resume, raw=_end_raw, detach=_end_detach)
