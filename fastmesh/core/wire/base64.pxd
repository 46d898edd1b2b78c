# Base64 (RFC 4648 4) in a stream: strict decoding in pieces of any size, encoding with padding.
#
# Contract: reads only [p, p + n), writes only within the bound that the functions name, keeps a quantum of at most
# three characters in a Base64, which starts zeroed. A stream may be a concatenation of padded texts: "=" ends a
# quantum, not the stream. Everything else is refused: other characters (white space too), padding in the wrong
# place, and bits behind the last byte that are not zero (3.5).

from libc.stdint cimport int8_t, uint8_t, uint32_t

cdef extern from * nogil:
    """
    #include <stdint.h>

    static const char fm_base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    /* the value of a digit, -1 for everything else */
    static const int8_t fm_base64_values[256] = {
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 62, -1, -1, -1, 63,
        52, 53, 54, 55, 56, 57, 58, 59, 60, 61, -1, -1, -1, -1, -1, -1,
        -1,  0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14,
        15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, -1, -1, -1, -1, -1,
        -1, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
        41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
    };
    """
    const char fm_base64_digits[65]
    const int8_t fm_base64_values[256]

cdef struct Base64:
    uint32_t bits                  # of the digits of the quantum under way
    uint8_t count                  # its characters so far: 0 to 3
    uint8_t pads                   # how many of them are "="


cdef inline size_t base64_size(size_t n) noexcept nogil:
    """Characters that n bytes become."""
    return (n + 2) // 3 * 4


cdef inline size_t base64_decoded_bound(size_t n) noexcept nogil:
    """Bytes that n more characters become at most: three may be here already."""
    return (n + 3) // 4 * 3


cdef inline size_t base64_encode(char *out, const char *p, size_t n) noexcept nogil:
    """p[:n] with padding, base64_size(n) characters, which is returned.

    `out` may lie before p in the same memory, with p[:n] at the very end of the room for the result.
    """
    cdef const uint8_t *s = <const uint8_t *>p
    cdef char *o = out
    cdef uint32_t v
    while n >= 3:
        v = <uint32_t>s[0] << 16 | <uint32_t>s[1] << 8 | s[2]
        o[0] = fm_base64_digits[v >> 18]
        o[1] = fm_base64_digits[v >> 12 & 63]
        o[2] = fm_base64_digits[v >> 6 & 63]
        o[3] = fm_base64_digits[v & 63]
        s += 3
        o += 4
        n -= 3
    if n > 0:
        v = <uint32_t>s[0] << 16
        if n == 2:
            v |= <uint32_t>s[1] << 8
        o[0] = fm_base64_digits[v >> 18]
        o[1] = fm_base64_digits[v >> 12 & 63]
        o[2] = fm_base64_digits[v >> 6 & 63] if n == 2 else c"="
        o[3] = c"="
        o += 4
    return <size_t>(o - out)


cdef inline int base64_decode(Base64 *st, const char *p, size_t n, char *out, size_t *written) noexcept nogil:
    """Decode the next piece of the stream into `out` (base64_decoded_bound(n)): 0, or -1 if it is not base64."""
    cdef const uint8_t *s = <const uint8_t *>p
    cdef const uint8_t *end = s + n
    cdef char *o = out
    cdef int a, b, d, e
    cdef uint32_t v
    written[0] = 0
    while s < end:
        if st.count == 0 and end - s >= 4:
            a = fm_base64_values[s[0]]
            b = fm_base64_values[s[1]]
            d = fm_base64_values[s[2]]
            e = fm_base64_values[s[3]]
            if (a | b | d | e) >= 0:
                v = <uint32_t>(a << 18 | b << 12 | d << 6 | e)
                o[0] = <char>(v >> 16)
                o[1] = <char>(v >> 8 & 0xFF)
                o[2] = <char>(v & 0xFF)
                o += 3
                s += 4
                continue
        # a character at a time: a quantum that is cut, padded or wrong
        if s[0] == c"=":
            if st.count < 2:
                return -1
            st.pads += 1
        else:
            a = fm_base64_values[s[0]]
            if a < 0 or st.pads:
                return -1
            st.bits = st.bits << 6 | <uint32_t>a
        s += 1
        st.count += 1
        if st.count < 4:
            continue
        if st.pads == 0:
            o[0] = <char>(st.bits >> 16)
            o[1] = <char>(st.bits >> 8 & 0xFF)
            o[2] = <char>(st.bits & 0xFF)
        elif st.pads == 1:
            if st.bits & 3:
                return -1
            o[0] = <char>(st.bits >> 10)
            o[1] = <char>(st.bits >> 2 & 0xFF)
        else:
            if st.bits & 15:
                return -1
            o[0] = <char>(st.bits >> 4)
        o += 3 - st.pads
        st.bits = 0
        st.count = 0
        st.pads = 0
    written[0] = <size_t>(o - out)
    return 0


cdef inline bint base64_whole(const Base64 *st) noexcept nogil:
    """Does the stream end well here, with no quantum under way?"""
    return st.count == 0
