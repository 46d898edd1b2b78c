# Writing to a connection: owners queue, and the turn's one flush sends.

from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastmesh.core.base.buffer cimport Buf, Queue, queue_clear, queue_consume, queue_copy, queue_push
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.io.connection cimport (
    conn_deadline, conn_dirty, conn_fail, conn_fail_io, conn_queued_bytes, conn_touch,
)
from fastmesh.core.io.connection_input cimport conn_input
from fastmesh.core.io.connection_tls cimport conn_encrypt, conn_fail_tls, conn_goodbye, conn_send_wire, conn_sent
from fastmesh.core.io.state cimport (
    C_CLOSE_FLUSHED, C_CONNECTING, C_DEAD, C_DIRTY, C_HANDSHAKE, C_LINGER, C_PAUSED, C_RDHUP, C_READABLE, C_RESUMED,
    C_SHUT, C_SHUT_WANTED, C_TLS, C_TX_HIGH, C_UPSTREAM, C_WRITABLE, Conn, INPUT_SCRATCH, LINGER_MS, TX_HIGH,
    TX_LOW, Worker,
)
from fastmesh.core.sys.posix cimport (
    EAGAIN, EINTR, MSG_NOSIGNAL, SHUT_WR, c_send, c_shutdown, errno, iovec, msghdr, sendmsg,
)


cdef inline int conn_queued(Worker *w, Conn *c) noexcept nogil:
    """Something was queued on `c.tx`: 0, or 1 if the queue is high and its source should stop."""
    conn_dirty(w, c)
    if c.tx.bytes >= TX_HIGH:
        c.flags |= C_TX_HIGH
        return 1
    return 0


cdef inline int conn_write(Worker *w, Conn *c, const char *p, size_t n) noexcept nogil:
    """Queue a copy. 0, 1: queued and the queue is high; or a negative reason."""
    if queue_copy(&w.pool, &c.tx, p, n) != 0:
        return -R_NO_MEMORY
    return conn_queued(w, c)


cdef inline Buf *body_taken(Worker *w, const char *p, size_t n) noexcept nogil:
    """The buffer that these body bytes were read into, a reference, where taking it is worth while; else NULL."""
    cdef Buf *b = w.handoff
    if b == NULL or n < INPUT_SCRATCH // 4 * 3 or p < b.data or p + n > b.data + b.cap:
        return NULL
    w.handoff = NULL
    b.start = <uint32_t>(p - b.data)
    b.end = b.start + <uint32_t>n
    b.cap = b.end                  # nothing may be appended: the input handler may still read what follows,
    b.refs += 1                    # for which the reader keeps its own reference
    return b


cdef inline int conn_write_body(Worker *w, Conn *c, const char *p, size_t n) noexcept nogil:
    """Queue body bytes: takes the buffer they were read into where that is worth it, copies otherwise."""
    cdef Buf *b = body_taken(w, p, n)
    if b == NULL:
        return conn_write(w, c, p, n)
    queue_push(&c.tx, b)
    return conn_queued(w, c)


cdef inline int _send_queue(Worker *w, Conn *c, Queue *q) noexcept nogil:
    """Send as much as the kernel takes. 0, or -errno."""
    cdef iovec iov[16]
    cdef msghdr m
    cdef Buf *b
    cdef ssize_t n
    cdef size_t want
    cdef int k
    while q.bytes > 0:
        b = q.head
        if b.next == NULL:
            want = b.end - b.start
            n = c_send(c.src.fd, b.data + b.start, want, MSG_NOSIGNAL)
        else:
            k = 0
            want = 0
            while b != NULL and k < 16:
                iov[k].iov_base = b.data + b.start
                iov[k].iov_len = b.end - b.start
                want += iov[k].iov_len
                k += 1
                b = b.next
            memset(&m, 0, sizeof(msghdr))
            m.msg_iov = iov
            m.msg_iovlen = k
            n = sendmsg(c.src.fd, &m, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.flags &= ~<uint32_t>C_WRITABLE
                return 0
            return -errno
        conn_sent(w, c, n)
        queue_consume(&w.pool, q, n)
        conn_touch(w, c)
        if <size_t>n < want:
            c.flags &= ~<uint32_t>C_WRITABLE      # the kernel will tell when there is room
            return 0
    return 0


cdef inline void conn_output_failed(Worker *w, Conn *c, int err) noexcept nogil:
    """The peer takes no more. What it sent before (an early answer, an alert) may still be there to be read."""
    if c.flags & C_UPSTREAM and c.flow_in == NULL:
        queue_clear(&w.pool, &c.tx)
        queue_clear(&w.pool, &c.wire)
        c.flags |= C_READABLE | C_RDHUP | C_RESUMED
        c.flags &= ~<uint32_t>(C_WRITABLE | C_PAUSED)
        conn_input(w, c)
        if c.flags & C_DEAD or c.flow_in != NULL or c.flags & C_PAUSED:
            return                               # what was read has decided, or there is more of it
    conn_fail_io(w, c, err)


cdef inline int _send(Worker *w, Conn *c) noexcept nogil:
    """What is queued, as far as the kernel takes it. 0, or -errno; with the connection closed: TLS has failed."""
    cdef int r = 0
    if not c.flags & C_TLS:
        return _send_queue(w, c, &c.tx) if c.flags & C_WRITABLE else 0
    if c.wire.bytes > 0 and c.flags & C_WRITABLE:
        r = _send_queue(w, c, &c.wire)
    while r == 0 and c.tx.bytes > 0 and c.wire.bytes == 0 and c.flags & C_WRITABLE:
        w.tls.out_len = 0
        r = conn_encrypt(w, c)
        if r < 0:
            conn_fail_tls(w, c, -r)
            return r
        r = conn_send_wire(w, c)
    return r


cdef inline void conn_flush(Worker *w, Conn *c) noexcept nogil:
    """Write what is queued as far as the kernel takes it, then do what was waiting for that."""
    cdef int r
    cdef bint more = False
    if c.flags & C_CONNECTING:
        return                                     # on_ready flushes
    if c.flags & C_HANDSHAKE:
        # a flight that the kernel did not take at once; what is in `tx` waits for on_ready
        if c.wire.bytes > 0 and c.flags & C_WRITABLE:
            r = _send_queue(w, c, &c.wire)
            if r < 0:
                conn_fail_io(w, c, -r)
        return
    while True:
        if c.ops != NULL and c.ops.on_flush != NULL:
            more = c.ops.on_flush(w, c)
            if c.flags & C_DEAD:
                return
        r = _send(w, c)
        if r != 0 or not more or conn_queued_bytes(c) > 0:
            break
    if r < 0:
        if not c.flags & C_DEAD:
            conn_output_failed(w, c, -r)
        return
    if c.flags & C_TX_HIGH and conn_queued_bytes(c) <= TX_LOW:
        c.flags &= ~<uint32_t>C_TX_HIGH
        if c.ops != NULL:
            c.ops.on_drained(w, c)
            if c.flags & C_DEAD:
                return
    if conn_queued_bytes(c) == 0:
        if c.flow_out != NULL:
            w.ops.flow_pump(w, c.flow_out)
            if c.flags & C_DEAD:
                return
        if c.flags & C_CLOSE_FLUSHED:
            if c.flags & C_TLS and not c.flags & C_SHUT and not conn_goodbye(w, c):
                return
            conn_fail(w, c, 0)
            return
        if c.flags & C_SHUT_WANTED and not c.flags & C_SHUT and c.flow_out == NULL:
            if c.flags & C_TLS and not conn_goodbye(w, c):
                return
            c.flags |= C_SHUT
            c_shutdown(c.src.fd, SHUT_WR)
            if c.flags & C_LINGER:
                conn_deadline(w, c, LINGER_MS)


cdef inline void conn_flush_all(Worker *w) noexcept nogil:
    """The one flush of a turn. What on_drained and flows queue meanwhile is flushed too."""
    cdef Conn *c
    while w.dirty != NULL:
        c = w.dirty
        w.dirty = c.next_dirty
        c.flags &= ~<uint32_t>C_DIRTY
        if c.flags & C_DEAD:
            c.next_dirty = w.dead
            w.dead = c
        else:
            conn_flush(w, c)
