# The leaves of a policy's peers: each held once, with the time for which its chain is known to be good.
#
# A set-associative table without pointers into it that outlive a call; held objects are counted by OpenSSL, so
# an entry may be replaced while connections still use its leaf. Being held means nothing but "seen in a good
# handshake of a worker of ours"; whether it may be let in without another look says its time span alone.

from libc.stdint cimport int64_t, uint32_t
from libc.time cimport time_t, tm

from fastmesh.core.sys.openssl cimport *
from fastmesh.core.sys.posix cimport CLOCK_REALTIME, clock_gettime, timespec
from fastmesh.core.wire.tls_state cimport TLS_PEER_SETS, TLS_PEER_WAYS, TlsPeer, TlsPolicy

cdef extern from "<time.h>" nogil:
    time_t timegm(tm *t)


cdef inline int64_t asn1_seconds(const ASN1_TIME *t) noexcept nogil:
    """Seconds since 1970, -1 if the time is malformed."""
    cdef tm parts
    if t == NULL or not ASN1_TIME_to_tm(t, &parts):
        return -1
    return <int64_t>timegm(&parts)


cdef inline int64_t now_seconds() noexcept nogil:
    """Seconds since 1970. time(2) reads a clock that may be a tick behind: a certificate would live that much longer."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return t.tv_sec


cdef inline TlsPeer *peer_set(TlsPolicy *policy, X509 *leaf) noexcept nogil:
    """Where a leaf of that serial number may be held. A peer that chooses its serials only shares a set."""
    cdef const ASN1_STRING *serial = <const ASN1_STRING *>X509_get0_serialNumber(leaf)
    cdef const unsigned char *p = ASN1_STRING_get0_data(serial)
    cdef int i
    cdef uint32_t h = 2166136261
    for i in range(ASN1_STRING_length(serial)):
        h = (h ^ p[i]) * 16777619
    return &policy.peers[(h % TLS_PEER_SETS) * TLS_PEER_WAYS]


cdef inline TlsPeer *peer_find(TlsPolicy *policy, X509 *leaf) noexcept nogil:
    cdef TlsPeer *peer = peer_set(policy, leaf)
    cdef int way
    for way in range(TLS_PEER_WAYS):
        if peer.leaf != NULL and X509_cmp(peer.leaf, leaf) == 0:
            policy.clock += 1
            peer.used = policy.clock
            return peer
        peer += 1
    return NULL


cdef inline TlsPeer *peer_keep(TlsPolicy *policy, X509 *leaf) noexcept nogil:
    """Hold a leaf that is not held yet, in the place of the one not used for longest; not verified so far."""
    cdef TlsPeer *peer = peer_set(policy, leaf)
    cdef TlsPeer *victim = peer
    cdef int way
    for way in range(1, TLS_PEER_WAYS):
        if peer[way].used < victim.used:
            victim = &peer[way]
    X509_up_ref(leaf)
    X509_free(victim.leaf)
    policy.clock += 1
    victim.leaf = leaf
    victim.from_time = 0
    victim.to_time = -1
    victim.used = policy.clock
    return victim


cdef inline void peer_verified(TlsPeer *peer, X509_STACK *chain) noexcept nogil:
    """The leaf's chain is good for as long as each certificate in it is valid."""
    cdef int i
    cdef int64_t start = 0, end = 0x7FFFFFFFFFFFFFFF, t
    for i in range(sk_X509_num(chain)):
        t = asn1_seconds(X509_get0_notBefore(sk_X509_value(chain, i)))
        start = t if t > start else start
        t = asn1_seconds(X509_get0_notAfter(sk_X509_value(chain, i)))     # -1 if unreadable: verify it every time
        end = t if t < end else end
    peer.from_time = start
    peer.to_time = end


cdef inline X509 *peer_shared(TlsPolicy *policy, X509 *leaf) noexcept nogil:
    """A reference to the held object that equals this leaf: resumed sessions come each with one of their own."""
    cdef TlsPeer *peer = peer_find(policy, leaf)
    if peer == NULL:
        peer = peer_keep(policy, leaf)
    X509_up_ref(peer.leaf)
    return peer.leaf
