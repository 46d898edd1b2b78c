# A connection that speaks HTTP/2, and its streams, as far as both roles have it in common (RFC 9113).
#
# An H2Conn owns its Conn and the codec's session; either ends with the other. An H2End is a stream: the End of an
# exchange, and after that alive until the codec has sent what it was given. The codec's hooks run inside
# h2_receive and h2_pack; nothing that they call closes their own connection.
# A connection is never paused: what a peer may send is bounded by the windows that it is given. Frames of all
# streams are packed once a turn (on_flush), as many as the transmit queue takes.
# It ends in two steps (RFC 9113 6.8): a GOAWAY that only warns, so that requests on their way are served; then one
# that says which is the last; then, with the last stream, the end.

from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_remove
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.base.timer cimport Timer, TimerFn, timer_init, timer_start, timer_stop
from fastmesh.core.io.connection cimport (
    conn_close, conn_deadline, conn_dirty, conn_end_output, conn_finish, conn_timeout,
)
from fastmesh.core.io.connection_output cimport body_taken
from fastmesh.core.io.downstream cimport DRAIN_GRACE_MS
from fastmesh.core.io.state cimport (
    C_EOF_TOLD, C_LINGER, Conn, E_GONE, E_OUT_DONE, End, EndOps, H2Conn, H2End,
    H2_DISCARD, H2_LEAVING, H2_LEFT, H2_OPEN, LINGER_BYTES, TX_HIGH, Worker,
)
from fastmesh.core.traffic.counters cimport (
    G_H2_DOWNSTREAM, G_H2_UPSTREAM, K_H2_FLOODS_DOWNSTREAM, K_H2_FLOODS_UPSTREAM, K_H2_GOAWAYS_SENT_DOWNSTREAM,
    K_H2_GOAWAYS_SENT_UPSTREAM, K_H2_PINGS_DOWNSTREAM, K_H2_PINGS_UPSTREAM, K_H2_RESETS_SENT_DOWNSTREAM,
    K_H2_RESETS_SENT_UPSTREAM, K_H2_STREAMS_DOWNSTREAM, K_H2_STREAMS_UPSTREAM,
)
from fastmesh.core.wire.http2 cimport (
    h2_free, h2_goaway, h2_goaway_notice, h2_init, h2_ping, h2_settings_late, h2_settings_since,
)
from fastmesh.core.wire.http2_flow cimport h2_consume
from fastmesh.core.wire.http2_send cimport h2_data, h2_finish, h2_forget, h2_pack, h2_reset, h2_wants_write
from fastmesh.core.wire.http2_state cimport H2Hooks, H2Limits, H2_NO_ERROR, H2_SERVER
from fastmesh.core.wire.message cimport Message

cdef enum:
    # Bytes that all streams of a connection together may have received and not passed on: the windows of 256 streams
    # that nobody takes from. Sidecars share connections: with less, a few of those would stall all the others.
    CONN_WINDOW = 16777216
    STREAM_WINDOW = 65536
    STREAM_WINDOW_MAX = 262144
    SETTINGS_MS = 5000            # our settings are to be acknowledged after twice this time


cdef inline H2End *h2_end_of(End *e) noexcept nogil:
    return <H2End *>(<char *>e - <size_t>&(<H2End *>NULL).end)


cdef inline H2End *h2_end_of_node(Node *n) noexcept nogil:
    return <H2End *>(<char *>n - <size_t>&(<H2End *>NULL).node)


cdef inline H2End *h2_end_of_timer(Timer *t) noexcept nogil:
    return <H2End *>(<char *>t - <size_t>&(<H2End *>NULL).timer)


cdef inline H2Conn *h2_conn_of_pooled(Node *n) noexcept nogil:
    return <H2Conn *>(<char *>n - <size_t>&(<H2Conn *>NULL).pooled)


cdef inline void h2_count(Worker *w, const H2Conn *h, int down, int up) noexcept nogil:
    """Count on the side that the peer is on."""
    w.row.counters[down if h.h2.role == H2_SERVER else up] += 1


# ---------------------------------------------------------------- its life

cdef inline void _leave(void *worker, Timer *t) noexcept nogil:
    """Requests that were on their way when the warning went out are here."""
    cdef H2Conn *h = <H2Conn *>(<char *>t - <size_t>&(<H2Conn *>NULL).leave)
    h2_conn_left(<Worker *>worker, h)


cdef inline void _agree(void *worker, Timer *t) noexcept nogil:
    """Are our settings acknowledged? Asked twice: after the first time, what may have come while this process
    stood still is read."""
    cdef Worker *w = <Worker *>worker
    cdef H2Conn *h = <H2Conn *>(<char *>t - <size_t>&(<H2Conn *>NULL).agree)
    if h.state == H2_DISCARD or h2_settings_since(&h.h2) == 0:
        return
    if not h.late:
        h.late = 1
        timer_start(&w.wheel, &h.agree, w.now_ms + SETTINGS_MS)
        return
    h2_settings_late(&h.h2)
    conn_dirty(w, h.conn)                        # its flush hears of it


cdef inline H2Conn *h2_conn_new(Worker *w, Conn *c, int role, uint32_t max_streams, H2Hooks *hooks) noexcept nogil:
    """Speak HTTP/2 on `c`; its owner and ops stay the caller's to set. NULL without memory."""
    cdef H2Conn *h = <H2Conn *>slab_get(&w.h2s)
    cdef H2Limits limits
    if h == NULL:
        return NULL
    memset(h, 0, sizeof(H2Conn))
    memset(&limits, 0, sizeof(H2Limits))
    limits.max_streams = max_streams
    limits.stream_window = STREAM_WINDOW
    limits.stream_window_max = STREAM_WINDOW_MAX
    limits.held_max = CONN_WINDOW
    limits.max_head = 65536
    limits.extended_connect = True
    h.h2.now_ms = w.now_ms
    if h2_init(&h.h2, role, &limits, hooks, &w.pool, &w.heap) != 0:
        slab_put(&w.h2s, h)
        return NULL
    h.w = w
    h.conn = c
    list_init(&h.streams)
    timer_init(&h.leave, <TimerFn>_leave)
    timer_init(&h.agree, <TimerFn>_agree)
    timer_start(&w.wheel, &h.agree, w.now_ms + SETTINGS_MS)
    h2_count(w, h, G_H2_DOWNSTREAM, G_H2_UPSTREAM)
    conn_dirty(w, c)
    return h


cdef inline void h2_conn_free(Worker *w, H2Conn *h) noexcept nogil:
    """Close the connection and free the codec. No stream is left."""
    timer_stop(&w.wheel, &h.leave)
    timer_stop(&w.wheel, &h.agree)
    list_remove(&h.pooled)
    w.row.counters[G_H2_DOWNSTREAM if h.h2.role == H2_SERVER else G_H2_UPSTREAM] -= 1
    h2_free(&h.h2)
    conn_close(w, h.conn)
    slab_put(&w.h2s, h)


cdef inline int h2_conn_pack(Worker *w, H2Conn *h) noexcept nogil:
    """Pack what the streams have: 0; 1: there is more; or a reason: the connection cannot go on."""
    cdef int r = 0
    h.h2.now_ms = w.now_ms
    if h.h2.fault or h.conn.tx.bytes < TX_HIGH:     # last words go out however much is queued
        r = h2_pack(&h.h2, &h.conn.tx, TX_HIGH)
    if r < 0:
        return r if h.state != H2_DISCARD else 0     # it is known, and has been said
    return 1 if h2_wants_write(&h.h2) else 0


cdef inline void h2_conn_wake(Worker *w, H2Conn *h) noexcept nogil:
    """Have what the codec wants to send packed and sent with this turn's flush."""
    if h2_wants_write(&h.h2):
        conn_dirty(w, h.conn)


cdef inline void h2_conn_end(Worker *w, H2Conn *h) noexcept nogil:
    """Say what is still to be said, close, and throw away for a bounded time what comes until then."""
    cdef Conn *c = h.conn
    h.state = H2_DISCARD
    timer_stop(&w.wheel, &h.leave)
    list_remove(&h.pooled)
    conn_deadline(w, c, 4 * DRAIN_GRACE_MS)      # for a peer that does not take it
    if c.flags & C_EOF_TOLD:
        conn_finish(w, c)
        return
    c.flags |= C_LINGER
    conn_end_output(w, c)


cdef inline void h2_conn_left(Worker *w, H2Conn *h) noexcept nogil:
    """The second step of going away."""
    if h.state >= H2_LEFT:
        return
    timer_stop(&w.wheel, &h.leave)
    h.state = H2_LEFT
    h2_goaway(&h.h2, H2_NO_ERROR)
    h2_count(w, h, K_H2_GOAWAYS_SENT_DOWNSTREAM, K_H2_GOAWAYS_SENT_UPSTREAM)
    conn_dirty(w, h.conn)
    if h.nstreams == 0:
        h2_conn_end(w, h)


cdef inline void h2_conn_leave(Worker *w, H2Conn *h) noexcept nogil:
    """The first step."""
    if h.state != H2_OPEN:
        return
    h.state = H2_LEAVING
    h2_goaway_notice(&h.h2)
    conn_dirty(w, h.conn)
    timer_start(&w.wheel, &h.leave, w.now_ms + DRAIN_GRACE_MS)


cdef inline bint h2_conn_discards(Worker *w, H2Conn *h, size_t n) noexcept nogil:
    """What comes after the end: True as long as it is thrown away, False: it is too much."""
    h.discarded += <uint32_t>n
    return h.discarded <= LINGER_BYTES


cdef inline void h2_conn_blame(Worker *w, H2Conn *h, int reason, bint flood) noexcept nogil:
    """Count that what the peer sent is no HTTP/2, or too much of it: the codec has said so in a GOAWAY."""
    w.row.reasons[reason] += 1
    h2_count(w, h, K_H2_GOAWAYS_SENT_DOWNSTREAM, K_H2_GOAWAYS_SENT_UPSTREAM)
    if flood:
        h2_count(w, h, K_H2_FLOODS_DOWNSTREAM, K_H2_FLOODS_UPSTREAM)


# What both roles' ConnOps are made of.

cdef inline void h2_conn_drained(Worker *w, Conn *c) noexcept nogil:
    pass                                         # the codec says which stream may go on


cdef inline void h2_conn_ready(Worker *w, Conn *c) noexcept nogil:
    pass                                         # never: it is ready before it has a codec


cdef inline bint h2_conn_idle(Conn *c) noexcept nogil:
    return (<H2Conn *>c.owner).nstreams == 0


# ---------------------------------------------------------------- clocks

cdef inline void h2_conn_watch(Worker *w, H2Conn *h) noexcept nogil:
    """There are streams: the peer must give a sign of life."""
    h.pinged = 0
    if h.ping_ms:
        conn_timeout(w, h.conn, h.ping_ms)
    else:
        h.conn.idle_ms = 0
        timer_stop(&w.wheel, &h.conn.timer)


cdef inline bint h2_conn_silent(Worker *w, H2Conn *h) noexcept nogil:
    """Its clock has run out while there are streams: ask once. True: it was asked, and does not answer."""
    if h.pinged:
        return True
    if h2_ping(&h.h2) != 0:
        return True
    h2_count(w, h, K_H2_PINGS_DOWNSTREAM, K_H2_PINGS_UPSTREAM)
    h.pinged = 1
    conn_dirty(w, h.conn)
    conn_deadline(w, h.conn, h.ping_timeout_ms)
    return False


# ---------------------------------------------------------------- streams

cdef inline H2End *h2_end_new(Worker *w, H2Conn *h, EndOps *ops, TimerFn fire) noexcept nogil:
    """A stream without an exchange; NULL without memory."""
    cdef H2End *e = <H2End *>slab_get(&w.h2_ends)
    if e == NULL:
        return NULL
    memset(e, 0, sizeof(H2End))
    e.end.ops = ops
    e.on = h
    timer_init(&e.timer, fire)
    list_append(&h.streams, &e.node)
    h.nstreams += 1
    h2_count(w, h, K_H2_STREAMS_DOWNSTREAM, K_H2_STREAMS_UPSTREAM)
    return e


cdef inline void h2_end_free(Worker *w, H2End *e) noexcept nogil:
    """No exchange is attached, and the codec forgets it if it has not yet: a connection that ends with an error
    outlives its streams. Its memory stays until the turn's end: who has called the exchange looks at it."""
    e.flags |= E_GONE
    h2_forget(&e.on.h2, &e.s)
    timer_stop(&w.wheel, &e.timer)
    list_remove(&e.node)
    e.on.nstreams -= 1
    list_append(&w.dead_ends, &e.node)


cdef inline void h2_bury(Worker *w) noexcept nogil:
    """End of a turn."""
    cdef H2End *e
    while not list_empty(&w.dead_ends):
        e = h2_end_of_node(w.dead_ends.next)
        list_remove(&e.node)
        slab_put(&w.h2_ends, e)


cdef inline void h2_end_timeout(Worker *w, H2End *e, uint32_t ms) noexcept nogil:
    """From now on its timer fires `ms` after the last progress."""
    e.idle_ms = ms
    timer_start(&w.wheel, &e.timer, w.now_ms + ms)


cdef inline void h2_end_touch(Worker *w, H2End *e) noexcept nogil:
    if e.idle_ms:
        timer_start(&w.wheel, &e.timer, w.now_ms + e.idle_ms)


cdef inline bint h2_end_backlog(const H2End *e) noexcept nogil:
    """Does something of it wait for the peer's window? (What the connection has queued is the others' too, and whether
    the peer takes anything at all its PING finds out.)"""
    return e.s.out.bytes > 0


cdef inline void h2_end_took(Worker *w, H2End *e, int r) noexcept nogil:
    """What the codec has just given was passed on (0), or must wait for `resume` (1)."""
    if e.flags & E_GONE:
        return
    h2_end_touch(w, e)
    if r == 0:
        h2_consume(&e.on.h2, &e.s, e.s.held)


cdef inline void h2_end_drop(Worker *w, H2End *e, uint32_t code) noexcept nogil:
    """Reset it, if the codec still knows it, and free it."""
    cdef H2Conn *h = e.on
    if not e.flags & E_GONE:
        h2_reset(&h.h2, &e.s, code)
        h2_count(w, h, K_H2_RESETS_SENT_DOWNSTREAM, K_H2_RESETS_SENT_UPSTREAM)
        conn_dirty(w, h.conn)
    h2_end_free(w, e)


# What both roles' EndOps are made of.

cdef inline int h2_end_data(Worker *w, End *end, const char *p, size_t n) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    if n == 0 or e.flags & (E_OUT_DONE | E_GONE):
        return 0
    h2_end_touch(w, e)
    conn_dirty(w, e.on.conn)
    return h2_data(&e.on.h2, &e.s, p, n, body_taken(w, p, n))


cdef inline int h2_end_finish(Worker *w, End *end, Message *trailers) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    if e.flags & (E_OUT_DONE | E_GONE):
        return 0
    e.flags |= E_OUT_DONE
    conn_dirty(w, e.on.conn)
    return h2_finish(&e.on.h2, &e.s, trailers)


cdef inline void h2_end_resume(Worker *w, End *end) noexcept nogil:
    cdef H2End *e = h2_end_of(end)
    if e.s.held and not e.flags & E_GONE:
        h2_consume(&e.on.h2, &e.s, e.s.held)
        h2_conn_wake(w, e.on)


cdef inline Conn *h2_end_none(Worker *w, End *end) noexcept nogil:
    """Its connection carries others too: nobody gets the bytes as they are."""
    return NULL
