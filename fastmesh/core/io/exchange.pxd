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
#
# Between the ends of a gRPC-Web call stands the bridge (io/grpc_web).

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.buffer cimport Buf, buf_drop
from fastmesh.core.base.list cimport list_append, list_remove
from fastmesh.core.base.reason cimport (
    R_BAD_GRPC_WEB, R_CONNECT_NOT_ALLOWED, R_DEADLINE, R_DENIED, R_HEAD_TOO_LARGE, R_NONE, R_NO_ENDPOINT, R_NO_MEMORY,
    R_NO_SERVICE, R_UPSTREAM_CLOSED, R_UPSTREAM_RESET, R_UPSTREAM_TRUNCATED, SIDE_DOWNSTREAM,
)
from fastmesh.core.base.shared cimport Shared, shared_put, shared_ref
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.base.timer cimport Timer, timer_init, timer_start, timer_stop
from fastmesh.core.io.account cimport account, exchange_keep_log
from fastmesh.core.io.answer cimport answer, answer_behind
from fastmesh.core.io.grpc_web cimport (
    web_end_with, web_request_data, web_request_head, web_response_data, web_response_end, web_response_head,
)
from fastmesh.core.io.kept cimport kept_body, kept_drop, kept_trailers, message_copy, message_of
from fastmesh.core.io.snapshot_ref cimport snapshot_ref, snapshot_unref
from fastmesh.core.io.state cimport (
    End, Exchange, Listener, Peer, REPLAY_MAX, Worker, X_BYTE_SEEN, X_EXTENDED, X_FAILING, X_FRESH, X_GRPC,
    X_HEAD_SENT, X_PARKED, X_REQ_DONE, X_RESP_DONE, X_REUSED, X_SHARED, X_TUNNEL, X_UNPROVEN, X_UPGRADE,
)
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.admit cimport Caller, admit, must_admit
from fastmesh.core.traffic.balance cimport another, first_endpoint
from fastmesh.core.traffic.counters cimport (
    G_EXCHANGES, K_HTTP10_DOWNSTREAM, K_HTTP11_DOWNSTREAM, K_HTTP2_DOWNSTREAM, S_ACTIVE, S_CONNECT_FAILURES, S_LOCAL,
    S_RETRIES, S_REUSED_DEAD,
)
from fastmesh.core.traffic.route cimport route
from fastmesh.core.traffic.snapshot cimport ListenerConf, REUSE_IDEMPOTENT, REUSE_OFF
from fastmesh.core.traffic.transparent cimport route_original
from fastmesh.core.wire.grpc cimport GRPC_CALL, grpc_content_type, grpc_deadline
from fastmesh.core.wire.grpc_web cimport GWEB_ANSWER, GWEB_TEXT_IN, grpc_web_may_tell, grpc_web_request_end
from fastmesh.core.wire.grpc_web_head cimport grpc_web_begin
from fastmesh.core.wire.http1_meaning cimport http1_offers_http
from fastmesh.core.wire.message cimport (
    MSG_HTTP10, MSG_HTTP2, MSG_UPGRADE, M_CONNECT, M_DELETE, M_GET, M_HEAD, M_OPTIONS, M_POST, M_PUT, M_TRACE,
    Message,
)


cdef enum:
    REFUSED_MAX = 8               # tries of a request that endpoints refuse, beside the first


cdef inline Exchange *exchange_of_all(void *node) noexcept nogil:
    return <Exchange *>(<char *>node - <size_t>&(<Exchange *>NULL).all)


# ---------------------------------------------------------------- the end

cdef inline void exchange_drop_kept(Worker *w, Exchange *x) noexcept nogil:
    """There will be no other try."""
    if x.kept.head != NULL:
        kept_drop(&w.pool, &x.kept)


cdef inline void exchange_free(Worker *w, Exchange *x) noexcept nogil:
    account(w, x)
    exchange_drop_kept(w, x)
    if x.log != NULL:
        buf_drop(&w.pool, x.log)
    list_remove(&x.all)
    timer_stop(&w.wheel, &x.deadline)
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
            up.ops.abort(w, up, R_NONE, 0)        # answered early: it gets no more of the request
    down.ex = NULL
    exchange_free(w, x)
    down.ops.release(w, down)


cdef inline void exchange_cut(Worker *w, Exchange *x, int reason) noexcept nogil:
    """Give both ends up: nothing sensible can be said any more."""
    cdef End *up = x.up
    cdef End *down = x.down
    cdef uint32_t code = x.reset
    if not x.reason:
        x.reason = <uint16_t>reason
    if up != NULL:
        up.ex = NULL
        up.ops.abort(w, up, reason, code)
    down.ex = NULL
    exchange_free(w, x)
    down.ops.abort(w, down, reason, code)


cdef inline bint _can_be_told(Worker *w, const Exchange *x, int reason) noexcept nogil:
    """Is there a way left to tell the client of `reason`? That of a gRPC-Web call can be told in the middle of an answer
    too, and what a reset of the endpoint's means."""
    cdef bint begun = x.flags & X_HEAD_SENT != 0
    if w.reasons[reason].status == 0 or w.reasons[reason].side == SIDE_DOWNSTREAM and w.reasons[reason].status == 499:
        return False
    if fm_unlikely(x.web.flags):
        return not begun or x.web.flags & GWEB_ANSWER and grpc_web_may_tell(&x.web)
    return not begun and not (x.reset and x.flags & X_GRPC)


cdef inline void exchange_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The exchange cannot go well any more: answer if nothing has been answered yet, cut otherwise. Ends it."""
    cdef End *up = x.up
    cdef bint begun = x.flags & X_HEAD_SENT != 0
    cdef int r
    if not x.reason:
        x.reason = <uint16_t>reason
    if not _can_be_told(w, x, reason):
        exchange_cut(w, x, reason)
        return
    if up != NULL:
        x.up = NULL
        up.ex = NULL
        up.ops.abort(w, up, reason, 0)
    x.flags |= X_FAILING | X_HEAD_SENT
    if begun:
        r = web_end_with(w, x, reason)
    else:
        x.status = w.reasons[reason].status
        if x.service != NULL:
            x.service.row.counters[S_LOCAL] += 1
        r = answer(w, x.down, x, reason)
    if r < 0:
        exchange_cut(w, x, reason)
    else:
        exchange_end(w, x)


# ---------------------------------------------------------------- downstream calls

cdef inline void exchange_overdue(Worker *w, Exchange *x, int reason) noexcept nogil:
    """Nobody waits for it any longer. Ends it: a gRPC stream that has begun as gRPC has it, with the status behind it;
    what else has begun is cut; what has not is answered."""
    cdef End *up = x.up
    if (not x.flags & X_HEAD_SENT or x.flags & X_RESP_DONE or x.version != 20 or not x.flags & X_GRPC
            or x.web.flags):
        exchange_fail(w, x, reason)
        return
    x.reason = <uint16_t>reason
    if up != NULL:
        x.up = NULL
        up.ex = NULL
        up.ops.abort(w, up, reason, 0)
    if answer_behind(w, x.down, reason) < 0:
        exchange_cut(w, x, reason)
    else:
        exchange_end(w, x)


cdef inline void _too_late(void *worker, Timer *t) noexcept nogil:
    """The caller's time is over."""
    exchange_overdue(<Worker *>worker, <Exchange *>(<char *>t - <size_t>&(<Exchange *>NULL).deadline), R_DEADLINE)


cdef inline void _call(Worker *w, Exchange *x, const Message *m) noexcept nogil:
    """A POST: is it a gRPC call, or to become one? Then the time that its caller gives it runs from here."""
    cdef size_t at
    cdef size_t n
    cdef uint64_t us
    cdef int field
    if fm_unlikely(x.conf.grpc_web) and grpc_web_begin(&x.web, m):
        pass
    elif grpc_content_type(m, &field, &at, &n) != GRPC_CALL:
        return
    x.flags |= X_GRPC
    if grpc_deadline(m, &us) > 0:
        timer_start(&w.wheel, &x.deadline, w.now_ms + us // 1000)


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
    timer_init(&x.deadline, _too_late)
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
    x.version = 20 if m.flags & MSG_HTTP2 else 10 if m.flags & MSG_HTTP10 else 11
    w.row.counters[K_HTTP2_DOWNSTREAM if x.version == 20
                   else K_HTTP10_DOWNSTREAM if x.version == 10 else K_HTTP11_DOWNSTREAM] += 1
    if fm_unlikely(x.snapshot.log_sample > 0):
        exchange_keep_log(w, x, m)
    if m.method == M_POST:
        _call(w, x, m)
    if fm_unlikely(conf.transparent):
        x.service = route_original(
            x.snapshot, conf, &x.peer.to, x.peer.own, m.base + m.authority.at, m.authority.len,
            &caller.facts.port)
    else:
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
        if m.protocol.len == 0 and not conf.outbound or http1_offers_http(m.base + m.protocol.at, m.protocol.len):
            exchange_fail(w, x, R_CONNECT_NOT_ALLOWED)
            return
        if m.protocol.len == 0:
            x.flags |= X_TUNNEL
        if x.version == 20:
            x.flags |= X_EXTENDED
    elif m.flags & MSG_UPGRADE:
        x.flags |= X_UPGRADE
    if fm_unlikely(x.web.flags):
        m = web_request_head(w, x, m)           # rules have seen what the client sent
        if m == NULL:
            exchange_fail(w, x, R_HEAD_TOO_LARGE)
            return
    x.endpoint = first_endpoint(x.service, &x.peer.to)
    if x.endpoint == NULL:
        exchange_fail(w, x, R_NO_ENDPOINT)
        return
    x.tries = 1
    r = w.ops.dial(w, x)
    if r < 0 and not _next(w, x, -r):
        return
    if x.flags & (X_PARKED | X_REUSED | X_EXTENDED):
        x.kept.head = message_copy(&w.pool, m)
        if fm_unlikely(x.kept.head == NULL and x.flags & (X_PARKED | X_EXTENDED)):
            exchange_fail(w, x, R_NO_MEMORY)
            return
    if x.flags & (X_PARKED | X_TUNNEL):
        return                                  # it goes on when the endpoint is reached
    r = x.up.ops.head(w, x.up, m)
    if fm_unlikely(r < 0):
        exchange_fail(w, x, -r)


cdef inline bint _next(Worker *w, Exchange *x, int reason) noexcept nogil:
    """Its endpoint could not be reached: dial the service's others, each once. Fails the exchange when none is left:
    False, it has ended."""
    cdef int r = -reason
    x.service.row.counters[S_CONNECT_FAILURES] += 1
    while x.tries < x.service.nendpoints and x.tries < 255:
        x.endpoint = another(x.service, x.endpoint, x.tries)
        x.tries += 1
        x.retries += 1
        x.service.row.counters[S_RETRIES] += 1
        x.flags &= ~<uint32_t>(X_REUSED | X_SHARED | X_PARKED)
        r = w.ops.dial(w, x)
        if r >= 0:
            return True
        x.service.row.counters[S_CONNECT_FAILURES] += 1
    exchange_fail(w, x, -r)
    return False


cdef inline void exchange_dial_again(Worker *w, Exchange *x) noexcept nogil:
    """The connection that a parked one waited for is not for it: another one to the same endpoint."""
    cdef int r
    x.flags &= ~<uint32_t>X_PARKED
    r = w.ops.dial(w, x)
    if (r >= 0 or _next(w, x, -r)) and not x.flags & (X_PARKED | X_TUNNEL):
        exchange_play(w, x)


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
    # From stream to stream a tunnel's bytes are sent at once, and kept for another try only.
    cdef bint must = x.flags & X_PARKED or x.flags & X_EXTENDED and not (x.flags & X_SHARED and x.version == 20)
    if not must and x.kept.body.bytes + n > REPLAY_MAX:
        kept_drop(&w.pool, &x.kept)             # what is longer cannot be repeated
        return True
    return kept_body(&w.pool, &x.kept, p, n) or not must


cdef inline int _request_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes as the endpoint gets them."""
    cdef int r
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


cdef inline int _request_text(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes of a gRPC-Web call in base64."""
    cdef size_t plain
    cdef int full = 0
    cdef int r
    while n > 0:
        r = web_request_data(w, x, &p, &n, &plain)
        if fm_unlikely(r < 0):
            exchange_downstream_failed(w, x, -r)
            return -1
        if plain > 0:
            r = _request_data(w, x, w.alt_text, plain)
            if r < 0:
                return r
            full |= r
    return full


cdef inline int exchange_request_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes of the request. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    x.bytes_in += n
    if fm_unlikely(x.web.flags & GWEB_TEXT_IN):
        return _request_text(w, x, p, n)
    return _request_data(w, x, p, n)


cdef inline void exchange_request_end(Worker *w, Exchange *x, Message *trailers) noexcept nogil:
    """The request is complete."""
    cdef int r
    if fm_unlikely(x.web.flags & GWEB_TEXT_IN) and grpc_web_request_end(&x.web) < 0:
        exchange_downstream_failed(w, x, R_BAD_GRPC_WEB)
        return
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
    if not x.flags & X_EXTENDED:                # whose switch depends on what was asked
        exchange_drop_kept(w, x)


cdef inline int exchange_response_head(Worker *w, Exchange *x, Message *m) noexcept nogil:
    """A response head, interim or final. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    cdef int r
    if m.status >= 200 or m.status == 101:
        x.flags |= X_HEAD_SENT
        x.status = m.status
    elif x.version == 10:
        return 0                                # RFC 9110 15.2: no 1xx to an HTTP/1.0 client
    r = web_response_head(w, x, m) if fm_unlikely(x.web.flags) else x.down.ops.head(w, x.down, m)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
        return -1
    return r


cdef inline int exchange_response_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Body bytes of the response. 0; 1: taken, but wait for `resume`; -1: the exchange has ended."""
    cdef int r
    x.bytes_out += n
    r = web_response_data(w, x, p, n) if fm_unlikely(x.web.flags) else x.down.ops.data(w, x.down, p, n)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
        return -1
    return r


cdef inline void exchange_response_end(Worker *w, Exchange *x, Message *trailers, bint keep_alive) noexcept nogil:
    """The response is complete. If the request still arrives, an endpoint that keeps its connection
    (`keep_alive`) gets the rest of it; for one that does not, the exchange is over."""
    cdef int r
    x.flags |= X_RESP_DONE
    r = web_response_end(w, x, trailers) if fm_unlikely(x.web.flags) else x.down.ops.finish(w, x.down, trailers)
    if fm_unlikely(r < 0):
        exchange_cut(w, x, -r)
    elif x.flags & X_REQ_DONE or not keep_alive or r > 0:
        exchange_end(w, x)


cdef inline bint _idempotent(int method) noexcept nogil:
    """RFC 9110 9.2.2."""
    return (method == M_GET or method == M_HEAD or method == M_PUT or method == M_DELETE or method == M_OPTIONS
            or method == M_TRACE)


cdef inline void _again(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The kept connection was none any more, or took no more requests: the same request on a fresh one."""
    cdef int r
    x.retries += 1
    if reason == R_UPSTREAM_CLOSED or reason == R_UPSTREAM_RESET:
        x.service.row.counters[S_REUSED_DEAD] += 1
    else:
        x.endpoint = another(x.service, x.endpoint, x.tries)
    x.service.row.counters[S_RETRIES] += 1
    x.flags &= ~<uint32_t>(X_REUSED | X_SHARED | X_PARKED)
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
        if x.flags & (X_REUSED | X_SHARED) and x.retries < REFUSED_MAX:
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
            and (x.service.reuse_retry != REUSE_IDEMPOTENT and not x.flags & X_SHARED or _idempotent(x.method))):
        # The endpoint closed a connection that it had kept open, as it may at any time (RFC 9112 9.3.1, 9.5). On one
        # that serves others too this is no race: HTTP/2 says which requests it has not looked at.
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
