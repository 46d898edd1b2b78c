# Whom a context trusts: the roots of each trust domain, and the deny list of the own one.
#
# A peer is judged by the roots of the trust domain that its leaf claims and by no others: a root that vouches
# for one domain says nothing about a second. The deny list holds serial numbers of the own domain's issuer; it
# is asked in every handshake, held peers and resumed sessions included, and is no part of what sessions are
# bound to: a longer list bars those on it, and leaves everybody else their session.
#
# All of it belongs to the policy of one context and never changes once that context is in use.

from libc.stddef cimport size_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove

from fastmesh.core.base.reason cimport *
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.svid cimport *
from fastmesh.core.wire.tls_facts cimport TLS_SERIAL_MAX, TlsFacts
from fastmesh.core.wire.tls_state cimport TlsDomain, TlsPolicy, TlsSerial


cdef inline void _roots_free(X509_STACK *roots) noexcept nogil:
    if roots == NULL:
        return
    while sk_X509_num(roots) > 0:
        X509_free(sk_X509_pop(roots))
    sk_X509_free(roots)


cdef inline void trust_free(TlsPolicy *policy) noexcept nogil:
    """The policy goes."""
    cdef TlsDomain *d
    _roots_free(policy.own.roots)
    while policy.own.next != NULL:
        d = policy.own.next
        policy.own.next = d.next
        _roots_free(d.roots)
        free(d)
    free(policy.revoked)


cdef inline TlsDomain *trust_domain(TlsPolicy *policy, const char *id, size_t n) noexcept nogil:
    """The domain whose workload that SPIFFE ID names; NULL: no ID, or of a domain that is not trusted here."""
    cdef TlsDomain *d = &policy.own
    while d != NULL:
        if svid_id_valid(id, n, d.name, d.len):
            return d
        d = d.next
    return NULL


cdef inline int _serial_cmp(const TlsSerial *a, const unsigned char *p, size_t n) noexcept nogil:
    if a.len != n:
        return 1 if a.len > n else -1
    return memcmp(a.bytes, p, n)


cdef inline size_t _serial_at(TlsPolicy *policy, const unsigned char *p, size_t n) noexcept nogil:
    """Index of the first serial that is not below this one."""
    cdef size_t low = 0, high = policy.nrevoked, middle
    while low < high:
        middle = (low + high) // 2
        if _serial_cmp(&policy.revoked[middle], p, n) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline bint trust_revoke(TlsPolicy *policy, const unsigned char *p, size_t n) noexcept nogil:
    """Put a serial number (big-endian) on the deny list. False: no memory, or it is no serial (RFC 5280 4.1.2.2)."""
    cdef size_t at
    cdef void *more
    while n > 0 and p[0] == 0:
        p += 1
        n -= 1
    if n == 0 or n > TLS_SERIAL_MAX:
        return False
    at = _serial_at(policy, p, n)
    if at < policy.nrevoked and _serial_cmp(&policy.revoked[at], p, n) == 0:
        return True
    if policy.nrevoked == policy.revoked_cap:
        more = realloc(policy.revoked, (2 * policy.revoked_cap + 16) * sizeof(TlsSerial))
        if more == NULL:
            return False
        policy.revoked = <TlsSerial *>more
        policy.revoked_cap = 2 * policy.revoked_cap + 16
    # cheap if they come in order
    memmove(&policy.revoked[at + 1], &policy.revoked[at], (policy.nrevoked - at) * sizeof(TlsSerial))
    policy.revoked[at].len = <unsigned char>n
    memcpy(policy.revoked[at].bytes, p, n)
    policy.nrevoked += 1
    return True


cdef inline bint _revoked(TlsPolicy *policy, const TlsFacts *peer) noexcept nogil:
    """Is the serial number of this peer's certificate on the deny list?"""
    cdef size_t at
    if policy.nrevoked == 0 or peer.serial_len == 0:
        return False
    at = _serial_at(policy, peer.serial, peer.serial_len)
    return at < policy.nrevoked and _serial_cmp(&policy.revoked[at], peer.serial, peer.serial_len) == 0


cdef inline int trust_denies(TlsPolicy *policy, const TlsFacts *peer, bint server) noexcept nogil:
    """0, or why a peer that was let in under another trust would not be now: its domain is trusted no more, or its
    certificate is on the deny list."""
    cdef TlsDomain *domain = trust_domain(policy, peer.id, peer.id_len)
    if domain == NULL:
        return R_TLS_UNTRUSTED if server else R_UPSTREAM_TLS_UNTRUSTED
    if domain == &policy.own and _revoked(policy, peer):
        return R_TLS_REVOKED if server else R_UPSTREAM_TLS_REVOKED
    return 0


cdef inline bint trust_shrinks(const TlsPolicy *before, const TlsPolicy *now) noexcept nogil:
    """Is there a domain that was trusted before, and is not now?"""
    cdef const TlsDomain *b = &before.own
    cdef const TlsDomain *n
    while b != NULL:
        n = &now.own
        while n != NULL and not (n.len == b.len and memcmp(n.name, b.name, n.len) == 0):
            n = n.next
        if n == NULL:
            return True
        b = b.next
    return False


cdef inline bint trust_expected(const TlsFacts *peer, const char *expect, size_t n) noexcept nogil:
    """Is this peer the one that is expected (NULL: anybody)?"""
    return expect == NULL or (peer.id_len == n and memcmp(peer.id, expect, n) == 0)


cdef inline int trust_refuses(
    TlsPolicy *policy, const TlsFacts *peer, const char *expect, size_t n, bint server
) noexcept nogil:
    """0, or why an SVID of a trusted domain, with a good chain, is not let in."""
    if not trust_expected(peer, expect, n):
        return R_TLS_IDENTITY if server else R_UPSTREAM_TLS_IDENTITY
    return trust_denies(policy, peer, server)


cdef inline bint trust_admits(TlsPolicy *policy, const TlsFacts *peer, const char *expect, size_t n) noexcept nogil:
    """Would this peer, let in before, be let in as `expect`? That it is an SVID it has proved then."""
    return trust_expected(peer, expect, n) and trust_denies(policy, peer, True) == 0
