# Serialising HTTP/1: first lines, kept fields, chunk sizes.
#
# Contract: every function writes at `out` and returns the bytes written; the caller has made room.
# http1_head_bound says how much a whole head can need. Nothing is terminated with NUL.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from fastmesh.core.wire.message cimport FIELD_HOP, Field, MSG_HAS_HOP, MSG_HTTP2, M_CONNECT, Message

cdef enum:
    HTTP1_CHUNK_SIZE_MAX = 18    # bytes that http1_write_chunk_size writes at most


cdef inline bint http1_has_field(const Message *m, int id) noexcept nogil:
    """Is there a field `id` that goes on?"""
    cdef int i
    for i in range(m.nfields):
        if m.fields[i].id == id and not m.fields[i].flags & FIELD_HOP:
            return True
    return False


cdef inline size_t http1_head_bound(const Message *m, size_t extra) noexcept nogil:
    """What suffices for m written anew (first line, all fields, empty line) with `extra` bytes of fields."""
    return <size_t>m.head_len + extra + 64


cdef inline size_t http1_write_chunk_size(char *out, size_t n) noexcept nogil:
    """The line before a chunk of n bytes: "1a2b\\r\\n", at most HTTP1_CHUNK_SIZE_MAX bytes."""
    cdef const char *digits = b"0123456789abcdef"
    cdef size_t length = 1
    cdef size_t i
    while n >> (4 * length - 1) >> 1:
        length += 1
    for i in range(length):
        out[length - 1 - i] = digits[(n >> (4 * i)) & 15]
    out[length] = c"\r"
    out[length + 1] = c"\n"
    return length + 2


cdef inline size_t http1_write_request_line(char *out, const Message *m) noexcept nogil:
    """The request line for the next hop: origin-form, "*", or authority-form for CONNECT; always HTTP/1.1."""
    cdef size_t n = m.method_name.len
    if m.protocol.len > 0:
        memcpy(out, b"GET", 3)           # an extended CONNECT: RFC 8441 5
        n = 3
    else:
        memcpy(out, m.base + m.method_name.at, n)
    out[n] = c" "
    n += 1
    if m.method == M_CONNECT and m.protocol.len == 0:
        memcpy(out + n, m.base + m.authority.at, m.authority.len)
        n += m.authority.len
    elif m.path.len == 0:
        # RFC 9112 3.2.4: OPTIONS of an absolute-form without path asks about the server
        out[n] = c"*"
        n += 1
    else:
        if m.base[m.path.at] == c"?":
            # RFC 9110 4.2.3: an empty path is "/"
            out[n] = c"/"
            n += 1
        memcpy(out + n, m.base + m.path.at, m.path.len)
        n += m.path.len
    memcpy(out + n, b" HTTP/1.1\r\n", 11)
    return n + 11


cdef inline const char *http1_phrase(int status) noexcept nogil:
    """The registered reason phrase (RFC 9110 15 and the registry it names); empty for a status without one."""
    if status == 200: return b"OK"
    if status == 100: return b"Continue"
    if status == 101: return b"Switching Protocols"
    if status == 102: return b"Processing"
    if status == 103: return b"Early Hints"
    if status == 201: return b"Created"
    if status == 202: return b"Accepted"
    if status == 203: return b"Non-Authoritative Information"
    if status == 204: return b"No Content"
    if status == 205: return b"Reset Content"
    if status == 206: return b"Partial Content"
    if status == 207: return b"Multi-Status"
    if status == 208: return b"Already Reported"
    if status == 226: return b"IM Used"
    if status == 300: return b"Multiple Choices"
    if status == 301: return b"Moved Permanently"
    if status == 302: return b"Found"
    if status == 303: return b"See Other"
    if status == 304: return b"Not Modified"
    if status == 305: return b"Use Proxy"
    if status == 307: return b"Temporary Redirect"
    if status == 308: return b"Permanent Redirect"
    if status == 400: return b"Bad Request"
    if status == 401: return b"Unauthorized"
    if status == 402: return b"Payment Required"
    if status == 403: return b"Forbidden"
    if status == 404: return b"Not Found"
    if status == 405: return b"Method Not Allowed"
    if status == 406: return b"Not Acceptable"
    if status == 407: return b"Proxy Authentication Required"
    if status == 408: return b"Request Timeout"
    if status == 409: return b"Conflict"
    if status == 410: return b"Gone"
    if status == 411: return b"Length Required"
    if status == 412: return b"Precondition Failed"
    if status == 413: return b"Content Too Large"
    if status == 414: return b"URI Too Long"
    if status == 415: return b"Unsupported Media Type"
    if status == 416: return b"Range Not Satisfiable"
    if status == 417: return b"Expectation Failed"
    if status == 421: return b"Misdirected Request"
    if status == 422: return b"Unprocessable Content"
    if status == 423: return b"Locked"
    if status == 424: return b"Failed Dependency"
    if status == 425: return b"Too Early"
    if status == 426: return b"Upgrade Required"
    if status == 428: return b"Precondition Required"
    if status == 429: return b"Too Many Requests"
    if status == 431: return b"Request Header Fields Too Large"
    if status == 451: return b"Unavailable For Legal Reasons"
    if status == 500: return b"Internal Server Error"
    if status == 501: return b"Not Implemented"
    if status == 502: return b"Bad Gateway"
    if status == 503: return b"Service Unavailable"
    if status == 504: return b"Gateway Timeout"
    if status == 505: return b"HTTP Version Not Supported"
    if status == 506: return b"Variant Also Negotiates"
    if status == 507: return b"Insufficient Storage"
    if status == 508: return b"Loop Detected"
    if status == 511: return b"Network Authentication Required"
    return b""


cdef inline size_t http1_write_status_line(char *out, const Message *m) noexcept nogil:
    """The status line for the next hop: always HTTP/1.1, with the reason phrase as it was received; in HTTP/2 there is
    none, so it gets the registered one."""
    cdef const char *phrase = m.base + m.reason.at
    cdef size_t n = m.reason.len
    if m.flags & MSG_HTTP2:
        phrase = http1_phrase(m.status)
        n = strlen(phrase)
    memcpy(out, b"HTTP/1.1 ", 9)
    out[9] = <char>(c"0" + m.status // 100)
    out[10] = <char>(c"0" + m.status // 10 % 10)
    out[11] = <char>(c"0" + m.status % 10)
    out[12] = c" "
    memcpy(out + 13, phrase, n)
    memcpy(out + 13 + n, b"\r\n", 2)
    return n + 15


cdef inline size_t http1_write_via(char *out, int version) noexcept nogil:
    """Via for a message that was received as HTTP/1.0 (10), HTTP/1.1 (11) or HTTP/2 (20) (RFC 9110 7.6.3)."""
    if version == 20:
        memcpy(out, b"via: 2 fastmesh\r\n", 17)
        return 17
    memcpy(out, b"via: 1.0 fastmesh\r\n" if version == 10 else b"via: 1.1 fastmesh\r\n", 19)
    return 19


cdef inline size_t http1_write_upgrade(char *out, const Message *m) noexcept nogil:
    """Upgrade as it was received, and the Connection that it wants (RFC 9110 7.8)."""
    memcpy(out, b"connection: upgrade\r\nupgrade: ", 30)
    memcpy(out + 30, m.base + m.upgrade.at, m.upgrade.len)
    memcpy(out + 30 + m.upgrade.len, b"\r\n", 2)
    return <size_t>m.upgrade.len + 32


cdef inline size_t http1_copy_fields_skip(char *out, const Message *m, uint64_t skip) noexcept nogil:
    """The fields that go on, without those whose FieldId is a bit of `skip`; a run is one memcpy."""
    cdef const Field *f
    cdef size_t n = 0
    cdef uint32_t run_at = 0
    cdef uint32_t run_end = 0
    cdef int i
    for i in range(m.nfields):
        f = &m.fields[i]
        if f.flags & FIELD_HOP or (skip >> f.id) & 1:
            continue
        if f.at != run_end:
            memcpy(out + n, m.base + run_at, run_end - run_at)
            n += run_end - run_at
            run_at = f.at
        run_end = f.at + f.line_len
    memcpy(out + n, m.base + run_at, run_end - run_at)
    return n + (run_end - run_at)


cdef inline size_t http1_copy_fields(char *out, const Message *m) noexcept nogil:
    """All fields that go on, as received."""
    cdef const Field *last
    cdef uint32_t at
    if m.nfields == 0:
        return 0
    if m.flags & MSG_HAS_HOP:
        return http1_copy_fields_skip(out, m, 0)
    last = &m.fields[m.nfields - 1]
    at = m.fields[0].at
    memcpy(out, m.base + at, last.at + last.line_len - at)
    return last.at + last.line_len - at
