# What the WebSocket handshake of HTTP/1.1 has that the one of HTTP/2 has not (RFC 6455 4, RFC 8441 5): a key, and the
# proof that the server has understood it. A proxy that goes between the two makes up the one and checks the other.

from libc.string cimport memcpy

from fastmesh.core.sys.openssl cimport EVP_Digest, EVP_sha1, RAND_bytes
from fastmesh.core.wire.base64 cimport base64_encode

cdef enum:
    WEBSOCKET_KEY = 24            # characters of Sec-WebSocket-Key
    WEBSOCKET_ACCEPT = 28         # and of Sec-WebSocket-Accept


cdef inline bint websocket_key(char *out) noexcept nogil:
    """A fresh key: sixteen bytes by chance in base64. False: the system has no randomness."""
    cdef char nonce[16]
    if RAND_bytes(<unsigned char *>nonce, 16) != 1:
        return False
    base64_encode(out, nonce, 16)
    return True


cdef inline bint websocket_accept(char *out, const char *key, size_t n) noexcept nogil:
    """What proves that `key` was understood (RFC 6455 4.2.2): base64 of SHA-1 of it and a constant. False: the key is
    none, or OpenSSL fails."""
    cdef char text[WEBSOCKET_KEY + 36]
    cdef unsigned char digest[20]
    if n != WEBSOCKET_KEY:
        return False
    memcpy(text, key, WEBSOCKET_KEY)
    memcpy(text + WEBSOCKET_KEY, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36)
    if EVP_Digest(text, sizeof(text), digest, NULL, EVP_sha1(), NULL) != 1:
        return False
    base64_encode(out, <char *>digest, 20)
    return True
