# Interned strings: each distinct one is stored once and compared by its address from then on.
#
# The table owns the strings until intern_free. It holds at most INTERN_MAX of them: what it stores comes
# from verified certificates, but nothing a peer sends may grow without bound.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cdef enum:
    INTERN_MAX = 16384
    INTERN_SLOTS = 32768      # a power of two, twice the most entries

cdef struct Interned:
    uint32_t hash
    uint32_t len
    char text[1]              # len bytes and a NUL

cdef struct Intern:
    Interned **slots
    uint32_t count


cdef inline Interned *intern(Intern *t, const char *text, uint32_t n) noexcept nogil:
    """The one copy of `text`, or NULL when the table is full or out of memory."""
    cdef uint32_t h = 2166136261
    cdef uint32_t i
    cdef Interned *e
    for i in range(n):
        h = (h ^ <unsigned char>text[i]) * 16777619
    if t.slots == NULL:
        t.slots = <Interned **>calloc(INTERN_SLOTS, sizeof(Interned *))
        if t.slots == NULL:
            return NULL
    i = h & (INTERN_SLOTS - 1)
    while t.slots[i] != NULL:
        e = t.slots[i]
        if e.hash == h and e.len == n and memcmp(e.text, text, n) == 0:
            return e
        i = (i + 1) & (INTERN_SLOTS - 1)
    if t.count >= INTERN_MAX:
        return NULL
    e = <Interned *>malloc(sizeof(Interned) + n)
    if e == NULL:
        return NULL
    e.hash = h
    e.len = n
    memcpy(e.text, text, n)
    e.text[n] = 0
    t.slots[i] = e
    t.count += 1
    return e


cdef inline void intern_free(Intern *t) noexcept nogil:
    cdef int i
    if t.slots != NULL:
        for i in range(INTERN_SLOTS):
            free(t.slots[i])
        free(t.slots)
    t.slots = NULL
    t.count = 0
