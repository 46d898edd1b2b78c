# Texts that several owners share: one copy of each, freed with its last reference.
#
# For what comes and goes with connections, as identities and certificates of peers do: nothing stays behind, so
# that no peer can fill it up for others by what it has said before. The table grows with what is in it.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef struct Shared:
    Shared *next              # of the same bucket
    uint32_t hash
    uint32_t refs
    uint32_t len
    char text[1]              # len bytes and a NUL

cdef struct SharedTexts:
    Shared **buckets
    uint32_t mask
    uint32_t count


cdef inline void _grow(SharedTexts *t) noexcept nogil:
    """Twice the buckets; without memory the chains get longer."""
    cdef uint32_t size = 2 * (t.mask + 1) if t.buckets != NULL else 64
    cdef Shared **buckets = <Shared **>calloc(size, sizeof(Shared *))
    cdef Shared *e
    cdef uint32_t i
    if buckets == NULL:
        return
    if t.buckets != NULL:
        for i in range(t.mask + 1):
            while t.buckets[i] != NULL:
                e = t.buckets[i]
                t.buckets[i] = e.next
                e.next = buckets[e.hash & (size - 1)]
                buckets[e.hash & (size - 1)] = e
        free(t.buckets)
    t.buckets = buckets
    t.mask = size - 1


cdef inline Shared *shared_get(SharedTexts *t, const char *text, uint32_t n) noexcept nogil:
    """A reference to the one copy of `text`; NULL without memory."""
    cdef uint32_t h = 2166136261
    cdef uint32_t i
    cdef Shared *e
    for i in range(n):
        h = (h ^ <unsigned char>text[i]) * 16777619
    h ^= h >> 15
    if t.buckets == NULL or t.count > t.mask:
        _grow(t)
        if t.buckets == NULL:
            return NULL
    e = t.buckets[h & t.mask]
    while e != NULL:
        if e.hash == h and e.len == n and memcmp(e.text, text, n) == 0:
            e.refs += 1
            return e
        e = e.next
    e = <Shared *>malloc(sizeof(Shared) + n)
    if e == NULL:
        return NULL
    e.hash = h
    e.refs = 1
    e.len = n
    memcpy(e.text, text, n)
    e.text[n] = 0
    e.next = t.buckets[h & t.mask]
    t.buckets[h & t.mask] = e
    t.count += 1
    return e


cdef inline Shared *shared_ref(Shared *e) noexcept nogil:
    """One more reference; NULL is none."""
    if e != NULL:
        e.refs += 1
    return e


cdef inline void shared_put(SharedTexts *t, Shared *e) noexcept nogil:
    """Give a reference back; NULL is none."""
    cdef Shared **at
    if e == NULL:
        return
    e.refs -= 1
    if e.refs > 0:
        return
    at = &t.buckets[e.hash & t.mask]
    while at[0] != e:
        at = &at[0].next
    at[0] = e.next
    t.count -= 1
    free(e)


cdef inline void shared_free(SharedTexts *t) noexcept nogil:
    """The table itself, once nothing is in it."""
    free(t.buckets)
    memset(t, 0, sizeof(SharedTexts))
