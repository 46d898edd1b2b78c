# How a connection to an endpoint is begun: its socket, and TLS on it.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen

from fastmesh.core.base.list cimport list_append, list_init, list_remove
from fastmesh.core.base.reason cimport (
    R_CONNECT_FAILED, R_CONNECT_REFUSED, R_CONNECT_TIMEOUT, R_CONNECT_UNREACHABLE, R_NO_ENDPOINT, R_NO_MEMORY,
    R_OVERLOADED, R_UPSTREAM_TLS_HANDSHAKE,
)
from fastmesh.core.io.age cimport conn_expires
from fastmesh.core.io.dialled cimport dialled
from fastmesh.core.io.original cimport destination_address
from fastmesh.core.io.connection cimport conn_deadline, conn_resume_later
from fastmesh.core.io.connection_turn cimport conn_open
from fastmesh.core.io.state cimport (
    C_CONNECTING, C_DEAD, C_EARLY, C_HANDSHAKE, C_OLD_TRUST, C_READABLE, C_TLS, C_UPSTREAM, Conn, Upstream,
    Worker,
)
from fastmesh.core.sys.openssl cimport SSL_CTX, SSL_SESSION_free
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINPROGRESS, EMFILE, ENETUNREACH, ENFILE, ENOENT,
    ETIMEDOUT, IPPROTO_TCP, IP_BIND_ADDRESS_NO_PORT, IPV6_TRANSPARENT, IP_TRANSPARENT, SOCK_CLOEXEC, SOCK_NONBLOCK,
    SOCK_STREAM, SOL_IP, SOL_IPV6, SOL_SOCKET, SO_ERROR, SO_MARK, TCP_NODELAY, c_bind, c_close, c_connect, c_socket,
    errno, getsockopt, htons, setsockopt, sockaddr, sockaddr_in, sockaddr_storage, socklen_t,
)
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.counters cimport K_UPSTREAM_CONNECTIONS, K_UPSTREAM_CONNECT_FAILURES
from fastmesh.core.traffic.destination cimport DEST_INET, DEST_NONE, Destination, destination_is_local_to_link
from fastmesh.core.traffic.snapshot cimport Endpoint, Service, Snapshot, TLS_PUBLIC
from fastmesh.core.wire.tls cimport tls_open

cdef enum:
    HANDSHAKE_MS = 5000


cdef inline Upstream *upstream_new(Worker *w, const char *prefix, const char *key) noexcept nogil:
    """One without connections, called `prefix` and `key` in one; nobody names it yet. NULL without memory."""
    cdef size_t n = strlen(prefix)
    cdef size_t k = strlen(key)
    cdef Upstream *u = <Upstream *>calloc(1, sizeof(Upstream))
    if u == NULL:
        return NULL
    u.key = <char *>malloc(n + k + 1)
    if u.key == NULL:
        free(u)
        return NULL
    memcpy(u.key, prefix, n)
    memcpy(u.key + n, key, k + 1)
    list_init(&u.idle)
    list_init(&u.dialling)
    list_init(&u.unclaimed)
    list_init(&u.h2)
    list_init(&u.used)
    list_append(&w.upstreams, &u.all)
    return u


cdef inline bint as_caller(const Endpoint *e, const Destination *caller) noexcept nogil:
    """Can `e` be connected to with the address of that client?"""
    cdef int family = AF_INET if caller.family == DEST_INET else AF_INET6
    return (e.keep_caller != 0 and caller.family != DEST_NONE and e.address.ss_family == family
            and not destination_is_local_to_link(caller))


cdef inline void upstream_left(Upstream *u) noexcept nogil:
    """One of its connections is closed. It goes with the last, when no snapshot names it any more: what has said its
    last word still lingers then, and TLS looks at `session`."""
    u.nconns -= 1
    if u.nconns > 0 or u.refs > 0:
        return
    list_remove(&u.all)
    if u.session != NULL:
        SSL_SESSION_free(u.session)
    free(u.kinds)
    free(u.key)
    free(u)


cdef inline int connect_reason(int err) noexcept nogil:
    if err == ECONNREFUSED or err == ENOENT or err == EAGAIN:     # the last two: a unix socket without a server
        return R_CONNECT_REFUSED
    if err == ETIMEDOUT:
        return R_CONNECT_TIMEOUT
    if err == ENETUNREACH or err == EHOSTUNREACH:
        return R_CONNECT_UNREACHABLE
    if err == EMFILE or err == ENFILE:
        return R_OVERLOADED
    return R_CONNECT_FAILED


cdef inline const sockaddr *_on_port(const Endpoint *e, const Destination *to, sockaddr_storage *room) noexcept nogil:
    """The address of an endpoint that is connected to on the port that the client wanted."""
    room[0] = e.address
    (<sockaddr_in *>room).sin_port = htons(to.port)      # an IPv6 address has it in the same place
    return <const sockaddr *>room


cdef inline bint _be_caller(int fd, const Destination *caller) noexcept nogil:
    """Take a client's address on. Not allowed without CAP_NET_ADMIN: then it stays ours. False: it cannot be had, and
    ours is not to stand for it."""
    cdef int one = 1
    cdef sockaddr_storage address
    cdef socklen_t size = destination_address(caller, &address)
    cdef bint v4 = caller.family == DEST_INET
    if setsockopt(fd, SOL_IP if v4 else SOL_IPV6, IP_TRANSPARENT if v4 else IPV6_TRANSPARENT, &one, sizeof(int)) != 0:
        return True
    # A port for each pair of ends, not one for each connection of the client.
    setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(int))
    return c_bind(fd, <const sockaddr *>&address, size) == 0


cdef inline Conn *upstream_connect(Worker *w, Service *s, Endpoint *e, const Destination *to,
                                   const Destination *caller, int *reason) noexcept nogil:
    """A connection under way to `e`; its owner is set by the caller before the next turn. NULL and a reason. `to`:
    where the client wanted to go, if its connection was taken over; `caller`: its address, for endpoints that keep it."""
    cdef int one = 1
    cdef int family = e.address.ss_family
    cdef uint32_t flags = C_UPSTREAM | C_CONNECTING
    cdef const sockaddr *address = <const sockaddr *>&e.address
    cdef socklen_t address_len = e.address_len
    cdef sockaddr_storage room
    cdef Conn *c
    cdef int fd
    if fm_unlikely(e.keep_port):
        if to.port == 0:
            reason[0] = R_NO_ENDPOINT            # nobody says which port
            return NULL
        address = _on_port(e, to, &room)
    elif fm_unlikely(e.original):
        if to.family == DEST_NONE:
            reason[0] = R_NO_ENDPOINT
            return NULL
        address_len = destination_address(to, &room)
        address = <const sockaddr *>&room
        family = room.ss_family
    fd = c_socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        reason[0] = connect_reason(errno)
        return NULL
    if family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
        if fm_unlikely(w.snapshot.mark):
            # Not allowed without CAP_NET_ADMIN: then rules tell us by our user.
            setsockopt(fd, SOL_SOCKET, SO_MARK, &w.snapshot.mark, sizeof(uint32_t))
        if fm_unlikely(as_caller(e, caller)) and not _be_caller(fd, caller):
            reason[0] = R_OVERLOADED
            w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
            c_close(fd)
            return NULL
    if c_connect(fd, address, address_len) != 0 and errno != EINPROGRESS:
        reason[0] = connect_reason(errno)
        w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
        c_close(fd)
        return NULL
    if fm_unlikely(w.snapshot.mark or w.snapshot.passthrough >= 0) and family != AF_UNIX:
        dialled(w, fd, <const sockaddr_storage *>address)
    c = conn_open(w, fd, flags)
    if c == NULL:
        c_close(fd)
        reason[0] = R_NO_MEMORY
        return NULL
    w.row.counters[K_UPSTREAM_CONNECTIONS] += 1
    conn_deadline(w, c, s.connect_timeout_ms)
    return c


cdef inline void upstream_connected(Worker *w, Conn *c) noexcept nogil:
    """epoll reports a connecting socket: it is connected, or has failed."""
    cdef int err = 0
    cdef socklen_t n = sizeof(int)
    getsockopt(c.src.fd, SOL_SOCKET, SO_ERROR, &err, &n)
    if err:
        w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
        c.ops.on_error(w, c, connect_reason(err))
        return
    c.flags &= ~<uint32_t>C_CONNECTING
    if c.flags & C_HANDSHAKE:
        c.flags |= C_EARLY                       # our hello goes first
        conn_deadline(w, c, HANDSHAKE_MS)
        conn_resume_later(w, c)
    else:
        c.ops.on_ready(w, c)
        if c.flags & C_READABLE and not c.flags & C_DEAD:
            conn_resume_later(w, c)              # it spoke first: this edge was the only one


cdef inline int upstream_tls(
    Worker *w, Conn *c, Snapshot *snapshot, Service *s, Upstream *u, uint8_t mask
) noexcept nogil:
    """Speak TLS on `c` once it is connected; the peer must prove the service's identity, or its server's name. `mask`:
    what may be agreed on (bits of tls_open). 0 or a reason."""
    cdef void *ctx = s.tls_ctx if s.tls == TLS_PUBLIC else snapshot.client_ctx
    # Lent until the handshake is over, which may be later than the snapshot's end: the key ends with it.
    cdef const char *id = NULL if s.tls == TLS_PUBLIC else u.key + strlen(u.key) - s.spiffe_id.len
    c.tls.session_slot = &u.session
    if ctx == NULL or tls_open(
            &w.tls, &c.tls, <SSL_CTX *>ctx, False, id, s.spiffe_id.len if id != NULL else 0, u.session, mask) != 0:
        return -R_UPSTREAM_TLS_HANDSHAKE
    w.tls_open += 1
    if s.tls != TLS_PUBLIC:
        conn_expires(w, c, snapshot.not_after)
        if snapshot != w.snapshot:
            c.flags |= C_OLD_TRUST
    c.flags |= C_TLS | C_HANDSHAKE
    return 0
