# Field sections of HTTP/1 (RFC 9112 5): heads and trailers share them.
#
# Contract: reads only [p, end), fills a Message's fields, keeps nothing. Also here: how a section that
# arrives in pieces is found whole without being parsed again and again (http1_look).
#
# *scan, as the codec uses it: STARTED | whole lines << LINES_AT | offset of the first byte not looked at,
# and IN_VALUE if that byte is behind the colon of its line. The lines include the first one; a trailer
# section, which has none, counts one more than it has.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmesh.core.base.reason cimport R_BAD_FIELD, R_TOO_MANY_FIELDS
from fastmesh.core.wire.http1_scan cimport fm_scan_token, fm_scan_value, http1_field_id
from fastmesh.core.wire.message cimport (
    FIELD_HOP, F_CONNECTION, F_KEEP_ALIVE, F_OTHER, F_PROXY_CONNECTION, F_TE, F_TRANSFER_ENCODING,
    F_UPGRADE, Field, MAX_HEAD, MAX_LINE, M_OTHER, Message,
)

cdef enum:
    HTTP1_STARTED = 0x80000000    # a first parse has happened
    HTTP1_IN_VALUE = 0x40000000
    HTTP1_LINES_AT = 17           # up to 129: eight bits
    HTTP1_OFFSET = 0x1FFFF        # up to MAX_HEAD

cdef enum:
    HTTP1_HOP_IDS = (1 << F_CONNECTION | 1 << F_KEEP_ALIVE | 1 << F_PROXY_CONNECTION | 1 << F_TE
                     | 1 << F_TRANSFER_ENCODING | 1 << F_UPGRADE)


cdef struct Http1Seen:
    # which known fields a head has: one bit and, if set, the first field's index per FieldId
    uint32_t once
    uint32_t twice
    uint8_t first[32]


cdef inline void http1_clear(Message *out, const char *base) noexcept nogil:
    out.base = base
    out.status = 0
    out.method = M_OTHER
    out.flags = 0
    out.whole = 0
    out.nfields = 0
    out.authority.at = 0
    out.authority.len = 0
    out.scheme.at = 0
    out.scheme.len = 0
    out.reason.at = 0
    out.reason.len = 0
    out.upgrade.at = 0
    out.upgrade.len = 0
    out.protocol.at = 0
    out.protocol.len = 0


cdef inline int http1_field_line(const char *base, const char *p, const char *end, Field *f) noexcept nogil:
    """One field line at p: its length with CRLF, 0 if it is not whole, -R_BAD_FIELD.

    field-line = field-name ":" OWS field-value OWS (RFC 9112 5). A line that starts with white space
    (obs-fold) has no name and is refused like every other line without one.
    """
    cdef const char *name = p
    cdef const char *value
    cdef const char *stop
    p = fm_scan_token(p, end)
    if p == end:
        return 0
    if p[0] != c":" or p == name:
        return -R_BAD_FIELD
    f.at = <uint32_t>(name - base)
    f.name_len = <uint16_t>(p - name)
    p += 1
    while p < end and (p[0] == c" " or p[0] == c"\t"):
        p += 1
    value = p
    p = fm_scan_value(p, end)
    if p == end:
        return 0
    if p[0] != c"\r":
        return -R_BAD_FIELD
    if p + 1 == end:
        return 0
    if p[1] != c"\n":
        return -R_BAD_FIELD
    stop = p
    while stop > value and ((stop - 1)[0] == c" " or (stop - 1)[0] == c"\t"):
        stop -= 1
    f.value_at = <uint32_t>(value - base)
    f.value_len = <uint32_t>(stop - value)
    f.line_len = <uint32_t>(p + 2 - name)
    f.flags = 0
    return <int>f.line_len


cdef inline int http1_fields(const char *base, const char **cursor, const char *end, int limit, Message *out,
                             Http1Seen *seen) noexcept nogil:
    """The field lines at *cursor and the empty line behind them: 1 if whole, 0 if not, else a reason.

    Fills out.fields, out.nfields and `seen`; *cursor ends behind the last whole line. Hop-by-hop fields
    get their flag here. `end` may be a limit rather than the end of data: the caller knows which.
    """
    cdef const char *p = cursor[0]
    cdef Field *f
    cdef uint32_t bit
    cdef int n = 0
    cdef int r
    seen.once = 0
    seen.twice = 0
    while True:
        cursor[0] = p
        out.nfields = <uint16_t>n
        if p == end:
            return 0
        if p[0] == c"\r":
            if p + 1 == end:
                return 0
            if p[1] != c"\n":
                return -R_BAD_FIELD
            cursor[0] = p + 2
            return 1
        if n == limit:
            return -R_TOO_MANY_FIELDS
        f = &out.fields[n]
        r = http1_field_line(base, p, end, f)
        if r <= 0:
            return r
        f.id = http1_field_id(p, f.name_len)
        if f.id != F_OTHER:
            bit = <uint32_t>1 << f.id
            if seen.once & bit:
                seen.twice |= bit
            else:
                seen.once |= bit
                seen.first[f.id] = <uint8_t>n
            if bit & HTTP1_HOP_IDS:
                f.flags = FIELD_HOP
        p += r
        n += 1


cdef inline bint http1_look(const char *start, const char *end, uint32_t *scan, int limit) noexcept nogil:
    """Whether a head that was incomplete before is worth a parse now: whole, wrong or over a limit.

    Looks at every byte of the fields once. While the first line is not whole it always says yes: that is
    MAX_LINE bytes at most, scanned sixteen at a time. `limit` is the number of fields allowed.
    """
    cdef const char *p = start + (scan[0] & HTTP1_OFFSET)
    cdef uint32_t lines = (scan[0] >> HTTP1_LINES_AT) & 0xFF
    cdef bint in_value = scan[0] & HTTP1_IN_VALUE
    if lines == 0 or end - start >= MAX_HEAD:
        return True
    while p < end:
        if not in_value:
            if p == start or (p - 1)[0] == c"\n":
                if p[0] == c"\r":
                    if p + 1 == end:
                        break
                    return True
                if p[0] == c":" or lines > <uint32_t>limit:
                    return True
            p = fm_scan_token(p, end)
            if p == end:
                break
            if p[0] != c":":
                return True
            in_value = True
        p = fm_scan_value(p, end)
        if p == end:
            break
        if p[0] != c"\r":
            return True
        if p + 1 == end:
            break
        if p[1] != c"\n":
            return True
        p += 2
        lines += 1
        in_value = False
    http1_waiting(start, p, lines, scan)
    if in_value:
        scan[0] |= HTTP1_IN_VALUE
    return False


cdef inline void http1_waiting(const char *start, const char *at, uint32_t lines,
                               uint32_t *scan) noexcept nogil:
    """Note in *scan that `lines` lines are whole and right, and that the next one starts at `at`."""
    scan[0] = <uint32_t>HTTP1_STARTED | lines << HTTP1_LINES_AT | <uint32_t>(at - start)


