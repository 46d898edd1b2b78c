# Who may call what: the `allow` rules of a listener.
#
# Which rules speak of a peer is settled once a connection (`policy_peer`: a bit for each rule); a request
# then looks only at methods and paths. What no rule allows is refused. Paths are compared as received, but
# only if they are in the one form that every reader reads alike: a path with an encoded slash, an encoded
# dot or letter, a dot segment, a doubled slash or a backslash matches no rule that names paths.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from fastmesh.core.traffic.snapshot cimport AllowRule, ListenerConf, Text
from fastmesh.core.wire.message cimport M_OTHER

cdef enum:
    POLICY_RULES = 64     # most rules of one listener


cdef inline bint id_matches(Text *pattern, const char *peer, size_t n) noexcept nogil:
    """`peer` is the pattern, or begins with it where the pattern ends in `*`."""
    cdef size_t fixed
    if pattern.len > 0 and pattern.ptr[pattern.len - 1] == c'*':
        fixed = pattern.len - 1
        return n > 0 and n >= fixed and memcmp(pattern.ptr, peer, fixed) == 0
    return n == pattern.len and memcmp(pattern.ptr, peer, n) == 0


cdef inline uint64_t policy_peer(ListenerConf *l, const char *peer, size_t n) noexcept nogil:
    """The rules of `l` that may allow the peer with the SPIFFE id `peer` (n == 0: no identity)."""
    cdef uint64_t mask = 0
    cdef uint32_t i
    cdef uint32_t k
    if n == 0:
        return 0
    for i in range(l.nallow):
        for k in range(l.allow[i].nfrom):
            if id_matches(&l.allow[i].from_id[k], peer, n):
                mask |= <uint64_t>1 << i
                break
    return mask


cdef inline bint policy_allows_opaque(ListenerConf *l, uint64_t peer_rules) noexcept nogil:
    """Does one of the rules allow opaque bytes? One with HTTP conditions speaks only of requests."""
    cdef uint32_t i
    for i in range(l.nallow):
        if (peer_rules >> i) & 1 and not (l.allow[i].methods or l.allow[i].nother or l.allow[i].npaths):
            return True
    return False


cdef inline int _hex(unsigned char c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 0x20
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef inline bint path_is_plain(const char *path, size_t n) noexcept nogil:
    """The path (up to `?`) reads the same to everybody: see the module's header."""
    cdef size_t i = 0
    cdef size_t segment
    cdef int high
    cdef int low
    cdef int c
    while i < n and path[i] != c'?':
        if path[i] == c'\\':
            return False
        if path[i] == c'/':
            segment = i + 1
            if segment < n and path[segment] == c'/':
                return False
            if segment < n and path[segment] == c'.':
                segment += 1
                if segment == n or path[segment] == c'/' or path[segment] == c'?' or path[segment] == c';':
                    return False
                if path[segment] == c'.' and (segment + 1 == n or path[segment + 1] == c'/'
                                              or path[segment + 1] == c'?' or path[segment + 1] == c';'):
                    return False
        elif path[i] == c'%':
            if i + 2 >= n:
                return False
            high = _hex(<unsigned char>path[i + 1])
            low = _hex(<unsigned char>path[i + 2])
            if high < 0 or low < 0:
                return False
            c = high * 16 + low
            # unreserved characters need no encoding; slash, backslash, NUL and '%' must not hide in one
            if (48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == 45 or c == 46 or c == 95 or c == 126
                    or c == 47 or c == 92 or c == 37 or c < 32):
                return False
        i += 1
    return True


cdef inline bint path_matches(Text *pattern, const char *path, size_t n) noexcept nogil:
    """Exact; below the prefix of a pattern that ends in `/*` (`/a/*`: `/a` and all beneath it); or any path
    that begins as one that ends in `*` (`/a*`)."""
    cdef size_t end = 0
    cdef size_t fixed
    while end < n and path[end] != c'?':
        end += 1
    if end == 0 and n > 0:
        path = b"/"                        # a query alone: the empty path is "/" (RFC 9110 4.2.3)
        end = 1
    if pattern.len >= 2 and pattern.ptr[pattern.len - 1] == c'*' and pattern.ptr[pattern.len - 2] == c'/':
        fixed = pattern.len - 2
        if end < fixed or memcmp(pattern.ptr, path, fixed) != 0:
            return False
        return end == fixed or path[fixed] == c'/'
    if pattern.len >= 1 and pattern.ptr[pattern.len - 1] == c'*':
        return end >= pattern.len - 1 and memcmp(pattern.ptr, path, pattern.len - 1) == 0
    return end == pattern.len and memcmp(pattern.ptr, path, end) == 0


cdef inline bint policy_allows(ListenerConf *l, uint64_t peer_rules, int method, const char *method_name,
                               size_t method_len, const char *path, size_t n) noexcept nogil:
    """Does one of the rules in `peer_rules` allow this request?"""
    cdef uint32_t i
    cdef uint32_t k
    cdef AllowRule *rule
    cdef bint ok
    cdef int plain = -1                    # not asked yet
    for i in range(l.nallow):
        if not (peer_rules >> i) & 1:
            continue
        rule = &l.allow[i]
        if rule.methods != 0 or rule.nother != 0:
            ok = method != M_OTHER and (rule.methods >> method) & 1
            if not ok and method == M_OTHER:
                for k in range(rule.nother):
                    if rule.other[k].len == method_len and memcmp(rule.other[k].ptr, method_name, method_len) == 0:
                        ok = True
                        break
            if not ok:
                continue
        if rule.npaths == 0:
            return True
        for k in range(rule.npaths):
            if rule.paths[k].len == 2 and rule.paths[k].ptr[0] == c'/' and rule.paths[k].ptr[1] == c'*':
                return True                # "/*": every path, however it is spelt
            if plain < 0:
                plain = path_is_plain(path, n)
            if plain and path_matches(&rule.paths[k], path, n):
                return True
    return False
