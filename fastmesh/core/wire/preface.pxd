# How a client begins that speaks HTTP/2 in the clear with prior knowledge (RFC 9113 3.3, 3.4): told from HTTP/1 by its
# first bytes, which no HTTP/1 request can have.

from libc.string cimport memcmp

cdef enum:
    PREFACE_BYTES = 24
    PREFACE_MORE = 0            # what came so far is its beginning
    PREFACE_HERE = 1
    PREFACE_NOT = -1


cdef inline int preface_here(const char *p, size_t n) noexcept nogil:
    """Is p[:n], the first bytes of a connection, the client's preface?"""
    cdef size_t k = n if n < PREFACE_BYTES else PREFACE_BYTES
    if memcmp(p, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", k) != 0:
        return PREFACE_NOT
    return PREFACE_HERE if n >= PREFACE_BYTES else PREFACE_MORE
