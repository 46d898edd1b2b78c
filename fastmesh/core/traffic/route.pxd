# Which service a request is for.
#
# Names are compared without regard to case, port and one trailing dot (RFC 3986 3.2.2; RFC 1034 3.1).

from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcmp

from fastmesh.core.traffic.snapshot cimport ListenerConf, Service, Snapshot, SniRoute


cdef inline unsigned char _lower(unsigned char c) noexcept nogil:
    return c | 0x20 if 65 <= c <= 90 else c


cdef inline uint32_t name_hash(const char *name, size_t n) noexcept nogil:
    """FNV-1a over the lower-cased bytes."""
    cdef uint32_t h = 2166136261
    cdef size_t i
    for i in range(n):
        h = (h ^ _lower(<unsigned char>name[i])) * 16777619
    return h


cdef inline bint name_equal(const char *a, const char *b, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if _lower(<unsigned char>a[i]) != _lower(<unsigned char>b[i]):
            return False
    return True


cdef inline size_t host_length(const char *authority, size_t n) noexcept nogil:
    """Length of the host within `host[:port]`, without one trailing dot. An IPv6 literal keeps its brackets."""
    cdef size_t i = 0
    if n > 0 and authority[0] == c'[':
        while i < n and authority[i] != c']':
            i += 1
        return i + 1 if i < n else n
    while i < n and authority[i] != c':':
        i += 1
    if i > 0 and authority[i - 1] == c'.':
        i -= 1
    return i


cdef inline Service *service_by_name(Snapshot *s, const char *name, size_t n) noexcept nogil:
    cdef uint32_t at
    cdef uint32_t index
    cdef Service *service
    if s.names == NULL:
        return NULL
    at = name_hash(name, n) & s.names_mask
    while True:
        index = s.names[at]
        if index == 0:
            return NULL
        service = &s.services[index - 1]
        if service.name.len == n and name_equal(service.name.ptr, name, n):
            return service
        at = (at + 1) & s.names_mask


cdef inline Service *route(Snapshot *s, ListenerConf *l, const char *authority, size_t n) noexcept nogil:
    """The service of a request that came to `l` for `authority`, or NULL."""
    if l.service >= 0:
        return &s.services[l.service]
    return service_by_name(s, authority, host_length(authority, n))


cdef inline int32_t route_server_name(ListenerConf *conf, const char *name, size_t n) noexcept nogil:
    """The service for the name in a TLS hello: of just that name, of the longest `*.` above it, else the listener's;
    or -1."""
    cdef SniRoute *r
    cdef int32_t found = conf.service
    cdef size_t longest = 0
    cdef uint32_t i
    if n > 1 and name[n - 1] == c".":
        n -= 1
    for i in range(conf.nsni):
        r = &conf.sni[i]
        if not r.wildcard:
            if r.name.len == n and memcmp(r.name.ptr, name, n) == 0:
                return r.service
        elif n > r.name.len > longest and memcmp(r.name.ptr, name + n - r.name.len, r.name.len) == 0:
            longest = r.name.len
            found = r.service
    return found
