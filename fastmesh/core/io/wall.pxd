# The wall clock was set, or the host has slept: what ends at a time of it ends at another one of ours.
#
# Looked at in a turn of the loop, once a second at most, before anything else: who comes after the jump meets
# ends that are right. A worker that nobody wakes has nothing to judge.

from libc.stdint cimport int64_t, uint64_t

from fastmesh.core.base.list cimport Node
from fastmesh.core.io.connection cimport conn_of_all
from fastmesh.core.io.state cimport Conn, Worker
from fastmesh.core.io.tunnel cimport tunnel_end_with_certificates, tunnel_of_all
from fastmesh.core.sys.posix cimport CLOCK_REALTIME, clock_gettime, timespec

cdef enum:
    WALL_CHECK_MS = 1000
    WALL_SLACK_US = 1000000       # a clock that is put right little by little is followed in steps of this


cdef inline int64_t wall_offset(Worker *w) noexcept nogil:
    """CLOCK_REALTIME less the worker's clock, in us."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <int64_t>t.tv_sec * 1000000 + t.tv_nsec // 1000 - <int64_t>w.now_us


cdef inline void _shift(Worker *w, Node *head, int64_t ms) noexcept nogil:
    cdef Node *n = head.next
    cdef Conn *c
    cdef int64_t end
    while n != head:
        c = conn_of_all(n)
        if c.expires_ms != 0:
            end = <int64_t>c.expires_ms - ms
            c.expires_ms = <uint64_t>end if end > 0 else 1
            if c.ops.on_expiry != NULL:
                c.ops.on_expiry(w, c)
        n = n.next


cdef inline void wall_watch(Worker *w) noexcept nogil:
    """To be called in every turn, with the worker's clock of now."""
    cdef int64_t moved
    cdef Node *n
    if w.now_ms < w.wall_check_ms:
        return
    w.wall_check_ms = w.now_ms + WALL_CHECK_MS
    moved = wall_offset(w) - <int64_t>w.wall_us
    if -WALL_SLACK_US < moved < WALL_SLACK_US:
        return
    w.wall_us += moved
    _shift(w, &w.downs, moved // 1000)
    _shift(w, &w.ups, moved // 1000)
    n = w.all_tunnels.next
    while n != &w.all_tunnels:
        tunnel_end_with_certificates(w, tunnel_of_all(n))
        n = n.next
