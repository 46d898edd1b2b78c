# Which of many patterns match a text: exact ones, prefixes, and prefixes that end at a boundary.
#
# The text is hashed once from its beginning; at each length that some pattern has, a table tells whether the
# text so far is one. The cost is that of the text (up to the longest pattern) and of the lengths that occur,
# not of the number of patterns. Each pattern carries, for its three kinds, the set of rules that name it.
# Filled at load time (face/load_policy.pxd), then read only.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

cdef enum:
    BITS_WORDS = 4            # 256 rules
    INDEX_TEXT = 2048         # longest pattern

cdef struct Text:             # owned, NUL-terminated
    char *ptr
    uint32_t len

cdef struct Bits:
    uint64_t w[4]             # BITS_WORDS

cdef struct IndexEntry:
    uint32_t hash
    uint32_t len
    const char *text
    Bits exact                # rules for which the text must be this
    Bits below                # ... be this, or go on with the boundary
    Bits begins               # ... begin with this

cdef struct TextIndex:
    uint32_t count            # 0: empty
    uint32_t mask
    uint32_t longest
    uint32_t *slots           # open addressing: entry + 1
    IndexEntry *entries
    uint64_t lengths[33]      # bit n: some pattern has n bytes


cdef inline uint32_t index_step(uint32_t h, char c) noexcept nogil:
    return (h ^ <unsigned char>c) * 16777619


cdef inline uint32_t index_hash(const char *text, size_t n) noexcept nogil:
    """FNV-1a: every prefix has its hash on the way."""
    cdef uint32_t h = 2166136261
    cdef size_t i
    for i in range(n):
        h = index_step(h, text[i])
    return h


cdef inline uint32_t index_slot(uint32_t h, uint32_t mask) noexcept nogil:
    return (h ^ h >> 15) & mask


cdef inline void bits_or(Bits *a, const Bits *b) noexcept nogil:
    cdef int i
    for i in range(BITS_WORDS):
        a.w[i] |= b.w[i]


cdef inline void bits_set(Bits *a, uint32_t i) noexcept nogil:
    a.w[i >> 6] |= <uint64_t>1 << (i & 63)


cdef inline bint bits_has(const Bits *a, uint32_t i) noexcept nogil:
    return (a.w[i >> 6] >> (i & 63)) & 1


cdef inline bint bits_any(const Bits *a) noexcept nogil:
    return (a.w[0] | a.w[1] | a.w[2] | a.w[3]) != 0


cdef inline void index_find(const TextIndex *t, const char *text, size_t n, char boundary, bint lenient,
                            Bits *found) noexcept nogil:
    """Add to `found` the rules that have a pattern for text[:n].

    `lenient`: one boundary behind the end makes no difference to an exact pattern.
    """
    cdef uint32_t h = 2166136261
    cdef size_t i = 0
    cdef size_t most = n if n < t.longest else t.longest
    cdef uint32_t at
    cdef uint32_t k
    cdef const IndexEntry *e
    while True:
        if (t.lengths[i >> 6] >> (i & 63)) & 1:
            at = index_slot(h, t.mask)
            k = t.slots[at]
            while k != 0:
                e = &t.entries[k - 1]
                if e.hash == h and e.len == i and memcmp(e.text, text, i) == 0:
                    bits_or(found, &e.begins)
                    if i == n or text[i] == boundary:
                        bits_or(found, &e.below)
                    if i == n or lenient and i + 1 == n and text[i] == boundary:
                        bits_or(found, &e.exact)
                    break
                at = (at + 1) & t.mask
                k = t.slots[at]
        if i == most:
            return
        h = index_step(h, text[i])
        i += 1
