# Reading a connection: until the kernel has no more, the owner pauses, or its share of the turn is spent.

from libc.stdint cimport uint32_t

from fastmesh.core.base.buffer cimport BUF_LARGE, Buf, buf_drop, buf_get
from fastmesh.core.base.list cimport list_append, node_linked
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.connection cimport conn_fail, conn_fail_io, conn_resume_later
from fastmesh.core.io.connection_offer cimport conn_offer, conn_offer_kept, conn_room, conn_tell_eof, conn_took
from fastmesh.core.io.connection_tls cimport conn_input_tls
from fastmesh.core.io.state cimport (
    C_BULK, C_CONNECTING, C_DEAD, C_EOF, C_HANDSHAKE, C_PAUSED, C_RDHUP, C_READABLE, C_RESUMED, C_SNIFF_TLS, C_TLS,
    C_UPSTREAM, Conn, INPUT_BUDGET, INPUT_SCRATCH, Worker,
)
from fastmesh.core.sys.posix cimport EAGAIN, EINTR, MSG_PEEK, c_recv, errno


cdef inline bint _sniff_tls(Worker *w, Conn *c) noexcept nogil:
    """Permissive listeners: a TLS record of type handshake starts with 0x16 (RFC 8446 5.1), no text does."""
    cdef unsigned char first
    cdef ssize_t n = c_recv(c.src.fd, &first, 1, MSG_PEEK)
    while n < 0 and errno == EINTR:
        n = c_recv(c.src.fd, &first, 1, MSG_PEEK)
    if n < 0:
        c.flags &= ~<uint32_t>C_READABLE
        if errno != EAGAIN:
            conn_fail_io(w, c, errno)            # a look takes the error away: who reads next would see an end
        return False
    c.flags &= ~<uint32_t>C_SNIFF_TLS
    if n == 1 and first == 0x16:
        w.ops.start_tls(w, c)
    else:
        c.ops.on_ready(w, c)
    return not c.flags & C_DEAD


cdef inline void _input_plain(Worker *w, Conn *c) noexcept nogil:
    cdef ssize_t n
    cdef size_t want
    cdef size_t budget = INPUT_BUDGET
    cdef Buf *b
    cdef bint bulk
    while c.flags & C_READABLE and not c.flags & (C_PAUSED | C_DEAD):
        bulk = False
        if c.rx != NULL:
            b = conn_room(w, c)
            if b == NULL:
                conn_fail(w, c, R_NO_MEMORY)
                return
            want = b.cap - b.end
            n = c_recv(c.src.fd, b.data + b.end, want, 0)
        elif c.flags & C_BULK and (b := buf_get(&w.pool, BUF_LARGE)) != NULL:
            # The owner expects a long body: read into a buffer that can be handed on as it is.
            bulk = True
            want = INPUT_SCRATCH
            n = c_recv(c.src.fd, b.data, want, 0)
        else:
            b = NULL
            want = INPUT_SCRATCH
            n = c_recv(c.src.fd, w.input, want, 0)
        if n <= 0:
            if bulk:
                buf_drop(&w.pool, b)
            if n == 0:
                c.flags &= ~<uint32_t>C_READABLE
                c.flags |= C_EOF
                return
            if errno == EINTR:
                continue
            c.flags &= ~<uint32_t>C_READABLE
            if errno != EAGAIN:
                conn_fail_io(w, c, errno)
            return
        conn_took(w, c, n)
        # Fewer bytes than asked for: the socket is empty, and the next byte or end is a new edge. An end
        # that has already come (RDHUP) is not, so it is read now.
        if <size_t>n < want and not c.flags & C_RDHUP:
            c.flags &= ~<uint32_t>C_READABLE
        if c.rx != NULL:
            b.end += <uint32_t>n
            conn_offer_kept(w, c)
        elif bulk:
            w.handoff = b
            b.end = <uint32_t>n
            conn_offer(w, c, b.data, n)
            w.handoff = NULL
            buf_drop(&w.pool, b)
        else:
            conn_offer(w, c, w.input, n)
        if c.flags & C_DEAD:
            return
        if c.flow_in != NULL:
            w.ops.flow_pump(w, c.flow_in)
            return
        if <size_t>n >= budget:
            conn_resume_later(w, c)
            return
        budget -= n


cdef inline void conn_input(Worker *w, Conn *c) noexcept nogil:
    """Read and offer until the kernel has no more, the owner pauses, or the budget is spent. A client's
    handshake only gets in line (conn_shake)."""
    if c.flags & (C_DEAD | C_CONNECTING):
        return
    if c.flags & C_SNIFF_TLS and not _sniff_tls(w, c):
        return
    if c.flags & C_HANDSHAKE and not c.flags & C_UPSTREAM:
        if not node_linked(&c.ready):
            list_append(&w.shaking, &c.ready)
        return
    conn_go_on(w, c)


cdef inline void conn_go_on(Worker *w, Conn *c) noexcept nogil:
    if c.flow_in != NULL:
        w.ops.flow_pump(w, c.flow_in)
        return
    if c.rx != NULL and not c.flags & C_PAUSED and c.flags & C_RESUMED:
        c.flags &= ~<uint32_t>C_RESUMED
        conn_offer_kept(w, c)
        if c.flags & C_DEAD:
            return
        if c.flow_in != NULL:
            w.ops.flow_pump(w, c.flow_in)
            return
    if c.flags & C_TLS:
        conn_input_tls(w, c)
    else:
        _input_plain(w, c)
    if c.flags & C_EOF and not c.flags & (C_DEAD | C_PAUSED):
        conn_tell_eof(w, c)
