# Paths in the one form that every reader reads alike, and in the forms that other readers may make of them.
#
# The normal form (path_normalise; RFC 3986 6.2.2): unreserved characters are not percent-encoded, the escapes
# that remain are in upper case, there is no dot segment (5.2.4) and no empty segment but the last. What some
# reader would take for another structure is refused: an encoded or raw backslash, an encoded slash (unless
# kept), an encoded NUL, a broken escape, a dot segment with parameters ("..;x", which servlet containers
# resolve). A path in normal form costs one scan and is left alone; otherwise it is rewritten where it stands,
# which never makes it longer. Case means something: "/Admin" is not "/admin".
#
# The loose forms are for rules that must not miss: path_decoded is what a reader sees that decodes every
# escape, path_bare what one sees that drops parameters (";v=1") too. All functions take a path without its
# query; `out` has room for as much as goes in.

from libc.stddef cimport size_t
from libc.string cimport memmove

from fastmesh.core.base.reason cimport R_BAD_TARGET


cdef inline int path_hex(unsigned char c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 0x20
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef inline int path_escape(const char *p, size_t left) noexcept nogil:
    """The byte that the escape at `p` stands for; -1: it is none."""
    cdef int high
    cdef int low
    if left < 3 or p[0] != c'%':
        return -1
    high = path_hex(<unsigned char>p[1])
    low = path_hex(<unsigned char>p[2])
    return -1 if high < 0 or low < 0 else high * 16 + low


cdef inline bint path_unreserved(int c) noexcept nogil:
    """RFC 3986 2.3."""
    return 97 <= c <= 122 or 65 <= c <= 90 or 48 <= c <= 57 or c == 45 or c == 46 or c == 95 or c == 126


cdef inline size_t path_length(const char *p, size_t n) noexcept nogil:
    """The length of the path in `path[?query]`."""
    cdef size_t i = 0
    while i < n and p[i] != c'?':
        i += 1
    return i


cdef inline int _dots(const char *p, size_t n) noexcept nogil:
    """What the segment p[:n] is: 1 ".", 2 "..", -1 one of them with parameters, 0 another."""
    cdef int k = 0
    while k < 2 and <size_t>k < n and p[k] == c'.':
        k += 1
    if k == 0 or <size_t>k == n:
        return k
    return -1 if p[k] == c';' or path_escape(p + k, n - k) == c';' else 0


cdef inline bint path_is_normal(const char *p, size_t n) noexcept nogil:
    """Is it in normal form? Says no too where it is to be refused."""
    cdef size_t i
    cdef size_t k
    cdef int c
    for i in range(n):
        if p[i] == c'/':
            if i + 1 < n:
                if p[i + 1] == c'/':
                    return False
                if p[i + 1] == c'.':
                    k = i + 2
                    if k < n and p[k] == c'.':
                        k += 1
                    if k == n or p[k] == c'/' or p[k] == c';' or path_escape(p + k, n - k) == c';':
                        return False
        elif p[i] == c'%':
            c = path_escape(p + i, n - i)
            if c <= 0 or c == c'/' or c == c'\\' or path_unreserved(c) or p[i + 1] >= c'a' or p[i + 2] >= c'a':
                return False
        elif p[i] == c'\\':
            return False
    return True


cdef inline int path_normalise(char *p, size_t *length, bint keep_slashes) noexcept nogil:
    """Bring p[:length] into normal form where it stands: 0, or -R_BAD_TARGET (then its bytes mean nothing).

    `keep_slashes`: encoded slashes and backslashes stay, encoded, as part of their segment.
    """
    cdef size_t n = length[0]
    cdef size_t r = 0
    cdef size_t o = 0
    cdef size_t end
    cdef int c
    cdef int dots
    cdef bint kept = False
    cdef const char *digits = b"0123456789ABCDEF"
    if path_is_normal(p, n):
        return 0
    if n == 0 or p[0] != c'/':
        return -R_BAD_TARGET
    while r < n:
        if p[r] == c'\\':
            return -R_BAD_TARGET
        if p[r] != c'%':
            p[o] = p[r]
            o += 1
            r += 1
            continue
        c = path_escape(p + r, n - r)
        if c <= 0:
            return -R_BAD_TARGET
        if c == c'/' or c == c'\\':
            if not keep_slashes:
                return -R_BAD_TARGET
            kept = True
        if path_unreserved(c):
            p[o] = <char>c
            o += 1
        else:
            p[o] = c'%'
            p[o + 1] = digits[c >> 4]
            p[o + 2] = digits[c & 15]
            o += 3
        r += 3
    n = o
    r = 0
    o = 0
    while r < n:                               # p[r] is the slash before a segment
        end = r + 1
        while end < n and p[end] != c'/':
            end += 1
        dots = _dots(p + r + 1, end - r - 1)
        if dots < 0:
            return -R_BAD_TARGET
        if dots == 2:
            while o > 0:
                o -= 1
                if p[o] == c'/':
                    break
        if dots or end == r + 1:
            if end == n:
                p[o] = c'/'
                o += 1
        else:
            memmove(p + o, p + r, end - r)
            o += end - r
        r = end
    if kept and path_hides_dots(p, o):
        return -R_BAD_TARGET
    length[0] = o
    return 0


cdef inline bint path_hides_dots(const char *p, size_t n) noexcept nogil:
    """Would a reader that decodes kept slashes find a dot segment?"""
    cdef size_t start = 0
    cdef size_t i = 0
    cdef int c
    cdef size_t width
    while i <= n:
        c = c'/'
        width = 1
        if i < n and p[i] == c'%':
            c = path_escape(p + i, n - i)
            width = 3
        elif i < n:
            c = p[i]
        if c == c'/' or c == c'\\':
            if _dots(p + start, i - start) != 0:
                return True
            start = i + width
        i += width
    return False


cdef inline size_t path_decoded(const char *p, size_t n, bint slashes, char *out) noexcept nogil:
    """Every escape decoded, with `slashes` backslashes as slashes, runs of slashes as one. The length."""
    cdef size_t i = 0
    cdef size_t o = 0
    cdef int c
    while i < n:
        c = <unsigned char>p[i]
        if c == c'%' and path_escape(p + i, n - i) >= 0:
            c = path_escape(p + i, n - i)
            i += 2
        i += 1
        if slashes and c == c'\\':
            c = c'/'
        if c == c'/' and o > 0 and out[o - 1] == c'/':
            continue
        out[o] = <char>c
        o += 1
    return o


cdef inline size_t path_bare(const char *p, size_t n, char *out) noexcept nogil:
    """A decoded path without the parameters of its segments. The length."""
    cdef size_t i = 0
    cdef size_t o = 0
    while i < n:
        if p[i] == c';':
            while i < n and p[i] != c'/':
                i += 1
            continue
        if p[i] != c'/' or o == 0 or out[o - 1] != c'/':
            out[o] = p[i]
            o += 1
        i += 1
    return o


cdef inline size_t path_slashed(char *p, size_t n) noexcept nogil:
    """Where it stands: backslashes as slashes, runs of slashes as one. The length."""
    cdef size_t i
    cdef size_t o = 0
    cdef char c
    for i in range(n):
        c = c'/' if p[i] == c'\\' else p[i]
        if c != c'/' or o == 0 or p[o - 1] != c'/':
            p[o] = c
            o += 1
    return o
