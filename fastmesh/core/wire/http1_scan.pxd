# Scanning for HTTP/1: byte classes, the three scans that a head consists of, and the lookup of field names.
#
# Contract: every function reads only bytes in [p, end) (or [p, p + n)); nothing is written, nothing kept.
# The scans return the first byte that does not belong, or `end`. They are C because they need intrinsics
# with a portable fallback; SSE2 is part of every x86-64, so no run-time dispatch is needed.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmesh.core.wire.message cimport (
    F_CONNECTION, F_CONTENT_LENGTH, F_CONTENT_TYPE, F_COOKIE, F_DATE, F_EXPECT, F_FORWARDED, F_HOST, F_KEEP_ALIVE,
    F_OTHER, F_PROXY_AUTHENTICATE, F_PROXY_AUTHORIZATION, F_PROXY_CONNECTION, F_SERVER, F_TE, F_TRAILER,
    F_TRANSFER_ENCODING, F_UPGRADE, F_VIA, F_X_FASTMESH_REASON, F_X_FORWARDED_CLIENT_CERT, F_X_FORWARDED_FOR,
    F_X_FORWARDED_HOST, F_X_FORWARDED_PROTO,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif

    #define FM_ALWAYS_INLINE static inline __attribute__((always_inline))

    #define FM_TCHAR 1    /* RFC 9110 5.6.2 */
    #define FM_REGNAME 2  /* RFC 3986 3.2.2: unreserved and sub-delims; percent-encoding is checked apart */
    #define FM_HEX 4
    #define FM_DIGIT 8
    #define FM_QDTEXT 16  /* RFC 9110 5.6.4, obs-text included */
    #define FM_LOWER 32   /* tchar without capitals: field names of HTTP/2 (RFC 9113 8.2.1) */

    static const uint8_t fm_class[256] = {
         0,  0,  0,  0,  0,  0,  0,  0,  0, 16,  0,  0,  0,  0,  0,  0,
         0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
        16, 51,  0, 49, 51, 49, 51, 51, 18, 18, 51, 51, 18, 51, 51, 16,
        63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 16, 18, 16, 18, 16, 16,
        16, 23, 23, 23, 23, 23, 23, 19, 19, 19, 19, 19, 19, 19, 19, 19,
        19, 19, 19, 19, 19, 19, 19, 19, 19, 19, 19, 16,  0, 16, 49, 51,
        49, 55, 55, 55, 55, 55, 55, 51, 51, 51, 51, 51, 51, 51, 51, 51,
        51, 51, 51, 51, 51, 51, 51, 51, 51, 51, 51, 16, 49, 16, 51,  0,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
        16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    };

    FM_ALWAYS_INLINE uint16_t fm_load16(const char *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
    FM_ALWAYS_INLINE uint32_t fm_load32(const char *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
    FM_ALWAYS_INLINE uint64_t fm_load64(const char *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }

    /* Field values and reason phrases: HTAB, SP, VCHAR, obs-text (RFC 9110 5.5). */
    FM_ALWAYS_INLINE const char *fm_scan_value(const char *p, const char *end) {
    #if defined(__SSE2__)
        const __m128i low = _mm_set1_epi8(0x1f), del = _mm_set1_epi8(0x7f), tab = _mm_set1_epi8(0x09);
        while (end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)p);
            __m128i bad = _mm_andnot_si128(_mm_cmpeq_epi8(v, tab), _mm_cmpeq_epi8(_mm_min_epu8(v, low), v));
            int mask = _mm_movemask_epi8(_mm_or_si128(bad, _mm_cmpeq_epi8(v, del)));
            if (mask) return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
    #endif
        for (; p < end; p++) {
            uint8_t c = (uint8_t)*p;
            if ((c < 0x20 && c != 0x09) || c == 0x7f) break;
        }
        return p;
    }

    /* Request targets: VCHAR without '#', which starts a fragment and is never sent (RFC 9112 3.2). */
    FM_ALWAYS_INLINE const char *fm_scan_target(const char *p, const char *end) {
    #if defined(__SSE2__)
        const __m128i low = _mm_set1_epi8(0x20), high = _mm_set1_epi8(0x7f), hash = _mm_set1_epi8(0x23);
        while (end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)p);
            __m128i bad = _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(v, low), v),
                                       _mm_cmpeq_epi8(_mm_max_epu8(v, high), v));
            int mask = _mm_movemask_epi8(_mm_or_si128(bad, _mm_cmpeq_epi8(v, hash)));
            if (mask) return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
    #endif
        for (; p < end; p++) {
            uint8_t c = (uint8_t)*p;
            if (c <= 0x20 || c >= 0x7f || c == 0x23) break;
        }
        return p;
    }

    /* Field names of HTTP/2. */
    FM_ALWAYS_INLINE const char *fm_scan_lower(const char *p, const char *end) {
        while (p < end && (fm_class[(uint8_t)*p] & FM_LOWER)) p++;
        return p;
    }

    /* Tokens: field names, methods, connection options. */
    FM_ALWAYS_INLINE const char *fm_scan_token(const char *p, const char *end) {
        while (p < end && (fm_class[(uint8_t)*p] & FM_TCHAR)) p++;
        return p;
    }
    """
    enum:
        FM_TCHAR
        FM_REGNAME
        FM_HEX
        FM_DIGIT
        FM_QDTEXT
    const uint8_t fm_class[256]
    uint16_t fm_load16(const char *p) noexcept nogil
    uint32_t fm_load32(const char *p) noexcept nogil
    uint64_t fm_load64(const char *p) noexcept nogil
    const char *fm_scan_value(const char *p, const char *end) noexcept nogil
    const char *fm_scan_target(const char *p, const char *end) noexcept nogil
    const char *fm_scan_token(const char *p, const char *end) noexcept nogil
    const char *fm_scan_lower(const char *p, const char *end) noexcept nogil


# The comparisons below fold case with `| 0x20`. That is exact here: every pattern consists of a-z, '-',
# digits, and the only other bytes that fold onto those (0x0d, 0x10-0x19, A-Z) are letters' capitals or
# controls, and controls never get this far.

cdef inline uint64_t _low8(const char *p) noexcept nogil:
    return fm_load64(p) | 0x2020202020202020ULL


cdef inline uint32_t _low4(const char *p) noexcept nogil:
    return fm_load32(p) | 0x20202020


cdef inline bint http1_equal(const char *p, const char *word, size_t n) noexcept nogil:
    """Whether p[:n], free of controls, equals the lower-case `word` without regard to case."""
    cdef size_t i
    for i in range(n):
        if (<uint8_t>p[i] | 0x20) != <uint8_t>word[i]:
            return False
    return True


cdef inline uint8_t _short_id(const char *p, size_t n) noexcept nogil:
    if n == 2:
        if (fm_load16(p) | 0x2020) == fm_load16(b"te"):
            return F_TE
    elif n == 3:
        if (fm_load16(p) | 0x2020) == fm_load16(b"vi") and (p[2] | 0x20) == c"a":
            return F_VIA
    elif n == 4:
        if _low4(p) == fm_load32(b"host"):
            return F_HOST
        if _low4(p) == fm_load32(b"date"):
            return F_DATE
    elif n == 6:
        if _low4(p) == fm_load32(b"serv") and _low4(p + 2) == fm_load32(b"rver"):
            return F_SERVER
        if _low4(p) == fm_load32(b"expe") and _low4(p + 2) == fm_load32(b"pect"):
            return F_EXPECT
        if _low4(p) == fm_load32(b"cook") and _low4(p + 2) == fm_load32(b"okie"):
            return F_COOKIE
    elif n == 7:
        if _low4(p) == fm_load32(b"upgr") and _low4(p + 3) == fm_load32(b"rade"):
            return F_UPGRADE
        if _low4(p) == fm_load32(b"trai") and _low4(p + 3) == fm_load32(b"iler"):
            return F_TRAILER
    return F_OTHER


cdef inline uint8_t _underscored_id(const char *p, size_t n) noexcept nogil:
    """The FieldId of p[:n], at most 23 bytes, with "-" for every "_"."""
    cdef char name[24]
    cdef size_t i
    for i in range(n):
        name[i] = c"-" if p[i] == c"_" else p[i]
    return http1_field_id(name, n)


cdef inline uint8_t http1_field_id(const char *p, size_t n) noexcept nogil:
    """The FieldId of the valid field name p[:n]; the length decides which one, two or three it can be.

    With underscores in it X-Forwarded-Client-Cert (or -For, -Host, -Proto) is the same field: applications that
    make variables of names (CGI, WSGI: RFC 3875 4.1.18) would take one for the other.
    """
    cdef uint64_t head, tail
    if n < 8:
        return _short_id(p, n)
    # the first and the last eight bytes cover names of up to sixteen
    head = _low8(p)
    tail = _low8(p + n - 8)
    if n == 9:
        if head == fm_load64(b"forwarde") and tail == fm_load64(b"orwarded"):
            return F_FORWARDED
    elif n == 10:
        if head == fm_load64(b"connecti") and tail == fm_load64(b"nnection"):
            return F_CONNECTION
        if head == fm_load64(b"keep-ali") and tail == fm_load64(b"ep-alive"):
            return F_KEEP_ALIVE
    elif n == 12:
        if head == fm_load64(b"content-") and tail == fm_load64(b"ent-type"):
            return F_CONTENT_TYPE
    elif n == 14:
        if head == fm_load64(b"content-") and tail == fm_load64(b"t-length"):
            return F_CONTENT_LENGTH
    elif n == 15:
        if head == fm_load64(b"x-forwar") and tail == fm_load64(b"rded-for"):
            return F_X_FORWARDED_FOR
    elif n == 16:
        if head == fm_load64(b"x-forwar") and tail == fm_load64(b"ded-host"):
            return F_X_FORWARDED_HOST
        if head == fm_load64(b"proxy-co") and tail == fm_load64(b"nnection"):
            return F_PROXY_CONNECTION
    elif n == 17:
        if head == fm_load64(b"transfer") and p[8] == c"-" and tail == fm_load64(b"encoding"):
            return F_TRANSFER_ENCODING
        if head == fm_load64(b"x-forwar") and (p[8] | 0x20) == c"d" and tail == fm_load64(b"ed-proto"):
            return F_X_FORWARDED_PROTO
        if head == fm_load64(b"x-fastme") and (p[8] | 0x20) == c"s" and tail == fm_load64(b"h-reason"):
            return F_X_FASTMESH_REASON
    elif n == 18:
        if (head == fm_load64(b"proxy-au") and (fm_load16(p + 8) | 0x2020) == fm_load16(b"th")
                and tail == fm_load64(b"enticate")):
            return F_PROXY_AUTHENTICATE
    elif n == 19:
        if (head == fm_load64(b"proxy-au") and _low4(p + 8) == fm_load32(b"thor")
                and tail == fm_load64(b"rization")):
            return F_PROXY_AUTHORIZATION
    elif n == 23:
        if (head == fm_load64(b"x-forwar") and _low8(p + 8) == fm_load64(b"ded-clie")
                and tail == fm_load64(b"ent-cert")):
            return F_X_FORWARDED_CLIENT_CERT
    if 15 <= n <= 23 and (p[0] | 0x20) == c"x" and (p[3] | 0x20) == c"o" and (
            p[1] == c"_" or p[11] == c"_" or n > 18 and p[18] == c"_"):
        return _underscored_id(p, n)
    return F_OTHER
