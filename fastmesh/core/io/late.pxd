# Connections whose client has not said a word: the server may be the one that speaks first, so it is dialled, and who
# speaks first decides.
#
#   the server    opaque from then on, for good: it is carried by the tunnel that stands (`tunnel`)
#   the client    what its first bytes are (`arrival`). HTTP, and TLS where it may still begin, go the normal way:
#                 the connection to the endpoint, which has seen nothing, is closed. Opaque bytes join the tunnel.
#   its end       opaque: the half-close is passed on, and what the server says to that comes back
#
# Until then the client's connection is its tunnel's, with the handlers that are here.

from libc.stdint cimport int32_t

from fastmesh.core.base.reason cimport R_DOWNSTREAM_CLOSED, R_DOWNSTREAM_RESET, R_DRAINING, R_IDLE_TIMEOUT
from fastmesh.core.io.arrival cimport (
    Arrival, JUDGED_HTTP, JUDGED_NOTHING, arrival_adopt, arrival_judge, arrival_judge_late, arrival_of,
    arrival_settle, arrival_unknown,
)
from fastmesh.core.io.connection cimport conn_deadline, conn_resume_input
from fastmesh.core.io.downstream cimport DRAIN_GRACE_MS
from fastmesh.core.io.state cimport (
    C_DEAD, C_LATE, C_TRUNCATED, Conn, ConnOps, Listener, Tunnel, WATCH_LEARNED, WATCH_SILENT, Worker,
)
from fastmesh.core.io.tunnel cimport (
    detected_at, tunnel_carry, tunnel_client_ended, tunnel_destroy, tunnel_down_error, tunnel_give_back,
    tunnel_is_for, tunnel_spoke,
)
from fastmesh.core.traffic.counters cimport K_DETECT_SKIPPED, K_DETECT_TIMEOUTS, area_detection
from fastmesh.core.traffic.destination cimport Destination
from fastmesh.core.traffic.learned cimport (
    Learned, detect_observe, learned_server_first, learned_skipped, learned_timeout,
)

cdef enum:
    DETECT_MS = 100               # how long first bytes are waited for, and once they come, the rest of them


cdef inline bint late_known(Worker *w, Conn *c, const Arrival *a) noexcept nogil:
    """Its server is known to speak first: dial it at once. False: nothing of that is known, or may be used."""
    cdef Listener *l = <Listener *>c.owner
    cdef Destination to
    cdef Learned *row
    if a.choice.reason or a.choice.shared != NULL or a.choice.service < 0:
        return False
    detected_at(&l.snapshot.services[a.choice.service], &a.to, &to)
    row = learned_server_first(area_detection(w.area, w.slot), &to)
    if row == NULL or not arrival_adopt(w, c, a, False, WATCH_LEARNED):
        return False
    c.flags |= C_LATE
    learned_skipped(row, w.now_ms)
    w.row.counters[K_DETECT_SKIPPED] += 1
    return True


cdef inline bint late_begin(Worker *w, Conn *c, Arrival *a) noexcept nogil:
    """Nothing came in time: dial, and go on waiting, for either side. False: nobody is dialled, because opaque bytes
    would be refused here; only the client can say something."""
    c.flags |= C_LATE
    late_timed_out(w, <Listener *>c.owner, a)
    arrival_unknown(<Listener *>c.owner, a)
    return not a.choice.reason and arrival_adopt(w, c, a, False, WATCH_SILENT)


cdef inline void late_timed_out(Worker *w, Listener *l, const Arrival *a) noexcept nogil:
    """Nothing, or too little, came in time."""
    cdef Destination to
    w.row.counters[K_DETECT_TIMEOUTS] += 1
    detect_observe(area_detection(w.area, w.slot), DETECT_MS)
    if a.choice.reason or a.choice.shared != NULL or a.choice.service < 0:
        return
    detected_at(&l.snapshot.services[a.choice.service], &a.to, &to)
    learned_timeout(
        area_detection(w.area, w.slot), &to, <int32_t>l.snapshot.services[a.choice.service].slot, w.now_ms)


cdef inline void _decide(Worker *w, Conn *c, const Arrival *a, bint http) noexcept nogil:
    """The client has spoken first."""
    cdef Tunnel *t = <Tunnel *>c.owner
    tunnel_spoke(w, t, False)
    if not http and not a.choice.reason and tunnel_is_for(t, a.choice.service):
        tunnel_carry(w, t)
        return
    tunnel_give_back(w, t)
    arrival_settle(w, c, a, http)


cdef inline size_t _input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    """The client's first bytes. Takes none: whoever gets the connection is offered them."""
    cdef Tunnel *t = <Tunnel *>c.owner
    cdef Arrival a
    cdef int found
    if not arrival_of(w, t.listener, c, &a):
        tunnel_down_error(w, c, R_DOWNSTREAM_CLOSED)
        return n
    found = arrival_judge(t.listener, c, &a, p, n)
    if found == JUDGED_NOTHING:
        if c.idle_ms:                            # the first of them
            conn_deadline(w, c, DETECT_MS)
        return 0
    _decide(w, c, &a, found == JUDGED_HTTP)
    return n if c.flags & C_DEAD else 0


cdef inline void _eof(Worker *w, Conn *c) noexcept nogil:
    if c.flags & C_TRUNCATED:
        tunnel_down_error(w, c, R_DOWNSTREAM_RESET)
    else:
        tunnel_client_ended(w, <Tunnel *>c.owner)


cdef inline void _timer(Worker *w, Conn *c) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    cdef Arrival a
    cdef int found
    if c.rx == NULL:
        tunnel_destroy(w, t, R_DRAINING if w.draining else R_IDLE_TIMEOUT)
    elif not arrival_of(w, t.listener, c, &a):
        tunnel_down_error(w, c, R_DOWNSTREAM_CLOSED)
    else:
        found = arrival_judge_late(t.listener, &a, c.rx.data + c.rx.start, c.rx.end - c.rx.start)
        _decide(w, c, &a, found == JUDGED_HTTP)
        if c.ops == &w.ops.h1_server and not c.flags & C_DEAD:
            conn_resume_input(w, c)


cdef inline void _ready(Worker *w, Conn *c) noexcept nogil:
    pass                                         # on a permissive listener: it does not begin with TLS


cdef inline void _drained(Worker *w, Conn *c) noexcept nogil:
    pass


cdef inline void _drain(Worker *w, Conn *c) noexcept nogil:
    if c.rx == NULL:
        conn_deadline(w, c, DRAIN_GRACE_MS)      # nobody has said a word


cdef inline void late_init(ConnOps *ops) noexcept nogil:
    ops[0] = ConnOps(
        on_input=_input, on_eof=_eof, on_drained=_drained, on_error=tunnel_down_error, on_ready=_ready,
        on_timer=_timer, on_flush=NULL, on_drain=_drain, on_expiry=NULL, idle=NULL)
