# From the snapshot's JSON (already decoded) to the structs of traffic/snapshot.pxd. Runs with the GIL, never
# on the request path. Whatever is wrong raises ValueError; nothing of a failed load stays.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastmesh.core.base.list cimport Node, list_append, list_init
from fastmesh.core.io.load_block cimport _block, _text
from fastmesh.core.io.load_policy cimport load_policy
from fastmesh.core.io.snapshot_ref cimport snapshot_unref
from fastmesh.core.io.state cimport Upstream, Worker
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_un, socklen_t,
)
from fastmesh.core.traffic.counters cimport S_ACTIVE, area_service
from fastmesh.core.traffic.route cimport name_hash
from fastmesh.core.traffic.snapshot cimport (
    Endpoint, FWD_APPEND, FWD_AUTO, FWD_KEEP, FWD_REMOVE, FWD_REPLACE, ListenerConf, NORMALIZE_AUTO, NORMALIZE_OFF,
    NORMALIZE_ON, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, REUSE_IDEMPOTENT, REUSE_OFF, REUSE_REPLAYABLE, REVOKED_BYTES, Service,
    Snapshot, TLS_MESH, TLS_NONE, TLS_PERMISSIVE,
)
from fastmesh.core.wire.tls_context cimport tls_context


cdef inline int _endpoint(Snapshot *s, Endpoint *e, dict d) except -1:
    cdef sockaddr_in *v4 = <sockaddr_in *>&e.address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&e.address
    cdef sockaddr_un *un = <sockaddr_un *>&e.address
    cdef str family = d["family"]
    cdef bytes host = (d.get("host") or "").encode()
    cdef bytes path
    cdef int port = d.get("port") or 0
    if family == "inet":
        v4.sin_family = AF_INET
        v4.sin_port = htons(<uint16_t>port)
        if inet_pton(AF_INET, host, &v4.sin_addr) != 1:
            raise ValueError(f"endpoint address {d!r} is not IPv4")
        e.address_len = sizeof(sockaddr_in)
        _text(s, &e.text, f"{d['host']}:{port}")
    elif family == "inet6":
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(<uint16_t>port)
        if inet_pton(AF_INET6, host, &v6.sin6_addr) != 1:
            raise ValueError(f"endpoint address {d!r} is not IPv6")
        e.address_len = sizeof(sockaddr_in6)
        _text(s, &e.text, f"[{d['host']}]:{port}")
    elif family == "unix":
        path = d["path"].encode()
        if <size_t>len(path) >= sizeof(un.sun_path):
            raise ValueError(f"unix socket path is too long: {d['path']}")
        un.sun_family = AF_UNIX
        memcpy(un.sun_path, <char *>path, len(path))
        e.address_len = <socklen_t>(2 + len(path) + 1)
        if path[:1] == b"@":                     # abstract namespace
            un.sun_path[0] = 0
            e.address_len -= 1
        _text(s, &e.text, "unix:" + d["path"])
    else:
        raise ValueError(f"unknown address family {family!r}")
    return 0


cdef inline Upstream *_upstream(Worker *w, dict pools, bytes key) except NULL:
    """The pool of that key: the one that is there, or a new one. Counts a reference."""
    cdef Upstream *u
    cdef object known = pools.get(key)
    if known is not None:
        u = <Upstream *><size_t>known
    else:
        u = <Upstream *>calloc(1, sizeof(Upstream))
        if u == NULL:
            raise MemoryError()
        u.key = <char *>calloc(1, len(key) + 1)
        if u.key == NULL:
            free(u)
            raise MemoryError()
        memcpy(u.key, <char *>key, len(key))
        list_init(&u.idle)
        list_append(&w.upstreams, &u.all)
        pools[key] = <size_t>u
    u.refs += 1
    return u


cdef inline dict _pools(Worker *w):
    """The upstreams that exist, by key."""
    cdef dict pools = {}
    cdef Node *n = w.upstreams.next
    cdef Upstream *u
    while n != &w.upstreams:
        u = <Upstream *>(<char *>n - <size_t>&(<Upstream *>NULL).all)
        pools[<bytes>u.key] = <size_t>u
        n = n.next
    return pools


cdef inline int _service(Worker *w, Snapshot *s, Service *out, dict d, dict pools, bytes identity) except -1:
    cdef list endpoints = d["endpoints"]
    cdef uint32_t i
    cdef bytes key
    _text(s, &out.name, d["name"])
    _text(s, &out.spiffe_id, d.get("spiffe_id"))
    out.slot = d["slot"]
    if out.slot >= w.area.services:
        raise ValueError(f"service {d['name']!r}: there is room for {w.area.services} services only")
    out.row = area_service(w.area, w.slot, out.slot)
    if w.snapshot == NULL:
        out.row.counters[S_ACTIVE] = 0           # what a dead predecessor left
    out.tls = {"none": TLS_NONE, "mesh": TLS_MESH}[d["tls"]]
    out.reuse_retry = {"replayable": REUSE_REPLAYABLE, "idempotent": REUSE_IDEMPOTENT, "off": REUSE_OFF}[
        d.get("reuse_retry", "replayable")]
    out.connect_timeout_ms = d["connect_timeout_ms"]
    out.response_timeout_ms = d["response_timeout_ms"]
    out.pool_idle_max = d["pool_idle_max"]
    out.pool_idle_timeout_ms = d["pool_idle_timeout_ms"]
    out.policy = load_policy(w, s, d)
    out.endpoints = <Endpoint *>_block(s, max(1, len(endpoints)) * sizeof(Endpoint))
    for i in range(<uint32_t>len(endpoints)):
        _endpoint(s, &out.endpoints[i], endpoints[i])
        # With TLS, what the connections prove and trust is part of what makes a pool the same.
        key = b"\0".join([(d["name"] or "").encode(), <bytes>out.endpoints[i].text.ptr,
                          d["tls"].encode(), identity if out.tls else b""]).replace(b"\0", b"|")
        out.endpoints[i].pool = _upstream(w, pools, key)
        out.nendpoints += 1
    return 0


cdef inline int _listener(Worker *w, Snapshot *s, ListenerConf *out, dict d) except -1:
    cdef dict forwarding = {"keep": FWD_KEEP, "append": FWD_APPEND, "replace": FWD_REPLACE, "remove": FWD_REMOVE,
                            "auto": FWD_AUTO}
    cdef dict client_cert = {"keep": FWD_KEEP, "append": FWD_APPEND, "set": FWD_REPLACE, "remove": FWD_REMOVE}
    _text(s, &out.name, d["name"])
    out.outbound = d["role"] == "outbound"
    out.inbound = d["role"] == "inbound"
    out.protocol = {"http": PROTO_HTTP, "tcp": PROTO_TCP, "auto": PROTO_AUTO}[d["protocol"]]
    out.tls = {"none": TLS_NONE, "mesh": TLS_MESH, "permissive": TLS_PERMISSIVE}[d["tls"]]
    out.service = d["service"]
    if out.service >= <int32_t>s.nservices:
        raise ValueError(f"listener {d['name']!r}: no service {out.service}")
    if out.tls and s.server_ctx == NULL:
        raise ValueError(f"listener {d['name']!r}: TLS without an identity")
    out.x_forwarded = forwarding[d["forwarded"]["x_forwarded"]]
    out.forwarded = forwarding[d["forwarded"]["forwarded"]]
    out.via = bool(d["forwarded"]["via"])
    out.header_timeout_ms = d["header_timeout_ms"]
    out.idle_timeout_ms = d["idle_timeout_ms"]
    out.stream_idle_timeout_ms = d["stream_idle_timeout_ms"]
    out.tcp_idle_timeout_ms = d["tcp_idle_timeout_ms"]
    out.max_connections = d["max_connections"]
    out.max_connection_age_ms = d.get("max_connection_age_ms", 0)
    out.client_cert = client_cert[d["forwarded"].get("client_cert", "remove")]
    out.normalize = {"auto": NORMALIZE_AUTO, "on": NORMALIZE_ON, "off": NORMALIZE_OFF}[d.get("normalize_paths", "auto")]
    out.keep_slashes = d.get("encoded_slashes", "refuse") == "keep"
    out.policy = load_policy(w, s, d)
    return 0


cdef inline int _revoked(Snapshot *s, list serials) except -1:
    """The deny list in a form that is searched."""
    cdef bytes raw = b"".join(sorted([bytes.fromhex(serial.zfill(2 * REVOKED_BYTES)) for serial in serials]))
    if len(raw) != len(serials) * REVOKED_BYTES:
        raise ValueError("identity: a serial on the deny list is too long")
    s.revoked = <unsigned char *>_block(s, len(raw) + 1)
    memcpy(s.revoked, <char *>raw, len(raw))
    s.nrevoked = <uint32_t>len(serials)
    return 0


cdef inline int _identity(Worker *w, Snapshot *s, dict d) except -1:
    """The TLS contexts of the workload: one to serve with, one to call with."""
    cdef char err[512]
    cdef bytes certificate
    cdef bytes key
    cdef bytes bundle
    cdef bytes domain
    cdef dict identity = d.get("identity")
    cdef const unsigned char *alpn = <const unsigned char *>b"\x08http/1.1"
    if not identity:
        return 0
    s.not_after = identity.get("not_after") or 0
    _revoked(s, identity.get("revoked") or [])
    _text(s, &s.own_id, identity.get("spiffe_id") or f"spiffe://{d['trust_domain']}/{d['workload']}")
    certificate = identity["certificate"].encode()
    key = identity["key"].encode()
    bundle = identity["bundle"].encode()
    domain = d["trust_domain"].encode()
    s.server_ctx = tls_context(True, certificate, key, bundle, domain, w.area.ticket_keys, alpn, 9, err, sizeof(err))
    if s.server_ctx == NULL:
        raise ValueError("identity: " + (<bytes>err).decode("utf-8", "replace"))
    s.client_ctx = tls_context(False, certificate, key, bundle, domain, NULL, alpn, 9, err, sizeof(err))
    if s.client_ctx == NULL:
        raise ValueError("identity: " + (<bytes>err).decode("utf-8", "replace"))
    return 0


cdef inline int _fill(Worker *w, Snapshot *s, dict d) except -1:
    import hashlib
    cdef list services = d["services"]
    cdef list listeners = d["listeners"]
    cdef dict log = d.get("access_log")
    cdef dict pools = _pools(w)
    cdef bytes identity
    cdef uint32_t i
    cdef uint32_t at
    cdef uint32_t slots = 4
    if d.get("format") != 1:
        raise ValueError(f"snapshot format {d.get('format')!r} is not known")
    s.number = d["number"]
    s.drain_ms = d["drain_ms"]
    s.log_sample = log["sample"] if log else 0.0
    _identity(w, s, d)
    identity = hashlib.sha256(repr(d.get("identity")).encode()).hexdigest().encode()
    s.services = <Service *>_block(s, (len(services) + 1) * sizeof(Service))
    for i in range(<uint32_t>len(services)):
        s.nservices += 1
        _service(w, s, &s.services[i], services[i], pools, identity)
    while slots < 2 * s.nservices:
        slots *= 2
    s.names = <uint32_t *>_block(s, slots * sizeof(uint32_t))
    s.names_mask = slots - 1
    for i in range(s.nservices):
        at = name_hash(s.services[i].name.ptr, s.services[i].name.len) & s.names_mask
        while s.names[at] != 0:
            at = (at + 1) & s.names_mask
        s.names[at] = i + 1
    s.listeners = <ListenerConf *>_block(s, (len(listeners) + 1) * sizeof(ListenerConf))
    for i in range(<uint32_t>len(listeners)):
        _listener(w, s, &s.listeners[i], listeners[i])
        s.nlisteners += 1
    return 0


cdef inline Snapshot *load_snapshot(Worker *w, dict d) except NULL:
    """A snapshot with one reference. Raises ValueError, KeyError or TypeError for what is not one."""
    cdef Snapshot *s = <Snapshot *>calloc(1, sizeof(Snapshot))
    if s == NULL:
        raise MemoryError()
    s.refs = 1
    try:
        _fill(w, s, d)
    except BaseException:
        snapshot_unref(w, s)
        raise
    return s
