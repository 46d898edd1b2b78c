# What targets have in common: how a finding is told, bytes in blocks of exactly their size, inputs read as choices.

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, malloc
from libc.string cimport memcpy

cdef struct Choices:              # an input, a byte at a time; 0 when there is none left
    const uint8_t *p
    size_t left


cdef inline void fail(const char *what) noexcept nogil:
    fprintf(stderr, b"fuzz: %s\n", what)
    abort()


cdef inline char *block(const void *data, size_t n) noexcept nogil:
    """A copy in a heap block of exactly n bytes."""
    cdef char *p = <char *>malloc(n)
    if n:
        memcpy(p, data, n)
    return p


cdef inline uint8_t choice(Choices *c) noexcept nogil:
    cdef uint8_t v
    if c.left == 0:
        return 0
    v = c.p[0]
    c.p += 1
    c.left -= 1
    return v


cdef inline uint16_t choice16(Choices *c) noexcept nogil:
    cdef uint16_t high = choice(c)
    return <uint16_t>(high << 8 | choice(c))


cdef inline uint64_t chance(uint64_t *seed) noexcept nogil:
    """Xorshift; the seed is not 0."""
    cdef uint64_t s = seed[0]
    s ^= s << 13
    s ^= s >> 7
    s ^= s << 17
    seed[0] = s
    return s >> 8
