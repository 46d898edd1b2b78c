# A flow: bytes that the kernel moves from one socket to another through a pipe (splice(2)), never seen here.
#
# For long bodies and opaque tunnels between two plaintext connections. At most PIPE_BYTES wait in the pipe;
# when the reader is slow the pipe fills, the source is not read, and its sender is stopped by TCP.
# The owner gets on_done once: reason 0 when `left` bytes (or everything up to the end) have been handed to
# the destination's socket; otherwise the side that failed has already been told through its on_error.
# What the destination still has queued goes first.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.io.connection cimport conn_dirty, conn_fail_io, conn_resume_later, conn_touch
from fastmesh.core.io.connection_output cimport conn_output_failed
from fastmesh.core.io.state cimport (
    C_EOF, C_READABLE, C_TLS, C_UPSTREAM, C_WRITABLE, Conn, Flow, PIPES_KEPT, PIPE_BYTES,
    Worker,
)
from fastmesh.core.sys.posix cimport (
    EAGAIN, EINTR, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, c_close, errno,
    fcntl, pipe2, splice,
)
from fastmesh.core.traffic.counters cimport (
    K_BYTES_DOWNSTREAM_IN, K_BYTES_DOWNSTREAM_OUT, K_BYTES_UPSTREAM_IN, K_BYTES_UPSTREAM_OUT,
)
from fastmesh.core.wire.message cimport LENGTH_UNKNOWN

cdef enum:
    FLOW_BUDGET = 1048576     # bytes one flow may move a turn


cdef inline bint flow_possible(Conn *src, Conn *dst) noexcept nogil:
    """Both ends plaintext, with nothing kept in between, and no flow there yet."""
    return (src != NULL and dst != NULL and not (src.flags | dst.flags) & C_TLS
            and src.rx == NULL and src.flow_in == NULL and dst.flow_out == NULL)


cdef inline Flow *flow_open(Worker *w, Conn *src, Conn *dst, uint64_t left, void *owner,
                            void (*on_done)(Worker *w, Flow *f, int reason) noexcept nogil) noexcept nogil:
    """A flow from `src` to `dst`; NULL if there is no pipe or memory: move the bytes by hand then."""
    cdef int fds[2]
    cdef Flow *f = <Flow *>slab_get(&w.flows)
    if f == NULL:
        return NULL
    if w.npipes > 0:
        w.npipes -= 1
        fds[0] = w.pipes[2 * w.npipes]
        fds[1] = w.pipes[2 * w.npipes + 1]
    else:
        if pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0:
            slab_put(&w.flows, f)
            return NULL
        fcntl(fds[1], F_SETPIPE_SZ, <int>PIPE_BYTES)      # refused beyond the user's share: 64 KiB then
        w.pipes_open += 1
    memset(f, 0, sizeof(Flow))
    f.src = src
    f.dst = dst
    f.left = left
    f.pipe_in = fds[0]
    f.pipe_out = fds[1]
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
    if f.held == 0 and w.npipes < PIPES_KEPT:
        w.pipes[2 * w.npipes] = f.pipe_in
        w.pipes[2 * w.npipes + 1] = f.pipe_out
        w.npipes += 1
    else:
        c_close(f.pipe_in)
        c_close(f.pipe_out)
        w.pipes_open -= 1
    slab_put(&w.flows, f)


cdef inline void flow_pump(Worker *w, Flow *f) noexcept nogil:
    """Move what can be moved now. May end in on_done, which may free `f`."""
    cdef Conn *src = f.src
    cdef Conn *dst = f.dst
    cdef ssize_t n
    cdef size_t want
    cdef size_t budget = FLOW_BUDGET
    cdef bint moved = True
    if dst.tx.bytes > 0:
        conn_dirty(w, dst)                     # comes back here when the queue is empty
        return
    while moved:
        moved = False
        if src.flags & C_READABLE and f.left > 0 and f.held < PIPE_BYTES and not f.eof:
            want = PIPE_BYTES - f.held
            if f.left < want:
                want = <size_t>f.left
            n = splice(src.src.fd, NULL, f.pipe_out, NULL, want, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                moved = True
                f.held += n
                if f.left != LENGTH_UNKNOWN:
                    f.left -= n
                w.row.counters[K_BYTES_UPSTREAM_IN if src.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_IN] += n
                conn_touch(w, src)
            elif n == 0:
                f.eof = True
                src.flags &= ~<uint32_t>C_READABLE
                src.flags |= C_EOF
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
                f.moved += n
                w.row.counters[K_BYTES_UPSTREAM_OUT if dst.flags & C_UPSTREAM else K_BYTES_DOWNSTREAM_OUT] += n
                conn_touch(w, dst)
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
    if f.held == 0 and (f.left == 0 or f.eof):
        f.on_done(w, f, 0)
