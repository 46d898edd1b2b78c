# The TLS contexts of a snapshot, from its JSON: the workload's own, and those of ordinary TLS. With the GIL, never on
# the request path. Whatever is wrong raises ValueError.

from fastmesh.core.face.load_block cimport load_text
from fastmesh.core.io.state cimport Worker
from fastmesh.core.sys.openssl cimport SSL_CTX, SSL_CTX_free, TLS1_2_VERSION, TLS1_3_VERSION
from fastmesh.core.traffic.snapshot cimport ListenerConf, Snapshot
from fastmesh.core.wire.tls_context cimport tls_context, tls_federate, tls_revoke
from fastmesh.core.wire.tls_public cimport tls_public_choice, tls_public_client, tls_public_server
from fastmesh.core.wire.tls_tickets cimport TlsTickets


cdef inline bytes _alpn(list names):
    """Protocols in wire form (RFC 7301 3.1)."""
    return b"".join([bytes([len(name)]) + name.encode() for name in names])


cdef inline int _min_version(dict d) except -1:
    return {"1.2": TLS1_2_VERSION, "1.3": TLS1_3_VERSION}[d.get("min_version") or "1.2"]


cdef inline SSL_CTX *load_public_client(dict d) except NULL:
    """The context of a service with ordinary TLS."""
    cdef char err[512]
    cdef dict c = d["tls_context"]
    cdef bytes name = c["server_name"].encode()
    cdef bytes ca = (c.get("ca") or "").encode()
    cdef bytes certificate = (c.get("certificate") or "").encode()
    cdef bytes key = (c.get("key") or "").encode()
    cdef bytes alpn = _alpn(c.get("alpn") or [])
    cdef SSL_CTX *ctx = tls_public_client(
        name, <const char *>ca if ca else NULL, <const char *>certificate if certificate else NULL, key,
        <const unsigned char *><const char *>alpn if alpn else NULL, len(alpn), _min_version(c), err, sizeof(err))
    if ctx == NULL:
        raise ValueError(f"service {d['name']!r}: tls: " + (<bytes>err).decode("utf-8", "replace"))
    return ctx


cdef inline int load_public_server(Worker *w, ListenerConf *out, dict d) except -1:
    """The contexts of a listener that ends ordinary TLS: `out` has the first, that one the others."""
    cdef char err[512]
    cdef SSL_CTX *ctx
    cdef dict c = d.get("tls_settings") or {}
    cdef bytes name = d["name"].encode()
    cdef bytes ca = (c.get("client_ca") or "").encode()
    cdef bytes alpn = _alpn(c.get("alpn") or [])
    cdef bytes certificate
    cdef bytes key
    cdef bint ok
    for one in d["tls_contexts"]:
        certificate = one["certificate"].encode()
        key = one["key"].encode()
        ctx = tls_public_server(
            name, certificate, key, <const char *>ca if ca else NULL, &w.area.tickets,
            <const unsigned char *><const char *>alpn if alpn else NULL, len(alpn), _min_version(c), err, sizeof(err))
        if ctx == NULL:
            raise ValueError(f"listener {d['name']!r}: tls: " + (<bytes>err).decode("utf-8", "replace"))
        if out.tls_ctx == NULL:
            out.tls_ctx = ctx
            ok = tls_public_choice(ctx, ctx)
        else:
            ok = tls_public_choice(<SSL_CTX *>out.tls_ctx, ctx)
            SSL_CTX_free(ctx)
        if not ok:
            raise MemoryError()
    if out.tls_ctx == NULL:
        raise ValueError(f"listener {d['name']!r}: TLS without a certificate")
    return 0


cdef inline int _trust(SSL_CTX *ctx, dict identity) except -1:
    """Other trust domains and the deny list."""
    cdef char err[512]
    cdef bytes serial
    cdef list serials = []
    for domain, bundle in sorted((identity.get("federated") or {}).items()):
        if not tls_federate(ctx, domain.encode(), bundle.encode(), err, sizeof(err)):
            raise ValueError(f"identity: {domain}: " + (<bytes>err).decode("utf-8", "replace"))
    for text in identity.get("revoked") or ():
        serials.append(bytes.fromhex(text.zfill(len(text) + len(text) % 2)).lstrip(b"\0"))
    serials.sort(key=lambda serial: (len(serial), serial))        # the order in which they are kept
    for serial in serials:
        if not tls_revoke(ctx, serial, len(serial)):
            raise ValueError(f"identity: {serial.hex()!r} on the deny list is no serial number")
    return 0


cdef inline SSL_CTX *mesh_context(bint server, dict identity, str trust_domain, TlsTickets *tickets) except NULL:
    """A TLS context of the workload, to serve with or to call with. Raises ValueError."""
    cdef char err[512]
    cdef bytes certificate = identity["certificate"].encode()
    cdef bytes key = identity["key"].encode()
    cdef bytes bundle = identity["bundle"].encode()
    cdef bytes domain = trust_domain.encode()
    # what is spoken of it is each connection's
    cdef const unsigned char *alpn = <const unsigned char *>b"\x02h2\x08http/1.1"
    cdef SSL_CTX *ctx = tls_context(server, certificate, key, bundle, domain, tickets, alpn, 12, err, sizeof(err))
    if ctx == NULL:
        raise ValueError("identity: " + (<bytes>err).decode("utf-8", "replace"))
    try:
        _trust(ctx, identity)
    except BaseException:
        SSL_CTX_free(ctx)
        raise
    return ctx


cdef inline int load_identity(Worker *w, Snapshot *s, dict d) except -1:
    """The TLS contexts of the workload: one to serve with, one to call with."""
    cdef dict identity = d.get("identity")
    if not identity:
        return 0
    s.not_after = identity.get("not_after") or 0
    load_text(s, &s.own_id, identity.get("spiffe_id") or f"spiffe://{d['trust_domain']}/{d['workload']}")
    s.server_ctx = mesh_context(True, identity, d["trust_domain"], &w.area.tickets)
    s.client_ctx = mesh_context(False, identity, d["trust_domain"], NULL)
    return 0
