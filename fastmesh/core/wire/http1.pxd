# HTTP/1 heads: requests and responses (RFC 9110, RFC 9112). Sans-I/O: bytes in, a Message out.
#
# Contract. A head is parsed where it was received; nothing is copied, allocated or kept, and no byte
# outside buf[:len] is read. `*scan` belongs to the caller, is opaque, and is 0 at the start of a head; it
# makes a head that arrives in pieces cost O(n) in all: the first call parses in a single pass, later calls
# look only at what is new, and parse once more when the head is whole, wrong or over a limit (the first
# line alone is parsed anew until it is whole). The caller passes the same head from its first byte each
# time. While 0 is returned, `*out` means nothing.
#
# What a head is refused for, and when, depends on its bytes alone, not on how they were cut: the first wrong
# byte decides as soon as it is there; what only the whole head shows (Host, framing, Connection, Upgrade,
# in this order) comes after that.
#
# Strict by intent: whatever two parsers could read differently is refused, never repaired. There are no
# lenient modes. tests/corpus/http1/stricter.json lists where that is more than llhttp asks, and why.
#
# The path of a request is a slice of its target, with three cases that no slice can show: CONNECT has none
# (length 0), "OPTIONS http://host" means "*" (RFC 9112 3.2.4), also length 0, and a query without a path
# ("http://host?q", RFC 9110 4.2.3) starts with the "?", where "/?" is meant; http1_write.pxd knows.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from fastmesh.core.base.reason cimport (
    R_BAD_FRAMING, R_BAD_HOST, R_BAD_REQUEST_LINE, R_BAD_TARGET, R_BAD_VERSION, R_HEAD_TOO_LARGE,
    R_LINE_TOO_LONG, R_TOO_MANY_FIELDS, R_UPSTREAM_BAD_RESPONSE, R_UPSTREAM_HEAD_TOO_LARGE,
)
from fastmesh.core.wire.http1_fields cimport (
    HTTP1_HOP_IDS, Http1Seen, http1_clear, http1_fields, http1_look, http1_waiting,
)
from fastmesh.core.wire.http1_meaning cimport (
    HTTP1_CLOSE, HTTP1_KEEP_ALIVE, HTTP1_UPGRADE, http1_connection, http1_drop, http1_framing,
    http1_host, http1_same, http1_te_trailers, http1_upgrade,
)
from fastmesh.core.wire.http1_scan cimport (
    FM_DIGIT, fm_class, fm_load16, fm_load32, fm_load64, fm_scan_target, fm_scan_token, fm_scan_value,
    http1_equal,
)
from fastmesh.core.wire.message cimport (
    FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_NONE, F_CONNECTION, F_CONTENT_LENGTH, F_EXPECT, F_HOST, F_TE,
    F_UPGRADE, Field, LENGTH_UNKNOWN, MAX_FIELDS, MAX_HEAD, MAX_LINE, MSG_EXPECT_CONTINUE, MSG_HAS_HOP, MSG_HTTP10,
    MSG_INTERIM, MSG_KEEP_ALIVE, MSG_TE_TRAILERS, MSG_UPGRADE, M_CONNECT, M_DELETE, M_GET, M_HEAD,
    M_OPTIONS, M_OTHER, M_PATCH, M_POST, M_PUT, M_TRACE, Message,
)

cdef enum:
    HTTP1_MAX_METHOD = 64         # bytes of a method
    HTTP1_MAX_EMPTY = 4           # empty lines before a request line


# ---- requests ------------------------------------------------------------------------------------------

cdef inline uint8_t http1_method(const char *p, size_t n) noexcept nogil:
    """The Method of p[:n]; methods are case-sensitive (RFC 9110 9.1)."""
    if n == 3:
        if memcmp(p, b"GET", 3) == 0:
            return M_GET
        if memcmp(p, b"PUT", 3) == 0:
            return M_PUT
    elif n == 4:
        if fm_load32(p) == fm_load32(b"POST"):
            return M_POST
        if fm_load32(p) == fm_load32(b"HEAD"):
            return M_HEAD
    elif n == 5:
        if memcmp(p, b"PATCH", 5) == 0:
            return M_PATCH
        if memcmp(p, b"TRACE", 5) == 0:
            return M_TRACE
    elif n == 6:
        if memcmp(p, b"DELETE", 6) == 0:
            return M_DELETE
    elif n == 7:
        if memcmp(p, b"OPTIONS", 7) == 0:
            return M_OPTIONS
        if memcmp(p, b"CONNECT", 7) == 0:
            return M_CONNECT
    return M_OTHER


cdef inline int http1_version(const char *p, const char *end, bint request) noexcept nogil:
    """HTTP-version at p and what must follow it, CRLF in requests, SP in responses.

    The length of both, 0 if they are not whole, else a reason. 1.0 is told from 1.1 by the caller: p[7].
    """
    cdef const char *pattern = b"HTTP/d.d "
    cdef int n = 9
    cdef int i
    if request:
        pattern = b"HTTP/d.d\r\n"
        n = 10
    for i in range(n):
        if p + i == end:
            return 0
        if pattern[i] == c"d":
            if not fm_class[<uint8_t>p[i]] & FM_DIGIT:
                return -R_BAD_REQUEST_LINE
        elif p[i] != pattern[i]:
            return -R_BAD_REQUEST_LINE
    if p[5] != c"1" or (p[7] != c"1" and p[7] != c"0"):
        return -R_BAD_VERSION
    return n


cdef inline int http1_target(Message *out, const char *p, const char *end) noexcept nogil:
    """Path, scheme and authority from a target [p, end) that is not in origin-form (RFC 9112 3.2)."""
    cdef const char *base = out.base
    cdef const char *start
    cdef size_t host_len
    cdef int port
    if out.method == M_CONNECT:
        # authority-form; the port is not optional
        if not http1_host(p, <size_t>(end - p), &host_len, &port) or port < 0:
            return -R_BAD_TARGET
        out.authority.at = <uint32_t>(p - base)
        out.authority.len = <uint32_t>(end - p)
        out.path.at = out.authority.at
        out.path.len = 0
        return 0
    if p[0] == c"*":
        if out.method != M_OPTIONS or end - p != 1:
            return -R_BAD_TARGET
        out.path.at = <uint32_t>(p - base)
        out.path.len = 1
        return 0
    if end - p >= 7 and http1_equal(p, b"http://", 7):
        out.scheme.len = 4
    elif end - p >= 8 and http1_equal(p, b"https://", 8):
        out.scheme.len = 5
    else:
        return -R_BAD_TARGET
    out.scheme.at = <uint32_t>(p - base)
    p += out.scheme.len + 3
    start = p
    while p < end and p[0] != c"/" and p[0] != c"?":
        p += 1
    if not http1_host(start, <size_t>(p - start), &host_len, &port):
        return -R_BAD_TARGET
    out.authority.at = <uint32_t>(start - base)
    out.authority.len = <uint32_t>(p - start)
    if p < end:
        out.path.at = <uint32_t>(p - base)
        out.path.len = <uint32_t>(end - p)
    elif out.method == M_OPTIONS:
        out.path.at = <uint32_t>(p - base)
        out.path.len = 0
    else:
        # an empty path is "/" in origin-form: the second slash before the authority serves as it
        out.path.at = <uint32_t>(start - 1 - base)
        out.path.len = 1
    return 0


cdef inline int http1_request_line(const char *base, const char **cursor, const char *end,
                                   Message *out) noexcept nogil:
    """method SP request-target SP HTTP-version CRLF (RFC 9112 3): 1, 0 if it is not whole, or a reason."""
    cdef const char *p = cursor[0]
    cdef const char *start = p
    cdef const char *target
    cdef int r
    p = fm_scan_token(p, end if end - p <= HTTP1_MAX_METHOD else p + HTTP1_MAX_METHOD + 1)
    if p - start > HTTP1_MAX_METHOD:
        return -R_BAD_REQUEST_LINE
    if p == end:
        return 0
    if p[0] != c" " or p == start:
        return -R_BAD_REQUEST_LINE
    out.method_name.at = <uint32_t>(start - base)
    out.method_name.len = <uint32_t>(p - start)
    p += 1
    target = p
    p = fm_scan_target(p, end)
    if p == end:
        return 0
    if p[0] != c" ":
        # an early end of the line is a request line without a version, anything else a bad target
        return -R_BAD_REQUEST_LINE if p[0] == c"\r" or p[0] == c"\n" else -R_BAD_TARGET
    if p == target:
        return -R_BAD_TARGET
    out.path.at = <uint32_t>(target - base)
    out.path.len = <uint32_t>(p - target)
    if (end - p >= 11 and fm_load64(p + 1) == fm_load64(b"HTTP/1.1")
            and fm_load16(p + 9) == fm_load16(b"\r\n")):
        r = 10
    else:
        r = http1_version(p + 1, end, True)
        if r <= 0:
            return r
        if p[8] == c"0":
            out.flags = MSG_HTTP10
    cursor[0] = p + 1 + r
    out.method = http1_method(start, out.method_name.len)
    if target[0] == c"/" and out.method != M_CONNECT:
        return 1
    r = http1_target(out, target, p)
    return 1 if r == 0 else r


cdef inline int http1_request_host(Message *out, Http1Seen *seen) noexcept nogil:
    """Host against the version and the target (RFC 9112 3.2): sets the authority; 0 or -R_BAD_HOST."""
    cdef Field *f
    cdef size_t length, target_length
    cdef int port, target_port, default_port
    if seen.twice & (1 << F_HOST):
        return -R_BAD_HOST
    if not seen.once & (1 << F_HOST):
        return 0 if out.flags & MSG_HTTP10 else -R_BAD_HOST
    f = &out.fields[seen.first[<int>F_HOST]]
    if f.value_len == 0:
        return 0 if out.flags & MSG_HTTP10 else -R_BAD_HOST
    if not http1_host(out.base + f.value_at, f.value_len, &length, &port):
        return -R_BAD_HOST
    if out.authority.len == 0:
        out.authority.at = f.value_at
        out.authority.len = f.value_len
        return 0
    # Target and Host must name the same place, or the next hop might choose the other one.
    http1_host(out.base + out.authority.at, out.authority.len, &target_length, &target_port)
    if length != target_length or not http1_same(out.base + f.value_at, out.base + out.authority.at, length):
        return -R_BAD_HOST
    default_port = target_port if out.method == M_CONNECT else 443 if out.scheme.len == 5 else 80
    if port < 0:
        port = default_port
    if target_port < 0:
        target_port = default_port
    return 0 if port == target_port else -R_BAD_HOST


cdef inline int http1_request_meaning(Message *out, Http1Seen *seen) noexcept nogil:
    """What the fields of a whole request say: 0 or a reason."""
    cdef Field *f
    cdef int i
    cdef int options = 0
    cdef int r = http1_request_host(out, seen)
    if r < 0:
        return r
    r = http1_framing(out, seen)
    if r < 0:
        return r
    if out.method == M_CONNECT and (out.framing == FRAMING_CHUNKED or out.length):
        # RFC 9110 9.3.6: no content; what follows the head belongs to the tunnel
        return -R_BAD_FRAMING
    if seen.once & HTTP1_HOP_IDS:
        out.flags |= MSG_HAS_HOP
        if seen.once & (1 << F_CONNECTION):
            options = http1_connection(out, seen)
            if options < 0:
                return options
        if seen.once & (1 << F_TE):
            for i in range(seen.first[<int>F_TE], out.nfields):
                f = &out.fields[i]
                if f.id == F_TE and http1_te_trailers(out.base + f.value_at, f.value_len):
                    out.flags |= MSG_TE_TRAILERS
    if not options & HTTP1_CLOSE and (not out.flags & MSG_HTTP10 or options & HTTP1_KEEP_ALIVE):
        out.flags |= MSG_KEEP_ALIVE
    if out.flags & MSG_HTTP10:
        # RFC 9110 7.8, 10.1.1: Upgrade and 100-continue of an HTTP/1.0 client are ignored; sent on as
        # HTTP/1.1, the next hop would not
        http1_drop(out, seen, F_EXPECT)
        return 0
    if options & HTTP1_UPGRADE and seen.once & (1 << F_UPGRADE):
        r = http1_upgrade(out, seen)
        if r < 0:
            return r
        out.flags |= MSG_UPGRADE
    if seen.once & (1 << F_EXPECT):
        f = &out.fields[seen.first[<int>F_EXPECT]]
        if f.value_len == 12 and http1_equal(out.base + f.value_at, b"100-continue", 12):
            out.flags |= MSG_EXPECT_CONTINUE
    return 0


cdef inline int http1_parse_request(const char *buf, size_t len, uint32_t *scan, Message *out) noexcept nogil:
    """A request head at buf: its length, empty lines before it included; 0 if it is not whole; or -R_BAD_...

    Empty lines before the request line are skipped (RFC 9112 2.2), at most HTTP1_MAX_EMPTY of them:
    out.base = buf + skipped. R_LINE_TOO_LONG, R_HEAD_TOO_LARGE and R_TOO_MANY_FIELDS come as soon as
    the limit is passed, whether or not the head is whole.
    """
    cdef const char *base = buf
    cdef const char *end = buf + len
    cdef const char *p
    cdef const char *stop
    cdef Http1Seen seen
    cdef int r
    while base < end and (base[0] == c"\r" or base[0] == c"\n"):
        if base[0] == c"\n" or base - buf >= 2 * HTTP1_MAX_EMPTY:
            return -R_BAD_REQUEST_LINE
        if base + 1 == end:
            return 0
        if base[1] != c"\n":
            return -R_BAD_REQUEST_LINE
        base += 2
    if base == end:
        return 0
    if scan[0] and not http1_look(base, end, scan, MAX_FIELDS):
        return 0
    http1_clear(out, base)
    p = base
    stop = base + MAX_LINE + 2 if end - base > MAX_LINE + 2 else end
    r = http1_request_line(base, &p, stop, out)
    if r <= 0:
        if r == 0:
            if stop - base == MAX_LINE + 2:
                return -R_LINE_TOO_LONG
            http1_waiting(base, base, 0, scan)
        return r
    stop = base + MAX_HEAD if end - base > MAX_HEAD else end
    r = http1_fields(base, &p, stop, MAX_FIELDS, out, &seen)
    if r <= 0:
        if r == 0:
            if stop - base == MAX_HEAD:
                return -R_HEAD_TOO_LARGE
            http1_waiting(base, p, 1 + out.nfields, scan)
        return r
    out.head_len = <uint32_t>(p - base)
    r = http1_request_meaning(out, &seen)
    if r < 0:
        return r
    scan[0] = 0
    return <int>(p - buf)


# ---- responses -----------------------------------------------------------------------------------------

cdef inline int http1_status_line(const char *base, const char **cursor, const char *end,
                                  Message *out) noexcept nogil:
    """status-line = HTTP-version SP 3DIGIT SP [reason-phrase] CRLF (RFC 9112 4): 1, 0 if not whole, a reason.

    The second SP may be missing when there is no reason phrase: many servers leave it out, and nothing
    can be misread. A status is 100 to 999; what lies above 599 passes as it is.
    """
    cdef const char *p = cursor[0]
    cdef int i
    cdef int status = 0
    cdef int r = http1_version(p, end, False)
    if r <= 0:
        return r
    if p[7] == c"0":
        out.flags = MSG_HTTP10
    p += r
    for i in range(3):
        if p == end:
            return 0
        if not fm_class[<uint8_t>p[0]] & FM_DIGIT:
            return -R_BAD_REQUEST_LINE
        status = status * 10 + (p[0] - c"0")
        if status == 0:
            return -R_BAD_REQUEST_LINE
        p += 1
    out.status = <uint16_t>status
    if p == end:
        return 0
    if p[0] == c" ":
        p += 1
        out.reason.at = <uint32_t>(p - base)
        p = fm_scan_value(p, end)
        if p == end:
            return 0
        out.reason.len = <uint32_t>(p - base) - out.reason.at
    if p[0] != c"\r":
        return -R_BAD_REQUEST_LINE
    if p + 1 == end:
        return 0
    if p[1] != c"\n":
        return -R_BAD_REQUEST_LINE
    cursor[0] = p + 2
    return 1


cdef inline int http1_response_meaning(Message *out, Http1Seen *seen, int request_method) noexcept nogil:
    """Framing by RFC 9112 6.3, persistence by 9.3: 0 or a reason."""
    cdef int options = 0
    cdef int r = http1_framing(out, seen)
    if r < 0:
        return r
    if out.status < 200 or out.status == 204:
        # RFC 9110 8.6, RFC 9112 6.1: neither field may be sent. "Content-Length: 0" is common and harmless,
        # so it is only dropped; anything else may be followed by a body that nobody expects.
        if out.framing == FRAMING_CHUNKED or out.length:
            return -R_BAD_FRAMING
        http1_drop(out, seen, F_CONTENT_LENGTH)
        out.framing = FRAMING_NONE
    elif request_method == M_HEAD or out.status == 304:
        out.framing = FRAMING_NONE
    elif request_method == M_CONNECT and out.status < 300:
        http1_drop(out, seen, F_CONTENT_LENGTH)
        out.framing = FRAMING_NONE
    elif out.framing == FRAMING_NONE:
        out.framing = FRAMING_CLOSE
        out.length = LENGTH_UNKNOWN
    if out.framing == FRAMING_NONE:
        out.length = 0
    if seen.once & HTTP1_HOP_IDS:
        out.flags |= MSG_HAS_HOP
        if seen.once & (1 << F_CONNECTION):
            options = http1_connection(out, seen)
            if options < 0:
                return options
    if (out.framing != FRAMING_CLOSE and not options & HTTP1_CLOSE
            and (not out.flags & MSG_HTTP10 or options & HTTP1_KEEP_ALIVE)):
        out.flags |= MSG_KEEP_ALIVE
    if out.status == 101 or out.status == 426:
        # the protocol switched to, or the ones that are wanted (RFC 9110 15.2.2, 15.5.22)
        if out.status == 101:
            out.flags |= MSG_UPGRADE
        if seen.once & (1 << F_UPGRADE):
            r = http1_upgrade(out, seen)
            return r if out.status == 101 else 0
    elif out.status < 200:
        out.flags |= MSG_INTERIM
    return 0


cdef inline int http1_upstream_reason(int r) noexcept nogil:
    """The pair of reasons that a response is refused with."""
    if r == -R_LINE_TOO_LONG or r == -R_HEAD_TOO_LARGE or r == -R_TOO_MANY_FIELDS:
        return -R_UPSTREAM_HEAD_TOO_LARGE
    return -R_UPSTREAM_BAD_RESPONSE


cdef inline int http1_parse_response(const char *buf, size_t len, uint32_t *scan, int request_method,
                                     Message *out) noexcept nogil:
    """A response head at buf: its length; 0 if it is not whole; or a reason.

    The reasons are R_UPSTREAM_BAD_RESPONSE and R_UPSTREAM_HEAD_TOO_LARGE.
    `request_method` is the Method of the request that is answered: it decides whether a body follows.
    """
    cdef const char *end = buf + len
    cdef const char *p = buf
    cdef const char *stop
    cdef Http1Seen seen
    cdef int r
    if len == 0 or (scan[0] and not http1_look(buf, end, scan, MAX_FIELDS)):
        return 0
    http1_clear(out, buf)
    out.method_name.at = out.method_name.len = out.path.at = out.path.len = 0
    stop = buf + MAX_LINE + 2 if len > MAX_LINE + 2 else end
    r = http1_status_line(buf, &p, stop, out)
    if r <= 0:
        if r == 0:
            if stop - buf == MAX_LINE + 2:
                return -R_UPSTREAM_HEAD_TOO_LARGE
            http1_waiting(buf, buf, 0, scan)
            return 0
        return http1_upstream_reason(r)
    stop = buf + MAX_HEAD if len > MAX_HEAD else end
    r = http1_fields(buf, &p, stop, MAX_FIELDS, out, &seen)
    if r <= 0:
        if r == 0:
            if stop - buf == MAX_HEAD:
                return -R_UPSTREAM_HEAD_TOO_LARGE
            http1_waiting(buf, p, 1 + out.nfields, scan)
            return 0
        return http1_upstream_reason(r)
    out.head_len = <uint32_t>(p - buf)
    r = http1_response_meaning(out, &seen, request_method)
    if r < 0:
        return http1_upstream_reason(r)
    scan[0] = 0
    return <int>(p - buf)
