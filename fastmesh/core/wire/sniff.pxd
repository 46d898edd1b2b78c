# The name a TLS client asks for, read from its first message without ending TLS: what pass-through routes by.
#
# Strict and without state: offered all bytes that have come so far, from the first one on, as often as the caller
# likes. The ClientHello may be spread over any number of records (RFC 8446 5.1) and segments; with its records'
# headers it must fit into SNIFF_MAX bytes. Every length must agree with the one around it, and no extension may come
# twice (4.2). Values that mean nothing to us, GREASE among them (RFC 8701), are passed over. With Encrypted
# ClientHello the outer name is the one that counts: it is all that the network is shown.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

cdef enum:
    SNIFF_MAX = 16384
    SNIFF_NAME_MAX = 255
    SNIFF_EXTENSIONS_MAX = 64

cdef enum:
    SNIFF_MORE = 0              # what came so far is right, and not all
    SNIFF_HELLO = 1             # here it is; without a name its length is 0
    SNIFF_NOT_TLS = -1
    SNIFF_MALFORMED = -2        # TLS, but no ClientHello that we would answer
    SNIFF_TOO_LARGE = -3

cdef struct SniffReader:        # over a message that lies in pieces between record headers
    const uint8_t *p
    size_t n                    # bytes that have come, record headers and all
    size_t at                   # in them
    size_t record               # bytes left of the record at hand
    int failed                  # SNIFF_MORE, or a negative result, once a byte was asked for that is not there


cdef inline bint _record(SniffReader *r) noexcept nogil:
    """Go into the next record: handshake, TLS 1.x, not empty (RFC 8446 5.1)."""
    cdef size_t have = r.n - r.at
    if have > 0 and r.p[r.at] != 0x16 or have > 1 and r.p[r.at + 1] != 3 or have > 2 and r.p[r.at + 2] > 4:
        r.failed = SNIFF_NOT_TLS if r.at == 0 else SNIFF_MALFORMED
        return False
    if have < 5:
        r.failed = SNIFF_MORE
        return False
    r.record = <size_t>r.p[r.at + 3] << 8 | r.p[r.at + 4]
    r.at += 5
    if r.record == 0 or r.record > 16384:
        r.failed = SNIFF_MALFORMED
        return False
    return True


cdef inline bint _bytes(SniffReader *r, uint8_t *out, size_t n) noexcept nogil:
    """Take n bytes of the message (`out` NULL: pass over them). False: failed says why."""
    cdef size_t k
    if r.failed != 1:
        return False
    while n > 0:
        if r.record == 0 and not _record(r):
            return False
        k = r.record if r.record < n else n
        if k > r.n - r.at:
            k = r.n - r.at
        if k == 0:
            r.failed = SNIFF_MORE
            return False
        if out != NULL:
            memcpy(out, r.p + r.at, k)
            out += k
        r.at += k
        r.record -= k
        n -= k
    return True


cdef inline size_t _number(SniffReader *r, int width, size_t *left) noexcept nogil:
    """A big-endian number out of the `left` bytes of what is around it."""
    cdef uint8_t b[3]
    cdef size_t v = 0
    cdef int i
    if left[0] < <size_t>width:
        if r.failed == 1:
            r.failed = SNIFF_MALFORMED
        return 0
    if not _bytes(r, b, width):
        return 0
    for i in range(width):
        v = v << 8 | b[i]
    left[0] -= width
    return v


cdef inline size_t _vector(SniffReader *r, int width, size_t *left) noexcept nogil:
    """The length of a vector that must lie in the `left` bytes around it, which it is taken from."""
    cdef size_t n = _number(r, width, left)
    if r.failed == 1 and n > left[0]:
        r.failed = SNIFF_MALFORMED
    if r.failed != 1:
        return 0
    left[0] -= n
    return n


cdef inline void _server_name(SniffReader *r, size_t n, char *name, size_t *name_len) noexcept nogil:
    """The server_name extension (RFC 6066 3): just one host name, letters in lower case."""
    cdef size_t list = _vector(r, 2, &n)
    cdef size_t kind, length, i
    cdef uint8_t raw[SNIFF_NAME_MAX]
    cdef uint8_t c
    if r.failed == 1 and n != 0:
        r.failed = SNIFF_MALFORMED
    kind = _number(r, 1, &list)
    length = _vector(r, 2, &list)
    if r.failed != 1:
        return
    if kind != 0 or list != 0 or length == 0 or length > SNIFF_NAME_MAX:
        r.failed = SNIFF_MALFORMED
        return
    if not _bytes(r, raw, length):
        return
    for i in range(length):
        c = raw[i]
        if c'A' <= c <= c'Z':
            c |= 32
        if not (c'a' <= c <= c'z' or c'0' <= c <= c'9' or c == c'-' or c == c'_' or c == c'.' and i > 0):
            r.failed = SNIFF_MALFORMED
            return
        name[i] = <char>c
    name_len[0] = length


cdef inline int sniff_hello(const char *p, size_t n, char *name, size_t *name_len) noexcept nogil:
    """The ClientHello in the bytes that a connection began with; its server name into `name[SNIFF_NAME_MAX]`.

    SNIFF_HELLO, SNIFF_MORE, or a negative result. What follows the message is not looked at.
    """
    cdef SniffReader r
    cdef uint16_t seen[SNIFF_EXTENSIONS_MAX]
    cdef size_t left, part, extensions, i
    cdef size_t count = 0
    cdef uint16_t kind
    cdef uint8_t type
    name_len[0] = 0
    r.p = <const uint8_t *>p
    r.n = n if n < SNIFF_MAX else SNIFF_MAX
    r.at = 0
    r.record = 0
    r.failed = 1
    if not _bytes(&r, &type, 1):
        return _bounded(&r)
    if type != 1:                                       # ClientHello
        return SNIFF_MALFORMED
    left = 3
    left = _number(&r, 3, &left)
    if r.failed != 1:
        return _bounded(&r)
    if left > SNIFF_MAX:
        return SNIFF_TOO_LARGE
    part = _number(&r, 2, &left)                        # legacy_version
    if r.failed == 1 and (part >> 8 != 3 or left < 32):
        return SNIFF_MALFORMED
    if _bytes(&r, NULL, 32):                            # random
        left -= 32
    part = _vector(&r, 1, &left)                        # legacy_session_id
    if r.failed == 1 and part > 32:
        return SNIFF_MALFORMED
    _bytes(&r, NULL, part)
    part = _vector(&r, 2, &left)                        # cipher_suites
    if r.failed == 1 and (part < 2 or part & 1):
        return SNIFF_MALFORMED
    _bytes(&r, NULL, part)
    part = _vector(&r, 1, &left)                        # legacy_compression_methods
    if r.failed == 1 and part == 0:
        return SNIFF_MALFORMED
    _bytes(&r, NULL, part)
    if r.failed != 1:
        return _bounded(&r)
    if left == 0:                                       # of old: no extensions at all
        return SNIFF_HELLO
    extensions = _vector(&r, 2, &left)
    if r.failed == 1 and left != 0:
        return SNIFF_MALFORMED
    while r.failed == 1 and extensions > 0:
        kind = <uint16_t>_number(&r, 2, &extensions)
        part = _vector(&r, 2, &extensions)
        if r.failed != 1:
            break
        if count == SNIFF_EXTENSIONS_MAX:
            return SNIFF_MALFORMED
        for i in range(count):
            if seen[i] == kind:
                return SNIFF_MALFORMED
        seen[count] = kind
        count += 1
        if kind == 0:
            _server_name(&r, part, name, name_len)
        else:
            _bytes(&r, NULL, part)
    return SNIFF_HELLO if r.failed == 1 else _bounded(&r)


cdef inline int _bounded(SniffReader *r) noexcept nogil:
    """Why reading stopped; more is not waited for beyond the bound."""
    return SNIFF_TOO_LARGE if r.failed == SNIFF_MORE and r.n >= SNIFF_MAX else r.failed
