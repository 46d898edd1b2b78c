# What comes in the clear with `protocol: auto`: HTTP/1, HTTP/2's preface where the listener has it, or something else.
#
# The first DETECT_BYTES of a connection tell, whatever comes behind them and however they were cut: once it is told,
# more bytes change nothing.
#
# A request line is a method in capital letters, a space, a target ("/...", "*", "http://...", or a host with CONNECT),
# and " HTTP/1.x" at its end (RFC 9112 3). One that is longer than that is told by its beginning. A shorter one is told
# by all of it, because other protocols have lines that begin in the same way; where the rest does not come, its
# beginning has to do.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from fastmesh.core.traffic.snapshot cimport ListenerConf
from fastmesh.core.wire.http1_scan cimport FM_REGNAME, fm_class
from fastmesh.core.wire.preface cimport PREFACE_HERE, PREFACE_NOT, preface_here

cdef enum:
    DETECT_BYTES = 64

cdef enum:  # what a beginning is
    BEGINS_OTHER = -1
    BEGINS_OPEN = 0               # it may become anything
    BEGINS_HTTP = 1
    BEGINS_LIKE_HTTP = 2          # the end of the line has not come


cdef inline int detect(const ListenerConf *conf, const char *p, size_t n) noexcept nogil:
    """1: the bytes begin an HTTP/1 request, or HTTP/2; -1: they do not; 0: it cannot be told yet, which is never so
    with DETECT_BYTES."""
    cdef int found
    if n >= DETECT_BYTES:
        return detect_last(conf, p, n)
    found = _begins(conf, p, n)
    return 0 if found == BEGINS_LIKE_HTTP else found


cdef inline int detect_last(const ListenerConf *conf, const char *p, size_t n) noexcept nogil:
    """Likewise where no more bytes come, or are not waited for: 1 or -1."""
    return 1 if _begins(conf, p, n if n < DETECT_BYTES else DETECT_BYTES) > 0 else -1


cdef inline int _begins(const ListenerConf *conf, const char *p, size_t n) noexcept nogil:
    cdef int found = preface_here(p, n) if conf.http2 and n > 0 else PREFACE_NOT
    cdef size_t i = 0
    cdef size_t end
    if found != PREFACE_NOT:
        return BEGINS_HTTP if found == PREFACE_HERE else BEGINS_OPEN
    while i < n and (c"A" <= p[i] <= c"Z" or p[i] == c"-" and i > 0):
        i += 1
        if i > 32:
            return BEGINS_OTHER
    if i == n:
        return BEGINS_OPEN
    if i == 0 or p[i] != c" ":
        return BEGINS_OTHER
    i += 1
    end = i
    while end < n and p[end] != c"\n":
        end += 1
    if end < n and (end < i + 11 or p[end - 1] != c"\r" or memcmp(p + end - 10, b" HTTP/1.", 8) != 0):
        return BEGINS_OTHER
    found = _target(p, i, n)
    return BEGINS_LIKE_HTTP if found == BEGINS_HTTP and end == n else found


cdef inline int _target(const char *p, size_t i, size_t n) noexcept nogil:
    """What follows the method and its space, up to `i`."""
    if i == n:
        return BEGINS_OPEN
    if i == 4 and memcmp(p, b"PRI", 3) == 0:
        return BEGINS_OTHER                      # HTTP/2's preface, where it is not spoken
    if i == 8 and memcmp(p, b"CONNECT", 7) == 0:
        return BEGINS_HTTP if fm_class[<uint8_t>p[i]] & FM_REGNAME or p[i] == c"[" or p[i] == c"%" else BEGINS_OTHER
    if p[i] == c"/" or p[i] == c"*":
        return BEGINS_HTTP
    if n - i < 8:
        return BEGINS_OPEN if n - i < 4 or (p[i] | 0x20) == c"h" else BEGINS_OTHER
    if (p[i] | 0x20) == c"h" and (p[i + 1] | 0x20) == c"t" and (p[i + 2] | 0x20) == c"t" and (
            p[i + 3] | 0x20) == c"p" and (p[i + 4] == c":" or (p[i + 4] | 0x20) == c"s" and p[i + 5] == c":"):
        return BEGINS_HTTP
    return BEGINS_OTHER
