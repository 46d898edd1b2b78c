# A connection: one socket, plain or TLS, between the kernel and its owner.
#
# Reading: edge-triggered. conn_input takes what the kernel has (at most INPUT_BUDGET a turn), offers it to
# the owner's on_input from the worker's scratch memory, and keeps only what the owner did not take in a
# buffer of its own (`rx`). A paused connection is not read, so the peer is stopped by TCP.
# Writing: owners append to `tx` through conn_* functions, the loop flushes every dirty connection once at
# the end of a turn. With TLS the flush encrypts into the worker's wire scratch, so that many messages leave
# in few records and one system call; only what the kernel refuses is copied into `wire`.
# Closing: conn_close at once, or conn_finish when everything queued has left. Memory goes at the turn's end.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from fastmesh.core.base.buffer cimport (
    BUF_LARGE, BUF_SMALL, Buf, Queue, buf_class_for, buf_drop, buf_get, queue_clear, queue_commit,
    queue_consume, queue_copy, queue_push, queue_reserve,
)
from fastmesh.core.base.check cimport fm_impossible
from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_remove, node_linked
from fastmesh.core.base.reason cimport (
    R_COUNT, R_DOWNSTREAM_CLOSED, R_DOWNSTREAM_RESET, R_HEAD_TOO_LARGE, R_INTERNAL, R_NO_MEMORY, R_TLS_HANDSHAKE,
    R_TLS_NOT_TLS, R_TLS_REVOKED, R_UPSTREAM_CLOSED, R_UPSTREAM_RESET, R_UPSTREAM_TLS_HANDSHAKE,
    R_UPSTREAM_TLS_REVOKED,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.base.timer cimport Timer, TimerFn, timer_init, timer_start, timer_stop
from fastmesh.core.io.age cimport conn_expires_with_peer, conn_revoked
from fastmesh.core.io.state cimport (
    C_BULK, C_CLOSE_FLUSHED, C_CONNECTING, C_CUT, C_DEAD, C_DIRTY, C_EARLY, C_EOF, C_EOF_TOLD, C_HANDSHAKE, C_LINGER,
    C_PAUSED,
    C_RDHUP, C_READABLE, C_RESUMED, C_SHUT, C_SHUT_WANTED, C_SNIFF_TLS, C_TLS, C_TRUNCATED, C_TX_HIGH, C_UPSTREAM,
    C_WRITABLE,
    Conn, ConnOps, EventFn, Flow, INPUT_BUDGET, INPUT_SCRATCH, LINGER_MS, Source, TURN_HANDSHAKES, TX_HIGH, TX_LOW, WIRE_SCRATCH,
    Worker,
)
from fastmesh.core.sys.posix cimport (
    EAGAIN, EINTR, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_ADD, MSG_NOSIGNAL, MSG_PEEK,
    SHUT_WR, SOL_SOCKET, SO_LINGER, c_close, c_recv, c_send, c_shutdown, epoll_ctl, epoll_event, errno, iovec,
    linger, msghdr, sendmsg, setsockopt,
)
from fastmesh.core.traffic.counters cimport (
    G_DOWNSTREAM_CONNECTIONS, G_UPSTREAM_CONNECTIONS, K_BYTES_DOWNSTREAM_IN, K_BYTES_DOWNSTREAM_OUT,
    K_BYTES_UPSTREAM_IN, K_BYTES_UPSTREAM_OUT, K_IMPOSSIBLE, K_TLS_FAILED_DOWNSTREAM, K_TLS_FAILED_UPSTREAM,
    K_TLS_HANDSHAKES_DOWNSTREAM, K_TLS_HANDSHAKES_UPSTREAM, K_TLS_RESUMED_DOWNSTREAM, K_TLS_RESUMED_UPSTREAM,
)
from fastmesh.core.wire.tls cimport (
    TLS_EOF, TLS_SINK_FULL, Tls, tls_close_notify, tls_free, tls_handshake, tls_is_open, tls_overhead, tls_read,
    tls_resumed, tls_write,
)


cdef inline Conn *conn_of_ready(Node *n) noexcept nogil:
    return <Conn *>(<char *>n - <size_t>&(<Conn *>NULL).ready)


cdef inline Conn *conn_of_all(Node *n) noexcept nogil:
    return <Conn *>(<char *>n - <size_t>&(<Conn *>NULL).all)


cdef inline Conn *conn_of_timer(Timer *t) noexcept nogil:
    return <Conn *>(<char *>t - <size_t>&(<Conn *>NULL).timer)


cdef inline void conn_timer(void *worker, Timer *t) noexcept nogil:
    cdef Conn *c = conn_of_timer(t)
    c.ops.on_timer(<Worker *>worker, c)


cdef inline Conn *conn_open(Worker *w, int fd, uint32_t flags) noexcept nogil:
    """A Conn for a connected or connecting socket, registered with epoll. NULL: `fd` stays the caller's."""
    cdef epoll_event ev
    cdef Conn *c = <Conn *>slab_get(&w.conns)
    if c == NULL:
        return NULL
    memset(c, 0, sizeof(Conn))
    c.src.on_event = conn_event
    c.src.fd = fd
    c.flags = flags
    timer_init(&c.timer, conn_timer)
    ev.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    ev.data.ptr = c
    if epoll_ctl(w.ep, EPOLL_CTL_ADD, fd, &ev) != 0:
        slab_put(&w.conns, c)
        return NULL
    w.fds_open += 1
    if flags & C_UPSTREAM:
        w.row.counters[G_UPSTREAM_CONNECTIONS] += 1
        list_append(&w.ups, &c.all)
    else:
        w.row.counters[G_DOWNSTREAM_CONNECTIONS] += 1
        list_append(&w.downs, &c.all)
    return c


cdef inline void conn_dirty(Worker *w, Conn *c) noexcept nogil:
    """Have `c` flushed at the end of this turn."""
    if not c.flags & (C_DIRTY | C_DEAD):
        c.flags |= C_DIRTY
        c.next_dirty = w.dirty
        w.dirty = c


cdef inline void conn_pause(Conn *c) noexcept nogil:
    c.flags |= C_PAUSED


cdef inline void conn_resume(Worker *w, Conn *c) noexcept nogil:
    """Offer input again: first what is kept, then what the kernel has, in the next turn at the latest."""
    if not c.flags & C_PAUSED:
        return
    c.flags &= ~<uint32_t>C_PAUSED
    c.flags |= C_RESUMED
    if not c.flags & C_DEAD and not node_linked(&c.ready):
        list_append(&w.ready, &c.ready)


cdef inline void conn_touch(Worker *w, Conn *c) noexcept nogil:
    """Something moved: put the inactivity timer ahead."""
    if c.idle_ms:
        timer_start(&w.wheel, &c.timer, w.now_ms + c.idle_ms)


cdef inline void conn_timeout(Worker *w, Conn *c, uint32_t idle_ms) noexcept nogil:
    """From now on the timer fires `idle_ms` after the last progress."""
    c.idle_ms = idle_ms
    timer_start(&w.wheel, &c.timer, w.now_ms + idle_ms)


cdef inline void conn_deadline(Worker *w, Conn *c, uint32_t ms) noexcept nogil:
    """The timer fires in `ms`, whatever moves until then."""
    c.idle_ms = 0
    timer_start(&w.wheel, &c.timer, w.now_ms + ms)


cdef inline void conn_close(Worker *w, Conn *c) noexcept nogil:
    """Close at once; what is queued is lost. The owner forgets `c`."""
    cdef linger hard
    if c.flags & C_DEAD:
        return
    if c.flags & C_CUT:
        # What went out is not a whole message: a reset says so where a quiet end could pass for one.
        hard.l_onoff = 1
        hard.l_linger = 0
        setsockopt(c.src.fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(linger))
    if c.flow_in != NULL:
        w.ops.flow_free(w, c.flow_in)
    if c.flow_out != NULL:
        w.ops.flow_free(w, c.flow_out)
    c_close(c.src.fd)
    c.src.fd = -1
    w.fds_open -= 1
    timer_stop(&w.wheel, &c.timer)
    list_remove(&c.ready)
    list_remove(&c.all)
    if tls_is_open(&c.tls):
        tls_free(&c.tls)
        w.tls_open -= 1
    queue_clear(&w.pool, &c.tx)
    queue_clear(&w.pool, &c.wire)
    if c.rx != NULL:
        buf_drop(&w.pool, c.rx)
        c.rx = NULL
    if c.cipher != NULL:
        buf_drop(&w.pool, c.cipher)
        c.cipher = NULL
    w.row.counters[G_UPSTREAM_CONNECTIONS if c.flags & C_UPSTREAM else G_DOWNSTREAM_CONNECTIONS] -= 1
    c.flags |= C_DEAD
    c.owner = NULL
    # A connection on the dirty list is taken off by the flush, which then puts it on the dead list itself.
    if not c.flags & C_DIRTY:
        c.next_dirty = w.dead
        w.dead = c


cdef inline void conn_bury(Worker *w) noexcept nogil:
    """End of a turn: no event of the batch can name a dead connection any more."""
    cdef Conn *c
    while w.dead != NULL:
        c = w.dead
        w.dead = c.next_dirty
        slab_put(&w.conns, c)


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


cdef inline int conn_write_body(Worker *w, Conn *c, const char *p, size_t n) noexcept nogil:
    """Queue body bytes: takes the buffer they were read into where that is worth it, copies otherwise."""
    cdef Buf *b = w.handoff
    if b != NULL and n >= INPUT_SCRATCH // 4 * 3 and p >= b.data and p + n <= b.data + b.cap:
        w.handoff = NULL
        b.start = <uint32_t>(p - b.data)
        b.end = b.start + <uint32_t>n
        b.cap = b.end              # nothing may be appended: the input handler may still read what follows,
        b.refs += 1                # for which the reader keeps its own reference
        queue_push(&c.tx, b)
        return conn_queued(w, c)
    return conn_write(w, c, p, n)


cdef inline void _failed(Worker *w, Conn *c, int reason) noexcept nogil:
    if c.flags & C_DEAD:
        return
    if c.ops != NULL:
        c.ops.on_error(w, c, reason)
    if not c.flags & C_DEAD:
        conn_close(w, c)


cdef inline void conn_fail_io(Worker *w, Conn *c, int err) noexcept nogil:
    """A system call on the socket failed with `err`."""
    if c.flags & C_UPSTREAM:
        _failed(w, c, R_UPSTREAM_RESET)
    else:
        _failed(w, c, R_DOWNSTREAM_RESET)


cdef inline void conn_fail_tls(Worker *w, Conn *c, int reason) noexcept nogil:
    """TLS cannot go on: send the alert that is in the sink, count, give up."""
    if w.tls.out_len > 0 and c.wire.bytes == 0:      # not into the middle of a record
        c_send(c.src.fd, w.tls.out, w.tls.out_len, MSG_NOSIGNAL)
    w.tls.out_len = 0
    if fm_impossible(&w.row.counters[K_IMPOSSIBLE], reason < R_COUNT, b"no room for what TLS has to say"):
        reason = R_INTERNAL
    if c.flags & C_HANDSHAKE:
        w.row.counters[K_TLS_FAILED_UPSTREAM if c.flags & C_UPSTREAM else K_TLS_FAILED_DOWNSTREAM] += 1
    _failed(w, c, reason)


# ---------------------------------------------------------------- output

cdef inline void _count_out(Worker *w, Conn *c, size_t n) noexcept nogil:
    w.row.counters[K_BYTES_UPSTREAM_OUT if c.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_OUT] += n


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
        _count_out(w, c, n)
        queue_consume(&w.pool, q, n)
        conn_touch(w, c)
        if <size_t>n < want:
            c.flags &= ~<uint32_t>C_WRITABLE      # the kernel will tell when there is room
            return 0
    return 0


cdef inline int _send_wire(Worker *w, Conn *c) noexcept nogil:
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
        _count_out(w, c, n)
        if n > 0:
            conn_touch(w, c)
        if <size_t>n < have:
            c.flags &= ~<uint32_t>C_WRITABLE
    if <size_t>n < have and queue_copy(&w.pool, &c.wire, w.tls.out + n, have - n) != 0:
        return -1
    return 0


cdef inline int _encrypt(Worker *w, Conn *c) noexcept nogil:
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


cdef inline void conn_flush(Worker *w, Conn *c) noexcept nogil:
    """Write what is queued as far as the kernel takes it, then do what was waiting for that."""
    cdef int r = 0
    if c.flags & (C_CONNECTING | C_HANDSHAKE):
        return                                     # on_ready flushes
    if c.flags & C_TLS:
        if c.wire.bytes > 0 and c.flags & C_WRITABLE:
            r = _send_queue(w, c, &c.wire)
        while r == 0 and c.tx.bytes > 0 and c.wire.bytes == 0 and c.flags & C_WRITABLE:
            w.tls.out_len = 0
            r = _encrypt(w, c)
            if r < 0:
                conn_fail_tls(w, c, -r)
                return
            r = _send_wire(w, c)
    elif c.flags & C_WRITABLE:
        r = _send_queue(w, c, &c.tx)
    if r < 0:
        conn_output_failed(w, c, -r)
        return
    if c.flags & C_TX_HIGH and c.tx.bytes + c.wire.bytes <= TX_LOW:
        c.flags &= ~<uint32_t>C_TX_HIGH
        if c.ops != NULL:
            c.ops.on_drained(w, c)
            if c.flags & C_DEAD:
                return
    if c.tx.bytes == 0 and c.wire.bytes == 0:
        if c.flow_out != NULL:
            w.ops.flow_pump(w, c.flow_out)
            if c.flags & C_DEAD:
                return
        if c.flags & C_CLOSE_FLUSHED:
            if c.flags & C_TLS and not c.flags & C_SHUT and not _tls_goodbye(w, c):
                return
            _failed(w, c, 0)
            return
        if c.flags & C_SHUT_WANTED and not c.flags & C_SHUT and c.flow_out == NULL:
            if c.flags & C_TLS and not _tls_goodbye(w, c):
                return
            c.flags |= C_SHUT
            c_shutdown(c.src.fd, SHUT_WR)
            if c.flags & C_LINGER:
                conn_deadline(w, c, LINGER_MS)


cdef inline bint _tls_goodbye(Worker *w, Conn *c) noexcept nogil:
    """close_notify, so that the peer can tell an end from a cut (RFC 8446 6.1). False: it waits for room in the
    socket, and the flush that it leaves with comes here again."""
    w.tls.out_len = 0
    tls_close_notify(&w.tls, &c.tls)
    return _send_wire(w, c) < 0 or c.wire.bytes == 0      # an error: nobody is there to be told


cdef inline void conn_finish(Worker *w, Conn *c) noexcept nogil:
    """Close when everything queued has left; the owner hears on_error with reason 0 then."""
    c.flags |= C_CLOSE_FLUSHED
    conn_dirty(w, c)


cdef inline void conn_end_output(Worker *w, Conn *c) noexcept nogil:
    """Half-close when everything queued has left."""
    c.flags |= C_SHUT_WANTED
    conn_dirty(w, c)


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


# ---------------------------------------------------------------- input

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


cdef inline void _offer(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
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
        _failed(w, c, R_NO_MEMORY)


cdef inline void _offer_rx(Worker *w, Conn *c) noexcept nogil:
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


cdef inline Buf *_room(Worker *w, Conn *c) noexcept nogil:
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


cdef inline void _tell_eof(Worker *w, Conn *c) noexcept nogil:
    if c.flags & (C_EOF_TOLD | C_PAUSED | C_DEAD):
        return
    if c.rx != NULL and c.ops == &w.ops.accepted:
        _offer_rx(w, c)                            # too little to tell a protocol by, but all there will be
        if c.flags & (C_PAUSED | C_DEAD):
            return
    c.flags |= C_EOF_TOLD
    if c.rx != NULL:
        buf_drop(&w.pool, c.rx)
        c.rx = NULL
    c.ops.on_eof(w, c)


cdef inline void _took(Worker *w, Conn *c, size_t n) noexcept nogil:
    w.row.counters[K_BYTES_UPSTREAM_IN if c.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_IN] += n
    conn_touch(w, c)


cdef inline void _input_plain(Worker *w, Conn *c) noexcept nogil:
    cdef ssize_t n
    cdef size_t want
    cdef size_t budget = INPUT_BUDGET
    cdef Buf *b
    cdef bint bulk
    while c.flags & C_READABLE and not c.flags & (C_PAUSED | C_DEAD):
        bulk = False
        if c.rx != NULL:
            b = _room(w, c)
            if b == NULL:
                _failed(w, c, R_NO_MEMORY)
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
        _took(w, c, n)
        # Fewer bytes than asked for: the socket is empty, and the next byte or end is a new edge. An end
        # that has already come (RDHUP) is not, so it is read now.
        if <size_t>n < want and not c.flags & C_RDHUP:
            c.flags &= ~<uint32_t>C_READABLE
        if c.rx != NULL:
            b.end += <uint32_t>n
            _offer_rx(w, c)
        elif bulk:
            w.handoff = b
            b.end = <uint32_t>n
            _offer(w, c, b.data, n)
            w.handoff = NULL
            buf_drop(&w.pool, b)
        else:
            _offer(w, c, w.input, n)
        if c.flags & C_DEAD:
            return
        if c.flow_in != NULL:
            w.ops.flow_pump(w, c.flow_in)
            return
        if <size_t>n >= budget:
            conn_resume_later(w, c)
            return
        budget -= n


cdef inline void conn_resume_later(Worker *w, Conn *c) noexcept nogil:
    """Others first: go on reading in the next turn."""
    if not node_linked(&c.ready):
        list_append(&w.ready, &c.ready)


cdef inline bint _handshake(Worker *w, Conn *c) noexcept nogil:
    """Drive the handshake with the ciphertext at hand. True: done just now or before."""
    cdef int r
    if not c.flags & C_HANDSHAKE:
        return True
    w.tls.out_len = 0
    r = tls_handshake(&w.tls, &c.tls)
    if r < 0:
        conn_fail_tls(w, c, -r)
        return False
    if _send_wire(w, c) < 0:
        conn_fail_io(w, c, errno)
        return False
    if r == 0:
        return False
    if conn_revoked(w, c):                       # the list in force now, whatever was when the handshake began
        conn_fail_tls(w, c, R_UPSTREAM_TLS_REVOKED if c.flags & C_UPSTREAM else R_TLS_REVOKED)
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
            b = _room(w, c)
            if b == NULL:
                _failed(w, c, R_NO_MEMORY)
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
                _offer_rx(w, c)
            else:
                if bulk != NULL:
                    bulk.end = <uint32_t>have
                _offer(w, c, p, have)
        if bulk != NULL:
            w.handoff = NULL
            buf_drop(&w.pool, bulk)
        if r == TLS_SINK_FULL and not c.flags & C_DEAD:
            r = 1
            if _send_wire(w, c) < 0:
                conn_fail_io(w, c, errno)
                return
    if c.flags & C_DEAD:
        return
    if r == TLS_EOF:
        c.flags |= C_EOF
        c.flags &= ~<uint32_t>C_READABLE
    elif r < 0:
        conn_fail_tls(w, c, -r)


cdef inline void _input_tls(Worker *w, Conn *c) noexcept nogil:
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
            _took(w, c, n)
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
                    _failed(w, c, R_NO_MEMORY)
                    return
                memcpy(c.cipher.data, w.tls.in_ptr, w.tls.in_len)
                c.cipher.end = <uint32_t>w.tls.in_len
            w.tls.in_len = 0
        if b != NULL:
            buf_drop(&w.pool, b)
        if w.tls.out_len > 0:                      # key updates, tickets
            # More than a flush can leave: it has us answer key updates and does not read what we say.
            if _send_wire(w, c) < 0 or c.wire.bytes > WIRE_SCRATCH:
                conn_fail_io(w, c, errno)
                return
        if <size_t>n >= budget:
            conn_resume_later(w, c)
            return
        budget -= n


cdef inline bint _sniff_tls(Worker *w, Conn *c) noexcept nogil:
    """Permissive listeners: a TLS record of type handshake starts with 0x16 (RFC 8446 5.1), no text does."""
    cdef unsigned char first
    cdef ssize_t n = c_recv(c.src.fd, &first, 1, MSG_PEEK)
    if n < 0 and errno == EAGAIN:
        c.flags &= ~<uint32_t>C_READABLE
        return False
    c.flags &= ~<uint32_t>C_SNIFF_TLS
    if n == 1 and first == 0x16:
        w.ops.start_tls(w, c)
    else:
        c.ops.on_ready(w, c)
    return not c.flags & C_DEAD


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
    _go_on(w, c)


cdef inline void _go_on(Worker *w, Conn *c) noexcept nogil:
    if c.flow_in != NULL:
        w.ops.flow_pump(w, c.flow_in)
        return
    if c.rx != NULL and not c.flags & C_PAUSED and c.flags & C_RESUMED:
        c.flags &= ~<uint32_t>C_RESUMED
        _offer_rx(w, c)
        if c.flags & C_DEAD:
            return
        if c.flow_in != NULL:
            w.ops.flow_pump(w, c.flow_in)
            return
    if c.flags & C_TLS:
        _input_tls(w, c)
    else:
        _input_plain(w, c)
    if c.flags & C_EOF and not c.flags & (C_DEAD | C_PAUSED):
        _tell_eof(w, c)


cdef inline void conn_event(Worker *w, Source *s, uint32_t events) noexcept nogil:
    """What epoll says of a connection."""
    cdef Conn *c = <Conn *>s
    if c.flags & C_DEAD:
        return
    if events & EPOLLOUT:
        c.flags |= C_WRITABLE
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        c.flags |= C_READABLE
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        c.flags |= C_RDHUP
    if c.flags & C_CONNECTING:
        if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            w.ops.connected(w, c)
        return
    if events & EPOLLERR and c.flags & C_PAUSED and not c.flags & C_UPSTREAM and c.flow_in == NULL:
        # The client has reset while an endpoint works for it: nobody waits for the answer any more.
        _failed(w, c, R_DOWNSTREAM_RESET)
        return
    if c.flags & C_WRITABLE and (c.tx.bytes or c.wire.bytes or c.flow_out != NULL):
        conn_dirty(w, c)
    if c.flags & C_READABLE and not c.flags & C_PAUSED:
        conn_input(w, c)


cdef inline void conn_shake(Worker *w) noexcept nogil:
    """Drive some of the clients' handshakes, first come, first served. They cost a hundred times what a request
    does, so requests go first, and a flood of handshakes only makes itself wait."""
    cdef Conn *c
    cdef int i
    for i in range(TURN_HANDSHAKES):
        if list_empty(&w.shaking):
            return
        c = conn_of_ready(w.shaking.next)
        list_remove(&c.ready)
        if tls_is_open(&c.tls) or w.ops.open_tls(w, c):
            _go_on(w, c)


cdef inline void conn_ready_all(Worker *w) noexcept nogil:
    """Go on with the connections that were resumed, or had used up their turn. New ones wait for the next turn."""
    cdef Node batch
    cdef Conn *c
    if list_empty(&w.ready):
        return
    batch.next = w.ready.next
    batch.prev = w.ready.prev
    batch.next.prev = &batch
    batch.prev.next = &batch
    list_init(&w.ready)
    while not list_empty(&batch):
        c = conn_of_ready(batch.next)
        list_remove(&c.ready)
        if not c.flags & C_PAUSED:
            conn_input(w, c)
