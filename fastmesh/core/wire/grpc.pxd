# What a proxy has to know of gRPC: which messages are calls, their deadline, and how a call is told that it failed.
#
# Contract: reads a Message or the bytes it is given, writes only what the caller has made room for, keeps nothing.
# Names and values are those of PROTOCOL-HTTP2.md, http-grpc-status-mapping.md and statuscodes.md of the gRPC project.
# Which gRPC status an error of our own has is in the table of reasons (base/reason).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmesh.core.wire.http1_meaning cimport http1_field_named, http1_same
from fastmesh.core.wire.http1_scan cimport fm_scan_token, http1_equal
from fastmesh.core.wire.message cimport FIELD_HOP, F_CONTENT_TYPE, F_OTHER, Field, Message

cdef enum:  # GrpcKind
    GRPC_NOT = 0
    GRPC_CALL = 1             # application/grpc
    GRPC_WEB = 2              # application/grpc-web
    GRPC_WEB_TEXT = 3         # application/grpc-web-text: the same in base64

cdef enum:  # GrpcStatus, of them those that a proxy gives
    GRPC_OK = 0
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_PERMISSION_DENIED = 7
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14
    GRPC_UNAUTHENTICATED = 16

cdef enum:
    GRPC_MESSAGE_MAX = 1024   # bytes of a grpc-message of ours, encoded
    # grpc-status and grpc-message without its value; content-type besides
    GRPC_STATUS_LINES = 33
    GRPC_ERROR_LINES = GRPC_STATUS_LINES + 32


# ---------------------------------------------------------------- what came

cdef inline int grpc_kind(const char *p, size_t n, size_t *subtype_at, size_t *subtype_len) noexcept nogil:
    """The GrpcKind of the Content-Type p[:n], free of controls; its "+subtype" is p[*subtype_at:][:*subtype_len].

    "application/grpc" alone, with a subtype, or with parameters; nothing else that only begins so.
    """
    cdef const char *end = p + n
    cdef const char *q
    cdef int kind = GRPC_CALL
    cdef size_t at = 16
    subtype_at[0] = 0
    subtype_len[0] = 0
    if n < 16 or not http1_equal(p, b"application/grpc", 16):
        return GRPC_NOT
    if n >= 20 and http1_equal(p + 16, b"-web", 4):
        kind = GRPC_WEB
        at = 20
        if n >= 25 and http1_equal(p + 20, b"-text", 5):
            kind = GRPC_WEB_TEXT
            at = 25
            if n >= 32 and http1_equal(p + 25, b"-base64", 7):    # PROTOCOL-WEB: the default, named
                at = 32
    q = p + at
    if q < end and q[0] == c"+":
        q = fm_scan_token(q, end)
        if q == p + at + 1:
            return GRPC_NOT
    subtype_at[0] = at
    subtype_len[0] = <size_t>(q - p) - at
    while q < end and (q[0] == c" " or q[0] == c"\t"):
        q += 1
    if q < end and q[0] != c";":
        return GRPC_NOT
    return kind


cdef inline int grpc_content_type(const Message *m, int *field, size_t *subtype_at, size_t *subtype_len) noexcept nogil:
    """The GrpcKind of a head, and which of its fields says so. With two Content-Types it is nothing: who knows
    which of them the other side goes by."""
    cdef const Field *f
    cdef int found = -1
    cdef int i
    for i in range(m.nfields):
        if m.fields[i].id == F_CONTENT_TYPE:
            if found >= 0:
                return GRPC_NOT
            found = i
    if found < 0:
        return GRPC_NOT
    field[0] = found
    f = &m.fields[found]
    return grpc_kind(m.base + f.value_at, f.value_len, subtype_at, subtype_len)


cdef inline bint grpc_is_status(const Message *m, const Field *f) noexcept nogil:
    """Does the field tell how a call went: grpc-status, grpc-message, grpc-status-details-bin?"""
    cdef const char *name = m.base + f.at
    if f.id != F_OTHER or f.flags & FIELD_HOP:
        return False
    return (f.name_len == 11 and http1_same(name, b"grpc-status", 11)
            or f.name_len == 12 and http1_same(name, b"grpc-message", 12)
            or f.name_len == 23 and http1_same(name, b"grpc-status-details-bin", 23))


cdef inline bint grpc_has_status(const Message *m) noexcept nogil:
    """Is there a grpc-status that goes on?"""
    cdef int i = http1_field_named(m, b"grpc-status", 11)
    return i >= 0 and not m.fields[i].flags & FIELD_HOP


cdef inline bint grpc_timeout(const char *p, size_t n, uint64_t *us) noexcept nogil:
    """The value of a grpc-timeout: one to eight digits and H, M, S, m, u or n. False: it is none.

    In microseconds, rounded up, so that only 0 is 0: over at once, as servers have it. The largest, 99999999H, is
    below 2**59.
    """
    cdef uint64_t value = 0
    cdef size_t i
    cdef uint8_t digit
    if n < 2 or n > 9:
        return False
    for i in range(n - 1):
        digit = <uint8_t>(<uint8_t>p[i] - c"0")
        if digit > 9:
            return False
        value = value * 10 + digit
    if p[n - 1] == c"H":
        value *= 3600000000ULL
    elif p[n - 1] == c"M":
        value *= 60000000
    elif p[n - 1] == c"S":
        value *= 1000000
    elif p[n - 1] == c"m":
        value *= 1000
    elif p[n - 1] == c"n":
        value = (value + 999) // 1000
    elif p[n - 1] != c"u":
        return False
    us[0] = value
    return True


cdef inline int grpc_deadline(const Message *m, uint64_t *us) noexcept nogil:
    """How long the caller of a request waits: 1 and *us; 0: it does not say; -1: malformed, or said twice."""
    cdef const Field *f
    cdef int i = http1_field_named(m, b"grpc-timeout", 12)
    cdef int k
    if i < 0:
        return 0
    for k in range(i + 1, m.nfields):
        if m.fields[k].name_len == 12 and http1_same(m.base + m.fields[k].at, b"grpc-timeout", 12):
            return -1
    f = &m.fields[i]
    return 1 if grpc_timeout(m.base + f.value_at, f.value_len, us) else -1


cdef inline int grpc_of_http(int status) noexcept nogil:
    """The gRPC status of an answer that does not tell one (http-grpc-status-mapping.md); not for our own errors."""
    if status == 400 or status == 431:
        return GRPC_INTERNAL
    if status == 401:
        return GRPC_UNAUTHENTICATED
    if status == 403:
        return GRPC_PERMISSION_DENIED
    if status == 404:
        return GRPC_UNIMPLEMENTED
    if status == 429 or status == 502 or status == 503 or status == 504:
        return GRPC_UNAVAILABLE
    return GRPC_UNKNOWN


cdef inline int grpc_of_reset(uint32_t code) noexcept nogil:
    """The gRPC status of a stream that was reset with this code of RFC 9113 7 (PROTOCOL-HTTP2.md, Errors)."""
    if code == 7:                  # REFUSED_STREAM
        return GRPC_UNAVAILABLE
    if code == 8:                  # CANCEL
        return GRPC_CANCELLED
    if code == 11:                 # ENHANCE_YOUR_CALM
        return GRPC_RESOURCE_EXHAUSTED
    if code == 12:                 # INADEQUATE_SECURITY
        return GRPC_PERMISSION_DENIED
    return GRPC_INTERNAL


# ---------------------------------------------------------------- our own errors

cdef inline size_t grpc_percent(char *out, size_t room, const char *p, size_t n) noexcept nogil:
    """p[:n], UTF-8, as the value of grpc-message; at most `room` bytes, cut between characters. Bytes written.

    Percent-Byte-Unencoded = %x20-24 / %x26-7E. White space at either end, which a reader of fields takes away, is
    encoded too.
    """
    cdef const char *digits = b"0123456789ABCDEF"
    cdef size_t at = 0
    cdef size_t whole = 0          # as far as characters are whole
    cdef size_t i
    cdef uint8_t ch
    for i in range(n):
        ch = <uint8_t>p[i]
        if ch & 0xC0 != 0x80:
            whole = at
        if 0x20 <= ch <= 0x7E and ch != c"%" and (ch != 0x20 or 0 < i < n - 1):
            if at == room:
                return whole
            out[at] = <char>ch
            at += 1
        else:
            if room - at < 3:
                return whole
            out[at] = c"%"
            out[at + 1] = digits[ch >> 4]
            out[at + 2] = digits[ch & 15]
            at += 3
    return at


cdef inline size_t grpc_status_lines(char *out, size_t room, int status, const char *text, size_t n) noexcept nogil:
    """"grpc-status" and, if there is a text and room for any of it, "grpc-message". 0: `room` is below
    GRPC_STATUS_LINES; GRPC_STATUS_LINES + GRPC_MESSAGE_MAX is enough for all.

    An error is never told as OK: what is no status of gRPC's is UNKNOWN.
    """
    cdef size_t at, k
    if room < GRPC_STATUS_LINES:
        return 0
    if status <= GRPC_OK or status > GRPC_UNAUTHENTICATED:
        status = GRPC_UNKNOWN
    memcpy(out, b"grpc-status: ", 13)
    at = 13
    if status >= 10:
        out[at] = c"1"
        at += 1
    out[at] = <char>(c"0" + status % 10)
    memcpy(out + at + 1, b"\r\n", 2)
    at += 3
    room -= at + 16
    k = grpc_percent(out + at + 14, room if room < GRPC_MESSAGE_MAX else GRPC_MESSAGE_MAX, text, n)
    if k == 0:
        return at
    memcpy(out + at, b"grpc-message: ", 14)
    memcpy(out + at + 14 + k, b"\r\n", 2)
    return at + k + 16


cdef inline size_t grpc_error(char *out, size_t room, int status, const char *text, size_t n, const char *lines,
                              size_t lines_len) noexcept nogil:
    """The fields of a Trailers-Only answer (status 200, no body): content-type, grpc-status, grpc-message, `lines`.

    `status` is a reason's; `text` says what is the matter and is cut to what has room; `lines` are whole field
    lines. Bytes written, 0 if even without the text there is no room. GRPC_ERROR_LINES + GRPC_MESSAGE_MAX +
    lines_len is enough for all. No ":status" or status line, no empty line.
    """
    cdef size_t at
    if lines_len > room or room - lines_len < GRPC_ERROR_LINES:
        return 0
    memcpy(out, b"content-type: application/grpc\r\n", 32)
    at = 32 + grpc_status_lines(out + 32, room - lines_len - 32, status, text, n)
    if lines_len:
        memcpy(out + at, lines, lines_len)
    return at + lines_len
