# Received bytes, between a connection and its owner: what the owner leaves is kept in `rx` and offered again.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memmove

from fastmesh.core.base.buffer cimport BUF_LARGE, Buf, buf_class_for, buf_drop, buf_get
from fastmesh.core.base.check cimport fm_impossible
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.connection cimport conn_fail, conn_touch
from fastmesh.core.io.state cimport C_DEAD, C_EOF_TOLD, C_PAUSED, C_UPSTREAM, Conn, ConnOps, Worker
from fastmesh.core.traffic.counters cimport K_BYTES_DOWNSTREAM_IN, K_BYTES_UPSTREAM_IN, K_IMPOSSIBLE


cdef inline void conn_took(Worker *w, Conn *c, size_t n) noexcept nogil:
    w.row.counters[K_BYTES_UPSTREAM_IN if c.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_IN] += n
    conn_touch(w, c)


cdef inline bint _stash(Worker *w, Conn *c, const char *p, size_t n) noexcept nogil:
    """Keep what the owner left of bytes that are not in `rx`. False: no memory, or more than may be kept."""
    cdef int cls = buf_class_for(n)
    cdef Buf *b
    if cls < 0:
        return False
    b = buf_get(&w.pool, cls)
    if b == NULL:
        return False
    memcpy(b.data, p, n)
    b.end = <uint32_t>n
    c.rx = b
    return True


cdef inline void conn_offer(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """Give the owner `n` new bytes that are not in `rx` (which is empty), keep what it leaves."""
    cdef size_t used
    cdef ConnOps *ops
    while True:
        ops = c.ops
        used = ops.on_input(w, c, p, n)
        if c.flags & C_DEAD:
            return
        if fm_impossible(&w.row.counters[K_IMPOSSIBLE], used <= n, b"more input taken than was offered"):
            used = n
        p += used
        n -= used
        # an owner that has handed the connection on lets its successor look at the rest
        if n == 0 or c.ops == ops or c.ops == NULL:
            break
    if n > 0 and not _stash(w, c, p, n):
        conn_fail(w, c, R_NO_MEMORY)


cdef inline void conn_offer_kept(Worker *w, Conn *c) noexcept nogil:
    """Offer what is kept in `rx`."""
    cdef Buf *b = c.rx
    cdef ConnOps *ops
    cdef size_t used
    while b.start < b.end:
        ops = c.ops
        used = ops.on_input(w, c, b.data + b.start, b.end - b.start)
        if c.flags & C_DEAD:
            return
        if fm_impossible(&w.row.counters[K_IMPOSSIBLE], used <= b.end - b.start, b"more input taken than was kept"):
            used = b.end - b.start
        b.start += <uint32_t>used
        if c.ops == ops or c.ops == NULL:
            break
    if b.start == b.end:
        c.rx = NULL
        buf_drop(&w.pool, b)


cdef inline Buf *conn_room(Worker *w, Conn *c) noexcept nogil:
    """`rx` with room behind its bytes: moved to its front or into a larger buffer. NULL: cannot grow."""
    cdef Buf *b = c.rx
    cdef Buf *bigger
    cdef uint32_t have = b.end - b.start
    if b.cap - b.end >= 512:
        return b
    if b.start >= 4096 or (b.start > 0 and b.cls == BUF_LARGE):
        memmove(b.data, b.data + b.start, have)
        b.start = 0
        b.end = have
        return b
    if b.end < b.cap:
        return b
    if b.cls == BUF_LARGE:
        return NULL
    bigger = buf_get(&w.pool, b.cls + 1)
    if bigger == NULL:
        return NULL
    memcpy(bigger.data, b.data + b.start, have)
    bigger.end = have
    buf_drop(&w.pool, b)
    c.rx = bigger
    return bigger


cdef inline void conn_tell_eof(Worker *w, Conn *c) noexcept nogil:
    if c.flags & (C_EOF_TOLD | C_PAUSED | C_DEAD):
        return
    if c.rx != NULL and (c.ops == &w.ops.accepted or c.ops == &w.ops.late):
        conn_offer_kept(w, c)                            # too little to tell a protocol by, but all there will be
        if c.flags & (C_PAUSED | C_DEAD):
            return
    c.flags |= C_EOF_TOLD
    if c.rx != NULL:
        buf_drop(&w.pool, c.rx)
        c.rx = NULL
    c.ops.on_eof(w, c)
