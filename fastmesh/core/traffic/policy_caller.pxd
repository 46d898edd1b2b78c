# What a connection says of its caller, and the rules that this leaves: settled once a connection.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from fastmesh.core.base.shared cimport Shared
from fastmesh.core.traffic.policy cimport Cidr, Conditions, Policy, PolicyList, PolicyRule
from fastmesh.core.traffic.text_index cimport Bits, Text

cdef struct PolicyFacts:      # what a connection says of its caller
    Shared *identity          # NULL: none proven
    uint8_t family            # 4, 6 or 0: a Unix socket
    uint8_t address[16]
    uint16_t port             # the local one; 0: none

cdef struct PolicyView:       # the rules of a policy that a connection can meet
    const Policy *of
    uint32_t at               # found when this many snapshots had been loaded: memory comes back
    Bits allow
    Bits deny


cdef inline bint id_matches(const Text *pattern, const Shared *id) noexcept nogil:
    """`id` is the pattern, or begins with it where the pattern ends in `*`."""
    if pattern.len > 0 and pattern.ptr[pattern.len - 1] == c'*':
        return id.len >= pattern.len - 1 and memcmp(pattern.ptr, id.text, pattern.len - 1) == 0
    return id.len == pattern.len and memcmp(pattern.ptr, id.text, pattern.len) == 0


cdef inline bint _from(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    if f.identity == NULL:
        return c.unauthenticated
    for i in range(c.nfrom):
        if id_matches(&c.ids[i], f.identity):
            return True
    return False


cdef inline bint _source(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    cdef const Cidr *net
    cdef int whole
    cdef int mask
    for i in range(c.nsources):
        net = &c.sources[i]
        if net.family != f.family:
            continue
        whole = net.bits >> 3
        mask = (0xFF00 >> (net.bits & 7)) & 0xFF
        if memcmp(net.address, f.address, whole) == 0 and (
                mask == 0 or (net.address[whole] ^ f.address[whole]) & mask == 0):
            return True
    return False


cdef inline bint _port(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    for i in range(c.nports):
        if c.ports[i] == f.port:
            return f.port != 0
    return False


cdef inline bint _met_by_connection(const PolicyRule *r, const PolicyFacts *f) noexcept nogil:
    if (r.when.nfrom or r.when.unauthenticated) and not _from(&r.when, f):
        return False
    if (r.unless.nfrom or r.unless.unauthenticated) and _from(&r.unless, f):
        return False
    if r.when.nsources and not _source(&r.when, f) or r.unless.nsources and _source(&r.unless, f):
        return False
    return not (r.when.nports and not _port(&r.when, f) or r.unless.nports and _port(&r.unless, f))


cdef inline void _settle(const PolicyList *l, const PolicyFacts *f, Bits *out) noexcept nogil:
    cdef uint32_t i
    memset(out, 0, sizeof(Bits))
    for i in range(l.n):
        if _met_by_connection(&l.rules[i], f):
            out.w[i >> 6] |= <uint64_t>1 << (i & 63)


cdef inline void policy_settle(const Policy *p, const PolicyFacts *f, uint32_t at, PolicyView *view) noexcept nogil:
    """The rules of `p` that a connection with these facts can meet."""
    view.of = p
    view.at = at
    _settle(&p.allow, f, &view.allow)
    _settle(&p.deny, f, &view.deny)
