# The head of an HTTP/2 message as it comes in: field by field from HPACK, into a Message (RFC 9113 8).
#
# The Message stands at the front of one Buf and its text behind it: first what the pseudo-fields say, then
# field lines as HTTP/1 has them, so that both codecs copy runs of lines the same way. A request's first
# line is its Host. The Buf is medium until it is full, then large.
#
# Strict as the HTTP/1 codec is: what two parsers could read differently is refused, never repaired. The
# first thing that is wrong decides, and from there on nothing is stored. nghttp2 checks none of this
# (no_http_messaging): it would reset the stream where we answer 400.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from fastmesh.core.base.buffer cimport BUF_LARGE, BUF_MEDIUM, Buf, buf_drop, buf_get
from fastmesh.core.base.reason cimport (
    R_BAD_FIELD, R_BAD_FRAMING, R_BAD_HOST, R_BAD_LENGTH, R_BAD_REQUEST_LINE, R_BAD_TARGET, R_BAD_TRAILER,
    R_HEAD_TOO_LARGE, R_LINE_TOO_LONG, R_NO_MEMORY, R_TOO_MANY_FIELDS, R_UPSTREAM_BAD_RESPONSE,
    R_UPSTREAM_HEAD_TOO_LARGE,
)
from fastmesh.core.wire.http1 cimport HTTP1_MAX_METHOD, http1_method
from fastmesh.core.wire.http1_chunked cimport http1_trailer_fields
from fastmesh.core.wire.http1_fields cimport http1_clear
from fastmesh.core.wire.http1_meaning cimport http1_host, http1_length, http1_same
from fastmesh.core.wire.http1_scan cimport (
    FM_DIGIT, fm_class, fm_load32, fm_scan_lower, fm_scan_target, fm_scan_token, fm_scan_value, http1_equal,
    http1_field_id,
)
from fastmesh.core.wire.http2_state cimport (
    H2, H2F_EXTENDED, H2H_AUTHORITY, H2H_COOKIES, H2H_FIELDS, H2H_HOST_LATE, H2H_METHOD, H2H_PATH,
    H2H_PROTOCOL, H2H_REQUEST, H2H_SCHEME, H2H_STATUS, H2H_TRAILERS, H2Head, H2_CLIENT,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_LENGTH, FRAMING_NONE, F_CONNECTION, F_CONTENT_LENGTH, F_COOKIE,
    F_EXPECT, F_HOST, F_KEEP_ALIVE, F_OTHER, F_PROXY_CONNECTION, F_TE, F_TRANSFER_ENCODING, F_UPGRADE, Field,
    LENGTH_UNKNOWN, MAX_FIELDS, MAX_LINE, MSG_EXPECT_CONTINUE, MSG_HAS_HOP, MSG_HTTP2, MSG_INTERIM,
    MSG_KEEP_ALIVE, MSG_TE_TRAILERS, M_CONNECT, M_HEAD, M_OPTIONS, Message, Span,
)

cdef enum:
    # RFC 9113 8.2.2: what belongs to a connection of HTTP/1 makes a message malformed
    H2_CONNECTION_IDS = (1 << F_CONNECTION | 1 << F_KEEP_ALIVE | 1 << F_PROXY_CONNECTION
                         | 1 << F_TRANSFER_ENCODING | 1 << F_UPGRADE)


cdef inline Message *h2_message(H2Head *d) noexcept nogil:
    return <Message *>d.buf.data


cdef inline void h2_head_drop(H2 *h) noexcept nogil:
    """No head is under construction any more."""
    if h.head.buf != NULL:
        buf_drop(h.pool, h.head.buf)
        h.head.buf = NULL
    h.head.id = 0


cdef inline bint h2_head_begin(H2 *h, int32_t id, uint16_t flags) noexcept nogil:
    """Start the head of stream `id`; False without memory."""
    cdef H2Head *d = &h.head
    cdef Message *m
    h2_head_drop(h)
    d.buf = buf_get(h.pool, BUF_MEDIUM)
    if d.buf == NULL:
        return False
    d.id = id
    d.bad = 0
    d.list = 0
    d.seen = 0
    d.flags = flags
    d.buf.end = sizeof(Message)
    m = h2_message(d)
    http1_clear(m, d.buf.data + sizeof(Message))
    m.method_name.at = m.method_name.len = m.path.at = m.path.len = 0
    m.flags = MSG_HTTP2 | MSG_KEEP_ALIVE
    m.framing = FRAMING_NONE
    m.length = 0
    return True


cdef inline char *_h2_room(H2 *h, size_t n) noexcept nogil:
    """Where the next n bytes of text go, and four more behind them; NULL, and the head is bad, if nowhere."""
    cdef H2Head *d = &h.head
    cdef Buf *b = d.buf
    cdef Buf *large
    if b.cap - b.end >= n + 4:
        return b.data + b.end
    if b.cls == BUF_LARGE:
        d.bad = R_HEAD_TOO_LARGE
        return NULL
    large = buf_get(h.pool, BUF_LARGE)
    if large == NULL:
        d.bad = R_NO_MEMORY
        return NULL
    memcpy(large.data, b.data, b.end)
    large.end = b.end
    buf_drop(h.pool, b)
    d.buf = large
    (<Message *>large.data).base = large.data + sizeof(Message)
    return _h2_room(h, n)


cdef inline void _h2_text(H2 *h, const char *p, size_t n, Span *span) noexcept nogil:
    """Add what a pseudo-field says to the text; `span` may be one of the Message's only by its distance."""
    cdef H2Head *d = &h.head
    cdef size_t distance = <size_t>(<char *>span - d.buf.data)
    cdef char *out = _h2_room(h, n + 1)
    if out == NULL:
        return
    memcpy(out, p, n)
    out[n] = c" "
    span = <Span *>(d.buf.data + distance)
    span.at = <uint32_t>(d.buf.end - sizeof(Message))
    span.len = <uint32_t>n
    d.buf.end += <uint32_t>n + 1


cdef inline Field *_h2_line(H2 *h, const char *name, size_t n, const char *value, size_t len,
                            uint8_t id) noexcept nogil:
    """Add one field line; NULL, and the head is bad, if there is no room for it."""
    cdef H2Head *d = &h.head
    cdef Message *m
    cdef Field *f
    cdef uint32_t at
    cdef char *out = _h2_room(h, n + len + 4)
    if out == NULL:
        return NULL
    m = h2_message(d)
    if m.nfields == MAX_FIELDS:
        d.bad = R_TOO_MANY_FIELDS
        return NULL
    at = <uint32_t>(d.buf.end - sizeof(Message))
    memcpy(out, name, n)
    out += n
    out[0] = c":"
    out[1] = c" "
    memcpy(out + 2, value, len)
    out += 2 + len
    out[0] = c"\r"
    out[1] = c"\n"
    f = &m.fields[m.nfields]
    f.at = at
    f.line_len = <uint32_t>(n + len + 4)
    f.value_at = at + <uint32_t>n + 2
    f.value_len = <uint32_t>len
    f.name_len = <uint16_t>n
    f.id = id
    f.flags = 0
    m.nfields += 1
    d.buf.end += f.line_len
    return f


# ---- pseudo-fields -------------------------------------------------------------------------------------

cdef inline void _h2_pseudo(H2 *h, const char *name, size_t n, const char *value, size_t len) noexcept nogil:
    """One pseudo-field (RFC 9113 8.3): known, right for the kind of message, in front, and once."""
    cdef H2Head *d = &h.head
    cdef Message *m = h2_message(d)
    cdef Span *span = NULL
    cdef uint16_t bit = 0
    cdef int i
    if d.flags & H2H_REQUEST:
        if n == 5 and memcmp(name, b":path", 5) == 0:
            bit, span = H2H_PATH, &m.path
        elif n == 7 and memcmp(name, b":method", 7) == 0:
            bit, span = H2H_METHOD, &m.method_name
        elif n == 7 and memcmp(name, b":scheme", 7) == 0:
            bit, span = H2H_SCHEME, &m.scheme
        elif n == 10 and memcmp(name, b":authority", 10) == 0:
            bit, span = H2H_AUTHORITY, &m.authority
        elif n == 9 and memcmp(name, b":protocol", 9) == 0 and h.flags & H2F_EXTENDED:
            bit, span = H2H_PROTOCOL, &m.protocol
    elif not d.flags & H2H_TRAILERS and n == 7 and memcmp(name, b":status", 7) == 0:
        bit = H2H_STATUS
    if bit == 0 or d.flags & (bit | H2H_FIELDS):
        d.bad = R_BAD_FIELD
        return
    d.flags |= bit
    if span != NULL:
        _h2_text(h, value, len, span)
        return
    if len != 3:
        d.bad = R_BAD_REQUEST_LINE
        return
    for i in range(3):
        if not fm_class[<uint8_t>value[i]] & FM_DIGIT:
            d.bad = R_BAD_REQUEST_LINE
            return
        m.status = <uint16_t>(m.status * 10 + (value[i] - c"0"))
    if m.status < 100 or m.status == 101:
        # RFC 9113 8.6: there is no switch of protocols
        d.bad = R_BAD_REQUEST_LINE


cdef inline void _h2_fields_begin(H2 *h) noexcept nogil:
    """Behind the pseudo-fields: a request's :authority becomes its Host."""
    cdef H2Head *d = &h.head
    cdef Message *m
    cdef Field *f
    cdef Span a
    d.flags |= H2H_FIELDS
    if not d.flags & H2H_AUTHORITY:
        return
    # _h2_line may move the text that it copies from: room first.
    a = h2_message(d).authority
    if _h2_room(h, a.len + 8) == NULL:
        return
    m = h2_message(d)
    f = _h2_line(h, b"host", 4, m.base + a.at, a.len, F_HOST)
    if f != NULL:
        m.authority.at = f.value_at


# ---- fields --------------------------------------------------------------------------------------------

cdef inline bint _h2_cookie(H2 *h, const char *value, size_t len) noexcept nogil:
    """Join a crumb with the Cookie field that is there (RFC 9113 8.2.3), if that is the last one."""
    cdef H2Head *d = &h.head
    cdef Field *f
    cdef char *out
    if d.cookie != h2_message(d).nfields - 1:
        d.flags |= H2H_COOKIES
        return False
    out = _h2_room(h, len + 2)
    if out == NULL:
        return True
    f = &h2_message(d).fields[d.cookie]
    memcpy(out - 2, b"; ", 2)
    memcpy(out, value, len)
    memcpy(out + len, b"\r\n", 2)
    f.value_len += <uint32_t>len + 2
    f.line_len += <uint32_t>len + 2
    d.buf.end += <uint32_t>len + 2
    return True


cdef inline bint _h2_known(H2 *h, uint8_t id, const char *value, size_t len) noexcept nogil:
    """What a field means whose FieldId is known; False: it is wrong, or not to be stored."""
    cdef H2Head *d = &h.head
    cdef Message *m = h2_message(d)
    cdef uint32_t bit = <uint32_t>1 << id
    cdef bint again = d.seen & bit
    if bit & H2_CONNECTION_IDS:
        d.bad = R_BAD_FIELD
        return False
    d.seen |= bit
    if d.flags & H2H_TRAILERS:
        return True
    if id == F_CONTENT_LENGTH:
        if again or http1_length(value, len, &m.length) < 0:
            d.bad = R_BAD_LENGTH
            return False
    elif id == F_TE:
        # RFC 9113 8.2.2
        if len != 8 or not http1_equal(value, b"trailers", 8):
            d.bad = R_BAD_FIELD
            return False
        m.flags |= MSG_TE_TRAILERS
    elif not d.flags & H2H_REQUEST:
        return True
    elif id == F_HOST:
        if again:
            d.bad = R_BAD_HOST
            return False
        if d.flags & H2H_AUTHORITY:
            if not _h2_same_place(m, value, len):
                d.bad = R_BAD_HOST
            return False
        d.host = m.nfields
        if m.nfields:
            d.flags |= H2H_HOST_LATE
    elif id == F_COOKIE:
        if again:
            return not _h2_cookie(h, value, len)
        d.cookie = m.nfields
    elif id == F_EXPECT:
        if len == 12 and http1_equal(value, b"100-continue", 12):
            m.flags |= MSG_EXPECT_CONTINUE
    return True


cdef inline bint _h2_same_place(const Message *m, const char *value, size_t len) noexcept nogil:
    """Whether Host names what :authority does, or another hop might choose the other one (RFC 9113 8.3.1)."""
    cdef size_t a_len, b_len
    cdef int a_port, b_port
    cdef int standard = 443 if m.scheme.len == 5 else 80
    if not http1_host(m.base + m.authority.at, m.authority.len, &a_len, &a_port) or not http1_host(
            value, len, &b_len, &b_port):
        return False
    if a_len != b_len or not http1_same(m.base + m.authority.at, value, a_len):
        return False
    return (standard if a_port < 0 else a_port) == (standard if b_port < 0 else b_port)


cdef inline void h2_head_field(H2 *h, const char *name, size_t n, const char *value,
                               size_t len) noexcept nogil:
    """One field of the header list."""
    cdef H2Head *d = &h.head
    cdef Field *f
    cdef uint8_t id
    if d.bad:
        return
    d.list += <uint32_t>(n + len + 32)
    if d.list > h.max_head:
        d.bad = R_HEAD_TOO_LARGE
        return
    if n == 0 or fm_scan_value(value, value + len) != value + len:
        d.bad = R_BAD_FIELD
        return
    if name[0] == c":":
        _h2_pseudo(h, name, n, value, len)
        return
    if fm_scan_lower(name, name + n) != name + n:
        d.bad = R_BAD_FIELD
        return
    if len and (value[0] == c" " or value[0] == c"\t" or value[len - 1] == c" " or value[len - 1] == c"\t"):
        # RFC 9113 8.2.1
        d.bad = R_BAD_FIELD
        return
    if not d.flags & H2H_FIELDS:
        _h2_fields_begin(h)
        if d.bad:
            return
    id = http1_field_id(name, n)
    if id != F_OTHER and not _h2_known(h, id, value, len):
        return
    f = _h2_line(h, name, n, value, len, id)
    if f != NULL and id == F_TE:
        f.flags = FIELD_HOP
        h2_message(d).flags |= MSG_HAS_HOP


# ---- whole heads ---------------------------------------------------------------------------------------

cdef inline int _h2_order(H2 *h) noexcept nogil:
    """Host first, and crumbs that stood apart joined where the first one was: 0 or a reason.

    Both are rare: who makes HTTP/2 out of HTTP/1 may keep Host for :authority; clients send crumbs in a row.
    """
    cdef H2Head *d = &h.head
    cdef Buf *old = d.buf
    cdef Buf *b = buf_get(h.pool, old.cls)
    cdef Message *was = h2_message(d)
    cdef Message *m
    cdef Field *f
    cdef const char *base = was.base
    cdef char *out
    cdef uint32_t prefix
    cdef int i, j
    cdef int n = 0
    if b == NULL:
        return R_NO_MEMORY
    prefix = was.fields[0].at
    memcpy(b.data, old.data, sizeof(Message) + prefix)
    m = <Message *>b.data
    m.base = b.data + sizeof(Message)
    out = b.data + sizeof(Message) + prefix
    for i in range(was.nfields):
        # Host goes in front of the others: j walks host, 0, 1, ... without host
        j = i
        if d.flags & H2H_HOST_LATE:
            j = d.host if i == 0 else i - 1 if i <= d.host else i
        f = &was.fields[j]
        if f.id == F_COOKIE and j != d.cookie:
            continue
        m.fields[n] = f[0]
        m.fields[n].at = <uint32_t>(out - m.base)
        m.fields[n].value_at = m.fields[n].at + f.name_len + 2
        memcpy(out, base + f.at, f.line_len)
        out += f.line_len
        if f.id == F_COOKIE:
            for j in range(d.cookie + 1, was.nfields):
                f = &was.fields[j]
                if f.id == F_COOKIE:
                    memcpy(out - 2, b"; ", 2)
                    memcpy(out, base + f.value_at, f.value_len)
                    memcpy(out + f.value_len, b"\r\n", 2)
                    out += f.value_len + 2
                    m.fields[n].value_len += f.value_len + 2
                    m.fields[n].line_len += f.value_len + 2
        n += 1
    m.nfields = <uint16_t>n
    b.end = <uint32_t>(out - b.data)
    buf_drop(h.pool, old)
    d.buf = b
    return 0


cdef inline int _h2_target(H2 *h, Message *m) noexcept nogil:
    """Method, scheme, path, authority against each other (RFC 9113 8.3.1, 8.5; RFC 8441 4): 0 or a reason."""
    cdef H2Head *d = &h.head
    cdef const char *p
    cdef const char *end
    cdef size_t host_len
    cdef int port
    cdef uint16_t all_four = H2H_METHOD | H2H_SCHEME | H2H_PATH
    p = m.base + m.method_name.at
    end = p + m.method_name.len
    if m.method_name.len == 0 or m.method_name.len > HTTP1_MAX_METHOD or fm_scan_token(p, end) != end:
        return R_BAD_REQUEST_LINE
    m.method = http1_method(p, m.method_name.len)
    if d.flags & H2H_PROTOCOL:
        p = m.base + m.protocol.at
        end = p + m.protocol.len
        if m.method != M_CONNECT or not d.flags & H2H_AUTHORITY or p == end or fm_scan_token(p, end) != end:
            return R_BAD_REQUEST_LINE
    elif m.method == M_CONNECT:
        if d.flags & (H2H_SCHEME | H2H_PATH) or not d.flags & H2H_AUTHORITY:
            return R_BAD_TARGET
        # the port is not optional (RFC 9110 9.3.6)
        if not http1_host(m.base + m.authority.at, m.authority.len, &host_len, &port) or port < 0:
            return R_BAD_TARGET
        m.path.at = m.authority.at
        return 0
    if d.flags & all_four != all_four:
        return R_BAD_TARGET
    p = m.base + m.scheme.at
    if not (m.scheme.len == 4 and fm_load32(p) == fm_load32(b"http")
            or m.scheme.len == 5 and memcmp(p, b"https", 5) == 0):
        return R_BAD_TARGET
    p = m.base + m.path.at
    end = p + m.path.len
    if p == end or p[0] != c"/" and not (m.path.len == 1 and p[0] == c"*" and m.method == M_OPTIONS):
        return R_BAD_TARGET
    if m.path.len > MAX_LINE:
        return R_LINE_TOO_LONG
    if fm_scan_target(p, end) != end:
        return R_BAD_TARGET
    if m.authority.len == 0 or not http1_host(m.base + m.authority.at, m.authority.len, &host_len, &port):
        return R_BAD_HOST
    return 0


cdef inline void _h2_seal(H2 *h) noexcept nogil:
    """The empty line behind the fields; _h2_room has left room for it."""
    cdef H2Head *d = &h.head
    memcpy(d.buf.data + d.buf.end, b"\r\n", 2)
    d.buf.end += 2
    h2_message(d).head_len = <uint32_t>(d.buf.end - sizeof(Message))


cdef inline int h2_head_request(H2 *h, bint end) noexcept nogil:
    """The whole request head: 0 or a reason."""
    cdef H2Head *d = &h.head
    cdef Message *m
    cdef Field *f
    cdef int r
    if not d.bad and not d.flags & H2H_FIELDS:
        _h2_fields_begin(h)
    if d.bad:
        return d.bad
    if not d.flags & H2H_METHOD:
        return R_BAD_REQUEST_LINE
    if d.flags & (H2H_HOST_LATE | H2H_COOKIES):
        r = _h2_order(h)
        if r:
            return r
    m = h2_message(d)
    if not d.flags & H2H_AUTHORITY and d.seen & (1 << F_HOST):
        f = &m.fields[0]
        m.authority.at = f.value_at
        m.authority.len = f.value_len
    r = _h2_target(h, m)
    if r:
        return r
    if d.seen & (1 << F_CONTENT_LENGTH):
        m.framing = FRAMING_LENGTH
        if m.method == M_CONNECT:
            # RFC 9110 9.3.6: a tunnel has no content
            return R_BAD_FRAMING
        if m.length and end:
            # RFC 9113 8.1.1: it is the sum of the DATA
            return R_BAD_LENGTH
    else:
        m.framing = FRAMING_CHUNKED
        m.length = LENGTH_UNKNOWN
    if end:
        m.framing = FRAMING_NONE
        m.length = 0
    _h2_seal(h)
    return 0


cdef inline int _h2_response(H2 *h, int method, bint end) noexcept nogil:
    cdef H2Head *d = &h.head
    cdef Message *m = h2_message(d)
    cdef bint sized = d.seen & (1 << F_CONTENT_LENGTH)
    cdef int i
    if d.bad:
        return d.bad
    if not d.flags & H2H_STATUS:
        return R_BAD_REQUEST_LINE
    if m.status < 200:
        if end:
            return R_BAD_FRAMING
        m.flags |= MSG_INTERIM
    if m.status < 200 or m.status == 204 or method == M_CONNECT and m.status < 300:
        # RFC 9110 8.6: may not be sent. A zero is harmless; anything else promises what nobody expects.
        if sized:
            if m.length and method != M_CONNECT:
                return R_BAD_FRAMING
            for i in range(m.nfields):
                if m.fields[i].id == F_CONTENT_LENGTH:
                    m.fields[i].flags |= FIELD_HOP
            m.flags |= MSG_HAS_HOP
        m.length = 0
    elif method == M_HEAD or m.status == 304:
        m.length = 0
    elif sized:
        if end and m.length:
            return R_BAD_LENGTH
        m.framing = FRAMING_LENGTH
    elif end:
        # Nothing follows, and HTTP/1 has to say so.
        m.framing = FRAMING_LENGTH
    else:
        m.framing = FRAMING_CHUNKED
        m.length = LENGTH_UNKNOWN
    _h2_seal(h)
    return 0


cdef inline int h2_head_response(H2 *h, int method, bint end) noexcept nogil:
    """The head of a response to `method`: 0, R_UPSTREAM_BAD_RESPONSE, ..._HEAD_TOO_LARGE or R_NO_MEMORY."""
    cdef int r = _h2_response(h, method, end)
    if r == 0 or r == R_NO_MEMORY:
        return r
    if r == R_HEAD_TOO_LARGE or r == R_TOO_MANY_FIELDS:
        return R_UPSTREAM_HEAD_TOO_LARGE
    return R_UPSTREAM_BAD_RESPONSE


cdef inline int h2_head_trailers(H2 *h) noexcept nogil:
    """The whole trailer section: 0 or a reason. What belongs into the head gets FIELD_HOP, as in HTTP/1."""
    cdef H2Head *d = &h.head
    cdef Message *m = h2_message(d)
    if d.bad == R_NO_MEMORY:
        return R_NO_MEMORY
    if d.bad or d.seen & (1 << F_CONTENT_LENGTH):
        return R_UPSTREAM_BAD_RESPONSE if h.role == H2_CLIENT else R_BAD_TRAILER
    http1_trailer_fields(m)
    _h2_seal(h)
    return 0
