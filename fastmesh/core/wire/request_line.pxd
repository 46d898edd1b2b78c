# Would some server take these bytes for HTTP? For bytes that pass unread, where HTTP must not pass unread.
#
# Looser than any parser: empty lines before it, any method, any target, and for white space all that servers split
# lines at which take them for text (Python's str.split has \x1c and U+00A0 among it). What ends its first line with an
# HTTP version may have a header behind it. HTTP/0.9 has none, but some servers read one all the same: so "GET" and one
# more word is told by the line behind it. Reads on from where it was, keeps no bytes.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    LINE_MORE = 0                 # it cannot be told yet
    LINE_HTTP = 1
    LINE_NOT = -1
    LINE_MAX = 1048576            # no server reads a longer one

cdef struct RequestLine:          # zeroed at the beginning
    uint32_t seen                 # bytes
    uint8_t words                 # begun; 3: three or more
    uint8_t method                # letters of "get" that the first word is; LINE_MISSED: it is another
    uint8_t matched               # letters of "http/" that the last word begins with; LINE_MISSED: it does not
    uint8_t blank                 # white space came last
    uint8_t behind                # 1: the next byte begins the line behind; 2: it has begun

cdef enum:
    LINE_GET = 3                  # "get"
    LINE_WORD = 5                 # "http/"
    LINE_FROM = 4                 # "from"
    LINE_MISSED = 255


cdef inline uint8_t _next(const char *word, uint8_t have, uint8_t n, unsigned char c) noexcept nogil:
    """How many letters of `word`, which has `n`, have come with `c`, whatever their case."""
    return have + 1 if have < n and (c | 0x20) == <unsigned char>word[have] else <uint8_t>LINE_MISSED


cdef inline bint _is_blank(unsigned char c) noexcept nogil:
    """White space to some server; of what is not ASCII all, because it may be part of such."""
    return c == 32 or c == 9 or c == 11 or c == 12 or 28 <= c <= 31 or c >= 128


cdef inline bint _version_ends(const RequestLine *r) noexcept nogil:
    return r.words >= 2 and r.matched == LINE_WORD


cdef inline int _field(RequestLine *r, unsigned char c) noexcept nogil:
    """The next byte behind a request line of HTTP/0.9: does a field begin there? Also one that is folded, and the line
    with which a mailbox begins, which parsers of mail skip."""
    cdef bint first = r.behind == 1
    if c == 58 or first and (c == 32 or c == 9) or c == 32 and r.matched == LINE_FROM:
        return LINE_HTTP
    if c < 33 or c > 126:
        return LINE_NOT
    r.matched = _next(b"from", 0 if first else r.matched, LINE_FROM, c)
    r.behind = 2
    return LINE_MORE


cdef inline int request_line(RequestLine *r, const char *p, size_t n) noexcept nogil:
    """The next bytes of a connection: enum above."""
    cdef unsigned char c
    cdef size_t i
    cdef int found
    for i in range(n):
        c = <unsigned char>p[i]
        if r.behind:
            found = _field(r, c)
            if found != LINE_MORE:
                return found
        elif c == 10 or c == 13:
            if _version_ends(r):
                return LINE_HTTP
            if c == 10 and r.words > 0:
                if r.words != 2 or r.method != LINE_GET:
                    return LINE_NOT
                r.behind = 1
            r.blank = 1
        elif _is_blank(c):
            if c != 32 and c != 9 and _version_ends(r):
                return LINE_HTTP                 # str.splitlines ends lines there
            r.blank = 1
        else:
            if r.blank or r.words == 0:
                r.words = r.words + 1 if r.words < 3 else 3
                r.matched = 0
                r.blank = 0
            if r.words == 1:
                if c < 33 or c > 126:
                    return LINE_NOT              # in no method
                r.method = _next(b"get", r.method, LINE_GET, c)
            elif r.matched < LINE_WORD:
                r.matched = _next(b"http/", r.matched, LINE_WORD, c)
        r.seen += 1
        if r.seen > LINE_MAX:
            return LINE_NOT
    return LINE_MORE
