# A connection: one socket, plain or TLS, between the kernel and its owner. Its life; what moves through it is in
#
#   connection_offer    received bytes, between the connection and its owner
#   connection_tls      the handshake, records to plaintext and back
#   connection_input    from the kernel to the owner
#   connection_output   from the owner to the kernel
#   connection_turn     what the loop asks for: events, the handshakes' turn, those that wait to go on
#
# Each cimports only those above it.
#
# Reading: edge-triggered. conn_input takes what the kernel has (at most INPUT_BUDGET a turn), offers it to
# the owner's on_input from the worker's scratch memory, and keeps only what the owner did not take in a
# buffer of its own (`rx`). A paused connection is not read, so the peer is stopped by TCP.
# Writing: owners append to `tx` through conn_* functions, the loop flushes every dirty connection once at
# the end of a turn. With TLS the flush encrypts into the worker's wire scratch, so that many messages leave
# in few records and one system call; only what the kernel refuses is copied into `wire`.
# Closing: conn_close at once, or conn_finish when everything queued has left. Memory goes at the turn's end.

from libc.stdint cimport uint32_t

from fastmesh.core.base.buffer cimport buf_drop, queue_clear
from fastmesh.core.base.list cimport Node, list_append, list_remove, node_linked
from fastmesh.core.base.reason cimport R_DOWNSTREAM_RESET, R_UPSTREAM_RESET
from fastmesh.core.base.slab cimport slab_put
from fastmesh.core.base.timer cimport timer_start, timer_stop
from fastmesh.core.io.state cimport (
    C_CLOSE_FLUSHED, C_CUT, C_DEAD, C_DIRTY, C_HANDED, C_PAUSED, C_RESUMED, C_SHUT_WANTED, C_UPSTREAM, Conn, Worker,
)
from fastmesh.core.sys.posix cimport EPOLL_CTL_DEL, SOL_SOCKET, SO_LINGER, c_close, epoll_ctl, linger, setsockopt
from fastmesh.core.traffic.counters cimport G_DOWNSTREAM_CONNECTIONS, G_UPSTREAM_CONNECTIONS
from fastmesh.core.wire.tls cimport tls_free, tls_is_open


cdef inline Conn *conn_of_ready(Node *n) noexcept nogil:
    return <Conn *>(<char *>n - <size_t>&(<Conn *>NULL).ready)


cdef inline Conn *conn_of_all(Node *n) noexcept nogil:
    return <Conn *>(<char *>n - <size_t>&(<Conn *>NULL).all)


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


cdef inline void conn_resume_later(Worker *w, Conn *c) noexcept nogil:
    """Others first: go on reading in the next turn."""
    if not node_linked(&c.ready):
        list_append(&w.ready, &c.ready)


cdef inline void conn_resume_input(Worker *w, Conn *c) noexcept nogil:
    """Look at the socket again after a flow has ended on it."""
    conn_pause(c)
    conn_resume(w, c)


cdef inline size_t conn_queued_bytes(const Conn *c) noexcept nogil:
    return c.tx.bytes + c.wire.bytes


cdef inline bint conn_backlog(const Conn *c) noexcept nogil:
    """Is there something, queued or in a pipe, that the peer has not taken yet?"""
    return conn_queued_bytes(c) > 0 or c.flow_out != NULL and c.flow_out.held > 0


cdef inline bint conn_held_up(const Conn *c) noexcept nogil:
    """Does what the peer sends wait for somebody to take it?"""
    return c.flags & C_PAUSED != 0 or c.flow_in != NULL and conn_backlog(c.flow_in.dst)


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


cdef inline void conn_finish(Worker *w, Conn *c) noexcept nogil:
    """Close when everything queued has left; the owner hears on_error with reason 0 then."""
    c.flags |= C_CLOSE_FLUSHED
    conn_dirty(w, c)


cdef inline void conn_end_output(Worker *w, Conn *c) noexcept nogil:
    """Half-close when everything queued has left."""
    c.flags |= C_SHUT_WANTED
    conn_dirty(w, c)


cdef inline void conn_fail(Worker *w, Conn *c, int reason) noexcept nogil:
    """Tell the owner, and close what it leaves open."""
    if c.flags & C_DEAD:
        return
    if c.ops != NULL:
        c.ops.on_error(w, c, reason)
    if not c.flags & C_DEAD:
        conn_close(w, c)


cdef inline void conn_fail_io(Worker *w, Conn *c, int err) noexcept nogil:
    """A system call on the socket failed with `err`."""
    if c.flags & C_UPSTREAM:
        conn_fail(w, c, R_UPSTREAM_RESET)
    else:
        conn_fail(w, c, R_DOWNSTREAM_RESET)


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
    if c.flags & C_HANDED:
        # epoll forgets a socket with the last descriptor of it, and that may be the sender's.
        epoll_ctl(w.ep, EPOLL_CTL_DEL, c.src.fd, NULL)
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
