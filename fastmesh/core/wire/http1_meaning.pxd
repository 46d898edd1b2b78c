# What the fields of an HTTP/1 head say: connection options, framing, upgrade, hosts.
#
# Contract: all of these look at a Message whose fields are filled and whose sections were checked byte by
# byte (no controls but HTAB); they set flags in it and return a reason for what they refuse.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmesh.core.base.reason cimport (
    R_BAD_FIELD, R_BAD_FRAMING, R_BAD_LENGTH, R_BAD_TRANSFER_CODING, R_BAD_UPGRADE,
)
from fastmesh.core.wire.http1_fields cimport Http1Seen
from fastmesh.core.wire.http1_scan cimport (
    FM_DIGIT, FM_HEX, FM_REGNAME, fm_class, fm_scan_token, http1_equal, http1_field_id,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_LENGTH, FRAMING_NONE, F_CONNECTION, F_CONTENT_LENGTH, F_EXPECT,
    F_FORWARDED, F_HOST, F_KEEP_ALIVE, F_OTHER, F_TRANSFER_ENCODING, F_UPGRADE, F_VIA, F_X_FASTMESH_REASON,
    F_X_FORWARDED_CLIENT_CERT, F_X_FORWARDED_FOR, F_X_FORWARDED_HOST, F_X_FORWARDED_PROTO, Field, LENGTH_UNKNOWN,
    MSG_HAS_HOP, MSG_HTTP10, Message,
)

cdef enum:
    HTTP1_MAX_OPTIONS = 32        # options in all Connection fields together
    # Connection that names one of these would make a hop drop what framing, routing or trust rests on.
    HTTP1_NEVER_HOP_IDS = (1 << F_HOST | 1 << F_CONTENT_LENGTH | 1 << F_TRANSFER_ENCODING | 1 << F_EXPECT
                           | 1 << F_VIA | 1 << F_FORWARDED | 1 << F_X_FORWARDED_FOR | 1 << F_X_FORWARDED_HOST
                           | 1 << F_X_FORWARDED_PROTO | 1 << F_X_FORWARDED_CLIENT_CERT | 1 << F_X_FASTMESH_REASON)

cdef enum Http1Option:
    HTTP1_CLOSE = 1
    HTTP1_KEEP_ALIVE = 2
    HTTP1_UPGRADE = 4


cdef inline int http1_connection(Message *out, Http1Seen *seen) noexcept nogil:
    """All Connection fields (RFC 9110 7.6.1): flag the fields they name; Http1Option bits, or a reason."""
    cdef const char *p
    cdef const char *end
    cdef const char *option
    cdef Field *f
    cdef size_t n
    cdef int i, j
    cdef int count = 0
    cdef int result = 0
    cdef uint8_t known
    for i in range(seen.first[<int>F_CONNECTION], out.nfields):
        f = &out.fields[i]
        if f.id != F_CONNECTION:
            continue
        p = out.base + f.value_at
        end = p + f.value_len
        if f.value_len == 10 and http1_field_id(p, 10) == F_KEEP_ALIVE:
            # by far the most frequent value
            result |= HTTP1_KEEP_ALIVE
            continue
        while p < end:
            # empty elements are legal and ignored (RFC 9110 5.6.1.2)
            if p[0] == c" " or p[0] == c"\t" or p[0] == c",":
                p += 1
                continue
            option = p
            p = fm_scan_token(p, end)
            n = <size_t>(p - option)
            while p < end and (p[0] == c" " or p[0] == c"\t"):
                p += 1
            if n == 0 or (p < end and p[0] != c","):
                return -R_BAD_FIELD
            count += 1
            if count > HTTP1_MAX_OPTIONS:
                return -R_BAD_FIELD
            if n == 5 and http1_equal(option, b"close", 5):
                result |= HTTP1_CLOSE
            elif n == 10 and http1_equal(option, b"keep-alive", 10):
                result |= HTTP1_KEEP_ALIVE
                continue
            elif n == 7 and http1_equal(option, b"upgrade", 7):
                result |= HTTP1_UPGRADE
                continue
            known = http1_field_id(option, n)
            if (<uint32_t>1 << known) & HTTP1_NEVER_HOP_IDS:
                return -R_BAD_FIELD
            for j in range(out.nfields):
                if (out.fields[j].name_len == n and out.fields[j].id == known
                        and (known != F_OTHER or http1_same(out.base + out.fields[j].at, option, n))):
                    out.fields[j].flags |= FIELD_HOP
                    out.flags |= MSG_HAS_HOP
    return result


cdef inline bint http1_same(const char *a, const char *b, size_t n) noexcept nogil:
    cdef size_t i
    cdef uint8_t x, y
    for i in range(n):
        x = <uint8_t>a[i]
        y = <uint8_t>b[i]
        if x != y and ((x ^ y) != 0x20 or (x | 0x20) < c"a" or (x | 0x20) > c"z"):
            return False
    return True


cdef inline int http1_length(const char *p, size_t n, uint64_t *out) noexcept nogil:
    """Content-Length = 1*DIGIT (RFC 9110 8.6) below 2**63, at most 19 digits; 0 or -R_BAD_LENGTH."""
    cdef uint64_t value = 0
    cdef size_t i
    cdef uint8_t digit
    if n == 0 or n > 19:
        return -R_BAD_LENGTH
    for i in range(n):
        digit = <uint8_t>(<uint8_t>p[i] - c"0")
        if digit > 9:
            return -R_BAD_LENGTH
        value = value * 10 + digit
    if value >> 63:
        return -R_BAD_LENGTH
    out[0] = value
    return 0


cdef inline int http1_framing(Message *out, Http1Seen *seen) noexcept nogil:
    """Framing from Content-Length and Transfer-Encoding (RFC 9112 6); FRAMING_NONE if there is neither."""
    cdef Field *f
    out.framing = FRAMING_NONE
    out.length = 0
    if not seen.once & (1 << F_TRANSFER_ENCODING | 1 << F_CONTENT_LENGTH):
        return 0
    if seen.once & (1 << F_TRANSFER_ENCODING):
        if seen.once & (1 << F_CONTENT_LENGTH):
            return -R_BAD_FRAMING
        f = &out.fields[seen.first[<int>F_TRANSFER_ENCODING]]
        # RFC 9112 6.1: in an HTTP/1.0 message the framing must be taken for faulty. White space behind the
        # value would be legal, but it is where parsers have failed to see the coding.
        if (seen.twice & (1 << F_TRANSFER_ENCODING) or out.flags & MSG_HTTP10 or f.value_len != 7
                or f.value_at + 9 != f.at + f.line_len
                or not http1_equal(out.base + f.value_at, b"chunked", 7)):
            return -R_BAD_TRANSFER_CODING
        out.framing = FRAMING_CHUNKED
        out.length = LENGTH_UNKNOWN
        return 0
    if seen.twice & (1 << F_CONTENT_LENGTH):
        return -R_BAD_LENGTH
    f = &out.fields[seen.first[<int>F_CONTENT_LENGTH]]
    out.framing = FRAMING_LENGTH
    return http1_length(out.base + f.value_at, f.value_len, &out.length)


cdef inline int http1_upgrade(Message *out, Http1Seen *seen) noexcept nogil:
    """Set out.upgrade from the one Upgrade field: protocol-name ["/" version], in a list (RFC 9110 7.8)."""
    cdef Field *f = &out.fields[seen.first[<int>F_UPGRADE]]
    cdef const char *p = out.base + f.value_at
    cdef const char *end = p + f.value_len
    cdef const char *q
    if seen.twice & (1 << F_UPGRADE) or p == end:
        return -R_BAD_UPGRADE
    while True:
        q = fm_scan_token(p, end)
        if q == p:
            return -R_BAD_UPGRADE
        p = q
        if p < end and p[0] == c"/":
            p += 1
            q = fm_scan_token(p, end)
            if q == p:
                return -R_BAD_UPGRADE
            p = q
        while p < end and (p[0] == c" " or p[0] == c"\t"):
            p += 1
        if p == end:
            break
        if p[0] != c",":
            return -R_BAD_UPGRADE
        p += 1
        while p < end and (p[0] == c" " or p[0] == c"\t"):
            p += 1
    out.upgrade.at = f.value_at
    out.upgrade.len = f.value_len
    return 0


cdef inline bint http1_te_trailers(const char *p, size_t n) noexcept nogil:
    """Whether a TE value has the member "trailers" (RFC 9110 10.1.4)."""
    cdef const char *end = p + n
    cdef const char *q
    while p < end:
        q = p
        while q < end and q[0] != c",":
            q += 1
        while p < q and (p[0] == c" " or p[0] == c"\t"):
            p += 1
        if q - p >= 8 and http1_equal(p, b"trailers", 8):
            p += 8
            while p < q and (p[0] == c" " or p[0] == c"\t"):
                p += 1
            if p == q:
                return True
        p = q + 1
    return False


cdef inline void http1_drop(Message *out, Http1Seen *seen, uint8_t id) noexcept nogil:
    """Mark the fields `id` to stay behind."""
    cdef int i
    if seen.once & (<uint32_t>1 << id):
        for i in range(seen.first[id], out.nfields):
            if out.fields[i].id == id:
                out.fields[i].flags |= FIELD_HOP
        out.flags |= MSG_HAS_HOP


cdef inline bint http1_ipv6(const char *p, const char *end) noexcept nogil:
    """Whether [p, end) is an IPv6address of RFC 3986 3.2.2, without brackets and zone."""
    cdef int groups = 0
    cdef int digits
    cdef int parts
    cdef int number
    cdef bint gap = False
    if end - p >= 2 and p[0] == c":":
        if p[1] != c":":
            return False
        gap = True
        p += 2
    while p < end:
        digits = 0
        while p + digits < end and digits < 5 and fm_class[<uint8_t>p[digits]] & FM_HEX:
            digits += 1
        if digits == 0 or digits > 4:
            return False
        if p + digits < end and p[digits] == c".":
            # the last 32 bits in dotted decimal
            for parts in range(4):
                number = 0
                digits = 0
                while p < end and fm_class[<uint8_t>p[0]] & FM_DIGIT and digits < 4:
                    if digits and number == 0:
                        return False
                    number = number * 10 + (p[0] - c"0")
                    digits += 1
                    p += 1
                if digits == 0 or number > 255:
                    return False
                if parts < 3:
                    if p == end or p[0] != c".":
                        return False
                    p += 1
            groups += 2
            break
        groups += 1
        p += digits
        if p == end:
            break
        if p[0] != c":" or p + 1 == end:
            return False
        p += 1
        if p[0] == c":":
            if gap:
                return False
            gap = True
            p += 1
    if p != end:
        return False
    return groups <= 7 if gap else groups == 8


cdef inline bint http1_host(const char *p, size_t n, size_t *host_len, int *port) noexcept nogil:
    """Whether p[:n] is uri-host [":" port] with a host that is not empty (RFC 9110 4.2, 7.2).

    *host_len: bytes of the host, brackets included; *port: -1 if absent or empty. User information and
    ports above 65535 are refused, and so are IPv6 zones and future address forms: none is routable.
    """
    cdef const char *start = p
    cdef const char *end = p + n
    cdef int number = 0
    port[0] = -1
    if n == 0:
        return False
    if p[0] == c"[":
        p += 1
        while p < end and p[0] != c"]":
            p += 1
        if p == end or not http1_ipv6(start + 1, p):
            return False
        p += 1
    else:
        while p < end:
            if fm_class[<uint8_t>p[0]] & FM_REGNAME:
                p += 1
            elif (p[0] == c"%" and end - p >= 3 and fm_class[<uint8_t>p[1]] & FM_HEX
                    and fm_class[<uint8_t>p[2]] & FM_HEX):
                p += 3
            else:
                break
        if p == start:
            return False
    host_len[0] = <size_t>(p - start)
    if p == end:
        return True
    if p[0] != c":" or end - p > 6:
        return False
    p += 1
    if p == end:
        return True
    while p < end:
        if not fm_class[<uint8_t>p[0]] & FM_DIGIT:
            return False
        number = number * 10 + (p[0] - c"0")
        p += 1
    port[0] = number
    return number <= 65535


cdef inline bint http1_offers_http(const char *p, size_t len) noexcept nogil:
    """Is another kind of HTTP, or TLS with HTTP in it, among the protocols of an Upgrade field? Requests inside
    a tunnel would pass no rule and no route."""
    cdef const char *end = p + len
    cdef size_t n
    while p < end:
        n = 0
        while p + n < end and p[n] != c"," and p[n] != c"/" and p[n] != c" " and p[n] != c"\t":
            n += 1
        if (n == 3 and (http1_equal(p, b"h2c", 3) or http1_equal(p, b"tls", 3))
                or n == 2 and http1_equal(p, b"h2", 2) or n == 4 and http1_equal(p, b"http", 4)):
            return True
        p += n
        while p < end and p[0] != c",":
            p += 1
        while p < end and (p[0] == c"," or p[0] == c" " or p[0] == c"\t"):
            p += 1
    return False


cdef inline int http1_field_named(const Message *m, const char *name, size_t n) noexcept nogil:
    """The first field of that name, which none of the FieldIds stands for; -1: there is none."""
    cdef int i
    for i in range(m.nfields):
        if (m.fields[i].name_len == n and m.fields[i].id == F_OTHER
                and http1_same(m.base + m.fields[i].at, name, n)):
            return i
    return -1
