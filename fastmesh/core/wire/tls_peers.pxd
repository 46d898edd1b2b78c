# The facts of a policy's peers: each held once, whatever the number of their connections.
#
# A set-associative table without pointers into it that outlive a call; facts are counted, so an entry may be
# replaced while connections still use what was in it. What was verified by this policy lets a peer in without
# another look for as long as its chain is good; what came with a ticket of another worker is only shared.

from libc.string cimport memcmp

from fastmesh.core.wire.tls_facts cimport *
from fastmesh.core.wire.tls_state cimport TLS_PEER_SETS, TLS_PEER_WAYS, TlsPeer, TlsPolicy


cdef inline TlsPeer *_peer_set(TlsPolicy *policy, const unsigned char *hash) noexcept nogil:
    """Where a leaf of that hash may be held. A peer that chooses its hashes only shares a set."""
    return &policy.peers[(hash[0] % TLS_PEER_SETS) * TLS_PEER_WAYS]


cdef inline TlsPeer *_peer_at(TlsPolicy *policy, const unsigned char *hash) noexcept nogil:
    cdef TlsPeer *peer = _peer_set(policy, hash)
    cdef int way
    for way in range(TLS_PEER_WAYS):
        if peer[way].facts != NULL and memcmp(peer[way].facts.hash, hash, 32) == 0:
            policy.clock += 1
            peer[way].used = policy.clock
            return &peer[way]
    return NULL


cdef inline TlsFacts *peer_verified(TlsPolicy *policy, const unsigned char *hash, int64_t now) noexcept nogil:
    """The facts, lent, of the leaf with that hash, if its chain was verified here and is good now; or NULL."""
    cdef TlsPeer *peer = _peer_at(policy, hash)
    return peer.facts if peer != NULL and peer.verified and facts_current(peer.facts, now) else NULL


cdef inline void peer_keep(TlsPolicy *policy, TlsFacts *facts, bint verified) noexcept nogil:
    """Hold these instead of older ones of the same leaf, or in the place of those not used for longest."""
    cdef TlsPeer *set = _peer_set(policy, facts.hash)
    cdef TlsPeer *place = _peer_at(policy, facts.hash)
    cdef int way
    if place == NULL:
        place = set
        for way in range(1, TLS_PEER_WAYS):
            if set[way].used < place.used:
                place = &set[way]
    facts_hold(facts)
    facts_put(place.facts)
    policy.clock += 1
    place.facts = facts
    place.verified = verified
    place.used = policy.clock


cdef inline TlsFacts *peer_shared(TlsPolicy *policy, const TlsFacts *view) noexcept nogil:
    """A reference to facts that equal these, which a session told: held ones if there are. NULL: no memory."""
    cdef TlsPeer *peer = _peer_at(policy, view.hash)
    cdef TlsFacts *facts
    # of the same leaf, but from another chain: each is good for its own time
    if peer != NULL and peer.facts.id_len == view.id_len and memcmp(
            &peer.facts.version, &view.version, TLS_FACTS_HEAD) == 0 and memcmp(
            peer.facts.id, view.id, view.id_len) == 0:
        return facts_hold(peer.facts)
    facts = facts_copy(view)
    if facts != NULL and peer == NULL:
        peer_keep(policy, facts, False)
    return facts


cdef inline void peers_free(TlsPolicy *policy) noexcept nogil:
    """The policy goes."""
    cdef int i
    for i in range(TLS_PEER_SETS * TLS_PEER_WAYS):
        facts_put(policy.peers[i].facts)
