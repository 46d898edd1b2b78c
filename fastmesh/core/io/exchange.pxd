# An exchange: one request and its response between two Ends, whatever either speaks on the wire.
#
# States are two halves that end independently: the request (X_REQ_DONE) and the response (X_RESP_DONE). The
# downstream codec calls exchange_begin / _request_data / _request_end / _downstream_failed, the upstream codec
# exchange_response_head / _data / _end / _upstream_failed; both call exchange_writable when their output has
# drained. The exchange forwards, and decides what failing means: another endpoint, our own answer, or a cut.
# After exchange_end, and after any function that may have called it, the Exchange must not be touched: the
# caller looks at `end.ex`, which is NULL then.
#
# The request is kept, in no wire format, until the endpoint has begun to answer: while its connection is being
# made (X_PARKED; there is no End that would take it), and on a connection that had served before.
# Another try is made (a) when the connection could not be made, or a reused one had ended or spoken unasked
# before anything of the request left, whatever the request: nothing of it was sent; (b) when a reused connection
# died without a byte of answer and the request is still here whole, once and on a fresh connection.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from libc.time cimport gmtime_r, strftime, time, time_t, tm

from fastmesh.core.base.buffer cimport BUF_SMALL, Buf, buf_drop, buf_get
from fastmesh.core.base.list cimport list_append, list_remove
from fastmesh.core.base.reason cimport (
    R_CONNECT_NOT_ALLOWED, R_DENIED, R_NONE, R_NO_ENDPOINT, R_NO_MEMORY, R_NO_SERVICE, R_UPSTREAM_CLOSED,
    R_UPSTREAM_RESET, R_UPSTREAM_TRUNCATED, SIDE_DOWNSTREAM,
)
from fastmesh.core.base.shared cimport Shared, shared_put, shared_ref
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.kept cimport kept_body, kept_drop, kept_trailers, message_copy, message_of
from fastmesh.core.io.snapshot_ref cimport snapshot_ref, snapshot_unref
from fastmesh.core.io.state cimport (
    End, Exchange, Listener, Peer, REPLAY_MAX, Worker, X_BYTE_SEEN, X_FAILING, X_FRESH, X_HEAD_SENT, X_LOG, X_OPAQUE,
    X_PARKED, X_REQ_DONE, X_RESP_DONE, X_REUSED, X_TUNNEL, X_UNPROVEN, X_UPGRADE,
)
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.admit cimport Caller, admit, must_admit
from fastmesh.core.traffic.balance cimport balance
from fastmesh.core.traffic.counters cimport (
    G_EXCHANGES, LogRecord, S_ACTIVE, S_BYTES_RECEIVED, S_BYTES_SENT, S_CONNECT_FAILURES, S_LOCAL, S_RETRIES,
    S_REUSED_DEAD, S_STATUS_1XX, S_STATUS_NONE, ServiceRow, latency_bucket, ring_write,
)
from fastmesh.core.traffic.route cimport route
from fastmesh.core.traffic.snapshot cimport ListenerConf, REUSE_IDEMPOTENT, REUSE_OFF, Text
from fastmesh.core.wire.http1 cimport http1_parse_response
from fastmesh.core.wire.message cimport (
    MSG_HTTP10, MSG_UPGRADE, M_CONNECT, M_DELETE, M_GET, M_HEAD, M_OPTIONS, M_PUT, M_TRACE, Message,
)


cdef inline Exchange *exchange_of_all(void *node) noexcept nogil:
    return <Exchange *>(<char *>node - <size_t>&(<Exchange *>NULL).all)


# ---------------------------------------------------------------- the end

cdef inline void _put(const char **strings, uint16_t *lengths, int at, const Text *text) noexcept nogil:
    strings[at] = text.ptr if text != NULL else NULL
    lengths[at] = <uint16_t>text.len if text != NULL else 0


cdef inline void _log(Worker *w, Exchange *x) noexcept nogil:
    """One record for the access log, into the ring that the agent drains."""
    cdef LogRecord rec
    cdef const char *strings[9]
    cdef uint16_t lengths[9]
    cdef const char *p = x.log.data
    cdef int i
    memset(&rec, 0, sizeof(LogRecord))
    rec.status = x.status
    rec.reason = x.reason
    rec.wall_us = x.start_us + w.wall_us
    rec.duration_us = w.now_us - x.start_us
    rec.bytes_in = x.bytes_in
    rec.bytes_out = x.bytes_out
    rec.snapshot = x.snapshot.number
    rec.retries = x.retries
    rec.version = x.version
    # method, authority, path, source: positions 2, 3, 4, 5 of the record's strings
    for i in range(4):
        strings[2 + i] = p
        lengths[2 + i] = x.log_len[i]
        p += x.log_len[i]
    _put(strings, lengths, 0, &x.conf.name)
    _put(strings, lengths, 1, &x.service.name if x.service != NULL else NULL)
    _put(strings, lengths, 6, &x.endpoint.text if x.endpoint != NULL else NULL)
    strings[7] = NULL
    lengths[7] = 0
    if x.identity != NULL:
        strings[7] = x.identity.text
        lengths[7] = <uint16_t>x.identity.len
    rec.listener_len = lengths[0]
    rec.service_len = lengths[1]
    rec.method_len = lengths[2]
    rec.authority_len = lengths[3]
    rec.path_len = lengths[4]
    rec.source_len = lengths[5]
    rec.upstream_len = lengths[6]
    rec.identity_len = lengths[7]
    _put(strings, lengths, 8, &x.decision.rule.name if x.decision.rule != NULL else NULL)
    rec.rule_len = lengths[8]
    rec.verdict = x.decision.verdict
    rec.audit = x.decision.audit
    rec.by_service = x.decision.service
    ring_write(w.ring, &rec, strings, lengths, 9)


cdef inline void exchange_drop_kept(Worker *w, Exchange *x) noexcept nogil:
    """There will be no other try."""
    if x.kept.head != NULL:
        kept_drop(&w.pool, &x.kept)


cdef inline void _account(Worker *w, Exchange *x) noexcept nogil:
    """Everything that is counted about an exchange, once, when it ends."""
    cdef ServiceRow *row
    cdef uint64_t us
    cdef uint32_t k
    if x.reason:
        w.row.reasons[x.reason] += 1
    if x.service != NULL:
        row = x.service.row
        row.counters[S_BYTES_SENT] += x.bytes_in
        row.counters[S_BYTES_RECEIVED] += x.bytes_out
        row.counters[S_ACTIVE] -= 1
        if not x.flags & X_OPAQUE:
            us = w.now_us - x.start_us
            k = x.status // 100
            row.counters[S_STATUS_1XX + k - 1 if 1 <= k <= 5 else S_STATUS_NONE] += 1
            row.latency[latency_bucket(us)] += 1
            row.latency_sum_us += us
    if x.flags & X_LOG:
        _log(w, x)


cdef inline void exchange_free(Worker *w, Exchange *x) noexcept nogil:
    _account(w, x)
    exchange_drop_kept(w, x)
    if x.log != NULL:
        buf_drop(&w.pool, x.log)
    list_remove(&x.all)
    shared_put(&w.identities, x.identity)
    snapshot_unref(w, x.snapshot)
    w.row.counters[G_EXCHANGES] -= 1
    slab_put(&w.exchanges, x)


cdef inline void exchange_end(Worker *w, Exchange *x) noexcept nogil:
    """The response has been handed to the downstream end whole. Ends that can be used again are told so."""
    cdef End *up = x.up
    cdef End *down = x.down
    if up != NULL:
        up.ex = NULL
        if x.flags & X_REQ_DONE:
            up.ops.release(w, up)
        else:
            up.ops.abort(w, up, R_NONE)        # answered early: it gets no more of the request
    down.ex = NULL
    exchange_free(w, x)
    down.ops.release(w, down)


cdef inline void exchange_cut(Worker *w, Exchange *x, int reason) noexcept nogil:
    """Give both ends up: nothing sensible can be said any more."""
    cdef End *up = x.up
    cdef End *down = x.down
    if not x.reason:
        x.reason = <uint16_t>reason
    if up != NULL:
        up.ex = NULL
        up.ops.abort(w, up, reason)
    down.ex = NULL
    exchange_free(w, x)
    down.ops.abort(w, down, reason)


# ---------------------------------------------------------------- our own answers

cdef inline const char *_phrase(int status) noexcept nogil:
    """Reason phrases (RFC 9110 15) of the statuses in the reason table."""
    if status == 400: return b"Bad Request"
    if status == 403: return b"Forbidden"
    if status == 404: return b"Not Found"
    if status == 405: return b"Method Not Allowed"
    if status == 408: return b"Request Timeout"
    if status == 414: return b"URI Too Long"
    if status == 431: return b"Request Header Fields Too Large"
    if status == 500: return b"Internal Server Error"
    if status == 502: return b"Bad Gateway"
    if status == 503: return b"Service Unavailable"
    if status == 504: return b"Gateway Timeout"
    if status == 505: return b"HTTP Version Not Supported"
    return b""


cdef inline int answer(Worker *w, End *down, int reason, const char *service, size_t service_len,
                       int method) noexcept nogil:
    """Send our own answer for `reason` to `down`: a short text that names the service and the reason. 0, or
    -1: it could not be queued whole."""
    cdef char head[512]
    cdef char body[512]
    cdef char date[64]
    cdef time_t now = time(NULL)
    cdef tm parts
    cdef uint32_t scan = 0
    cdef int status = w.reasons[reason].status
    cdef int n
    cdef int m
    gmtime_r(&now, &parts)
    strftime(date, sizeof(date), b"%a, %d %b %Y %H:%M:%S GMT", &parts)
    if service_len > 255:
        service_len = 255
    if service_len > 0:
        n = snprintf(body, sizeof(body), b"%.*s: %s (%s)\n", <int>service_len, service, w.reasons[reason].text,
                     w.reasons[reason].name)
    else:
        n = snprintf(body, sizeof(body), b"%s (%s)\n", w.reasons[reason].text, w.reasons[reason].name)
    # RFC 9110 15.5.6: a 405 names the methods that are allowed; every other one is.
    m = snprintf(head, sizeof(head),
                 b"HTTP/1.1 %d %s\r\ndate: %s\r\nx-fastmesh-reason: %s\r\n%s"
                 b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n",
                 status, _phrase(status), date, w.reasons[reason].name,
                 b"allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n" if status == 405 else b"", n)
    if http1_parse_response(head, m, &scan, method, &w.answer) <= 0:
        return -1
    if down.ops.head(w, down, &w.answer) < 0:
        return -1
    if method != M_HEAD and down.ops.data(w, down, body, n) < 0:
        return -1
    return -1 if down.ops.finish(w, down, NULL) < 0 else 0


cdef inline void exchange_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The exchange cannot go well any more: answer if nothing has been answered yet, cut otherwise. Ends it."""
    cdef End *up = x.up
    if not x.reason:
        x.reason = <uint16_t>reason
    if x.flags & X_HEAD_SENT or w.reasons[reason].status == 0 or w.reasons[reason].side == SIDE_DOWNSTREAM and (
            w.reasons[reason].status == 499):
        exchange_cut(w, x, reason)
        return
    if up != NULL:
        x.up = NULL
        up.ex = NULL
        up.ops.abort(w, up, reason)
    x.status = w.reasons[reason].status
    x.flags |= X_FAILING | X_HEAD_SENT
    if x.service != NULL:
        x.service.row.counters[S_LOCAL] += 1
    if answer(w, x.down, reason, x.service.name.ptr if x.service != NULL else NULL,
              x.service.name.len if x.service != NULL else 0, x.method) < 0:
        exchange_cut(w, x, reason)
    else:
        exchange_end(w, x)


# ---------------------------------------------------------------- downstream calls

cdef inline bint _sampled(Worker *w, double rate) noexcept nogil:
    """True for about `rate` of the calls (xorshift64*)."""
    if rate >= 1.0:
        return True
    w.log_random ^= w.log_random >> 12
    w.log_random ^= w.log_random << 25
    w.log_random ^= w.log_random >> 27
    return <double>((w.log_random * <uint64_t>2685821657736338717) >> 11) * (1.0 / 9007199254740992.0) < rate


cdef inline void exchange_keep_log(Worker *w, Exchange *x, Message *m) noexcept nogil:
    """If this one is to be logged, copy what the log shall say of `m` (NULL: opaque TCP). Long names are cut."""
    cdef char *p
    cdef size_t n[4]
    cdef const char *src[4]
    cdef int i
    if x.snapshot.log_sample <= 0 or not _sampled(w, x.snapshot.log_sample):
        return
    x.log = buf_get(&w.pool, BUF_SMALL)
    if x.log == NULL:
        return
    memset(n, 0, sizeof(n))
    if m != NULL:
        src[0] = m.base + m.method_name.at
        n[0] = m.method_name.len if m.method_name.len < 64 else 64
        src[1] = m.base + m.authority.at
        n[1] = m.authority.len if m.authority.len < 256 else 256
        src[2] = m.base + m.path.at
        n[2] = m.path.len if m.path.len < 1536 else 1536
    src[3] = x.peer.text
    n[3] = x.peer.len
    p = x.log.data
    for i in range(4):
        if n[i]:
            memcpy(p, src[i], n[i])
        x.log_len[i] = <uint16_t>n[i]
        p += n[i]
    x.flags |= X_LOG


cdef inline Exchange *exchange_open(Worker *w, End *down, Listener *l, Shared *identity, Peer *peer) noexcept nogil:
    """A new exchange with nothing decided yet; NULL without memory. `peer` outlives it."""
    cdef Exchange *x = <Exchange *>slab_get(&w.exchanges)
    if fm_unlikely(x == NULL):
        w.row.reasons[R_NO_MEMORY] += 1
        return NULL
    memset(x, 0, sizeof(Exchange))
    x.down = down
    x.listener = l
    x.conf = l.conf
    x.snapshot = l.snapshot
    snapshot_ref(x.snapshot)
    x.identity = shared_ref(identity)
    x.start_us = w.now_us
    x.peer = peer
    list_append(&w.all_exchanges, &x.all)
    w.row.counters[G_EXCHANGES] += 1
    return x


cdef inline void exchange_begin(Worker *w, Exchange *x, Message *m, Caller *caller) noexcept nogil:
    """A request head has arrived on `x.down`. Routes, checks, dials and forwards it, or answers.

    `down.ex` is NULL afterwards if it has been answered already.
    """
    cdef End *down = x.down
    cdef ListenerConf *conf = x.conf
    cdef int r
    down.ex = x
    x.method = m.method
    x.framing = m.framing
    x.version = 10 if m.flags & MSG_HTTP10 else 11
    if fm_unlikely(x.snapshot.log_sample > 0):
        exchange_keep_log(w, x, m)
    x.service = route(x.snapshot, conf, m.base + m.authority.at, m.authority.len)
    if x.service == NULL:
        exchange_fail(w, x, R_NO_SERVICE)
        return
    x.service.row.counters[S_ACTIVE] += 1
    if fm_unlikely(x.flags & X_UNPROVEN):
        exchange_fail(w, x, R_DENIED)           # a reload has its listener ask for more
        return
    if must_admit(conf, x.service):
        r = admit(&w.policy, conf, x.service, caller, w.loads, m, &x.decision)
        if r < 0:
            exchange_fail(w, x, -r)
            return
    if fm_unlikely(m.method == M_CONNECT):
        if not conf.outbound:
            exchange_fail(w, x, R_CONNECT_NOT_ALLOWED)
            return
        x.flags |= X_TUNNEL
    elif m.flags & MSG_UPGRADE:
        x.flags |= X_UPGRADE
    x.endpoint = balance(x.service)
    if x.endpoint == NULL:
        exchange_fail(w, x, R_NO_ENDPOINT)
        return
    x.tries = 1
    r = w.ops.dial(w, x)
    if r < 0 and not _next(w, x, -r):
        return
    if x.flags & X_TUNNEL:
        return                                  # the tunnel begins when the endpoint is reached
    if x.flags & (X_PARKED | X_REUSED):
        x.kept.head = message_copy(&w.pool, m)
        if fm_unlikely(x.kept.head == NULL and x.flags & X_PARKED):
            exchange_fail(w, x, R_NO_MEMORY)
            return
    if x.flags & X_PARKED:
        return
    r = x.up.ops.head(w, x.up, m)
    if fm_unlikely(r < 0):
        exchange_fail(w, x, -r)


cdef inline bint _next(Worker *w, Exchange *x, int reason) noexcept nogil:
    """Its endpoint could not be reached: dial the service's others, each once. Fails the exchange when none is left:
    False, it has ended."""
    cdef int r = -reason
    x.service.row.counters[S_CONNECT_FAILURES] += 1
    while x.tries < x.service.nendpoints and x.tries < 255:
        x.tries += 1
        x.retries += 1
        x.service.row.counters[S_RETRIES] += 1
        x.endpoint = balance(x.service)
        x.flags &= ~<uint32_t>(X_REUSED | X_PARKED)
        r = w.ops.dial(w, x)
        if r >= 0:
            return True
        x.service.row.counters[S_CONNECT_FAILURES] += 1
    exchange_fail(w, x, -r)
    return False


cdef inline void exchange_play(Worker *w, Exchange *x) noexcept nogil:
    """Give the kept request to `x.up`, which can take it now."""
    cdef int r = x.up.ops.head(w, x.up, message_of(x.kept.head))
    cdef Buf *b = x.kept.body.head
    x.flags &= ~<uint32_t>X_PARKED
    while r >= 0 and b != NULL:
        r = x.up.ops.data(w, x.up, b.data + b.start, b.end - b.start)
        b = b.next
    if x.flags & X_REQ_DONE and r >= 0:
        r = x.up.ops.finish(w, x.up, message_of(x.kept.trailers))
    if r < 0:
        exchange_fail(w, x, -r)
    elif r == 0 and not x.flags & X_REQ_DONE:
        x.down.ops.resume(w, x.down)


cdef inline bint _keep_body(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """False: it is not kept, and was to be sent later."""
    if not x.flags & X_PARKED and x.kept.body.bytes + n > REPLAY_MAX:
        kept_drop(&w.pool, &x.kept)             # what is longer cannot be repeated
        return True
    return kept_body(&w.pool, &x.kept, p, n) or not x.flags & X_PARKED


cdef inline int exchange_request_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes of the request. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    cdef End *down = x.down
    cdef int r
    x.bytes_in += n
    if x.kept.head != NULL and fm_unlikely(not _keep_body(w, x, p, n)):
        exchange_fail(w, x, R_NO_MEMORY)
        return -1
    if x.up == NULL:
        return 0
    r = x.up.ops.data(w, x.up, p, n)
    if fm_unlikely(r < 0):
        exchange_fail(w, x, -r)
        return -1
    return r


cdef inline void exchange_request_end(Worker *w, Exchange *x, Message *trailers) noexcept nogil:
    """The request is complete."""
    cdef int r
    x.flags |= X_REQ_DONE
    if x.kept.head != NULL and not kept_trailers(&w.pool, &x.kept, trailers) and x.flags & X_PARKED:
        exchange_fail(w, x, R_NO_MEMORY)
        return
    if x.up != NULL:
        r = x.up.ops.finish(w, x.up, trailers)
        if fm_unlikely(r < 0):
            exchange_fail(w, x, -r)
            return
    if x.flags & X_RESP_DONE:
        exchange_end(w, x)


cdef inline void exchange_downstream_failed(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The client's side cannot go on: its connection is gone, or what it sent is malformed."""
    if x.flags & X_RESP_DONE:
        x.reason = <uint16_t>reason
        exchange_end(w, x)                      # it has its answer, whole: that is not taken back
    elif w.reasons[reason].status != 0 and w.reasons[reason].status != 499:
        exchange_fail(w, x, reason)
    else:
        exchange_cut(w, x, reason)


# ---------------------------------------------------------------- upstream calls

cdef inline void exchange_byte_seen(Worker *w, Exchange *x) noexcept nogil:
    """The endpoint has begun to answer: no other try from here on."""
    x.flags |= X_BYTE_SEEN
    exchange_drop_kept(w, x)


cdef inline int exchange_response_head(Worker *w, Exchange *x, Message *m) noexcept nogil:
    """A response head, interim or final. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    cdef int r
    if m.status >= 200 or m.status == 101:
        x.flags |= X_HEAD_SENT
        x.status = m.status
    elif x.version == 10:
        return 0                                # RFC 9110 15.2: no 1xx to an HTTP/1.0 client
    r = x.down.ops.head(w, x.down, m)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
        return -1
    return r


cdef inline int exchange_response_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes of the response. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    cdef int r
    x.bytes_out += n
    r = x.down.ops.data(w, x.down, p, n)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
        return -1
    return r


cdef inline void exchange_response_end(Worker *w, Exchange *x, Message *trailers, bint keep_alive) noexcept nogil:
    """The response is complete. If the request still arrives, an endpoint that keeps its connection
    (`keep_alive`) gets the rest of it; for one that does not, the exchange is over."""
    cdef int r
    x.flags |= X_RESP_DONE
    r = x.down.ops.finish(w, x.down, trailers)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
    elif x.flags & X_REQ_DONE or not keep_alive or r > 0:
        exchange_end(w, x)


cdef inline bint _idempotent(int method) noexcept nogil:
    """RFC 9110 9.2.2."""
    return (method == M_GET or method == M_HEAD or method == M_PUT or method == M_DELETE or method == M_OPTIONS
            or method == M_TRACE)


cdef inline void _again(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The kept connection was none any more: the same request on a fresh one."""
    cdef int r
    x.retries += 1
    x.service.row.counters[S_REUSED_DEAD] += 1
    x.service.row.counters[S_RETRIES] += 1
    x.flags &= ~<uint32_t>(X_REUSED | X_PARKED)
    x.flags |= X_FRESH
    x.tries = 1
    r = w.ops.dial(w, x)
    if (r >= 0 or _next(w, x, -r)) and not x.flags & X_PARKED:
        exchange_play(w, x)


cdef inline void exchange_upstream_failed(Worker *w, Exchange *x, int reason, bint sent) noexcept nogil:
    """The endpoint's side cannot go on; its End is gone already (`x.up` is cleared here).

    `sent` false: not a byte of the request has left.
    """
    x.up = NULL
    if not sent and (x.kept.head != NULL or x.flags & X_TUNNEL):
        if x.flags & X_REUSED:
            _again(w, x, reason)
            return
        x.flags |= X_FRESH                      # a pooled one may be just as dead
        if _next(w, x, reason) and not x.flags & (X_PARKED | X_TUNNEL):
            exchange_play(w, x)
        return
    if x.flags & X_RESP_DONE:
        exchange_end(w, x)                      # it had answered; the rest of the request is nobody's any more
        return
    # Only an end: one that is slow to answer works on the request.
    if ((reason == R_UPSTREAM_CLOSED or reason == R_UPSTREAM_RESET) and x.flags & X_REUSED
            and not x.flags & X_BYTE_SEEN and x.kept.head != NULL and x.flags & X_REQ_DONE
            and x.service.reuse_retry != REUSE_OFF
            and (x.service.reuse_retry != REUSE_IDEMPOTENT or _idempotent(x.method))):
        # The endpoint closed a connection that it had kept open, as it may at any time (RFC 9112 9.3.1, 9.5).
        _again(w, x, reason)
        return
    if reason == R_UPSTREAM_TRUNCATED or x.flags & X_HEAD_SENT:
        reason = R_UPSTREAM_TRUNCATED
    exchange_fail(w, x, reason)


cdef inline void exchange_writable(Worker *w, Exchange *x, bint down) noexcept nogil:
    """The output of one end (`down`: the client's) has drained: its source may go on."""
    if down:
        if x.up != NULL:
            x.up.ops.resume(w, x.up)
    else:
        x.down.ops.resume(w, x.down)
