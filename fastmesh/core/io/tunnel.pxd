# A tunnel: opaque bytes between a client and an endpoint, both ways, until both have ended.
#
# TCP listeners, CONNECT, and connections after a 101. Each direction ends on its own (half-close), and is
# moved by the kernel (flow.pxd) where both connections are plaintext; otherwise through the transmit queues,
# with a slow reader stopping its writer. What does not end properly on one side ends with a reset on the other.
# A Tunnel owns both Conns and the Exchange that accounts for it.
#
# With `watch` nobody has spoken yet, and the client may still turn out to speak something else: `late` has its
# handlers, rules have not been asked (only whether they would let opaque bytes pass), and nothing is counted but the
# service's load. tunnel_carry makes it a tunnel, tunnel_give_back ends it as if it had never been.
#
# With `guarded` HTTP must not pass, because it would without identity headers and without rules about requests: what
# begins with a request line is cut off before a header has left.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmesh.core.base.list cimport list_append, list_remove
from fastmesh.core.base.reason cimport (
    R_CERTIFICATES_OVER, R_CONNECT_TIMEOUT, R_DENIED, R_DOWNSTREAM_RESET, R_IDENTITY_EXPIRED, R_IDLE_TIMEOUT,
    R_LATE_HTTP, R_NO_ENDPOINT, R_NO_MEMORY, R_NO_SERVICE, R_UPSTREAM_TLS_HANDSHAKE, R_UPSTREAM_TLS_TIMEOUT,
    R_UPSTREAM_TRUNCATED,
)
from fastmesh.core.base.slab cimport slab_get, slab_put
from fastmesh.core.base.timer cimport Timer, timer_init, timer_start, timer_stop
from fastmesh.core.io.age cimport identity_over
from fastmesh.core.io.connection cimport (
    conn_close, conn_deadline, conn_dirty, conn_end_output, conn_finish, conn_pause, conn_resume, conn_resume_input,
    conn_timeout,
)
from fastmesh.core.io.connection_output cimport conn_write, conn_write_body
from fastmesh.core.io.account cimport exchange_keep_log
from fastmesh.core.io.exchange cimport exchange_free, exchange_open
from fastmesh.core.io.flow cimport flow_free, flow_open, flow_possible
from fastmesh.core.io.handover cimport listener_leave
from fastmesh.core.io.original cimport destination_address, destination_text
from fastmesh.core.io.state cimport (
    C_BULK, C_CONNECTING, C_CUT, C_DEAD, C_EOF_TOLD, C_HANDSHAKE, C_SNIFF_TLS, C_TLS, C_TRUNCATED, Conn, ConnOps,
    Exchange, Flow, LINGER_MS, Listener, Original, Peer, Tunnel, Upstream, WATCH_LEARNED, WATCH_NONE, Worker, X_LOG, X_OPAQUE,
)
from fastmesh.core.io.upstream cimport upstream_connect, upstream_tls
from fastmesh.core.traffic.admit cimport Caller, admit_opaque
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.balance cimport another, first_endpoint
from fastmesh.core.traffic.counters cimport (
    G_TUNNELS, K_PASSED_THROUGH, K_RETIRED_CERTIFICATE_DOWNSTREAM, K_TUNNELS, K_UPSTREAM_CONNECT_FAILURES, S_ACTIVE,
    S_CONNECTS, S_CONNECT_FAILURES, S_RETRIES, area_detection,
)
from fastmesh.core.traffic.destination cimport DEST_NONE, DEST_SLOT, Destination
from fastmesh.core.traffic.learned cimport learned_spoke
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.traffic.snapshot cimport Service, TLS_MESH, TLS_NONE, TLS_PUBLIC
from fastmesh.core.wire.http2_begin cimport http2_server_begins
from fastmesh.core.wire.message cimport LENGTH_UNKNOWN
from fastmesh.core.wire.request_line cimport LINE_HTTP, LINE_MORE, request_line
from fastmesh.core.wire.tls cimport TLS_ALPN_H1, TLS_ALPN_H2


cdef inline Tunnel *tunnel_of_all(void *node) noexcept nogil:
    return <Tunnel *>(<char *>node - <size_t>&(<Tunnel *>NULL).all)


cdef inline void tunnel_destroy(Worker *w, Tunnel *t, int reason) noexcept nogil:
    """Close what is open, account, free."""
    if t.watch:
        _count(w, t)
    if t.down != NULL:
        _count_flow(t, t.down.flow_in, True)
        _count_flow(t, t.down.flow_out, False)
        conn_close(w, t.down)
    if t.up != NULL:
        conn_close(w, t.up)
    listener_leave(w, t.listener)
    timer_stop(&w.wheel, &t.expiry)
    list_remove(&t.all)
    w.row.counters[G_TUNNELS] -= 1
    if t.ex != NULL:
        t.ex.reason = <uint16_t>reason
        exchange_free(w, t.ex)
    if t.original != NULL:
        slab_put(&w.originals, t.original)
    slab_put(&w.tunnels, t)


cdef inline void _count_flow(Tunnel *t, Flow *f, bint out) noexcept nogil:
    if f != NULL:
        if out:
            t.ex.bytes_in += f.moved
        else:
            t.ex.bytes_out += f.moved


cdef inline void _expired(void *worker, Timer *timer) noexcept nogil:
    """The certificates are over, and the listener wants its connections to end with them."""
    cdef Worker *w = <Worker *>worker
    cdef Tunnel *t = <Tunnel *>(<char *>timer - <size_t>&(<Tunnel *>NULL).expiry)
    if t.down != NULL:
        w.row.counters[K_RETIRED_CERTIFICATE_DOWNSTREAM] += 1
        t.down.flags |= C_CUT
    if t.up != NULL:
        t.up.flags |= C_CUT
    tunnel_destroy(w, t, R_CERTIFICATES_OVER)


cdef inline Tunnel *_open(Worker *w, Conn *down, Listener *l) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>slab_get(&w.tunnels)
    if t == NULL:
        return NULL
    memset(t, 0, sizeof(Tunnel))
    t.down = down
    t.listener = l
    timer_init(&t.expiry, _expired)
    list_append(&w.all_tunnels, &t.all)
    w.row.counters[G_TUNNELS] += 1
    down.owner = t
    down.ops = &w.ops.tunnel_down
    return t


cdef inline void _count(Worker *w, const Tunnel *t) noexcept nogil:
    w.row.counters[K_TUNNELS] += 1
    if t.original != NULL:
        w.row.counters[K_PASSED_THROUGH] += 1


cdef inline uint8_t _alpn(const Service *s) noexcept nogil:
    """What is offered for opaque bytes: what the file names, which is not ours to judge; in the mesh HTTP/1.1."""
    return TLS_ALPN_H1 | TLS_ALPN_H2 if s.tls == TLS_PUBLIC else TLS_ALPN_H1


cdef inline uint32_t _endpoints(const Tunnel *t) noexcept nogil:
    """To how many it may be connected."""
    return 1 if t.original != NULL else t.ex.service.nendpoints


cdef inline bint _pass_through(Worker *w, Tunnel *t) noexcept nogil:
    """To where the client wanted to go itself. False without memory."""
    cdef Original *o = <Original *>slab_get(&w.originals)
    if o == NULL:
        return False
    memset(o, 0, sizeof(Original))
    o.endpoint.address_len = destination_address(&t.peer.to, &o.endpoint.address)
    o.endpoint.text.ptr = o.text
    o.endpoint.text.len = <uint32_t>destination_text(&t.peer.to, o.text)
    o.endpoint.health = -1
    t.original = o
    return True


cdef inline bint _dial(Worker *w, Tunnel *t) noexcept nogil:
    """Connect to the next endpoint, each at most once. False: none is left, the tunnel has been destroyed."""
    cdef Exchange *x = t.ex
    cdef int reason = R_NO_ENDPOINT
    cdef Conn *c
    while x.tries < _endpoints(t) and x.tries < 255:
        if x.service.tls == TLS_MESH and identity_over(x.snapshot):
            reason = R_IDENTITY_EXPIRED
            break
        if t.original != NULL:
            x.endpoint = &t.original.endpoint
        elif x.tries == 0:
            x.endpoint = first_endpoint(x.service, &t.peer.to)
        else:
            x.endpoint = another(x.service, x.endpoint, x.tries)
        if x.tries > 0:
            x.retries += 1
            x.service.row.counters[S_RETRIES] += 1
        x.tries += 1
        c = upstream_connect(w, x.service, x.endpoint, &t.peer.to, &t.peer.caller, &reason)
        if c == NULL:
            x.service.row.counters[S_CONNECT_FAILURES] += 1
            continue
        c.owner = t
        c.ops = &w.ops.tunnel_up
        if x.service.tls != TLS_NONE and upstream_tls(
                w, c, x.snapshot, x.service, <Upstream *>x.endpoint.pool, _alpn(x.service)) != 0:
            conn_close(w, c)
            reason = R_UPSTREAM_TLS_HANDSHAKE
            x.service.row.counters[S_CONNECT_FAILURES] += 1
            continue
        t.up = c
        return True
    t.down.flags |= C_CUT
    tunnel_destroy(w, t, reason)
    return False


cdef inline bint _admit(Worker *w, Tunnel *t) noexcept nogil:
    """Ask the rules. False: refused, the tunnel has been destroyed."""
    cdef Exchange *x = t.ex
    cdef Caller caller
    memset(&caller, 0, sizeof(Caller))
    caller.facts = t.facts
    if admit_opaque(x.conf, x.service, &caller, w.loads, &x.decision) < 0:
        t.down.flags |= C_CUT
        tunnel_destroy(w, t, R_DENIED)
        return False
    return True


cdef inline void tunnel_accept(Worker *w, Conn *down, Listener *l, int32_t service, const PolicyFacts *facts,
                               const Peer *peer, int watch, bint guarded) noexcept nogil:
    """A connection of a TCP listener: check the caller, choose the endpoint, connect. `down` is taken over.
    `service` is an index of the listener's snapshot, or -1: none. `watch`: enum Watch."""
    cdef Tunnel *t = _open(w, down, l)
    cdef Exchange *x
    if t == NULL:
        w.row.reasons[R_NO_MEMORY] += 1
        listener_leave(w, l)
        conn_close(w, down)
        return
    t.peer = peer[0]
    t.facts = facts[0]
    t.watch = <uint8_t>watch
    t.guarded = guarded
    x = exchange_open(w, NULL, l, facts.identity, &t.peer)
    t.ex = x
    if x == NULL:
        tunnel_destroy(w, t, R_NO_MEMORY)
        return
    x.flags |= X_OPAQUE
    if service < 0:
        tunnel_destroy(w, t, R_NO_SERVICE)
        return
    x.service = &x.snapshot.services[service]
    x.service.row.counters[S_ACTIVE] += 1
    exchange_keep_log(w, x, NULL)
    if not watch and not _admit(w, t):
        return
    if x.service.original and not _pass_through(w, t):
        tunnel_destroy(w, t, R_NO_MEMORY)
        return
    if watch:
        down.ops = &w.ops.late
    else:
        _count(w, t)
        conn_pause(down)
    conn_timeout(w, down, l.conf.tcp_idle_timeout_ms)
    _dial(w, t)


# ---------------------------------------------------------------- while nobody has spoken

cdef inline bint tunnel_is_for(const Tunnel *t, int32_t service) noexcept nogil:
    """Is it one to that service of the snapshot in force?"""
    return (service >= 0 and t.ex.snapshot == t.listener.snapshot
            and t.ex.service == &t.ex.snapshot.services[service])


cdef inline bint tunnel_carry(Worker *w, Tunnel *t) noexcept nogil:
    """It is decided: opaque, for good. False: rules refuse it, and it has been destroyed."""
    cdef Conn *c = t.down
    t.watch = WATCH_NONE
    c.ops = &w.ops.tunnel_down
    c.flags &= ~<uint32_t>C_SNIFF_TLS
    _count(w, t)
    if not _admit(w, t):
        return False
    c.flags |= C_BULK
    conn_timeout(w, c, t.listener.conf.tcp_idle_timeout_ms)
    conn_resume_input(w, c)                      # what it said before has not been taken
    if t.up != NULL:
        conn_resume(w, t.up)
    return True


cdef inline void tunnel_client_ended(Worker *w, Tunnel *t) noexcept nogil:
    """The client ends without a word. What can be said to that only a server knows that takes opaque bytes."""
    if tunnel_carry(w, t) and t.up != NULL and not t.up.flags & (C_CONNECTING | C_HANDSHAKE):
        _half_done(w, t, t.up)                   # else once the connection stands


cdef inline void tunnel_give_back(Worker *w, Tunnel *t) noexcept nogil:
    """It is none: the client's connection is the listener's again, as it was, and the endpoint's is closed."""
    cdef Conn *c = t.down
    cdef Conn *up = t.up
    cdef Exchange *x = t.ex
    if up != NULL:
        if up.flags & C_TLS and not up.flags & (C_CONNECTING | C_HANDSHAKE):
            up.owner = NULL
            up.ops = &w.ops.leaving
            up.tls.session_slot = NULL
            conn_pause(up)
            conn_deadline(w, up, LINGER_MS)
            conn_finish(w, up)
        else:
            conn_close(w, up)
    timer_stop(&w.wheel, &t.expiry)
    list_remove(&t.all)
    w.row.counters[G_TUNNELS] -= 1
    x.service.row.counters[S_ACTIVE] -= 1
    x.service = NULL
    x.flags &= ~<uint32_t>X_LOG
    exchange_free(w, x)
    if t.original != NULL:
        slab_put(&w.originals, t.original)
    c.owner = t.listener
    c.ops = &w.ops.accepted
    slab_put(&w.tunnels, t)


cdef inline void tunnel_spoke(Worker *w, Tunnel *t, bint server) noexcept nogil:
    """Somebody has spoken, for the first time: remember who, where that was not clear."""
    cdef Destination to
    if server != (t.watch == WATCH_LEARNED):
        detected_at(t.ex.service, &t.peer.to, &to)
        learned_spoke(area_detection(w.area, w.slot), &to, server)


cdef inline bint _server_spoke(Worker *w, Tunnel *t, const char *p, size_t n) noexcept nogil:
    """The server has spoken first. False: what it says is not passed on, for now or for good. HTTP/2 servers may begin
    with their settings, and still wait for a client; one for HTTP/1 that is tired of waiting (408) has not begun a
    conversation."""
    if http2_server_begins(p, n):
        conn_pause(t.up)
        return False
    if not (n >= 5 and memcmp(p, b"HTTP/", 5) == 0):
        tunnel_spoke(w, t, True)
    return tunnel_carry(w, t)


cdef inline void tunnel_end_with_certificates(Worker *w, Tunnel *t) noexcept nogil:
    """Set the clock for the end of the first certificate, where the listener wants that."""
    cdef uint64_t end
    if t.down == NULL or t.up == NULL or not t.listener.conf.max_connection_age_ms:
        return
    end = t.down.expires_ms
    if t.up.expires_ms and (end == 0 or t.up.expires_ms < end):
        end = t.up.expires_ms
    if end:
        timer_start(&w.wheel, &t.expiry, end)


cdef inline void _established(Worker *w, Tunnel *t) noexcept nogil:
    """Both connections stand: move bytes, by the kernel where it can."""
    cdef uint32_t idle = t.listener.conf.tcp_idle_timeout_ms
    tunnel_end_with_certificates(w, t)
    conn_timeout(w, t.up, idle)
    t.up.flags |= C_BULK
    conn_dirty(w, t.up)
    conn_resume_input(w, t.up)
    if t.watch:
        return                                   # the first bytes come this way, those after them by the kernel
    conn_timeout(w, t.down, idle)
    t.down.flags |= C_BULK
    if not t.down.flags & C_EOF_TOLD and not t.guarded and flow_possible(t.down, t.up):
        flow_open(w, t.down, t.up, LENGTH_UNKNOWN, t, _direction_done)
    if flow_possible(t.up, t.down):
        flow_open(w, t.up, t.down, LENGTH_UNKNOWN, t, _direction_done)
    conn_dirty(w, t.down)
    conn_resume_input(w, t.down)


cdef inline void tunnel_upgrade(Worker *w, Exchange *x, const char *rest, size_t n) noexcept nogil:
    """After a 101 or a CONNECT: both Ends give their connections to a new tunnel."""
    cdef Listener *l = x.listener
    cdef Conn *down
    cdef Conn *up
    cdef Tunnel *t
    cdef Peer peer = x.peer[0]                   # the codec's memory, which goes with it
    down = x.down.ops.detach(w, x.down)
    up = x.up.ops.detach(w, x.up)
    x.down = NULL
    x.up = NULL
    t = _open(w, down, l)
    if t == NULL:
        w.row.reasons[R_NO_MEMORY] += 1
        listener_leave(w, l)
        down.flags |= C_CUT
        conn_close(w, down)
        conn_close(w, up)
        exchange_free(w, x)
        return
    _count(w, t)
    t.peer = peer
    x.peer = &t.peer
    t.ex = x
    t.up = up
    up.owner = t
    up.ops = &w.ops.tunnel_up
    if x.status == 0:
        x.status = 200                          # CONNECT (RFC 9110 9.3.6)
        if conn_write(w, down, b"HTTP/1.1 200 OK\r\n\r\n", 19) < 0:
            tunnel_destroy(w, t, R_NO_MEMORY)
            return
    if n > 0 and conn_write(w, down, rest, n) < 0:
        tunnel_destroy(w, t, R_NO_MEMORY)
        return
    x.bytes_out += n
    _established(w, t)
    if down.flags & C_EOF_TOLD:
        _half_done(w, t, up)                    # the client had shut its side before there was a tunnel


cdef inline Conn *_other(Tunnel *t, Conn *c) noexcept nogil:
    return t.up if c == t.down else t.down


cdef inline void _half_done(Worker *w, Tunnel *t, Conn *dst) noexcept nogil:
    """Nothing more will come for `dst`: half-close it once its queue has left; with the second half, close."""
    t.halves += 1
    if t.halves < 2:
        conn_end_output(w, dst)
        return
    conn_finish(w, t.down)
    conn_finish(w, t.up)


cdef inline void _direction_done(Worker *w, Flow *f, int reason) noexcept nogil:
    """The source of a flow has ended and everything it sent has been moved."""
    cdef Tunnel *t = <Tunnel *>f.owner
    cdef Conn *dst = f.dst
    f.src.flags |= C_EOF_TOLD
    _count_flow(t, f, f.src == t.down)
    flow_free(w, f)
    _half_done(w, t, dst)


cdef inline void detected_at(const Service *s, const Destination *to, Destination *out) noexcept nogil:
    """By what it is remembered how a connection begins: where the client wanted to go, else the service."""
    if to.family != DEST_NONE:
        out[0] = to[0]
        return
    memset(out, 0, sizeof(Destination))
    out.family = DEST_SLOT
    memcpy(out.address, &s.slot, sizeof(uint32_t))


cdef inline bint _harmless(Worker *w, Tunnel *t, const char *p, size_t n) noexcept nogil:
    """False: the client has turned to HTTP, and the tunnel has been destroyed."""
    cdef int r = request_line(&t.line, p, n)
    if r == LINE_MORE:
        return True
    t.guarded = 0
    if r != LINE_HTTP:
        return True
    t.down.flags |= C_CUT
    t.up.flags |= C_CUT
    tunnel_destroy(w, t, R_LATE_HTTP)
    return False


cdef inline size_t tunnel_input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    cdef Conn *dst = _other(t, c)
    cdef int r
    if dst == NULL or dst.flags & (C_CONNECTING | C_HANDSHAKE):
        conn_pause(c)
        return 0
    if fm_unlikely(t.watch) and not _server_spoke(w, t, p, n):
        return n if c.flags & C_DEAD else 0
    if fm_unlikely(t.guarded) and c == t.down and not _harmless(w, t, p, n):
        return n
    r = conn_write_body(w, dst, p, n)
    if r < 0:
        tunnel_destroy(w, t, -r)
        return n
    if c == t.down:
        t.ex.bytes_in += n
    else:
        t.ex.bytes_out += n
    if r > 0:
        conn_pause(c)
    elif c.rx == NULL and c.flow_in == NULL and not (t.guarded and c == t.down) and flow_possible(c, dst):
        # What had been read before the tunnel stood has gone: the kernel can take over.
        flow_open(w, c, dst, LENGTH_UNKNOWN, t, _direction_done)
    return n


cdef inline void tunnel_eof(Worker *w, Conn *c) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    if c.flags & C_TRUNCATED:
        # Without close_notify the end may be anybody's cut, or a sidecar that was killed (RFC 8446 6.1). Opaque
        # bytes have no framing in which the other side could see it, so it gets a reset.
        c.ops.on_error(w, c, R_UPSTREAM_TRUNCATED if c == t.up else R_DOWNSTREAM_RESET)
        return
    if not t.watch or tunnel_carry(w, t):        # a server that ends without a word has no other to say
        _half_done(w, t, _other(t, c))


cdef inline void tunnel_drained(Worker *w, Conn *c) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    cdef Conn *src = _other(t, c)
    if src != NULL:
        conn_resume(w, src)


cdef inline void tunnel_down_error(Worker *w, Conn *c, int reason) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    if reason == 0 and t.up != NULL:             # flushed and done; the other side may still have output
        _close_half(w, t, c)
        return
    if reason and t.up != NULL:
        t.up.flags |= C_CUT                      # a reset on one side is a reset on the other
    tunnel_destroy(w, t, reason)


cdef inline void _close_half(Worker *w, Tunnel *t, Conn *c) noexcept nogil:
    conn_close(w, c)
    if c == t.down:
        t.down = NULL
    else:
        t.up = NULL


cdef inline void tunnel_up_error(Worker *w, Conn *c, int reason) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    if reason == 0 and t.down != NULL:
        _close_half(w, t, c)
        return
    if c.flags & (C_CONNECTING | C_HANDSHAKE):
        t.ex.service.row.counters[S_CONNECT_FAILURES] += 1
        conn_close(w, c)
        t.up = NULL
        if t.ex.tries < _endpoints(t):
            _dial(w, t)
            return
    if reason and t.down != NULL:
        t.down.flags |= C_CUT
    tunnel_destroy(w, t, reason)


cdef inline void tunnel_up_ready(Worker *w, Conn *c) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    t.ex.service.row.counters[S_CONNECTS] += 1
    _established(w, t)
    if t.down.flags & C_EOF_TOLD:
        _half_done(w, t, t.up)                   # the client had ended before


cdef inline void tunnel_down_ready(Worker *w, Conn *c) noexcept nogil:
    pass                                         # never: a tunnel begins on a ready connection


cdef inline void tunnel_timer(Worker *w, Conn *c) noexcept nogil:
    cdef Tunnel *t = <Tunnel *>c.owner
    if c == t.up and c.flags & (C_CONNECTING | C_HANDSHAKE):
        if c.flags & C_CONNECTING:
            w.row.counters[K_UPSTREAM_CONNECT_FAILURES] += 1
        tunnel_up_error(w, c, R_UPSTREAM_TLS_TIMEOUT if c.flags & C_HANDSHAKE and not c.flags & C_CONNECTING
                        else R_CONNECT_TIMEOUT)
    else:
        tunnel_destroy(w, t, R_IDLE_TIMEOUT)


cdef inline size_t _leaving_input(Worker *w, Conn *c, char *p, size_t n) noexcept nogil:
    return n


cdef inline void _leaving_error(Worker *w, Conn *c, int reason) noexcept nogil:
    conn_close(w, c)


cdef inline void _leave(Worker *w, Conn *c) noexcept nogil:
    conn_close(w, c)


cdef inline void _leaving_go_on(Worker *w, Conn *c) noexcept nogil:
    pass


cdef inline void tunnel_init(ConnOps *down, ConnOps *up, ConnOps *leaving) noexcept nogil:
    leaving[0] = ConnOps(
        on_input=_leaving_input, on_eof=_leave, on_drained=_leaving_go_on, on_error=_leaving_error,
        on_ready=_leaving_go_on, on_timer=_leave, on_flush=NULL, on_drain=NULL, on_expiry=NULL, idle=NULL)
    down[0] = ConnOps(
        on_input=tunnel_input, on_eof=tunnel_eof, on_drained=tunnel_drained, on_error=tunnel_down_error,
        on_ready=tunnel_down_ready, on_timer=tunnel_timer, on_flush=NULL, on_drain=NULL, on_expiry=NULL, idle=NULL)
    up[0] = ConnOps(
        on_input=tunnel_input, on_eof=tunnel_eof, on_drained=tunnel_drained, on_error=tunnel_up_error,
        on_ready=tunnel_up_ready, on_timer=tunnel_timer, on_flush=NULL, on_drain=NULL, on_expiry=NULL, idle=NULL)
