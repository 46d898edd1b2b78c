# What a session says of its peer, and whether it may be resumed.
#
# A session, in a ticket or in a client's slot, carries the facts of the peer (tls_facts.pxd) as OpenSSL's "ticket
# application data". Whoever resumes shows no chain: everything is decided from these facts and the trust, the deny
# list and the time of now. A session without them, or with damaged ones, is good for nothing where peers must prove
# who they are.
#
# The certificate itself does not go into tickets: OpenSSL would decode it, with its key, in every handshake that
# resumes, at the cost of a third of it. There is no function to take it out of a session, but a session can be
# written, cut and read back into the same object: what is not in its written form (the chain the peer sent, references,
# extra data) stays, what is comes back as it was. That is done while a ticket is made, when the session is in no cache
# and nobody else's: OpenSSL has just copied it if it could be (RFC 8446 4.6.1 makes one session a ticket).

from libc.stddef cimport size_t
from libc.string cimport memcmp, memmove

from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.tls_facts cimport *
from fastmesh.core.wire.tls_peers cimport peer_shared
from fastmesh.core.wire.tls_state cimport TlsPolicy
from fastmesh.core.wire.tls_trust cimport trust_admits

cdef enum:
    SESSION_MAX = 16384         # bytes of a session that is cut; the certificate stays in a longer one
    DER_SEQUENCE = 0x30
    DER_PEER = 0xA3             # SSL_SESSION_ASN1: peer [3] EXPLICIT Certificate OPTIONAL


# DER ---------------------------------------------------------------------------------------------------

cdef inline size_t _der_head(const unsigned char *p, size_t n, size_t *length) noexcept nogil:
    """Bytes of tag and length; `length`: of the content, which lies within n bytes. 0: it is not DER, or no short tag."""
    cdef size_t k, i
    if n < 2 or p[0] & 0x1F == 0x1F:
        return 0
    k = p[1]
    if k < 0x80:
        length[0] = k
        return 2 if k <= n - 2 else 0
    k &= 0x7F
    if k == 0 or k > 3 or k > n - 2 or p[2] == 0:
        return 0
    length[0] = 0
    for i in range(k):
        length[0] = length[0] << 8 | p[2 + i]
    return k + 2 if length[0] >= 0x80 and length[0] <= n - 2 - k else 0


cdef inline size_t _der_put_head(unsigned char *end, unsigned char tag, size_t length) noexcept nogil:
    """Tag and length in front of `end`. Their bytes."""
    cdef size_t k = 0
    cdef size_t rest = length
    if length >= 0x80:
        while rest:
            k += 1
            end[-<int>k] = <unsigned char>(rest & 0xFF)
            rest >>= 8
    k += 1
    end[-<int>k] = <unsigned char>(length if length < 0x80 else 0x80 | (k - 1))
    end[-<int>k - 1] = tag
    return k + 1


cdef inline size_t der_cut(unsigned char *der, size_t n, unsigned char tag, unsigned char **out) noexcept nogil:
    """Take the element with that tag out of a SEQUENCE, in place. Bytes of what is left, which begins at `out`.

    0: this is no such sequence with just one such element; nothing has changed.
    """
    cdef size_t length = 0, size = 0, at, k, found = 0, cut = 0
    cdef size_t head = _der_head(der, n, &length)
    if head == 0 or der[0] != DER_SEQUENCE or head + length != n:
        return 0
    at = head
    while at < n:
        k = _der_head(der + at, n - at, &size)
        if k == 0 or (der[at] == tag and found):
            return 0
        if der[at] == tag:
            found = at
            cut = k + size
        at += k + size
    if not found:
        return 0
    memmove(der + head + cut, der + head, found - head)
    k = _der_put_head(der + head + cut, DER_SEQUENCE, length - cut)
    out[0] = der + head + cut - k
    return k + length - cut


# sessions ----------------------------------------------------------------------------------------------

cdef inline bint session_without_certificate(SSL_SESSION *session) noexcept nogil:
    """Take the peer's certificate out of a session that is nobody else's, if that can be. False: it is broken now."""
    cdef unsigned char der[SESSION_MAX]
    cdef unsigned char *p = der
    cdef const unsigned char *rest = NULL
    cdef size_t n
    cdef bint ok = True
    cdef int size
    if SSL_SESSION_get0_peer(session) == NULL:
        return True
    size = i2d_SSL_SESSION(session, NULL)
    if size <= 0 or size > SESSION_MAX or i2d_SSL_SESSION(session, &p) != size:
        return True
    n = der_cut(der, <size_t>size, DER_PEER, &p)
    if n:
        rest = p
        ok = d2i_SSL_SESSION(&session, &rest, <long>n) != NULL
    OPENSSL_cleanse(der, <size_t>size)
    return ok


cdef inline bint session_note(SSL_SESSION *session, const TlsFacts *facts) noexcept nogil:
    """False: no memory."""
    cdef size_t n = 0
    cdef const unsigned char *bytes = facts_bytes(facts, &n)
    return SSL_SESSION_set1_ticket_appdata(session, bytes, n) == 1


cdef inline bint session_facts(SSL_SESSION *session, TlsFacts *view) noexcept nogil:
    """What a session says of its peer, lent by the session. False: nothing that could be read."""
    cdef void *note = NULL
    cdef size_t n = 0
    return SSL_SESSION_get0_ticket_appdata(session, &note, &n) == 1 and facts_read(note, n, view)


cdef inline TlsFacts *session_peer(TlsPolicy *policy, SSL_SESSION *session) noexcept nogil:
    """A reference to the facts of the peer that resumed this session; NULL: there are none, or no memory."""
    cdef TlsFacts view
    return peer_shared(policy, &view) if session_facts(session, &view) else NULL


cdef inline bint tls_session_usable(
    TlsPolicy *policy, SSL_SESSION *session, const char *expect, size_t expect_len
) noexcept nogil:
    """May this session be resumed: made under the trust of now, by a peer that would be let in now (as `expect`)?"""
    cdef unsigned int n = 0
    cdef const unsigned char *trust = SSL_SESSION_get0_id_context(session, &n)
    cdef TlsFacts peer
    if n != sizeof(policy.trust) or memcmp(trust, policy.trust, n) != 0:
        return False
    if not session_facts(session, &peer):
        return policy.public and not policy.demands and SSL_SESSION_get0_peer(session) == NULL
    if not facts_current(&peer, now_seconds()):
        return False
    return policy.public or trust_admits(policy, &peer, expect, expect_len)
