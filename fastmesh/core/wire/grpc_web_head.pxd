# The heads of a gRPC-Web call and its answer: which requests are calls, and what either side gets to see instead.
#
# Contract: a head is written anew, whole, into memory of the caller's, as a Message of the same shape that any codec
# takes; what shall not go on is flagged FIELD_HOP there. The Message that came is not changed. See grpc_web.pxd for
# the state and for what comes behind a head.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from fastmesh.core.wire.grpc cimport (
    GRPC_CALL, GRPC_WEB, GRPC_WEB_TEXT, grpc_content_type, grpc_has_status, grpc_is_status, grpc_kind,
)
from fastmesh.core.wire.grpc_web cimport (
    GWEB_ANSWER, GWEB_CALL, GWEB_PASS, GWEB_TEXT_IN, GWEB_TEXT_OUT, GWEB_TOLD, GWEB_TRAILERS_ONLY, GrpcWeb,
)
from fastmesh.core.wire.http1_scan cimport http1_equal
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_LENGTH, FRAMING_NONE, F_CONTENT_LENGTH, F_TRAILER, Field, LENGTH_UNKNOWN,
    MAX_FIELDS, MSG_HAS_HOP, MSG_TE_TRAILERS, M_POST, Message, Span,
)

cdef enum:
    GWEB_HEAD_EXTRA = 64           # bytes that a head grows at most


cdef inline void _move(Span *s, uint32_t behind, uint32_t by) noexcept nogil:
    if s.at >= behind:
        s.at += by


cdef inline size_t _retype(const Message *m, int field, const char *kind, size_t kind_len, const char *subtype,
                           size_t subtype_len, Message *to, char *out) noexcept nogil:
    """*to is m, in `out`, with another Content-Type; bytes written. What is behind the line moves with it, so the
    lines of `to` follow one another as those of m do."""
    cdef Field *f
    cdef uint32_t behind, by
    cdef size_t at = m.fields[field].at
    cdef int i
    # Only as many of its fields are there as it has.
    memcpy(to, m, sizeof(Message) - (MAX_FIELDS - m.nfields) * sizeof(Field))
    to.base = out
    memcpy(out, m.base, at)
    memcpy(out + at, b"content-type: ", 14)
    memcpy(out + at + 14, kind, kind_len)
    memcpy(out + at + 14 + kind_len, subtype, subtype_len)
    at += 14 + kind_len + subtype_len
    memcpy(out + at, b"\r\n", 2)
    at += 2
    f = &to.fields[field]
    behind = f.at + f.line_len
    f.line_len = <uint32_t>(at - f.at)
    f.value_at = f.at + 14
    f.value_len = <uint32_t>(kind_len + subtype_len)
    memcpy(out + at, m.base + behind, m.head_len - behind)
    by = <uint32_t>(at - behind)               # modulo 2**32: it may be a step back
    to.head_len += by
    for i in range(to.nfields):
        f = &to.fields[i]
        if f.at >= behind:
            f.at += by
            f.value_at += by
    _move(&to.method_name, behind, by)
    _move(&to.path, behind, by)
    _move(&to.authority, behind, by)
    _move(&to.scheme, behind, by)
    _move(&to.reason, behind, by)
    _move(&to.upgrade, behind, by)
    _move(&to.protocol, behind, by)
    return to.head_len


cdef inline void _unframed(Message *to) noexcept nogil:
    """There is a body whose length is another now, and not known."""
    cdef int i
    to.framing = FRAMING_CHUNKED
    to.whole = 0
    to.length = LENGTH_UNKNOWN
    for i in range(to.nfields):
        if to.fields[i].id == F_CONTENT_LENGTH:
            to.fields[i].flags |= FIELD_HOP
            to.flags |= MSG_HAS_HOP


cdef inline int _accepted(const Message *m) noexcept nogil:
    """Which kind of gRPC-Web the Accept fields name: GRPC_WEB_TEXT before GRPC_WEB; 0: neither."""
    cdef const char *p
    cdef const char *end
    cdef const char *comma
    cdef size_t at, n
    cdef int found = 0
    cdef int kind, i
    for i in range(m.nfields):
        if m.fields[i].name_len != 6 or not http1_equal(m.base + m.fields[i].at, b"accept", 6):
            continue
        p = m.base + m.fields[i].value_at
        end = p + m.fields[i].value_len
        while p < end:
            comma = p
            while comma < end and comma[0] != c",":
                comma += 1
            while p < comma and (p[0] == c" " or p[0] == c"\t"):
                p += 1
            kind = grpc_kind(p, <size_t>(comma - p), &at, &n)
            if kind == GRPC_WEB_TEXT or kind == GRPC_WEB and found == 0:
                found = kind
            p = comma + 1
    return found


cdef inline bint grpc_web_begin(GrpcWeb *g, const Message *m) noexcept nogil:
    """Is the request a gRPC-Web call? Sets *g anew."""
    cdef size_t at, n
    cdef int field = 0
    cdef int kind
    memset(g, 0, sizeof(GrpcWeb))
    if m.method != M_POST:
        return False
    kind = grpc_content_type(m, &field, &at, &n)
    if kind != GRPC_WEB and kind != GRPC_WEB_TEXT:
        return False
    g.flags = GWEB_CALL
    if kind == GRPC_WEB_TEXT:
        g.flags |= GWEB_TEXT_IN
    if (_accepted(m) or kind) == GRPC_WEB_TEXT:
        g.flags |= GWEB_TEXT_OUT
    return True


cdef inline size_t grpc_web_head_bound(const Message *m) noexcept nogil:
    """Room for m with another Content-Type."""
    return <size_t>m.head_len + GWEB_HEAD_EXTRA


cdef inline size_t grpc_web_request_head(const GrpcWeb *g, const Message *m, Message *to, char *out) noexcept nogil:
    """The head of a call as the service gets it, with "te: trailers"; bytes written to `out`, where *to points.

    Only after grpc_web_begin said yes to m.
    """
    cdef size_t at = 0
    cdef size_t n = 0
    cdef size_t k
    cdef int field = 0
    grpc_content_type(m, &field, &at, &n)
    k = _retype(m, field, b"application/grpc", 16, m.base + m.fields[field].value_at + at, n, to, out)
    to.flags |= MSG_TE_TRAILERS
    if g.flags & GWEB_TEXT_IN and to.framing != FRAMING_NONE:
        _unframed(to)
    return k


cdef inline size_t grpc_web_response_head(GrpcWeb *g, const Message *m, Message *to, char *out) noexcept nogil:
    """A head of the answer to a call. 0: it passes as it is, interim or not gRPC; else bytes written to `out`,
    where *to points: that goes to the client.

    With GWEB_TRAILERS_ONLY in g.flags afterwards the frame of grpc_web_trailers_only(m) is its whole body.
    """
    cdef size_t at = 0
    cdef size_t n = 0
    cdef size_t k
    cdef int field = 0
    cdef int i
    if m.status < 200:
        return 0
    g.http = m.status
    if m.status == 204 or m.status == 304 or grpc_content_type(m, &field, &at, &n) != GRPC_CALL:
        g.flags |= GWEB_PASS
        return 0
    g.flags |= GWEB_ANSWER
    if g.flags & GWEB_TEXT_OUT:
        k = _retype(m, field, b"application/grpc-web-text", 25, m.base + m.fields[field].value_at + at, n, to, out)
    else:
        k = _retype(m, field, b"application/grpc-web", 20, m.base + m.fields[field].value_at + at, n, to, out)
    if grpc_has_status(m):
        if m.framing == FRAMING_NONE or m.framing == FRAMING_LENGTH and m.length == 0:
            g.flags |= GWEB_TRAILERS_ONLY
        else:
            g.flags |= GWEB_TOLD
    _unframed(to)
    for i in range(to.nfields):
        if to.fields[i].id == F_TRAILER or g.flags & GWEB_TRAILERS_ONLY and grpc_is_status(to, &to.fields[i]):
            to.fields[i].flags |= FIELD_HOP
            to.flags |= MSG_HAS_HOP
    return k
