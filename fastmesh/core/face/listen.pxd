# What a worker is given to listen on: sockets for its listeners, and an inbox for what its siblings hand over.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastmesh.core.base.timer cimport timer_init
from fastmesh.core.io.handover cimport inbox_open, listener_share
from fastmesh.core.io.listener cimport inbox_event, listener_again, listener_event, listener_watch
from fastmesh.core.io.original cimport destination_of
from fastmesh.core.io.snapshot_ref cimport listener_bind, snapshot_unref
from fastmesh.core.io.state cimport Listener, Worker
from fastmesh.core.sys.posix cimport (
    F_DUPFD_CLOEXEC, IPPROTO_TCP, SOL_SOCKET, SO_KEEPALIVE, TCP_NODELAY, c_close, fcntl, getsockname, setsockopt,
    sockaddr, sockaddr_storage, socklen_t,
)


cdef inline int listen_siblings(Worker *w, int inbox, list outboxes) except -1:
    """See `Worker.siblings` in `_core.pyi`. Duplicates all descriptors."""
    cdef uint32_t count = <uint32_t>len(outboxes)
    cdef uint32_t i
    if w.inbox.siblings != NULL or w.listeners != NULL or not w.slot < count <= w.area.workers:
        raise ValueError("not these siblings, or not now")
    w.inbox.siblings = <int *>calloc(count, sizeof(int))
    if w.inbox.siblings == NULL:
        raise MemoryError()
    for i in range(count):
        w.inbox.siblings[i] = -1
    w.inbox.nsiblings = count
    for i in range(count):
        if i != w.slot:
            w.inbox.siblings[i] = fcntl(<int>outboxes[i], F_DUPFD_CLOEXEC, 0)
            if w.inbox.siblings[i] < 0:
                raise OSError("a sibling's inbox cannot be used: out of descriptors, or none")
    w.inbox.src.on_event = inbox_event
    if not inbox_open(w, fcntl(inbox, F_DUPFD_CLOEXEC, 0)):
        raise OSError("the inbox cannot be watched")
    return 0


cdef inline int _watch(Worker *w, Listener *l, str name, int fd, int number) except -1:
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef int one = 1
    cdef bytes raw = name.encode()
    if <size_t>len(raw) >= sizeof(l.name):
        raise ValueError("a listener's name is too long")
    memcpy(l.name, <char *>raw, len(raw))
    if not listener_bind(w, l, w.snapshot):
        raise ValueError(f"the snapshot has no listener {name!r}")
    l.src.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
    if l.src.fd < 0:
        raise OSError(f"listener {name!r}: out of descriptors, or none")
    l.src.on_event = listener_event
    if getsockname(l.src.fd, <sockaddr *>&address, &size) == 0:
        destination_of(&address, &l.bound)
    timer_init(&l.timer, listener_again)
    listener_share(w, l, number)
    # Accepted sockets inherit these. Unix sockets refuse the first, which does not matter.
    setsockopt(l.src.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
    setsockopt(l.src.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(int))
    if not listener_watch(w, l):
        raise OSError(f"listener {name!r}: the descriptor cannot be watched")
    return 0


cdef inline int listen_on(Worker *w, str name, int fd, int number) except -1:
    """See `Worker.listen` in `_core.pyi`. Duplicates the descriptor."""
    cdef Listener *l
    if w.snapshot == NULL:
        raise ValueError("no snapshot is loaded")
    l = <Listener *>calloc(1, sizeof(Listener))
    if l == NULL:
        raise MemoryError()
    l.src.fd = -1
    try:
        _watch(w, l, name, fd, number)
    except BaseException:
        if l.src.fd >= 0:
            c_close(l.src.fd)
        if l.snapshot != NULL:
            snapshot_unref(w, l.snapshot)
        free(l)
        raise
    l.next = w.listeners
    w.listeners = l
    return 0
