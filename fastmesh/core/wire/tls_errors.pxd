# What went wrong, as one reason: from OpenSSL's error queue, from an alert of the peer, from our own records.

from fastmesh.core.base.reason cimport *
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.tls_state cimport *


cdef inline bint _alert_on_certificate(int alert) noexcept nogil:
    """Is this alert of the peer about the certificate we presented? (RFC 8446 6.2)"""
    return (
        SSL_AD_BAD_CERTIFICATE <= alert <= SSL_AD_CERTIFICATE_UNKNOWN
        or alert == SSL_AD_UNKNOWN_CA
        or alert == SSL_AD_ACCESS_DENIED
        or alert == SSL_AD_CERTIFICATE_REQUIRED
    )


cdef inline int tls_broken(Tls *t) noexcept nogil:
    """The reason when, after the handshake, the peer broke the protocol."""
    if t.flags & TLS_F_SERVER:
        return R_DOWNSTREAM_RESET
    return R_UPSTREAM_RESET if t.flags & TLS_F_DATA else R_UPSTREAM_TLS_HANDSHAKE


cdef inline int tls_alerted(Tls *t, int alert) noexcept nogil:
    """The reason behind a fatal alert of the peer."""
    if t.flags & TLS_F_SERVER:
        return R_DOWNSTREAM_RESET if t.flags & TLS_F_DONE else R_TLS_HANDSHAKE
    if t.flags & TLS_F_DATA:
        return R_UPSTREAM_RESET
    if _alert_on_certificate(alert):
        return R_UPSTREAM_TLS_REFUSED
    # OpenSSL's word for a chain that is good but proves no identity
    if t.flags & TLS_F_DONE and alert == SSL_AD_HANDSHAKE_FAILURE:
        return R_UPSTREAM_TLS_REFUSED
    return R_UPSTREAM_TLS_HANDSHAKE


cdef inline int tls_error_reason(Tls *t) noexcept nogil:
    """The reason of the failure that OpenSSL just reported; empties its error queue."""
    cdef unsigned long code
    cdef int why = 0
    while True:
        code = ERR_get_error()
        if code == 0:
            break
        if ERR_GET_LIB(code) == ERR_LIB_SSL:
            why = ERR_GET_REASON(code)
            break
    ERR_clear_error()
    if t.failed:     # the verification knew
        return t.failed
    if why > SSL_AD_REASON_OFFSET:
        return tls_alerted(t, why - SSL_AD_REASON_OFFSET)
    if t.flags & TLS_F_DONE:
        return tls_broken(t)
    if not t.flags & TLS_F_SERVER:
        return R_UPSTREAM_TLS_HANDSHAKE
    if why == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return R_TLS_NO_CERTIFICATE
    if (
        why == SSL_R_UNSUPPORTED_PROTOCOL
        or why == SSL_R_VERSION_TOO_LOW
        or why == SSL_R_WRONG_SSL_VERSION
        or why == SSL_R_NO_SHARED_CIPHER
        or why == SSL_R_NO_SHARED_GROUPS
        or why == SSL_R_NO_SUITABLE_KEY_SHARE
        or why == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
    ):
        return R_TLS_VERSION
    if why == SSL_R_HTTP_REQUEST or why == SSL_R_HTTPS_PROXY_REQUEST or why == SSL_R_WRONG_VERSION_NUMBER:
        return R_TLS_NOT_TLS
    return R_TLS_HANDSHAKE


cdef inline int tls_fail(Tls *t, int reason) noexcept nogil:
    """Break the connection. One that failed before it was of use takes the session for the next one with it."""
    if t.session_slot != NULL and t.session_slot[0] != NULL and not t.flags & TLS_F_DATA:
        SSL_SESSION_free(t.session_slot[0])
        t.session_slot[0] = NULL
    t.failed = <uint8_t>reason
    return -reason
