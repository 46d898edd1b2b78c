# What both ends of HTTP/1 queue alike: chunks (RFC 9112 7.1).

from libc.string cimport memcpy

from fastmesh.core.base.buffer cimport queue_commit, queue_reserve
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.connection cimport conn_dirty
from fastmesh.core.io.connection_output cimport conn_write, conn_write_body
from fastmesh.core.io.state cimport Conn, Worker
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
