# ALPN (RFC 7301): which protocol a connection agrees on.
#
# A context has a list of protocols, which all connections made from it share; each is told by a mask (bits
# TLS_ALPN_*, tls_open) which of these it may speak: a client offers just those, in the context's order, a server takes
# the first of them that is offered. So listeners with one context, that of the mesh, choose each for itself. Protocols
# other than HTTP's are never agreed on.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy

from fastmesh.core.sys.openssl cimport (
    BIO_get_data, SSL, SSL_CTX, SSL_CTX_set_alpn_select_cb, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_NOACK,
    SSL_TLSEXT_ERR_OK, SSL_get_rbio, SSL_set_alpn_protos,
)
from fastmesh.core.wire.tls_state cimport (
    TLS_ALPN_H1, TLS_ALPN_H2, TLS_ALPN_MAX, TLS_ALPN_OPAQUE, TlsEngine, TlsPolicy,
)


cdef inline uint8_t _alpn_bit(const unsigned char *p) noexcept nogil:
    """The bit of one protocol, with its length in front; 0: none that we speak."""
    if p[0] == 2 and memcmp(p + 1, b"h2", 2) == 0:
        return TLS_ALPN_H2
    return TLS_ALPN_H1 if p[0] == 8 and memcmp(p + 1, b"http/1.1", 8) == 0 else 0


cdef inline int _alpn_select(
    SSL *ssl,
    const unsigned char **out,
    unsigned char *out_len,
    const unsigned char *offered,
    unsigned int n,
    void *arg,
) noexcept nogil:
    """Server: the first of our protocols that the client offers and that this connection may speak. RFC 7301 3.2:
    none is a fatal alert, but where what is spoken is not our business. Not called for who offers nothing at all."""
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef TlsPolicy *policy = <TlsPolicy *>arg
    cdef uint8_t mask = engine.current.alpn
    cdef size_t i = 0, j
    while i < policy.alpn_len:
        j = 0 if _alpn_bit(&policy.alpn[i]) & mask else n
        while j < n:
            if offered[j] == policy.alpn[i] and j + 1 + offered[j] <= n:
                if memcmp(&offered[j + 1], &policy.alpn[i + 1], offered[j]) == 0:
                    out[0] = &policy.alpn[i + 1]
                    out_len[0] = policy.alpn[i]
                    return SSL_TLSEXT_ERR_OK
            j += <size_t>1 + offered[j]
        i += <size_t>1 + policy.alpn[i]
    return SSL_TLSEXT_ERR_NOACK if mask & TLS_ALPN_OPAQUE else SSL_TLSEXT_ERR_ALERT_FATAL


cdef inline bint alpn_offer(SSL *ssl, const TlsPolicy *policy, uint8_t mask) noexcept nogil:
    """Client: offer those of the context's protocols that this connection may speak. False: no memory."""
    cdef unsigned char list[TLS_ALPN_MAX]
    cdef size_t i = 0, n = 0, k
    while i < policy.alpn_len:
        k = <size_t>1 + policy.alpn[i]
        if _alpn_bit(&policy.alpn[i]) & mask:
            memcpy(&list[n], &policy.alpn[i], k)
            n += k
        i += k
    return n == 0 or SSL_set_alpn_protos(ssl, list, <unsigned int>n) == 0


cdef inline bint alpn_set(
    SSL_CTX *ctx, TlsPolicy *policy, bint server, const unsigned char *alpn, size_t n
) noexcept nogil:
    """Give a new context its protocols, in wire form; NULL: none is ever agreed on. False: it is no list, or too long."""
    cdef size_t i = 0
    if alpn == NULL or n == 0:
        return True
    if n > sizeof(policy.alpn):
        return False
    while i < n:
        i += <size_t>1 + alpn[i]
    if i != n:
        return False
    memcpy(policy.alpn, alpn, n)
    policy.alpn_len = n
    if server:
        SSL_CTX_set_alpn_select_cb(ctx, _alpn_select, policy)
    return True
