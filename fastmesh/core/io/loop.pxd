# The loop: a worker's life, one turn after another.
#
# A turn: wait, let everything that is ready read and be worked through, flush what was queued, drive a few
# handshakes of clients, fire timers, flush again, bury the dead. Nothing in it blocks but the wait.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmesh.core.base.buffer cimport pool_free, pool_in_use, pool_init
from fastmesh.core.base.heap cimport heap_free_all, heap_init
from fastmesh.core.base.list cimport Node, list_empty, list_init
from fastmesh.core.base.reason cimport R_DRAINING, reasons_init
from fastmesh.core.base.shared cimport shared_free
from fastmesh.core.base.slab cimport slab_free, slab_init
from fastmesh.core.base.timer cimport wheel_advance, wheel_init, wheel_wait
from fastmesh.core.io.connection cimport conn_bury, conn_of_all
from fastmesh.core.io.connection_output cimport conn_flush_all
from fastmesh.core.io.connection_turn cimport conn_ready_all, conn_shake
from fastmesh.core.io.dialling cimport dialling_init
from fastmesh.core.io.exchange cimport exchange_of_all, exchange_overdue
from fastmesh.core.io.flow cimport flow_free, flow_pump
from fastmesh.core.io.h1_client cimport h1_client_init
from fastmesh.core.io.h1_server cimport h1_server_init
from fastmesh.core.io.h2_client cimport h2_client_init
from fastmesh.core.io.h2_conn cimport h2_bury, h2_conn_left
from fastmesh.core.io.h2_server cimport h2_server_init
from fastmesh.core.io.handover cimport handover_free, inbox_shut
from fastmesh.core.io.late cimport late_init
from fastmesh.core.io.listener cimport (
    inbox_empty, listener_close, listener_init, listener_stop, open_tls, start_tls,
)
from fastmesh.core.io.pool cimport dial, pool_drain, pool_drop
from fastmesh.core.io.retire cimport retire_denied
from fastmesh.core.io.snapshot_ref cimport listener_bind, snapshot_unref
from fastmesh.core.io.state cimport (
    ALT_SCRATCH, Conn, Dialling, Downstream, Exchange, Flow, H1Client, H1Server, H2Conn, H2End, INPUT_SCRATCH,
    LINES_SCRATCH, Listener, Original, Parked, Source, TURN_EVENTS, Tunnel, Upstream, WIRE_SCRATCH, Worker,
)
from fastmesh.core.io.tunnel cimport tunnel_destroy, tunnel_init, tunnel_of_all, tunnel_upgrade
from fastmesh.core.io.upstream cimport upstream_connected
from fastmesh.core.io.wall cimport wall_offset, wall_watch
from fastmesh.core.sys.openssl cimport RAND_bytes
from fastmesh.core.sys.posix cimport (
    CLOCK_MONOTONIC, EINTR, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, c_close,
    clock_gettime, epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, malloc_trim, timespec,
)
from fastmesh.core.traffic.counters cimport AreaHeader, G_BUFFERS, G_COUNT, K_SNAPSHOT, area_ring, area_worker
from fastmesh.core.traffic.policy_scratch cimport policy_scratch_free
from fastmesh.core.traffic.snapshot cimport Snapshot
from fastmesh.core.wire.tls cimport tls_engine_free, tls_engine_init

cdef enum:
    SHAKE_PUT_OFF = 8             # turns for which handshakes wait for events, at most
    TURN_AGAIN = 0
    TURN_CONTROL = 1              # the control descriptor is readable
    TURN_DRAINED = 2              # a drain has ended
    TURN_SIGNAL = 3               # a signal interrupted the wait

    POOL_BYTES = 4294967296       # most buffer memory of one size class of one worker
    MAX_OBJECTS = 4194304


cdef inline void worker_clock(Worker *w) noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    w.now_us = <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000
    w.now_ms = w.now_us // 1000


cdef inline int worker_init(Worker *w, AreaHeader *area, uint32_t slot) noexcept nogil:
    """0, or -1: out of memory or descriptors (worker_free cleans up)."""
    memset(w, 0, sizeof(Worker))
    w.ep = -1
    w.control_fd = -1
    w.inbox.src.fd = w.inbox.spare = -1
    w.slot = slot
    w.area = area
    w.row = area_worker(area, slot)
    w.ring = area_ring(area, slot)
    memset(w.row.counters, 0, G_COUNT * sizeof(uint64_t))
    worker_clock(w)
    w.wall_us = <uint64_t>wall_offset(w)
    w.log_random = w.now_us * 2 + 1
    if RAND_bytes(<unsigned char *>&w.handshake_rates.seed, sizeof(uint64_t)) != 1:
        return -1
    pool_init(&w.pool, POOL_BYTES)
    slab_init(&w.conns, sizeof(Conn), 65536, MAX_OBJECTS)
    slab_init(&w.exchanges, sizeof(Exchange), 32768, MAX_OBJECTS)
    slab_init(&w.servers, sizeof(H1Server), 65536, MAX_OBJECTS)
    slab_init(&w.clients, sizeof(H1Client), 32768, MAX_OBJECTS)
    slab_init(&w.diallings, sizeof(Dialling), 8192, MAX_OBJECTS)
    slab_init(&w.parked, sizeof(Parked), 8192, MAX_OBJECTS)
    slab_init(&w.h2s, sizeof(H2Conn), 65536, MAX_OBJECTS)
    slab_init(&w.h2_ends, sizeof(H2End), 65536, MAX_OBJECTS)
    heap_init(&w.heap, POOL_BYTES)
    slab_init(&w.flows, sizeof(Flow), 16384, MAX_OBJECTS)
    slab_init(&w.tunnels, sizeof(Tunnel), 16384, MAX_OBJECTS)
    slab_init(&w.originals, sizeof(Original), 16384, MAX_OBJECTS)
    wheel_init(&w.wheel, w.now_ms)
    list_init(&w.ready)
    list_init(&w.shaking)
    list_init(&w.downs)
    list_init(&w.ups)
    list_init(&w.dead_ends)
    list_init(&w.all_exchanges)
    list_init(&w.all_tunnels)
    list_init(&w.upstreams)
    reasons_init(w.reasons)
    h1_server_init(&w.ops.h1_server, &w.ops.server_end)
    h1_client_init(&w.ops.h1_client, &w.ops.client_end)
    h2_server_init(&w.ops.h2_server, &w.ops.h2_server_end, &w.ops.h2_server_hooks)
    h2_client_init(&w.ops.h2_client, &w.ops.h2_client_end, &w.ops.h2_client_hooks)
    dialling_init(&w.ops.dialling, &w.ops.parked_end)
    tunnel_init(&w.ops.tunnel_down, &w.ops.tunnel_up, &w.ops.leaving)
    listener_init(&w.ops.accepted)
    late_init(&w.ops.late)
    w.ops.dial = dial
    w.ops.upgrade = tunnel_upgrade
    w.ops.flow_pump = flow_pump
    w.ops.flow_free = flow_free
    w.ops.connected = upstream_connected
    w.ops.start_tls = start_tls
    w.ops.open_tls = open_tls
    w.ops.pool_drop = pool_drop
    w.input = <char *>malloc(INPUT_SCRATCH)
    w.plain = <char *>malloc(INPUT_SCRATCH)
    w.wire = <char *>malloc(WIRE_SCRATCH)
    w.lines = <char *>malloc(LINES_SCRATCH)
    w.alt_text = <char *>malloc(ALT_SCRATCH)
    if w.input == NULL or w.plain == NULL or w.wire == NULL or w.lines == NULL or w.alt_text == NULL:
        return -1
    if tls_engine_init(&w.tls, w.wire, WIRE_SCRATCH) != 0:
        return -1
    w.tls.own_records = True
    w.ep = epoll_create1(EPOLL_CLOEXEC)
    return 0 if w.ep >= 0 else -1


cdef inline bint _nothing_left(Worker *w) noexcept nogil:
    """No client, and no tunnel whose client has gone but whose endpoint has not got everything yet."""
    return list_empty(&w.downs) and list_empty(&w.all_tunnels)


cdef inline int worker_turn(Worker *w, int most_wait_ms) noexcept nogil:
    """One turn; waits at most `most_wait_ms` (-1: until something happens)."""
    cdef int wait = wheel_wait(&w.wheel, w.now_ms)
    cdef int n
    cdef int i
    cdef bint interrupted = False
    cdef Source *s
    if most_wait_ms >= 0 and (wait < 0 or wait > most_wait_ms):
        wait = most_wait_ms
    if not list_empty(&w.ready) or not list_empty(&w.shaking) or w.dirty != NULL or w.draining and _nothing_left(w):
        wait = 0
    n = epoll_wait(w.ep, w.events, TURN_EVENTS, wait)
    if n < 0:
        interrupted = errno == EINTR
        n = 0
    worker_clock(w)
    wall_watch(w)
    for i in range(n):
        s = <Source *>w.events[i].data.ptr
        s.on_event(w, s, w.events[i].events)
    conn_ready_all(w)
    conn_flush_all(w)
    # more events wait than were taken: a request may be among them
    if n < TURN_EVENTS or w.shake_put_off >= SHAKE_PUT_OFF:
        w.shake_put_off = 0
        conn_shake(w)
    else:
        w.shake_put_off += 1
    wheel_advance(w, &w.wheel, w.now_ms)
    conn_flush_all(w)
    conn_bury(w)
    h2_bury(w)
    w.row.counters[G_BUFFERS] = pool_in_use(&w.pool)
    if w.control_ready:
        w.control_ready = False
        return TURN_CONTROL
    if w.draining and (w.now_ms >= w.drain_deadline or _nothing_left(w)):
        return TURN_DRAINED
    return TURN_SIGNAL if interrupted else TURN_AGAIN


cdef inline int worker_turns(Worker *w) noexcept nogil:
    """Turns, until one has something to tell; a drain is looked after each second."""
    cdef int r = TURN_AGAIN
    while r == TURN_AGAIN:
        r = worker_turn(w, 1000 if w.draining else -1)
    return r


cdef inline void _control_event(Worker *w, Source *s, uint32_t events) noexcept nogil:
    w.control_ready = True


cdef inline bint worker_control(Worker *w, Source *control, int fd) noexcept nogil:
    """A turn ends with TURN_CONTROL from now on when `fd` is readable. `control` is the caller's, and lives as long as
    the worker. False: it cannot be watched."""
    cdef epoll_event ev
    if w.control_fd >= 0 and w.control_fd != fd:
        epoll_ctl(w.ep, EPOLL_CTL_DEL, w.control_fd, NULL)
    control.on_event = _control_event
    control.fd = fd
    ev.events = EPOLLIN
    ev.data.ptr = control
    # A number may have been closed and given out anew since: then it is not registered.
    if epoll_ctl(w.ep, EPOLL_CTL_MOD, fd, &ev) != 0 and epoll_ctl(w.ep, EPOLL_CTL_ADD, fd, &ev) != 0:
        return False
    w.control_fd = fd
    return True


cdef inline void worker_load(Worker *w, Snapshot *s) noexcept nogil:
    """Take a snapshot into force, with its reference: for new exchanges at once; those under way keep theirs."""
    cdef Snapshot *old = w.snapshot
    cdef Listener *l = w.listeners
    w.snapshot = s
    w.loads += 1
    while l != NULL:
        listener_bind(w, l, s)                   # one that is not named goes on with what it has until it is stopped
        l = l.next
    worker_clock(w)
    if old != NULL:
        retire_denied(w, old)
        snapshot_unref(w, old)
    w.row.counters[K_SNAPSHOT] = s.number
    malloc_trim(0)


cdef inline void worker_withdraw(Worker *w) noexcept nogil:
    """Inbound listeners stop accepting, and their connections end with the exchange that is under way, or soon; opaque
    ones go on. Everything else is served as before: the application may still call others."""
    cdef Listener *l
    cdef Node *n
    cdef Node *following
    cdef Conn *c
    cdef Downstream *d
    if w.withdrawn:
        return
    inbox_empty(w)
    l = w.listeners
    while l != NULL:
        if l.conf.inbound:
            listener_stop(w, l)
        l = l.next
    w.withdrawn = True
    n = w.downs.next
    while n != &w.downs:
        following = n.next
        c = conn_of_all(n)
        d = NULL
        if c.ops == &w.ops.h1_server:
            d = &(<H1Server *>c.owner).client
        elif c.ops == &w.ops.h2_server:
            d = &(<H2Conn *>c.owner).client
        if d != NULL and d.listener.conf.inbound:
            d.retired = 1
            c.ops.on_drain(w, c)
        n = following
    conn_flush_all(w)
    conn_bury(w)
    h2_bury(w)


cdef inline void worker_drain(Worker *w, uint64_t deadline_ms) noexcept nogil:
    """Stop accepting; close what is idle; let what is under way end."""
    cdef Listener *l
    cdef Node *n
    cdef Node *following
    cdef Conn *c
    w.drain_deadline = w.now_ms + deadline_ms
    if w.draining:
        return
    inbox_shut(w)
    inbox_empty(w)
    l = w.listeners
    while l != NULL:
        listener_stop(w, l)
        l = l.next
    w.draining = True
    n = w.downs.next
    while n != &w.downs:
        following = n.next
        c = conn_of_all(n)
        if c.ops.on_drain != NULL:
            c.ops.on_drain(w, c)
        n = following
    n = w.upstreams.next
    while n != &w.upstreams:
        pool_drain(w, <Upstream *>(<char *>n - <size_t>&(<Upstream *>NULL).all))
        n = n.next
    conn_flush_all(w)
    conn_bury(w)
    h2_bury(w)


cdef inline void _farewell(Worker *w) noexcept nogil:
    """The last that clients hear, as far as their sockets take it: their answers' ends, and which was the last request
    that we have looked at (RFC 9113 6.8)."""
    cdef Node *n = w.downs.next
    cdef Node *following
    cdef Conn *c
    while n != &w.downs:
        following = n.next
        c = conn_of_all(n)
        if c.ops == &w.ops.h2_server:
            h2_conn_left(w, <H2Conn *>c.owner)
        n = following
    conn_flush_all(w)


cdef inline void worker_free(Worker *w) noexcept nogil:
    """End everything; afterwards the balance counters tell what was forgotten."""
    cdef Listener *l
    cdef Conn *c
    cdef int i
    l = w.listeners
    while l != NULL:
        listener_close(w, l)
        l = l.next
    handover_free(w)
    w.draining = True                            # nobody begins another exchange
    while not list_empty(&w.all_tunnels):
        tunnel_destroy(w, tunnel_of_all(w.all_tunnels.next), R_DRAINING)
    while not list_empty(&w.all_exchanges):
        exchange_overdue(w, exchange_of_all(w.all_exchanges.next), R_DRAINING)
    _farewell(w)
    while not list_empty(&w.downs):
        c = conn_of_all(w.downs.next)
        c.ops.on_error(w, c, 0)
    while not list_empty(&w.ups):
        c = conn_of_all(w.ups.next)
        c.ops.on_error(w, c, 0)
    l = w.listeners
    while l != NULL:
        if l.snapshot != NULL:
            snapshot_unref(w, l.snapshot)
            l.snapshot = NULL
        l = l.next
    if w.snapshot != NULL:
        snapshot_unref(w, w.snapshot)
        w.snapshot = NULL
    conn_flush_all(w)
    conn_bury(w)
    h2_bury(w)
    for i in range(w.npipes):
        c_close(w.pipes[2 * i])
        c_close(w.pipes[2 * i + 1])
        w.pipes_open -= 1
    w.npipes = 0
    policy_scratch_free(&w.policy)
    if w.tls.bio != NULL:
        tls_engine_free(&w.tls)
    free(w.input)
    free(w.plain)
    free(w.wire)
    free(w.lines)
    free(w.alt_text)
    w.input = NULL
    w.plain = NULL
    w.wire = NULL
    w.lines = NULL
    w.alt_text = NULL
    if w.ep >= 0:
        c_close(w.ep)
        w.ep = -1


cdef inline void worker_release(Worker *w) noexcept nogil:
    """Give the slabs back; after worker_free and a look at the balance."""
    cdef Listener *l
    slab_free(&w.conns)
    slab_free(&w.exchanges)
    slab_free(&w.servers)
    slab_free(&w.clients)
    slab_free(&w.diallings)
    slab_free(&w.parked)
    slab_free(&w.h2s)
    slab_free(&w.h2_ends)
    heap_free_all(&w.heap)
    slab_free(&w.flows)
    slab_free(&w.tunnels)
    slab_free(&w.originals)
    shared_free(&w.identities)
    shared_free(&w.client_certs)
    pool_free(&w.pool)
    while w.listeners != NULL:
        l = w.listeners
        w.listeners = l.next
        free(l)
