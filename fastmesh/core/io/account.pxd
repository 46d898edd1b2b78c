# What is counted of an exchange, and its line in the access log.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmesh.core.base.buffer cimport BUF_SMALL, buf_get
from fastmesh.core.io.state cimport Exchange, Worker, X_LOG, X_OPAQUE
from fastmesh.core.traffic.counters cimport (
    S_ACTIVE, S_BYTES_RECEIVED, S_BYTES_SENT, S_STATUS_1XX, S_STATUS_NONE, ServiceRow, latency_bucket,
)
from fastmesh.core.traffic.ring cimport (
    LOG_IDENTITY, LOG_LISTENER, LOG_METHOD, LOG_RULE, LOG_SERVICE, LOG_TEXTS, LOG_UPSTREAM, LogRecord, ring_write,
)
from fastmesh.core.wire.message cimport Message


cdef inline void _put(LogRecord *rec, const char **texts, int at, const char *text, uint32_t n) noexcept nogil:
    texts[at] = text
    rec.lengths[at] = <uint16_t>n


cdef inline void _log(Worker *w, Exchange *x) noexcept nogil:
    """One record for the access log, into the ring that the agent drains."""
    cdef LogRecord rec
    cdef const char *texts[LOG_TEXTS]
    cdef const char *p = x.log.data
    cdef int i
    memset(&rec, 0, sizeof(LogRecord))
    memset(texts, 0, sizeof(texts))
    rec.status = x.status
    rec.reason = x.reason
    rec.wall_us = x.start_us + w.wall_us
    rec.duration_us = w.now_us - x.start_us
    rec.bytes_in = x.bytes_in
    rec.bytes_out = x.bytes_out
    rec.snapshot = x.snapshot.number
    rec.retries = x.retries
    rec.version = x.version
    for i in range(4):                           # method, authority, path, source
        _put(&rec, texts, LOG_METHOD + i, p, x.log_len[i])
        p += x.log_len[i]
    _put(&rec, texts, LOG_LISTENER, x.conf.name.ptr, x.conf.name.len)
    if x.service != NULL:
        _put(&rec, texts, LOG_SERVICE, x.service.name.ptr, x.service.name.len)
    if x.endpoint != NULL:
        _put(&rec, texts, LOG_UPSTREAM, x.endpoint.text.ptr, x.endpoint.text.len)
    if x.identity != NULL:
        _put(&rec, texts, LOG_IDENTITY, x.identity.text, x.identity.len)
    if x.decision.rule != NULL:
        _put(&rec, texts, LOG_RULE, x.decision.rule.name.ptr, x.decision.rule.name.len)
    rec.verdict = x.decision.verdict
    rec.audit = x.decision.audit
    rec.by_service = x.decision.service
    ring_write(w.ring, &rec, texts)


cdef inline void account(Worker *w, Exchange *x) noexcept nogil:
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
