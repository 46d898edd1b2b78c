# A second reader of ClientHellos: takes the records off first, then reads the message with windows that lie in one
# another. Slower than wire/sniff and made apart from it; it has to come to the same answer.

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

cdef enum:
    HELLO_MORE = 0
    HELLO_HERE = 1
    HELLO_NOT_TLS = -1
    HELLO_MALFORMED = -2
    HELLO_TOO_LARGE = -3
    HELLO_BYTES = 16384

cdef struct Hello:
    uint8_t message[16384]        # HELLO_BYTES
    size_t come                   # of the message
    int behind                    # what is to be said of a byte behind these
    int said                      # HELLO_HERE as long as all is well
    char name[256]
    size_t name_len

cdef struct Window:               # of the message
    size_t at
    size_t end


cdef inline void _say(Hello *h, int what) noexcept nogil:
    if h.said == HELLO_HERE:
        h.said = what


cdef inline void _unwrap(Hello *h, const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t at = 0
    cdef size_t length, part
    h.come = 0
    h.behind = HELLO_TOO_LARGE if n >= HELLO_BYTES else HELLO_MORE
    if n > HELLO_BYTES:
        n = HELLO_BYTES
    while at < n:
        if p[at] != 22 or (at + 1 < n and p[at + 1] != 3) or (at + 2 < n and p[at + 2] > 4):
            h.behind = HELLO_MALFORMED if at else HELLO_NOT_TLS
            return
        if at + 5 > n:
            return
        length = 256 * <size_t>p[at + 3] + p[at + 4]
        if not 1 <= length <= 16384:
            h.behind = HELLO_MALFORMED
            return
        at += 5
        part = length if at + length <= n else n - at
        memcpy(h.message + h.come, p + at, part)
        h.come += part
        at += part


cdef inline size_t _take(Hello *h, Window *w, size_t n) noexcept nogil:
    """Where n bytes begin that are taken from the window."""
    cdef size_t at = w.at
    if n > w.end - w.at:
        _say(h, HELLO_MALFORMED)
    elif at + n > h.come:
        _say(h, h.behind)
    else:
        w.at += n
    return at


cdef inline size_t _value(Hello *h, Window *w, int width) noexcept nogil:
    cdef size_t at = _take(h, w, width)
    cdef size_t v = 0
    cdef int i
    if h.said == HELLO_HERE:
        for i in range(width):
            v = 256 * v + h.message[at + i]
    return v


cdef inline Window _inner(Hello *h, Window *w, int width) noexcept nogil:
    """A vector: its window; the outer one goes on behind it, whether or not its bytes have come."""
    cdef size_t n = _value(h, w, width)
    cdef Window inner
    inner.at = inner.end = w.at
    if h.said == HELLO_HERE:
        if n > w.end - w.at:
            _say(h, HELLO_MALFORMED)
        else:
            inner.end += n
            w.at += n
    return inner


cdef inline void _come(Hello *h, const Window *w) noexcept nogil:
    """All of the window must have come."""
    if w.end > w.at and w.end > h.come:
        _say(h, h.behind)


cdef inline void _name(Hello *h, Window *extension) noexcept nogil:
    cdef Window list = _inner(h, extension, 2)
    cdef Window name
    cdef size_t kind, i
    cdef uint8_t c
    if extension.at != extension.end:
        _say(h, HELLO_MALFORMED)
    kind = _value(h, &list, 1)
    name = _inner(h, &list, 2)
    if kind != 0 or list.at != list.end or not 1 <= name.end - name.at <= 255:
        _say(h, HELLO_MALFORMED)
    _come(h, &name)
    if h.said != HELLO_HERE:
        return
    h.name_len = name.end - name.at
    for i in range(h.name_len):
        c = h.message[name.at + i]
        if 65 <= c <= 90:
            c += 32
        elif not (97 <= c <= 122 or 48 <= c <= 57 or c == 45 or c == 95 or (c == 46 and i != 0)):
            _say(h, HELLO_MALFORMED)
        h.name[i] = <char>c


cdef inline int hello_judge(Hello *h, const char *p, size_t n) noexcept nogil:
    cdef Window outside = Window(at=0, end=HELLO_BYTES + 4)
    cdef Window body, part, extensions
    cdef uint8_t seen[8192]       # a bit for each kind of extension
    cdef size_t kind
    cdef size_t count = 0
    h.said = HELLO_HERE
    h.name_len = 0
    memset(seen, 0, sizeof(seen))
    _unwrap(h, <const uint8_t *>p, n)
    if _value(h, &outside, 1) != 1:
        _say(h, HELLO_MALFORMED)
    kind = _value(h, &outside, 3)
    if kind > HELLO_BYTES:
        _say(h, HELLO_TOO_LARGE)
    body = Window(at=4, end=4 + kind)
    if _value(h, &body, 2) // 256 != 3:
        _say(h, HELLO_MALFORMED)
    _take(h, &body, 32)
    part = _inner(h, &body, 1)
    if part.end - part.at > 32:
        _say(h, HELLO_MALFORMED)
    _come(h, &part)
    part = _inner(h, &body, 2)
    if part.end == part.at or (part.end - part.at) % 2:
        _say(h, HELLO_MALFORMED)
    _come(h, &part)
    part = _inner(h, &body, 1)
    if part.end == part.at:
        _say(h, HELLO_MALFORMED)
    _come(h, &part)
    if h.said != HELLO_HERE or body.at == body.end:
        return h.said
    extensions = _inner(h, &body, 2)
    if body.at != body.end:
        _say(h, HELLO_MALFORMED)
    while h.said == HELLO_HERE and extensions.at < extensions.end:
        kind = _value(h, &extensions, 2)
        part = _inner(h, &extensions, 2)
        if h.said != HELLO_HERE:
            break
        count += 1
        if count > 64 or seen[kind // 8] & (1 << kind % 8):
            _say(h, HELLO_MALFORMED)
            break
        seen[kind // 8] |= <uint8_t>(1 << kind % 8)
        if kind == 0:
            _name(h, &part)
        _come(h, &part)
    return h.said
