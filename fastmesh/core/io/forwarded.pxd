# What a proxy adds to a request about its client and itself: X-Forwarded-For, -Proto and -Client-Cert, Forwarded
# (RFC 7239), as the listener's `forwarded` has it; as text, one "name: value" a line.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmesh.core.io.state cimport Exchange, Peer
from fastmesh.core.traffic.snapshot cimport FWD_APPEND, FWD_AUTO, FWD_KEEP, FWD_REMOVE, FWD_REPLACE, ListenerConf
from fastmesh.core.wire.message cimport (
    F_FORWARDED, F_X_FORWARDED_CLIENT_CERT, F_X_FORWARDED_FOR, F_X_FORWARDED_HOST, F_X_FORWARDED_PROTO, Field,
    Message,
)


cdef inline size_t list_field(char *out, const char *name, size_t name_len, Message *m, int id,
                              const char *value, size_t n) noexcept nogil:
    """One field line: the values that `m` has for `id`, if `id` is not 0, and `value` behind them."""
    cdef size_t at = name_len
    cdef uint32_t i
    cdef Field *f
    memcpy(out, name, name_len)
    if id:
        for i in range(m.nfields):
            f = &m.fields[i]
            if f.id == id and f.value_len > 0:
                memcpy(out + at, m.base + f.value_at, f.value_len)
                at += f.value_len
                out[at] = c","
                out[at + 1] = c" "
                at += 2
    memcpy(out + at, value, n)
    at += n
    out[at] = c"\r"
    out[at + 1] = c"\n"
    return at + 2


cdef inline uint64_t _present(Message *m) noexcept nogil:
    """A bit for each known field that `m` has."""
    cdef uint64_t mask = 0
    cdef uint32_t i
    for i in range(m.nfields):
        mask |= <uint64_t>1 << m.fields[i].id
    return mask


cdef inline size_t _forwarded_value(char *out, Exchange *x, Message *m) noexcept nogil:
    """One element of Forwarded (RFC 7239 4): for, host, proto. At most 600 bytes."""
    cdef size_t n = 4
    cdef Peer *peer = x.peer
    cdef bint v6 = peer.ip_len > 0 and peer.text[0] == c"["
    cdef bint token = m.authority.len > 0 and m.authority.len <= 255
    memcpy(out, b"for=", 4)
    if peer.ip_len == 0:
        memcpy(out + n, b"unknown", 7)
        n += 7
    elif v6:
        out[n] = c'"'
        memcpy(out + n + 1, peer.text, peer.ip_len)
        out[n + 1 + peer.ip_len] = c'"'
        n += peer.ip_len + 2
    else:
        memcpy(out + n, peer.text, peer.ip_len)
        n += peer.ip_len
    if token:
        memcpy(out + n, b";host=\"", 7)
        n += 7
        memcpy(out + n, m.base + m.authority.at, m.authority.len)
        n += m.authority.len
        out[n] = c'"'
        n += 1
    if x.secure:
        memcpy(out + n, b";proto=https", 12)
        return n + 12
    memcpy(out + n, b";proto=http", 11)
    return n + 11


cdef inline size_t forwarded_fields(char *out, Exchange *x, Message *m, uint64_t *skip) noexcept nogil:
    """What a proxy adds about the client and itself; `skip` gets the fields that are written anew.

    X-Forwarded-For gets one line with all values: many readers look at the first or last line only.
    """
    cdef ListenerConf *conf = x.conf
    cdef uint64_t have = _present(m)
    cdef size_t n = 0
    cdef char element[640]
    cdef const char *ip = x.peer.text
    cdef size_t ip_len = x.peer.ip_len
    cdef int mode = conf.forwarded
    cdef bint inside
    skip[0] = 0
    if ip_len > 0 and ip[0] == c"[":
        ip += 1
        ip_len -= 2
    if conf.x_forwarded == FWD_APPEND or conf.x_forwarded == FWD_REPLACE:
        if ip_len > 0:
            skip[0] |= <uint64_t>1 << F_X_FORWARDED_FOR
            n += list_field(out + n, b"x-forwarded-for: ", 17, m,
                             F_X_FORWARDED_FOR if conf.x_forwarded == FWD_APPEND and (
                                 have >> F_X_FORWARDED_FOR) & 1 else 0, ip, ip_len)
        elif conf.x_forwarded == FWD_REPLACE:
            skip[0] |= <uint64_t>1 << F_X_FORWARDED_FOR     # a unix socket has no address, and its word counts no more
        inside = conf.outbound or conf.inbound
        if not ((have >> F_X_FORWARDED_PROTO) & 1 and inside and conf.x_forwarded == FWD_APPEND):
            # At the edge the client's word on its own scheme counts for nothing; inside the mesh the edge's does.
            skip[0] |= <uint64_t>1 << F_X_FORWARDED_PROTO
            n += list_field(out + n, b"x-forwarded-proto: ", 19, m, 0, b"https" if x.secure else b"http",
                             5 if x.secure else 4)
    if conf.x_forwarded == FWD_REMOVE:
        skip[0] |= (<uint64_t>1 << F_X_FORWARDED_FOR) | (<uint64_t>1 << F_X_FORWARDED_PROTO)
    if conf.x_forwarded == FWD_REMOVE or conf.x_forwarded == FWD_REPLACE:
        skip[0] |= <uint64_t>1 << F_X_FORWARDED_HOST
    if mode == FWD_AUTO:
        mode = FWD_APPEND if (have >> F_FORWARDED) & 1 else FWD_KEEP
    if mode == FWD_APPEND or mode == FWD_REPLACE:
        skip[0] |= <uint64_t>1 << F_FORWARDED
        n += list_field(out + n, b"forwarded: ", 11, m, F_FORWARDED if mode == FWD_APPEND else 0, element,
                         _forwarded_value(element, x, m))
    elif mode == FWD_REMOVE:
        skip[0] |= <uint64_t>1 << F_FORWARDED
    if conf.client_cert != FWD_KEEP:
        skip[0] |= (<uint64_t>1 << F_X_FORWARDED_CLIENT_CERT) & have
        if x.client_cert != NULL and conf.client_cert != FWD_REMOVE:
            skip[0] |= <uint64_t>1 << F_X_FORWARDED_CLIENT_CERT
            n += list_field(out + n, b"x-forwarded-client-cert: ", 25, m,
                             F_X_FORWARDED_CLIENT_CERT if conf.client_cert == FWD_APPEND and (
                                 have >> F_X_FORWARDED_CLIENT_CERT) & 1 else 0, x.client_cert.text, x.client_cert.len)
        elif conf.client_cert == FWD_APPEND:
            skip[0] &= ~(<uint64_t>1 << F_X_FORWARDED_CLIENT_CERT)     # nothing to add: what came stays
    return n
