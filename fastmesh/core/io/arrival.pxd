# A client's connection on its way to its codec: where it wanted to go, what its first bytes say, and who gets it.
#
# It is the listener's until then (ops.accepted). Nothing here waits or sets a clock: `listener` and `late` do, who ask
# anew each time, because a reload may have changed what is expected.

from libc.stdint cimport int32_t
from libc.string cimport memset

from fastmesh.core.base.reason cimport (
    R_DOWNSTREAM_CLOSED, R_IDLE_TIMEOUT, R_LOOP, R_NO_MEMORY, R_TLS_IDENTITY, R_TLS_NOT_TLS,
)
from fastmesh.core.base.shared cimport shared_get
from fastmesh.core.io.age cimport conn_suffices
from fastmesh.core.io.connection cimport conn_close, conn_deadline
from fastmesh.core.io.dialled cimport dialled_by_us
from fastmesh.core.io.downstream cimport DRAIN_GRACE_MS, downstream_forget, peer_certificate, peer_facts, peer_text
from fastmesh.core.io.h1_server cimport h1_server_open
from fastmesh.core.io.h2_server cimport h2_server_open
from fastmesh.core.io.handover cimport listener_leave
from fastmesh.core.io.original cimport destination_of, is_own, original_destination
from fastmesh.core.io.state cimport (
    C_CUT, C_EOF, C_HANDSHAKE, C_RDHUP, C_TLS, Conn, Downstream, Listener, WATCH_ENDED, WATCH_NONE, Worker,
)
from fastmesh.core.io.tunnel cimport tunnel_accept
from fastmesh.core.sys.posix cimport getpeername, sockaddr, sockaddr_storage, socklen_t
from fastmesh.core.traffic.admit cimport may_be_opaque
from fastmesh.core.traffic.counters cimport K_DOWNSTREAM_REFUSED
from fastmesh.core.traffic.destination cimport Destination, destination_loopback
from fastmesh.core.traffic.detect cimport detect, detect_last
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.traffic.snapshot cimport (
    FWD_APPEND, FWD_REPLACE, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, TLS_PUBLIC,
)
from fastmesh.core.traffic.transparent cimport Choice, choose, choose_unknown, sharer_by_name
from fastmesh.core.wire.first_host cimport first_host
from fastmesh.core.wire.preface cimport PREFACE_NOT, preface_here
from fastmesh.core.wire.sniff cimport SNIFF_HELLO, SNIFF_MORE, SNIFF_NAME_MAX, sniff_hello
from fastmesh.core.wire.tls cimport TLS_ALPN_H2, tls_alpn, tls_peer
from fastmesh.core.wire.tls_facts cimport TlsFacts

cdef struct Arrival:
    Destination to                # family DEST_NONE: the listener is not transparent
    bint own                      # that is the listener itself
    Choice choice

cdef enum:  # Judgement
    JUDGED_NOTHING = 0            # it cannot be told yet
    JUDGED_HTTP
    JUDGED_OPAQUE


cdef inline void arrival_close(Worker *w, Conn *c, int reason) noexcept nogil:
    """Close a connection that has no codec yet."""
    cdef Listener *l = <Listener *>c.owner
    if c.flags & C_HANDSHAKE:
        l.nhandshakes -= 1
    # a peer that goes before it has said anything is no event
    if reason and reason != R_DOWNSTREAM_CLOSED and reason != R_IDLE_TIMEOUT:
        w.row.reasons[reason] += 1
    listener_leave(w, l)
    conn_close(w, c)


# ---------------------------------------------------------------- where it wanted to go

cdef inline bint _agreed_http2(Conn *c) noexcept nogil:
    return c.flags & C_TLS != 0 and tls_alpn(&c.tls) == TLS_ALPN_H2


cdef inline bint arrival_of(Worker *w, Listener *l, Conn *c, Arrival *a) noexcept nogil:
    """Where the client wanted to go, and what becomes of that. False: it has gone, and nobody knows."""
    memset(a, 0, sizeof(Arrival))
    if not l.conf.transparent:
        a.choice.service = l.conf.service
        a.choice.protocol = l.conf.protocol
    else:
        if not original_destination(c.src.fd, &l.bound, &a.to):
            return False
        a.own = is_own(&l.bound, &a.to)
        choose(l.snapshot, l.conf, &a.to, a.own, &a.choice)
        # Inbound a peer may be us, by way of the network; the application is dialled at loopback.
        if (l.conf.outbound or destination_loopback(&a.to)) and dialled_by_us(w, c.src.fd, &a.to):
            a.choice.reason = R_LOOP
    if a.choice.protocol == PROTO_AUTO and _agreed_http2(c):
        a.choice.protocol = PROTO_HTTP
    return True


cdef inline void arrival_unknown(Listener *l, Arrival *a) noexcept nogil:
    """Nothing says whose it is, of those who share its destination: nobody's."""
    if a.choice.shared != NULL:
        choose_unknown(l.snapshot, l.conf, &a.choice)


# ---------------------------------------------------------------- what its first bytes say

cdef inline bint _by_hello(Listener *l, Arrival *a, const char *p, size_t n) noexcept nogil:
    """Whose opaque bytes are that came to a shared destination: by the name in a TLS hello, else nobody's. False: it
    cannot be told yet."""
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t name_len = 0
    cdef int32_t service = -1
    cdef int found = sniff_hello(p, n, name, &name_len)
    if found == SNIFF_MORE:
        return False
    if found == SNIFF_HELLO:
        service = sharer_by_name(l.snapshot, a.choice.shared, name, name_len)
    if service < 0:
        arrival_unknown(l, a)
    else:
        a.choice.service = service
    return True


cdef inline int _by_host(Listener *l, Arrival *a, const char *p, size_t n) noexcept nogil:
    """Whose an HTTP/1 connection to a shared destination is, by the Host of its first request: that of one who shares
    it, or it is HTTP/2; nobody's, it is treated as opaque; or Host has not come yet."""
    cdef const char *host
    cdef size_t host_len
    if preface_here(p, n) != PREFACE_NOT:
        return JUDGED_HTTP
    if not first_host(p, n, &host, &host_len):
        return JUDGED_NOTHING
    if sharer_by_name(l.snapshot, a.choice.shared, host, host_len) >= 0:
        return JUDGED_HTTP
    arrival_unknown(l, a)
    return JUDGED_OPAQUE


cdef inline int arrival_judge(Listener *l, const Conn *c, Arrival *a, const char *p, size_t n) noexcept nogil:
    """What p[:n], the first bytes of a connection, are: enum Judgement."""
    cdef bint more = not c.flags & (C_RDHUP | C_EOF)     # with the client's end there will be no more to tell it by
    cdef int found
    if a.choice.reason or a.choice.protocol != PROTO_AUTO:
        return JUDGED_HTTP if a.choice.protocol != PROTO_TCP else JUDGED_OPAQUE
    found = detect(l.conf, p, n)
    if found == 0:
        if more:
            return JUDGED_NOTHING
        found = detect_last(l.conf, p, n)
    if a.choice.shared == NULL:
        return JUDGED_HTTP if found == 1 else JUDGED_OPAQUE
    if found == 1:
        found = _by_host(l, a, p, n)
    else:
        found = JUDGED_OPAQUE if _by_hello(l, a, p, n) else JUDGED_NOTHING
    if found == JUDGED_NOTHING and not more:
        arrival_unknown(l, a)
        return JUDGED_OPAQUE
    return found


cdef inline int arrival_judge_late(Listener *l, Arrival *a, const char *p, size_t n) noexcept nogil:
    """Likewise of bytes for more of which nobody waits any longer."""
    if a.choice.reason or a.choice.protocol != PROTO_AUTO:
        return JUDGED_HTTP if a.choice.protocol != PROTO_TCP else JUDGED_OPAQUE
    if detect_last(l.conf, p, n) == 1:
        return JUDGED_HTTP                       # slow: its requests will say whose it is
    arrival_unknown(l, a)
    return JUDGED_OPAQUE


# ---------------------------------------------------------------- who gets it

cdef inline bint arrival_adopt(Worker *w, Conn *c, const Arrival *a, bint http, int watch) noexcept nogil:
    """Give the connection to its codec; `watch` (enum Watch): to a tunnel that may turn out not to be one. False, and
    nothing has happened: opaque bytes would be refused, there is nothing to watch for."""
    cdef Listener *l = <Listener *>c.owner
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef const TlsFacts *proved
    cdef int32_t service = a.choice.service
    cdef bint named
    cdef bint guarded
    cdef bint served
    cdef Downstream d
    cdef PolicyFacts *facts = &d.caller.facts
    if getpeername(c.src.fd, <sockaddr *>&address, &size) != 0:
        arrival_close(w, c, R_DOWNSTREAM_CLOSED)
        return True
    if not conn_suffices(l.conf, c):             # the settings have changed since it was accepted
        arrival_close(w, c, R_TLS_IDENTITY if c.flags & C_TLS else R_TLS_NOT_TLS)
        return True
    memset(&d, 0, sizeof(Downstream))
    d.listener = l
    d.opened_ms = w.now_ms
    d.retired = 1 if w.withdrawn and l.conf.inbound else 0
    peer_text(&d.peer, &address)
    peer_facts(c, &address, facts)
    if l.conf.transparent:
        destination_of(&address, &d.peer.caller)
        d.peer.caller.port = 0
        d.peer.to = a.to
        d.peer.own = a.own
        facts.port = a.choice.port
    if c.flags & C_TLS and l.conf.tls != TLS_PUBLIC:
        proved = tls_peer(&c.tls)
        named = proved != NULL and proved.id_len > 0
        if named:
            facts.identity = shared_get(&w.identities, proved.id, proved.id_len)
        if facts.identity == NULL:
            arrival_close(w, c, R_NO_MEMORY if named else R_TLS_IDENTITY)
            return True
    if not http:
        if watch != WATCH_NONE and (service < 0 or not may_be_opaque(
                l.conf, &l.snapshot.services[service], &d.caller, w.loads)):
            downstream_forget(w, &d)
            return False
        # Identity headers and rules about requests are for those who serve others. What is declared is believed.
        guarded = not l.conf.outbound and a.choice.protocol == PROTO_AUTO
        tunnel_accept(w, c, l, service, facts, &d.peer, WATCH_NONE if watch == WATCH_ENDED else watch, guarded)
        downstream_forget(w, &d)
        return True
    if facts.identity != NULL and (l.conf.client_cert == FWD_REPLACE or l.conf.client_cert == FWD_APPEND):
        d.client_cert = peer_certificate(w, c, facts.identity)
        if d.client_cert == NULL:
            downstream_forget(w, &d)
            arrival_close(w, c, R_NO_MEMORY)
            return True
    if _agreed_http2(c):
        served = h2_server_open(w, c, &d) != NULL
    else:
        served = h1_server_open(w, c, &d) != NULL
        if served and (w.draining or d.retired):
            conn_deadline(w, c, DRAIN_GRACE_MS)  # it was shaking hands when the drain began
    if not served:
        downstream_forget(w, &d)
        arrival_close(w, c, R_NO_MEMORY)
    return True


cdef inline void arrival_settle(Worker *w, Conn *c, const Arrival *a, bint http) noexcept nogil:
    """The protocol is known: to its codec, or refused, as chosen."""
    if a.choice.reason:
        c.flags |= C_CUT
        w.row.counters[K_DOWNSTREAM_REFUSED] += 1
        arrival_close(w, c, a.choice.reason)
    else:
        arrival_adopt(w, c, a, http, WATCH_NONE)
