# A client's connection as every codec towards clients keeps it: who the client is, and how long it may stay.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset, strlen

from fastmesh.core.base.shared cimport Shared, shared_get, shared_put
from fastmesh.core.io.age cimport conn_expired
from fastmesh.core.io.connection cimport conn_timeout
from fastmesh.core.io.handover cimport listener_leave
from fastmesh.core.io.original cimport destination_of, is_own, original_destination
from fastmesh.core.io.state cimport Conn, Downstream, PEER_TEXT, Peer, Worker
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, getpeername, getsockname, inet_ntop, ntohs, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage,
    socklen_t,
)
from fastmesh.core.traffic.counters cimport K_RETIRED_AGE, K_RETIRED_CERTIFICATE_DOWNSTREAM
from fastmesh.core.traffic.destination cimport DEST_NONE
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.wire.tls cimport tls_peer
from fastmesh.core.wire.tls_facts cimport TlsFacts

cdef enum:
    DRAIN_GRACE_MS = 200          # an idle connection stays this long after a drain has begun


cdef inline void peer_text(Peer *p, const sockaddr_storage *a) noexcept nogil:
    """ "192.0.2.1:443" or "[2001:db8::1]:443"; empty for unix sockets. An IPv4 address mapped into IPv6 is
    shown as what it is."""
    cdef char ip[64]
    cdef const sockaddr_in *v4 = <const sockaddr_in *>a
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>a
    cdef int k = 0
    p.ip_len = 0
    if a.ss_family == AF_INET:
        inet_ntop(AF_INET, &v4.sin_addr, ip, sizeof(ip))
        k = snprintf(p.text, PEER_TEXT, b"%s:%u", ip, <unsigned int>ntohs(v4.sin_port))
        p.ip_len = <uint8_t>strlen(ip)
    elif a.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &v6.sin6_addr, ip, sizeof(ip))
        if memcmp(ip, b"::ffff:", 7) == 0 and ip[7] != 0:
            k = snprintf(p.text, PEER_TEXT, b"%s:%u", ip + 7, <unsigned int>ntohs(v6.sin6_port))
            p.ip_len = <uint8_t>(strlen(ip) - 7)
        else:
            k = snprintf(p.text, PEER_TEXT, b"[%s]:%u", ip, <unsigned int>ntohs(v6.sin6_port))
            p.ip_len = <uint8_t>(strlen(ip) + 2)
    p.len = <uint8_t>k


cdef inline void peer_facts(Conn *c, const sockaddr_storage *peer, PolicyFacts *facts) noexcept nogil:
    """What rules can know of a connection, its identity left out."""
    cdef sockaddr_storage local
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef const char *ip = <const char *>&(<const sockaddr_in6 *>peer).sin6_addr
    memset(facts, 0, sizeof(PolicyFacts))
    if peer.ss_family == AF_INET:
        facts.family = 4
        memcpy(facts.address, &(<const sockaddr_in *>peer).sin_addr, 4)
    elif peer.ss_family == AF_INET6:
        if memcmp(ip, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:      # IPv4 on a socket for both
            facts.family = 4
            memcpy(facts.address, ip + 12, 4)
        else:
            facts.family = 6
            memcpy(facts.address, ip, 16)
    if getsockname(c.src.fd, <sockaddr *>&local, &size) == 0:
        if local.ss_family == AF_INET:
            facts.port = ntohs((<sockaddr_in *>&local).sin_port)
        elif local.ss_family == AF_INET6:
            facts.port = ntohs((<sockaddr_in6 *>&local).sin6_port)


cdef inline Shared *peer_certificate(Worker *w, Conn *c, const Shared *identity) noexcept nogil:
    """What the application is told of the caller, in Envoy's syntax for x-forwarded-client-cert. A SPIFFE id
    has no character that would need quotes."""
    cdef const TlsFacts *peer = tls_peer(&c.tls)
    cdef char text[4800]
    cdef const char *digits = b"0123456789abcdef"
    cdef size_t n = w.snapshot.own_id.len
    cdef int i
    if n + identity.len + 96 > sizeof(text) or peer == NULL:
        return NULL
    memcpy(text, b"By=", 3)
    memcpy(text + 3, w.snapshot.own_id.ptr, n)
    n += 3
    memcpy(text + n, b";Hash=", 6)
    n += 6
    for i in range(32):
        text[n] = digits[peer.hash[i] >> 4]
        text[n + 1] = digits[peer.hash[i] & 15]
        n += 2
    memcpy(text + n, b";URI=", 5)
    memcpy(text + n + 5, identity.text, identity.len)
    return shared_get(&w.client_certs, text, <uint32_t>(n + 5 + identity.len))


cdef inline uint64_t _end_of_age(const Downstream *d, const Conn *c) noexcept nogil:
    """When the connection has reached its age, on the worker's clock; 0: never."""
    cdef uint64_t end = c.expires_ms
    cdef uint64_t age = d.listener.conf.max_connection_age_ms
    if age and (end == 0 or d.opened_ms + age < end):
        end = d.opened_ms + age
    return end


cdef inline void downstream_intercepted(Downstream *d, const Conn *c) noexcept nogil:
    """Before each request: on a connection that is older than its listener's being transparent, ask where the client
    wanted to go. Where nobody knows that, it is as made to the listener itself."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    if not d.listener.conf.transparent or d.peer.to.family != DEST_NONE:
        return
    if not original_destination(c.src.fd, &d.listener.bound, &d.peer.to):
        d.peer.to = d.listener.bound
    d.peer.own = is_own(&d.listener.bound, &d.peer.to)
    if getpeername(c.src.fd, <sockaddr *>&address, &size) == 0:
        destination_of(&address, &d.peer.caller)
        d.peer.caller.port = 0


cdef inline bint downstream_is_old(Worker *w, Downstream *d, const Conn *c) noexcept nogil:
    """Has it reached its age, or been retired with its listener? Age is counted, the first time."""
    cdef uint64_t end
    if d.retired:
        return True
    end = _end_of_age(d, c)
    if end == 0 or w.now_ms < end:
        return False
    d.retired = 1
    w.row.counters[K_RETIRED_CERTIFICATE_DOWNSTREAM if conn_expired(w, c) else K_RETIRED_AGE] += 1
    return True


cdef inline void downstream_await(Worker *w, const Downstream *d, Conn *c) noexcept nogil:
    """The clock of an idle connection: until the client has been silent for too long, or its age is reached."""
    cdef uint64_t wait = d.listener.conf.idle_timeout_ms
    cdef uint64_t end = _end_of_age(d, c)
    if end and end < w.now_ms + wait:
        wait = end - w.now_ms if end > w.now_ms else 1
    conn_timeout(w, c, <uint32_t>wait)


cdef inline void downstream_forget(Worker *w, Downstream *d) noexcept nogil:
    """Give back what is held of the client; its connection is counted as before."""
    shared_put(&w.client_certs, d.client_cert)
    shared_put(&w.identities, d.caller.facts.identity)


cdef inline void downstream_free(Worker *w, Downstream *d) noexcept nogil:
    """The connection is closed, and counted no more."""
    listener_leave(w, d.listener)
    downstream_forget(w, d)
