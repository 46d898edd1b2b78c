# The gRPC-Web bridge in an exchange: what comes from either end, translated, and passed on to the other.
#
# An exchange with `web.flags` is a gRPC-Web call on a listener with `grpc_web`; its upstream end sees gRPC, its
# downstream end gRPC-Web, and neither codec knows of it. What is written stands in the worker's `alt` and `alt_text`
# until the next call of anything here: Ends take heads and bytes before they return.
# What is kept for another try is what the service gets. Since bodies in text have no length that is known before,
# nothing is spliced past the bridge: flows need FRAMING_LENGTH on the way out.

from fastmesh.core.base.reason cimport R_UPSTREAM_HEAD_TOO_LARGE
from fastmesh.core.io.answer cimport answer_status, answer_text
from fastmesh.core.io.state cimport ALT_SCRATCH, Exchange, Worker
from fastmesh.core.wire.grpc_web cimport (
    GWEB_ANSWER, GWEB_TEXT_OUT, GWEB_TRAILERS_ONLY, grpc_web_encode, grpc_web_error, grpc_web_request_data,
    grpc_web_response_data, grpc_web_trailers, grpc_web_trailers_only,
)
from fastmesh.core.wire.grpc_web_head cimport grpc_web_head_bound, grpc_web_request_head, grpc_web_response_head
from fastmesh.core.wire.message cimport Message

cdef enum:
    TEXT_SLICE = 65536            # characters decoded at once: 49152 bytes
    PLAIN_SLICE = 49152           # bytes encoded at once: 65536 characters, and no padding in between


# ---------------------------------------------------------------- towards the service

cdef inline Message *web_request_head(Worker *w, const Exchange *x, const Message *m) noexcept nogil:
    """The head of a call as the service gets it; NULL: it is too large."""
    if grpc_web_head_bound(m) > ALT_SCRATCH:
        return NULL
    grpc_web_request_head(&x.web, m, &w.alt, w.alt_text)
    return &w.alt


cdef inline int web_request_data(Worker *w, Exchange *x, const char **p, size_t *n, size_t *plain) noexcept nogil:
    """Decode the first of `n` characters at `p`, which are moved behind them: *plain bytes in `alt_text`. 0 or a
    reason."""
    cdef size_t k = n[0] if n[0] < TEXT_SLICE else TEXT_SLICE
    cdef int r = grpc_web_request_data(&x.web, p[0], k, w.alt_text, plain)
    p[0] += k
    n[0] -= k
    return r


# ---------------------------------------------------------------- towards the client

cdef inline int _error(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The frame of an error of ours, in `alt_text`: its bytes, or a reason: the client cannot be told any more."""
    cdef char text[512]
    cdef int n = answer_text(w, x, reason, text, sizeof(text))
    return grpc_web_error(&x.web, answer_status(w, x, reason), text, n, w.alt_text)


cdef inline int web_response_head(Worker *w, Exchange *x, Message *m) noexcept nogil:
    """Pass a head of the answer on, and the status with it if that is all there is. As EndOps.head."""
    cdef int r, n, full
    if grpc_web_head_bound(m) > ALT_SCRATCH:
        return -R_UPSTREAM_HEAD_TOO_LARGE
    if grpc_web_response_head(&x.web, m, &w.alt, w.alt_text) == 0:
        return x.down.ops.head(w, x.down, m)
    r = x.down.ops.head(w, x.down, &w.alt)
    if r < 0 or not x.web.flags & GWEB_TRAILERS_ONLY:
        return r
    n = grpc_web_trailers_only(&x.web, m, w.alt_text)
    if n < 0:
        n = _error(w, x, -n)
        if n < 0:
            return n
    full = x.down.ops.data(w, x.down, w.alt_text, n)
    return full if full != 0 else r


cdef inline int web_response_data(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Pass body bytes of the answer on. As EndOps.data."""
    cdef size_t k
    cdef int full = 0
    cdef int r
    if x.web.flags & GWEB_ANSWER:
        r = grpc_web_response_data(&x.web, p, n)
        if r < 0:
            return r
    if not x.web.flags & GWEB_ANSWER or not x.web.flags & GWEB_TEXT_OUT:
        return x.down.ops.data(w, x.down, p, n)
    while n > 0:
        k = n if n < PLAIN_SLICE else PLAIN_SLICE
        r = x.down.ops.data(w, x.down, w.alt_text, grpc_web_encode(w.alt_text, p, k))
        if r < 0:
            return r
        full |= r
        p += k
        n -= k
    return full


cdef inline int web_response_end(Worker *w, Exchange *x, Message *trailers) noexcept nogil:
    """The answer is complete: its status is the end of the body. As EndOps.finish."""
    cdef int n
    cdef int r
    if not x.web.flags & GWEB_ANSWER:
        return x.down.ops.finish(w, x.down, trailers)
    n = grpc_web_trailers(&x.web, trailers, w.alt_text)
    if n == -R_UPSTREAM_HEAD_TOO_LARGE:
        n = _error(w, x, R_UPSTREAM_HEAD_TOO_LARGE)
    if n < 0:
        return n
    if n > 0:
        r = x.down.ops.data(w, x.down, w.alt_text, n)
        if r < 0:
            return r
    return x.down.ops.finish(w, x.down, NULL)


cdef inline int web_end_with(Worker *w, Exchange *x, int reason) noexcept nogil:
    """End an answer that has begun with an error of ours. 0 or a reason."""
    cdef int n = _error(w, x, reason)
    if n < 0:
        return n
    n = x.down.ops.data(w, x.down, w.alt_text, n)
    if n < 0:
        return n
    n = x.down.ops.finish(w, x.down, NULL)
    return n if n < 0 else 0
