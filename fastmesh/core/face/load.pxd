# From the snapshot's JSON (already decoded) to the structs of traffic/snapshot.pxd. Runs with the GIL, never
# on the request path. Whatever is wrong raises ValueError; nothing of a failed load stays.

from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from fastmesh.core.base.list cimport Node
from fastmesh.core.face.load_block cimport load_block, load_text
from fastmesh.core.face.load_destinations cimport load_destinations, load_transparent
from fastmesh.core.face.load_policy cimport load_policy
from fastmesh.core.face.load_tls cimport load_identity, load_public_client, load_public_server
from fastmesh.core.io.snapshot_ref cimport snapshot_unref
from fastmesh.core.io.state cimport Upstream, Worker
from fastmesh.core.io.upstream cimport upstream_new
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_un, socklen_t,
)
from fastmesh.core.traffic.counters cimport S_ACTIVE, area_health, area_service
from fastmesh.core.traffic.route cimport name_hash
from fastmesh.core.traffic.snapshot cimport (
    Endpoint, FWD_APPEND, FWD_AUTO, FWD_KEEP, FWD_REMOVE, FWD_REPLACE, ListenerConf, NORMALIZE_AUTO, NORMALIZE_OFF,
    NORMALIZE_ON, PROTO_AUTO, PROTO_HTTP, PROTO_TCP, REUSE_IDEMPOTENT, REUSE_OFF, REUSE_REPLAYABLE, SVC_AUTO,
    SVC_HTTP1, SVC_HTTP2, SVC_TCP, Service, Snapshot, SniRoute, TLS_MESH, TLS_NONE, TLS_PASSTHROUGH, TLS_PERMISSIVE,
    TLS_PUBLIC,
)


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
        load_text(s, &e.text, d["host"] if d.get("keep_port") else f"{d['host']}:{port}")
    elif family == "inet6":
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(<uint16_t>port)
        if inet_pton(AF_INET6, host, &v6.sin6_addr) != 1:
            raise ValueError(f"endpoint address {d!r} is not IPv6")
        e.address_len = sizeof(sockaddr_in6)
        load_text(s, &e.text, f"[{d['host']}]" if d.get("keep_port") else f"[{d['host']}]:{port}")
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
        load_text(s, &e.text, "unix:" + d["path"])
    else:
        raise ValueError(f"unknown address family {family!r}")
    e.health = d.get("health", -1)
    e.keep_port = d.get("keep_port", False)
    e.keep_caller = d.get("keep_caller", False)
    return 0


cdef inline Upstream *_upstream(Worker *w, dict pools, bytes key) except NULL:
    """The pool of that key: the one that is there, or a new one. Counts a reference."""
    cdef Upstream *u
    cdef object known = pools.get(key)
    if known is not None:
        u = <Upstream *><size_t>known
    else:
        u = upstream_new(w, b"", key)
        if u == NULL:
            raise MemoryError()
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


cdef inline int _sni(Snapshot *s, ListenerConf *out, dict d) except -1:
    """Which name goes to which service."""
    cdef list routes = d.get("sni") or []
    cdef uint32_t i
    cdef SniRoute *r
    out.sni = <SniRoute *>load_block(s, (len(routes) + 1) * sizeof(SniRoute))
    for i in range(<uint32_t>len(routes)):
        r = &out.sni[i]
        r.wildcard = routes[i]["name"].startswith("*.")
        load_text(s, &r.name, routes[i]["name"][1 if r.wildcard else 0:])
        r.service = routes[i]["service"]
        if not 0 <= r.service < <int32_t>s.nservices:
            raise ValueError(f"listener {d['name']!r}: no service {r.service}")
        out.nsni += 1
    return 0


cdef inline int _service(Worker *w, Snapshot *s, Service *out, dict d, dict pools, bytes identity) except -1:
    import hashlib
    cdef list endpoints = d["endpoints"]
    cdef uint32_t i
    cdef bytes key
    load_text(s, &out.name, d["name"])
    load_text(s, &out.spiffe_id, d.get("spiffe_id"))
    out.slot = d["slot"]
    if out.slot >= w.area.services:
        raise ValueError(f"service {d['name']!r}: there is room for {w.area.services} services only")
    out.row = area_service(w.area, w.slot, out.slot)
    if w.snapshot == NULL:
        out.row.counters[S_ACTIVE] = 0           # what a dead predecessor left
    out.tls = {"none": TLS_NONE, "mesh": TLS_MESH, "tls": TLS_PUBLIC}[d["tls"]]
    if out.tls == TLS_PUBLIC:
        out.tls_ctx = load_public_client(d)
        identity = hashlib.sha256(repr(d["tls_context"]).encode()).hexdigest().encode()
    out.reuse_retry = {"replayable": REUSE_REPLAYABLE, "idempotent": REUSE_IDEMPOTENT, "off": REUSE_OFF}[
        d.get("reuse_retry", "replayable")]
    out.protocol = {"auto": SVC_AUTO, "http1": SVC_HTTP1, "http2": SVC_HTTP2, "tcp": SVC_TCP}[
        d.get("protocol", "auto")]
    out.original = d.get("original", False)
    out.local = d.get("local", False)
    if out.local and len(endpoints) != 2:
        raise ValueError(f"service {d['name']!r}: an application has two addresses")
    out.mesh_connections = d.get("mesh_connections", 1)
    http2 = d.get("http2") or {}
    out.h2_ping_ms = http2.get("ping_interval_ms", 30000)
    out.h2_ping_timeout_ms = http2.get("ping_timeout_ms", 10000)
    out.connect_timeout_ms = d["connect_timeout_ms"]
    out.response_timeout_ms = d["response_timeout_ms"]
    out.pool_idle_max = d["pool_idle_max"]
    out.pool_idle_timeout_ms = d["pool_idle_timeout_ms"]
    out.policy = load_policy(w, s, d)
    out.endpoints = <Endpoint *>load_block(s, max(1, len(endpoints)) * sizeof(Endpoint))
    for i in range(<uint32_t>len(endpoints)):
        _endpoint(s, &out.endpoints[i], endpoints[i])
        if out.endpoints[i].health >= <int32_t>w.area.health:
            raise ValueError(f"service {d['name']!r}: there is room for {w.area.health} checked endpoints only")
        if out.endpoints[i].health >= 0:
            out.health = area_health(w.area)
        # With TLS, what both sides of the connections prove and trust is part of what makes a pool the same; always
        # the protocol that its connections may speak.
        key = b"\0".join([(d["name"] or "").encode(), <bytes>out.endpoints[i].text.ptr,
                          d.get("protocol", "auto").encode(), d["tls"].encode(), identity if out.tls else b"",
                          (d.get("spiffe_id") or "").encode() if out.tls else b""]).replace(b"\0", b"|")
        out.endpoints[i].pool = _upstream(w, pools, key)
        out.nendpoints += 1
    if out.original:
        if endpoints:
            raise ValueError(f"service {d['name']!r}: endpoints where destinations are")
        out.endpoints[0].original = True
        out.endpoints[0].health = -1
        load_text(s, &out.endpoints[0].text, "original destination")
        out.endpoints[0].pool = _upstream(w, pools, b"|original|")
        out.nendpoints = 1
    return 0


cdef inline int _listener(Worker *w, Snapshot *s, ListenerConf *out, dict d) except -1:
    cdef dict forwarding = {"keep": FWD_KEEP, "append": FWD_APPEND, "replace": FWD_REPLACE, "remove": FWD_REMOVE,
                            "auto": FWD_AUTO}
    cdef dict client_cert = {"keep": FWD_KEEP, "append": FWD_APPEND, "set": FWD_REPLACE, "remove": FWD_REMOVE}
    load_text(s, &out.name, d["name"])
    out.outbound = d["role"] == "outbound"
    out.inbound = d["role"] == "inbound"
    out.protocol = {"http": PROTO_HTTP, "tcp": PROTO_TCP, "auto": PROTO_AUTO}[d["protocol"]]
    out.tls = {"none": TLS_NONE, "mesh": TLS_MESH, "permissive": TLS_PERMISSIVE, "terminate": TLS_PUBLIC,
               "passthrough": TLS_PASSTHROUGH}[d["tls"]]
    out.service = d["service"]
    if out.service >= <int32_t>s.nservices:
        raise ValueError(f"listener {d['name']!r}: no service {out.service}")
    if out.tls == TLS_PUBLIC:
        load_public_server(w, out, d)
    elif out.tls == TLS_PASSTHROUGH:
        _sni(s, out, d)
    elif out.tls and s.server_ctx == NULL:
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
    http2 = d.get("http2") or {}
    out.http2 = http2.get("enabled", True) and out.protocol != PROTO_TCP and out.tls != TLS_PASSTHROUGH
    out.grpc_web = d.get("grpc_web", False)
    out.h2_max_streams = http2.get("max_concurrent_streams", 1000)
    out.h2_ping_ms = http2.get("ping_interval_ms", 30000)
    out.h2_ping_timeout_ms = http2.get("ping_timeout_ms", 10000)
    handshakes = d.get("handshakes") or {}
    out.max_handshakes = handshakes.get("max", 512)
    out.handshake_rate = handshakes.get("per_source", 0)
    out.client_cert = client_cert[d["forwarded"].get("client_cert", "remove")]
    out.normalize = {"auto": NORMALIZE_AUTO, "on": NORMALIZE_ON, "off": NORMALIZE_OFF}[d.get("normalize_paths", "auto")]
    out.keep_slashes = d.get("encoded_slashes", "refuse") == "keep"
    if d.get("transparent"):
        load_transparent(s, out, d)
    out.policy = load_policy(w, s, d)
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
    s.mark = d.get("mark", 0)
    s.passthrough = -1
    s.log_sample = log["sample"] if log else 0.0
    load_identity(w, s, d)
    identity = hashlib.sha256(repr(d.get("identity")).encode()).hexdigest().encode()
    s.services = <Service *>load_block(s, (len(services) + 1) * sizeof(Service))
    for i in range(<uint32_t>len(services)):
        s.nservices += 1
        _service(w, s, &s.services[i], services[i], pools, identity)
        if s.services[i].original:
            s.passthrough = <int32_t>i
    load_destinations(s, services)
    while slots < 2 * s.nservices:
        slots *= 2
    s.names = <uint32_t *>load_block(s, slots * sizeof(uint32_t))
    s.names_mask = slots - 1
    for i in range(s.nservices):
        at = name_hash(s.services[i].name.ptr, s.services[i].name.len) & s.names_mask
        while s.names[at] != 0:
            at = (at + 1) & s.names_mask
        s.names[at] = i + 1
    s.listeners = <ListenerConf *>load_block(s, (len(listeners) + 1) * sizeof(ListenerConf))
    for i in range(<uint32_t>len(listeners)):
        s.nlisteners += 1
        _listener(w, s, &s.listeners[i], listeners[i])
    return 0


cdef inline Snapshot *load_snapshot(Worker *w, dict d) except NULL:
    """A snapshot with one reference. Raises ValueError, KeyError or TypeError for what is not one."""
    cdef Snapshot *s = <Snapshot *>calloc(1, sizeof(Snapshot))
    if s == NULL:
        raise MemoryError()
    w.snapshots += 1
    s.refs = 1
    try:
        _fill(w, s, d)
    except BaseException:
        snapshot_unref(w, s)
        raise
    return s
