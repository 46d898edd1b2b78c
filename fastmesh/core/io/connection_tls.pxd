# TLS on a connection: its handshake, and records to plaintext and back. What TLS has to say goes through the
# worker's wire scratch; only what the kernel refuses is kept in `wire`, and what was read while paused in `cipher`.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.buffer cimport BUF_LARGE, Buf, buf_drop, buf_get, queue_consume, queue_copy
from fastmesh.core.base.check cimport fm_impossible
from fastmesh.core.base.reason cimport R_COUNT, R_INTERNAL, R_NO_MEMORY
from fastmesh.core.io.age cimport conn_denied, conn_expires_with_peer
from fastmesh.core.io.connection cimport conn_dirty, conn_fail, conn_fail_io, conn_resume_later, conn_touch
from fastmesh.core.io.connection_offer cimport conn_offer, conn_offer_kept, conn_room, conn_took
from fastmesh.core.io.state cimport (
    C_BULK, C_DEAD, C_EARLY, C_EOF, C_HANDSHAKE, C_OLD_TRUST, C_PAUSED, C_RDHUP, C_READABLE, C_TRUNCATED, C_UPSTREAM,
    C_WRITABLE, Conn, INPUT_BUDGET, INPUT_SCRATCH, WIRE_SCRATCH, Worker,
)
from fastmesh.core.sys.posix cimport (
    EAGAIN, EINTR, IPPROTO_TCP, MSG_NOSIGNAL, TCP_QUICKACK, c_recv, c_send, errno, setsockopt,
)
from fastmesh.core.traffic.counters cimport (
    K_BYTES_DOWNSTREAM_OUT, K_BYTES_UPSTREAM_OUT, K_IMPOSSIBLE, K_TLS_FAILED_DOWNSTREAM, K_TLS_FAILED_UPSTREAM,
    K_TLS_HANDSHAKES_DOWNSTREAM, K_TLS_HANDSHAKES_UPSTREAM, K_TLS_RESUMED_DOWNSTREAM, K_TLS_RESUMED_UPSTREAM,
)
from fastmesh.core.wire.tls cimport (
    TLS_EOF, TLS_SINK_FULL, tls_close_notify, tls_handshake, tls_overhead, tls_read, tls_resumed, tls_write,
)


cdef inline void conn_sent(Worker *w, Conn *c, size_t n) noexcept nogil:
    w.row.counters[K_BYTES_UPSTREAM_OUT if c.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_OUT] += n


cdef inline int conn_send_wire(Worker *w, Conn *c) noexcept nogil:
    """Send what TLS left in the wire scratch; the rest goes to `c.wire`. 0, or -errno."""
    cdef ssize_t n = 0
    cdef size_t have = w.tls.out_len
    w.tls.out_len = 0
    if have == 0:
        return 0
    if c.wire.bytes == 0 and c.flags & C_WRITABLE:
        n = c_send(c.src.fd, w.tls.out, have, MSG_NOSIGNAL)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                return -errno
            n = 0
        conn_sent(w, c, n)
        if n > 0:
            conn_touch(w, c)
        if <size_t>n < have:
            c.flags &= ~<uint32_t>C_WRITABLE
    if <size_t>n < have and queue_copy(&w.pool, &c.wire, w.tls.out + n, have - n) != 0:
        return -1
    return 0


cdef inline void conn_fail_tls(Worker *w, Conn *c, int reason) noexcept nogil:
    """TLS cannot go on: send the alert that is in the sink, count, give up."""
    if w.tls.out_len > 0 and c.wire.bytes == 0:      # not into the middle of a record
        c_send(c.src.fd, w.tls.out, w.tls.out_len, MSG_NOSIGNAL)
    w.tls.out_len = 0
    if fm_impossible(&w.row.counters[K_IMPOSSIBLE], reason < R_COUNT, b"no room for what TLS has to say"):
        reason = R_INTERNAL
    if c.flags & C_HANDSHAKE:
        w.row.counters[K_TLS_FAILED_UPSTREAM if c.flags & C_UPSTREAM else K_TLS_FAILED_DOWNSTREAM] += 1
    conn_fail(w, c, reason)


cdef inline bint _handshake(Worker *w, Conn *c) noexcept nogil:
    """Drive the handshake with the ciphertext at hand. True: done just now or before."""
    cdef int one = 1
    cdef int r
    cdef bint told
    if not c.flags & C_HANDSHAKE:
        return True
    w.tls.out_len = 0
    while True:
        r = tls_handshake(&w.tls, &c.tls)
        if r != TLS_SINK_FULL or w.tls.out_len == 0:
            break
        if conn_send_wire(w, c) < 0:             # a flight may be larger than the sink
            conn_fail_io(w, c, errno)
            return False
    if r < 0:
        conn_fail_tls(w, c, -r)
        return False
    told = w.tls.out_len > 0
    if conn_send_wire(w, c) < 0:
        conn_fail_io(w, c, errno)
        return False
    if r == 0:
        return False
    if not told and w.tls.in_len == 0 and not c.flags & C_UPSTREAM:
        # No ticket carries our ACK back: a client with Nagle's algorithm would keep its request for 40 ms.
        setsockopt(c.src.fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(int))
    if c.flags & C_OLD_TRUST:
        r = conn_denied(w, c)
        if r:
            conn_fail_tls(w, c, r)
            return False
    conn_expires_with_peer(w, c)
    c.flags &= ~<uint32_t>C_HANDSHAKE
    if c.flags & C_UPSTREAM:
        w.row.counters[K_TLS_HANDSHAKES_UPSTREAM] += 1
        w.row.counters[K_TLS_RESUMED_UPSTREAM] += tls_resumed(&c.tls)
    else:
        w.row.counters[K_TLS_HANDSHAKES_DOWNSTREAM] += 1
        w.row.counters[K_TLS_RESUMED_DOWNSTREAM] += tls_resumed(&c.tls)
    c.ops.on_ready(w, c)
    if c.flags & C_DEAD:
        return False
    conn_dirty(w, c)
    return True


cdef inline void _decrypt(Worker *w, Conn *c) noexcept nogil:
    """Offer everything that the ciphertext at hand holds, as long as the owner takes it."""
    cdef int r = 1
    cdef size_t have
    cdef size_t cap
    cdef char *p
    cdef Buf *b
    cdef Buf *bulk
    while r > 0 and not c.flags & (C_PAUSED | C_DEAD):
        b = NULL
        bulk = NULL
        have = 0
        w.handoff = NULL
        if c.rx != NULL:
            b = conn_room(w, c)
            if b == NULL:
                conn_fail(w, c, R_NO_MEMORY)
                return
            p = b.data + b.end
            cap = b.cap - b.end
        elif c.flags & C_BULK and (b := buf_get(&w.pool, BUF_LARGE)) != NULL:
            bulk = b
            w.handoff = b
            p = b.data
            cap = INPUT_SCRATCH
        else:
            # The input scratch holds the ciphertext.
            p = w.plain
            cap = INPUT_SCRATCH
        while cap > 0:
            r = tls_read(&w.tls, &c.tls, p + have, cap)
            if r <= 0:
                break
            have += r
            cap -= r
        if have > 0:
            if c.rx != NULL:
                b.end += <uint32_t>have
                conn_offer_kept(w, c)
            else:
                if bulk != NULL:
                    bulk.end = <uint32_t>have
                conn_offer(w, c, p, have)
        if bulk != NULL:
            w.handoff = NULL
            buf_drop(&w.pool, bulk)
        if r == TLS_SINK_FULL and not c.flags & C_DEAD:
            r = 1
            if conn_send_wire(w, c) < 0:
                conn_fail_io(w, c, errno)
                return
    if c.flags & C_DEAD:
        return
    if r == TLS_EOF:
        c.flags |= C_EOF
        c.flags &= ~<uint32_t>C_READABLE
    elif r < 0:
        conn_fail_tls(w, c, -r)


cdef inline void conn_input_tls(Worker *w, Conn *c) noexcept nogil:
    cdef ssize_t n
    cdef size_t budget = INPUT_BUDGET
    cdef Buf *b
    while not c.flags & (C_PAUSED | C_DEAD | C_EOF):
        # What is at hand first: kept ciphertext, or plaintext kept in there after a pause. The sink is empty: what
        # a connection left there that an owner closed meanwhile belongs to no other.
        w.tls.eof = False
        w.tls.out_len = 0
        if c.cipher != NULL:
            b = c.cipher
            c.cipher = NULL
            w.tls.in_ptr = b.data + b.start
            w.tls.in_len = b.end - b.start
            n = 0
        elif c.flags & C_EARLY:
            b = NULL
            w.tls.in_ptr = NULL
            w.tls.in_len = 0
            n = 0
        elif c.flags & C_READABLE:
            b = NULL
            n = c_recv(c.src.fd, w.input, INPUT_SCRATCH, 0)
            if n < 0:
                if errno == EINTR:
                    continue
                c.flags &= ~<uint32_t>C_READABLE
                if errno != EAGAIN:
                    conn_fail_io(w, c, errno)
                return
            if n == 0:
                # End of the socket without close_notify: a truncation unless the message says where it ends.
                c.flags &= ~<uint32_t>C_READABLE
                if c.flags & C_HANDSHAKE:
                    w.tls.in_len = 0
                    w.tls.eof = True
                    _handshake(w, c)
                else:
                    c.flags |= C_EOF | C_TRUNCATED
                return
            conn_took(w, c, n)
            if n < INPUT_SCRATCH and not c.flags & C_RDHUP:
                c.flags &= ~<uint32_t>C_READABLE
            w.tls.in_ptr = w.input
            w.tls.in_len = n
        else:
            return
        c.flags &= ~<uint32_t>C_EARLY
        if _handshake(w, c):
            _decrypt(w, c)
        if c.flags & C_DEAD:
            if b != NULL:
                buf_drop(&w.pool, b)
            w.tls.in_len = 0
            return
        if c.flags & C_PAUSED:
            c.flags |= C_EARLY
        if w.tls.in_len > 0:
            # Paused in the middle: keep the ciphertext for later.
            if b != NULL:
                b.start = b.end - <uint32_t>w.tls.in_len
                c.cipher = b
                b = NULL
            else:
                c.cipher = buf_get(&w.pool, BUF_LARGE)
                if c.cipher == NULL:
                    w.tls.in_len = 0
                    conn_fail(w, c, R_NO_MEMORY)
                    return
                memcpy(c.cipher.data, w.tls.in_ptr, w.tls.in_len)
                c.cipher.end = <uint32_t>w.tls.in_len
            w.tls.in_len = 0
        if b != NULL:
            buf_drop(&w.pool, b)
        if w.tls.out_len > 0:                      # key updates, tickets
            # More than a flush can leave: it has us answer key updates and does not read what we say.
            if conn_send_wire(w, c) < 0 or c.wire.bytes > WIRE_SCRATCH:
                conn_fail_io(w, c, errno)
                return
        if <size_t>n >= budget:
            conn_resume_later(w, c)
            return
        budget -= n


cdef inline int conn_encrypt(Worker *w, Conn *c) noexcept nogil:
    """Move plaintext from `tx` into the wire scratch, in records as large as the queue allows."""
    cdef char *p
    cdef Buf *b
    cdef size_t n
    cdef size_t k
    cdef int r
    while c.tx.bytes > 0:
        b = c.tx.head
        n = b.end - b.start
        p = b.data + b.start
        if n > 16384:
            n = 16384
        elif b.next != NULL and n < 8192:
            # Several short buffers make one record: gather them in the input scratch, free at flush time.
            n = 0
            while b != NULL and n < 16384:
                k = b.end - b.start
                if k > 16384 - n:
                    k = 16384 - n
                memcpy(w.input + n, b.data + b.start, k)
                n += k
                b = b.next
            p = w.input
        if w.tls.out_len + n + tls_overhead(n) > w.tls.out_cap:
            return 0                               # the scratch is full: send first
        r = tls_write(&w.tls, &c.tls, p, n)
        if r < 0:
            return r
        queue_consume(&w.pool, &c.tx, n)
    return 0


cdef inline bint conn_goodbye(Worker *w, Conn *c) noexcept nogil:
    """close_notify, so that the peer can tell an end from a cut (RFC 8446 6.1). False: it waits for room in the
    socket, and the flush that it leaves with comes here again."""
    w.tls.out_len = 0
    tls_close_notify(&w.tls, &c.tls)
    return conn_send_wire(w, c) < 0 or c.wire.bytes == 0      # an error: nobody is there to be told
