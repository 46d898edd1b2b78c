# A request as rules look at it: the path and its readings, the host. Each is worked out when first asked for.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.reason cimport R_BAD_HOST
from fastmesh.core.sys.posix cimport AF_INET6, inet_ntop, inet_pton
from fastmesh.core.traffic.policy cimport Policy
from fastmesh.core.traffic.policy_scratch cimport PolicyScratch
from fastmesh.core.traffic.text_index cimport Text
from fastmesh.core.wire.message cimport MAX_LINE, M_CONNECT, Message
from fastmesh.core.wire.path cimport path_bare, path_decoded, path_escape, path_length, path_slashed

cdef enum:
    POLICY_HOST = 256         # bytes of a host, from its end, that are compared
    PATH_FORMS = 12           # ways of reading one path

cdef struct PathForm:
    const char *text
    size_t len

cdef struct PolicyRequest:    # a request as rules look at it, worked out when first asked for
    const Message *m
    const char *authority     # of the Host that is forwarded
    size_t authority_len
    const char *path          # normal form, without the query
    size_t path_len
    PathForm forms[PATH_FORMS]    # the path as others may read it
    uint8_t nforms            # 0: not worked out yet
    uint8_t tunnel            # CONNECT: what will come is not seen
    uint8_t underscores       # a field that rules look at has one in its name
    uint8_t host_known
    uint32_t host_len
    char host[256]            # POLICY_HOST, backwards
    const Policy *names_of    # `first` and `next` are of its names
    uint8_t first[64]         # by name: its first field + 1
    uint8_t following[128]    # by field: the next of that name + 1


cdef inline void policy_request(PolicyRequest *q, const Message *m, const Text *service) noexcept nogil:
    """`service`: its name, which is what the endpoint gets as Host where the request has none (HTTP/1.0)."""
    q.m = m
    q.authority = m.base + m.authority.at
    q.authority_len = m.authority.len
    if m.authority.len == 0:
        q.authority = service.ptr
        q.authority_len = service.len
    q.path = m.base + m.path.at
    q.path_len = path_length(q.path, m.path.len)
    q.tunnel = m.method == M_CONNECT
    q.nforms = 0
    q.host_known = 0
    q.names_of = NULL
    if q.path_len == 0 and not q.tunnel:       # what http1_write_request_line makes of it:
        q.path = b"/" if m.path.len > 0 else b"*"     # RFC 9110 4.2.3: a query alone; RFC 9112 3.2.4: OPTIONS
        q.path_len = 1


cdef inline bint text_has(const char *text, size_t n, char c) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if text[i] == c:
            return True
    return False


cdef inline void _form(PolicyRequest *q, const char *text, size_t n) noexcept nogil:
    """One more reading; and as who decodes before looking for the query reads it."""
    cdef size_t i = 0
    q.forms[q.nforms].text = text
    q.forms[q.nforms].len = n
    q.nforms += 1
    while i < n and text[i] != c'?' and text[i] != c'#':
        i += 1
    if i < n:
        q.forms[q.nforms].text = text
        q.forms[q.nforms].len = i
        q.nforms += 1


cdef inline bint _hides_backslash(const char *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if p[i] == c'%' and path_escape(p + i, n - i) == c'\\':
            return True
    return False


cdef inline void policy_forms(PolicyScratch *s, PolicyRequest *q) noexcept nogil:
    """The path as other readers may see it: decoded, without parameters, or both in either order. To some a
    backslash is a slash before parameters are dropped, to others afterwards."""
    cdef const char *text = q.path
    cdef char *out = s.forms
    cdef char *bare
    cdef size_t bare_len
    cdef size_t n = q.path_len
    cdef bint escaped
    cdef bint parameters
    cdef bint backslash
    if q.nforms:
        return
    escaped = text_has(text, n, c'%')
    parameters = text_has(text, n, c';')
    backslash = escaped and _hides_backslash(text, n)
    if escaped:
        n = path_decoded(text, n, True, out)
        text = out
        out += MAX_LINE
    _form(q, text, n)
    if text_has(text, n, c';'):
        _form(q, out, path_bare(text, n, out))
        out += MAX_LINE
        if backslash:
            n = path_decoded(q.path, q.path_len, False, out)
            _form(q, out, path_slashed(out, path_bare(out, n, out)))
            out += MAX_LINE
    if not escaped or not parameters:
        return
    # Parameters first: an escaped slash or ";" within them makes a difference.
    bare = out
    bare_len = path_bare(q.path, q.path_len, bare)
    out += MAX_LINE
    n = path_decoded(bare, bare_len, True, out)
    _form(q, out, n)
    if text_has(out, n, c';'):
        _form(q, out + MAX_LINE, path_bare(out, n, out + MAX_LINE))
        if backslash:
            n = path_decoded(bare, bare_len, False, bare)
            _form(q, bare, path_slashed(bare, path_bare(bare, n, bare)))


cdef inline bint same_name(const char *lower, const char *name, size_t n) noexcept nogil:
    cdef size_t i
    cdef unsigned char c
    for i in range(n):
        c = <unsigned char>name[i]
        if <unsigned char>lower[i] != (c | 0x20 if 65 <= c <= 90 else c):
            return False
    return True


cdef inline bint host_v6_plain(const char *p, size_t n) noexcept nogil:
    """Is "[v6]" in the one form that patterns have? An IPv4 address within IPv6 has none."""
    cdef char text[48]
    cdef unsigned char address[16]
    cdef size_t i
    if n < 4 or n - 2 >= sizeof(text):
        return False
    memcpy(text, p + 1, n - 2)
    text[n - 2] = 0
    if inet_pton(AF_INET6, text, address) != 1 or inet_ntop(AF_INET6, address, text, sizeof(text)) == NULL:
        return False
    i = 0
    while text[i] != 0:
        if text[i] == c'.':
            return False
        i += 1
    return i == n - 2 and same_name(text, p + 1, n - 2)


cdef inline int policy_host(PolicyRequest *q) noexcept nogil:
    """The host backwards and in lower case, without port and trailing dot; a long one without its beginning.

    0, or -R_BAD_HOST: part of it is percent-encoded, or it is an IPv6 address that is not written as RFC 5952
    has it, so that readers differ about it.
    """
    cdef const char *p = q.authority
    cdef size_t n = q.authority_len
    cdef size_t i
    cdef unsigned char c
    if q.host_known:
        return 0
    q.host_known = 1
    if n > 0 and p[0] == c'[':
        i = 0
        while i < n and p[i] != c']':
            i += 1
        n = i + 1 if i < n else n
        if not host_v6_plain(p, n):
            return -R_BAD_HOST
    else:
        i = 0
        while i < n and p[i] != c':':
            i += 1
        n = i
        if n > 0 and p[n - 1] == c'.':
            n -= 1
    for i in range(n):
        if p[i] == c'%':
            return -R_BAD_HOST
    q.host_len = <uint32_t>(n if n < POLICY_HOST else POLICY_HOST)
    for i in range(q.host_len):
        c = <unsigned char>p[n - 1 - i]
        q.host[i] = <char>(c | 0x20 if 65 <= c <= 90 else c)
    return 0
