# What both ends of HTTP/1 queue alike: chunks (RFC 9112 7.1). And what is kept of a request for another try: the
# bytes as they went out.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.buffer cimport Buf, Queue, buf_class_for, buf_drop, buf_get, queue_commit, queue_reserve
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.connection cimport conn_dirty
from fastmesh.core.io.connection_output cimport conn_write, conn_write_body
from fastmesh.core.io.state cimport Conn, Exchange, REPLAY_MAX, Worker
from fastmesh.core.wire.http1_write cimport HTTP1_CHUNK_SIZE_MAX, http1_copy_fields, http1_write_chunk_size
from fastmesh.core.wire.message cimport Message


cdef inline int h1_chunk(Worker *w, Conn *c, const char *data, size_t n) noexcept nogil:
    """Queue one chunk (RFC 9112 7.1)."""
    cdef char *p = queue_reserve(&w.pool, &c.tx, HTTP1_CHUNK_SIZE_MAX)
    cdef int r
    if p == NULL:
        return -R_NO_MEMORY
    queue_commit(&c.tx, http1_write_chunk_size(p, n))
    r = conn_write_body(w, c, data, n)
    if r < 0:
        return r
    return conn_write(w, c, b"\r\n", 2)


cdef inline int h1_last_chunk(Worker *w, Conn *c, Message *trailers) noexcept nogil:
    """Queue the last chunk with its trailer section."""
    cdef char *p
    cdef size_t n
    if trailers == NULL:
        return conn_write(w, c, b"0\r\n\r\n", 5)
    p = queue_reserve(&w.pool, &c.tx, trailers.head_len + 8)
    if p == NULL:
        return -R_NO_MEMORY
    memcpy(p, b"0\r\n", 3)
    n = 3 + http1_copy_fields(p + 3, trailers)
    memcpy(p + n, b"\r\n", 2)
    queue_commit(&c.tx, n + 2)
    conn_dirty(w, c)
    return 0


cdef inline void h1_keep(Worker *w, Exchange *x, Queue *q) noexcept nogil:
    """Remember the queued request for another try: the queue's one buffer, or a copy of it."""
    cdef Buf *b = q.head
    if b == NULL or b.next != NULL or b.start != 0:
        return
    b.refs += 1
    x.replay = b


cdef inline void h1_keep_body(Worker *w, Exchange *x, const char *p, size_t n) noexcept nogil:
    """Add body bytes to what is remembered, up to REPLAY_MAX; beyond it the request cannot be repeated."""
    cdef Buf *old = x.replay
    cdef Buf *b
    cdef size_t have
    if old == NULL:
        return
    have = old.end
    if have + n > REPLAY_MAX:
        buf_drop(&w.pool, old)
        x.replay = NULL
        return
    if old.refs > 1 or old.cap - old.end < n:
        b = buf_get(&w.pool, buf_class_for(have + n))
        if b != NULL:
            memcpy(b.data, old.data, have)
            b.end = <uint32_t>have
        buf_drop(&w.pool, old)
        x.replay = b
        if b == NULL:
            return
    memcpy(x.replay.data + have, p, n)
    x.replay.end += <uint32_t>n
