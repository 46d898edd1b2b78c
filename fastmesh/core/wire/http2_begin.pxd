# How a server begins that speaks HTTP/2, where it does not wait for its client's preface (RFC 9113 3.4).

from libc.stdint cimport uint32_t

cdef enum:
    SETTINGS_BYTES = 16384        # most of a frame before anything is agreed on (RFC 9113 4.2)


cdef inline bint http2_server_begins(const char *p, size_t n) noexcept nogil:
    """Does p[:n] begin with the head of a SETTINGS frame that is no acknowledgement (RFC 9113 4.1, 6.5)?"""
    cdef const unsigned char *b = <const unsigned char *>p
    cdef uint32_t length
    if n < 9:
        return False
    length = <uint32_t>b[0] << 16 | <uint32_t>b[1] << 8 | b[2]
    return length % 6 == 0 and length <= SETTINGS_BYTES and b[3] == 4 and (b[4] | b[5] | b[6] | b[7] | b[8]) == 0
