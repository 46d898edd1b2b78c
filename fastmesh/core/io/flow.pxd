# A flow: bytes that go from one socket to another as they are, never looked at.
#
# For long bodies and opaque tunnels between two plaintext connections. While little comes at a time it goes by way of
# the worker's memory, a recv and a send; what is much is moved by the kernel through a pipe (splice(2)), which is there
# only as long: two calls for a message where splice needs three, and no descriptors while nothing moves.
# At most PIPE_BYTES wait in the pipe; when the reader is slow the pipe fills (without a pipe: what it did not take
# waits in its queue), the source is not read, and its sender is stopped by TCP.
# The owner gets on_done once: reason 0 when `left` bytes (or everything up to the end) have been handed to
# the destination's socket; otherwise the side that failed has already been told through its on_error.
# What the destination still has queued goes first.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.connection cimport conn_dirty, conn_fail, conn_fail_io, conn_resume_later, conn_touch
from fastmesh.core.io.connection_output cimport conn_output_failed, conn_write
from fastmesh.core.io.state cimport (
    C_EOF, C_RDHUP, C_READABLE, C_TLS, C_UPSTREAM, C_WRITABLE, Conn, Flow, INPUT_SCRATCH, PIPES_KEPT, PIPE_BYTES,
    Worker,
)
from fastmesh.core.sys.posix cimport (
    EAGAIN, EINTR, F_SETPIPE_SZ, MSG_NOSIGNAL, O_CLOEXEC, O_NONBLOCK, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, c_close,
    c_recv, c_send, errno, fcntl, pipe2, splice,
)
from fastmesh.core.traffic.counters cimport (
    K_BYTES_DOWNSTREAM_IN, K_BYTES_DOWNSTREAM_OUT, K_BYTES_UPSTREAM_IN, K_BYTES_UPSTREAM_OUT,
)
from fastmesh.core.wire.message cimport LENGTH_UNKNOWN

cdef enum:
    FLOW_BUDGET = 1048576     # bytes one flow may move a turn
    FLOW_MUCH = 32768         # as many in one read are the kernel's to move from then on ...
    FLOW_LITTLE = 8192        # ... until there are no more than these, and no more behind them


cdef inline bint flow_possible(Conn *src, Conn *dst) noexcept nogil:
    """Both ends plaintext, with nothing kept in between, and no flow there yet."""
    return (src != NULL and dst != NULL and not (src.flags | dst.flags) & C_TLS
            and src.rx == NULL and src.flow_in == NULL and dst.flow_out == NULL)


cdef inline bint _pipe_get(Worker *w, Flow *f) noexcept nogil:
    """Let the kernel move the bytes. False: there is no pipe."""
    cdef int fds[2]
    if w.npipes > 0:
        w.npipes -= 1
        fds[0] = w.pipes[2 * w.npipes]
        fds[1] = w.pipes[2 * w.npipes + 1]
    else:
        if pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0:
            return False
        fcntl(fds[1], F_SETPIPE_SZ, <int>PIPE_BYTES)      # refused beyond the user's share: 64 KiB then
        w.pipes_open += 1
    f.pipe_in = fds[0]
    f.pipe_out = fds[1]
    return True


cdef inline void _pipe_put(Worker *w, Flow *f) noexcept nogil:
    if f.pipe_in < 0:
        return
    if f.held == 0 and w.npipes < PIPES_KEPT:
        w.pipes[2 * w.npipes] = f.pipe_in
        w.pipes[2 * w.npipes + 1] = f.pipe_out
        w.npipes += 1
    else:
        c_close(f.pipe_in)
        c_close(f.pipe_out)
        w.pipes_open -= 1
    f.pipe_in = f.pipe_out = -1


cdef inline Flow *flow_open(Worker *w, Conn *src, Conn *dst, uint64_t left, void *owner,
                            void (*on_done)(Worker *w, Flow *f, int reason) noexcept nogil) noexcept nogil:
    """A flow from `src` to `dst`, of `left` bytes that are many, or LENGTH_UNKNOWN. NULL if there is no memory or, for
    many, no pipe: move the bytes by hand then."""
    cdef Flow *f = <Flow *>slab_get(&w.flows)
    if f == NULL:
        return NULL
    memset(f, 0, sizeof(Flow))
    f.pipe_in = f.pipe_out = -1
    if left != LENGTH_UNKNOWN and not _pipe_get(w, f):
        slab_put(&w.flows, f)
        return NULL
    f.src = src
    f.dst = dst
    f.left = left
    f.much = left != LENGTH_UNKNOWN
    f.owner = owner
    f.on_done = on_done
    src.flow_in = f
    dst.flow_out = f
    return f


cdef inline void flow_free(Worker *w, Flow *f) noexcept nogil:
    """End the flow; its connections are as before, minus what was moved."""
    if f.src != NULL and f.src.flow_in == f:
        f.src.flow_in = NULL
    if f.dst != NULL and f.dst.flow_out == f:
        f.dst.flow_out = NULL
    _pipe_put(w, f)
    slab_put(&w.flows, f)


cdef inline void _came(Worker *w, Flow *f, size_t n) noexcept nogil:
    if f.left != LENGTH_UNKNOWN:
        f.left -= n
    w.row.counters[K_BYTES_UPSTREAM_IN if f.src.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_IN] += n
    conn_touch(w, f.src)


cdef inline void _went(Worker *w, Flow *f, size_t n) noexcept nogil:
    f.moved += n
    w.row.counters[K_BYTES_UPSTREAM_OUT if f.dst.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_OUT] += n
    conn_touch(w, f.dst)


cdef inline void _ended(Flow *f) noexcept nogil:
    f.eof = True
    f.src.flags &= ~<uint32_t>C_READABLE
    f.src.flags |= C_EOF


cdef inline ssize_t _carry(Worker *w, Flow *f) noexcept nogil:
    """One read, handed on. How many bytes; 0: nothing to be had now, or the end; -1: a side has failed and been told,
    which may have freed `f`."""
    cdef Conn *src = f.src
    cdef Conn *dst = f.dst
    cdef size_t want = INPUT_SCRATCH
    cdef ssize_t n, sent
    if f.left < want:
        want = <size_t>f.left
    n = c_recv(src.src.fd, w.input, want, 0)
    while n < 0 and errno == EINTR:
        n = c_recv(src.src.fd, w.input, want, 0)
    if n < 0:
        src.flags &= ~<uint32_t>C_READABLE
        if errno == EAGAIN:
            return 0
        conn_fail_io(w, src, errno)
        return -1
    if n == 0:
        _ended(f)
        return 0
    _came(w, f, n)
    # As in connection_input.pxd: the socket is empty, and what comes next is a new edge.
    if <size_t>n < want and not src.flags & C_RDHUP:
        src.flags &= ~<uint32_t>C_READABLE
    sent = c_send(dst.src.fd, w.input, n, MSG_NOSIGNAL)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            conn_output_failed(w, dst, errno)
            return -1
        sent = 0
    if sent > 0:
        _went(w, f, sent)
    if sent < n:
        if conn_write(w, dst, w.input + sent, n - sent) < 0:
            conn_fail(w, dst, R_NO_MEMORY)
            return -1
        f.moved += n - sent                    # counted by the connection when it leaves
    return n


cdef inline void flow_pump(Worker *w, Flow *f) noexcept nogil:
    """Move what can be moved now. May end in on_done, which may free `f`."""
    cdef Conn *src = f.src
    cdef Conn *dst = f.dst
    cdef ssize_t n
    cdef size_t want
    cdef size_t budget = FLOW_BUDGET
    cdef bint moved = True
    while moved:
        if dst.tx.bytes > 0:
            conn_dirty(w, dst)                 # comes back here when the queue is empty
            return
        moved = False
        if not f.much or f.pipe_in < 0 and not _pipe_get(w, f):
            if not src.flags & C_READABLE or f.left == 0 or f.eof or not dst.flags & C_WRITABLE:
                break
            n = _carry(w, f)
            if n < 0:
                return
            moved = n > 0
            f.much = n >= FLOW_MUCH
            if <size_t>n >= budget:
                conn_resume_later(w, src)
                break
            budget -= n
            continue
        if src.flags & C_READABLE and f.left > 0 and f.held < PIPE_BYTES and not f.eof:
            want = PIPE_BYTES - f.held
            if f.left < want:
                want = <size_t>f.left
            n = splice(src.src.fd, NULL, f.pipe_out, NULL, want, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                moved = True
                f.held += n
                _came(w, f, n)
            elif n == 0:
                _ended(f)
            elif errno == EAGAIN:
                # No input, or the pipe is full by count of its slots: only an empty pipe tells which.
                if f.held == 0:
                    src.flags &= ~<uint32_t>C_READABLE
            elif errno != EINTR:
                conn_fail_io(w, src, errno)
                return
            else:
                moved = True
        if f.held > 0 and dst.flags & C_WRITABLE:
            n = splice(f.pipe_in, NULL, dst.src.fd, NULL, f.held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                moved = True
                f.held -= n
                _went(w, f, n)
                if f.held == 0 and n <= FLOW_LITTLE:
                    f.much = False
                if <size_t>n >= budget:
                    if src.flags & C_READABLE or f.held:
                        conn_resume_later(w, src)
                        break
                else:
                    budget -= n
            elif n < 0 and errno == EAGAIN:
                dst.flags &= ~<uint32_t>C_WRITABLE
            elif n < 0 and errno != EINTR:
                conn_output_failed(w, dst, errno)
                return
            else:
                moved = True
    if f.held == 0 and dst.tx.bytes == 0 and (f.left == 0 or f.eof):
        f.on_done(w, f, 0)
    elif f.held == 0 and (not f.much or w.npipes < PIPES_KEPT):
        _pipe_put(w, f)                        # others can have it while nothing moves here
