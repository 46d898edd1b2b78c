# What the loop asks of connections: a new one, what epoll says of it, the handshakes' turn, those that wait to go on.

from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastmesh.core.base.list cimport Node, list_append, list_empty, list_init, list_remove
from fastmesh.core.base.reason cimport R_DOWNSTREAM_RESET
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.base.timer cimport Timer, timer_init
from fastmesh.core.io.connection cimport conn_dirty, conn_fail, conn_of_ready
from fastmesh.core.io.connection_input cimport conn_go_on, conn_input
from fastmesh.core.io.state cimport (
    C_CONNECTING, C_DEAD, C_PAUSED, C_RDHUP, C_READABLE, C_UPSTREAM, C_WRITABLE, Conn, Source, TURN_HANDSHAKES,
    Worker,
)
from fastmesh.core.sys.posix cimport (
    EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_ADD, epoll_ctl, epoll_event,
)
from fastmesh.core.traffic.counters cimport G_DOWNSTREAM_CONNECTIONS, G_UPSTREAM_CONNECTIONS
from fastmesh.core.wire.tls cimport tls_is_open


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
        conn_fail(w, c, R_DOWNSTREAM_RESET)
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
            conn_go_on(w, c)


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
