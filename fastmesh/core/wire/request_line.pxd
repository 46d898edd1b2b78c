# Would some server take these bytes for HTTP? For bytes that pass unread, where HTTP must not pass unread.
#
# Looser than any parser: empty lines before it, any method, any white space, any target. What ends its first line
# with an HTTP version may have a header behind it, and nothing else may (HTTP/0.9 has none). Reads on from where it was,
# keeps no bytes.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    LINE_MORE = 0                 # it cannot be told yet
    LINE_HTTP = 1
    LINE_NOT = -1
    LINE_MAX = 1048576            # no server reads a longer one

cdef struct RequestLine:          # zeroed at the beginning
    uint32_t seen                 # bytes
    uint8_t words                 # begun; 2: two or more
    uint8_t matched               # letters of "http/" that the last word begins with; LINE_MISSED: it does not
    uint8_t blank                 # white space came last

cdef enum:
    LINE_WORD = 5                 # "http/"
    LINE_MISSED = 255


cdef inline bint _version_ends(const RequestLine *r) noexcept nogil:
    return r.words == 2 and r.matched == LINE_WORD


cdef inline int request_line(RequestLine *r, const char *p, size_t n) noexcept nogil:
    """The next bytes of a connection: enum above."""
    cdef const char *word = b"http/"
    cdef unsigned char c
    cdef size_t i
    for i in range(n):
        c = <unsigned char>p[i]
        if c == 10 or c == 13:
            if _version_ends(r):
                return LINE_HTTP
            if c == 10 and r.words > 0:
                return LINE_NOT
            r.blank = 1
        elif c == 32 or c == 9 or c == 11 or c == 12:
            r.blank = 1
        else:
            if r.blank or r.words == 0:
                r.words = 1 if r.words == 0 else 2
                r.matched = 0
                r.blank = 0
            if r.words == 1:
                if c < 33 or c > 126:
                    return LINE_NOT              # in no method
            elif r.matched < LINE_WORD:
                if 65 <= c <= 90:
                    c |= 0x20
                r.matched = r.matched + 1 if c == <unsigned char>word[r.matched] else LINE_MISSED
        r.seen += 1
        if r.seen > LINE_MAX:
            return LINE_NOT
    return LINE_MORE
