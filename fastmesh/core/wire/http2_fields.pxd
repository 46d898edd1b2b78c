# The head of an HTTP/2 message as it goes out: from a Message of any codec to nghttp2's array (RFC 9113 8).
#
# Nothing is copied here: the array points into the Message, the extra lines and constants, and nghttp2
# copies all of it, and lowers the names, when it is submitted. What belongs to a connection of HTTP/1 stays
# behind (8.2.2), "te: trailers" is said where the message says it.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy

from fastmesh.core.base.buffer cimport Buf, Pool, buf_class_for, buf_drop, buf_get
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.sys.nghttp2 cimport nghttp2_nv
from fastmesh.core.wire.http2_state cimport H2Extra
from fastmesh.core.wire.message cimport (
    FIELD_HOP, F_CONNECTION, F_HOST, F_KEEP_ALIVE, F_PROXY_CONNECTION, F_TE, F_TRANSFER_ENCODING, F_UPGRADE,
    Field, MSG_TE_TRAILERS, M_CONNECT, Message,
)

cdef enum:
    H2_MAX_NV = 192               # MAX_FIELDS, pseudo-fields, via and te; the rest is for extra lines
    H2_NEVER_OUT = (1 << F_CONNECTION | 1 << F_KEEP_ALIVE | 1 << F_PROXY_CONNECTION | 1 << F_TE
                    | 1 << F_TRANSFER_ENCODING | 1 << F_UPGRADE)

cdef struct H2Fields:
    size_t n
    Buf *scratch                  # what nowhere stands as it has to be said; NULL mostly
    char status[4]
    nghttp2_nv nv[192]            # H2_MAX_NV


cdef inline void h2_nv(H2Fields *out, const char *name, size_t n, const char *value,
                       size_t len) noexcept nogil:
    cdef nghttp2_nv *nv
    if out.n == H2_MAX_NV:
        return
    nv = &out.nv[out.n]
    nv.name = <uint8_t *>name
    nv.namelen = n
    nv.value = <uint8_t *>value
    nv.valuelen = len
    nv.flags = 0
    out.n += 1


cdef inline void h2_nv_lines(H2Fields *out, const char *p, size_t n) noexcept nogil:
    """Lines "name: value\\r\\n" that this side wrote."""
    cdef const char *end = p + n
    cdef const char *colon
    cdef const char *stop
    while p < end:
        colon = <const char *>memchr(p, c":", <size_t>(end - p))
        if colon == NULL:
            return
        stop = <const char *>memchr(colon, c"\r", <size_t>(end - colon))
        if stop == NULL or stop - colon < 2:
            return
        h2_nv(out, p, <size_t>(colon - p), colon + 2, <size_t>(stop - colon - 2))
        p = stop + 2


cdef inline void h2_nv_fields(H2Fields *out, const Message *m, uint64_t skip) noexcept nogil:
    """The fields of `m` that go on, without those whose FieldId is a bit of `skip`."""
    cdef const Field *f
    cdef int i
    skip |= H2_NEVER_OUT
    for i in range(m.nfields):
        f = &m.fields[i]
        if f.flags & FIELD_HOP or (skip >> f.id) & 1:
            continue
        h2_nv(out, m.base + f.at, f.name_len, m.base + f.value_at, f.value_len)


cdef inline void _h2_nv_rest(H2Fields *out, const Message *m, const H2Extra *x, uint64_t skip) noexcept nogil:
    if x != NULL:
        h2_nv_lines(out, x.lines, x.lines_len)
        skip |= x.skip
    h2_nv_fields(out, m, skip)
    if x != NULL and x.via:
        # RFC 9110 7.6.3; a Via of the message's own stands before it
        if x.via == 20:
            h2_nv(out, b"via", 3, b"2 fastmesh", 10)
        elif x.via == 10:
            h2_nv(out, b"via", 3, b"1.0 fastmesh", 12)
        else:
            h2_nv(out, b"via", 3, b"1.1 fastmesh", 12)


cdef inline int h2_fields_request(H2Fields *out, Pool *pool, const Message *m,
                                  const H2Extra *x) noexcept nogil:
    """The whole list of a request's: 0 or -R_NO_MEMORY. h2_fields_done follows."""
    cdef const char *protocol = m.base + m.protocol.at
    cdef size_t protocol_len = m.protocol.len
    cdef size_t scheme_len
    cdef Buf *b
    out.n = 0
    out.scratch = NULL
    if x != NULL and x.protocol_len:
        protocol = x.protocol
        protocol_len = x.protocol_len
    if protocol_len:
        # An extended CONNECT (RFC 8441 4), whatever the method was in HTTP/1.
        h2_nv(out, b":method", 7, b"CONNECT", 7)
        h2_nv(out, b":protocol", 9, protocol, protocol_len)
    else:
        h2_nv(out, b":method", 7, m.base + m.method_name.at, m.method_name.len)
    if protocol_len or m.method != M_CONNECT:
        scheme_len = x.scheme_len if x != NULL and x.scheme_len else m.scheme.len
        # HTTP/1 takes it in any case (RFC 3986 3.1), and there are but two of them.
        if scheme_len == 5:
            h2_nv(out, b":scheme", 7, b"https", 5)
        else:
            h2_nv(out, b":scheme", 7, b"http", 4)
        if m.path.len == 0:
            # RFC 9113 8.3.1: OPTIONS without a path asks about the server
            h2_nv(out, b":path", 5, b"*", 1)
        elif m.base[m.path.at] != c"?":
            h2_nv(out, b":path", 5, m.base + m.path.at, m.path.len)
        else:
            # RFC 9110 4.2.3: an empty path is "/"
            b = buf_get(pool, buf_class_for(m.path.len + 1))
            if b == NULL:
                return -R_NO_MEMORY
            out.scratch = b
            b.data[0] = c"/"
            memcpy(b.data + 1, m.base + m.path.at, m.path.len)
            h2_nv(out, b":path", 5, b.data, m.path.len + 1)
    if m.authority.len:
        h2_nv(out, b":authority", 10, m.base + m.authority.at, m.authority.len)
    elif x != NULL and x.authority_len:
        h2_nv(out, b":authority", 10, x.authority, x.authority_len)
    _h2_nv_rest(out, m, x, <uint64_t>1 << F_HOST)
    if m.flags & MSG_TE_TRAILERS:
        # Servers of gRPC insist on it.
        h2_nv(out, b"te", 2, b"trailers", 8)
    return 0


cdef inline void h2_fields_response(H2Fields *out, const Message *m, const H2Extra *x) noexcept nogil:
    """The whole list of a response's."""
    out.n = 0
    out.scratch = NULL
    out.status[0] = <char>(c"0" + m.status // 100)
    out.status[1] = <char>(c"0" + m.status // 10 % 10)
    out.status[2] = <char>(c"0" + m.status % 10)
    h2_nv(out, b":status", 7, out.status, 3)
    _h2_nv_rest(out, m, x, 0)


cdef inline void h2_fields_done(H2Fields *out, Pool *pool) noexcept nogil:
    """The list has been submitted, or not."""
    if out.scratch != NULL:
        buf_drop(pool, out.scratch)
        out.scratch = NULL
