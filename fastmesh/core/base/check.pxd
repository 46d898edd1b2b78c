# Assertions on the impossible, in three tiers; input from a peer never reaches any of them.
#
#   impossible(w, ok)   a state the code excludes: debug and asan builds abort, release counts and goes on
#   poison/unpoison     tell AddressSanitizer which bytes of a slab are not to be touched

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <stdio.h>
    #include <stdlib.h>
    #if defined(FM_DEBUG)
    #define fm_impossible(counter, ok, what) \
        ((ok) ? 0 : (fprintf(stderr, "fastmesh: impossible: %s\\n", (what)), abort(), 1))
    #define FM_DEBUG_BUILD 1
    #else
    #define fm_impossible(counter, ok, what) ((ok) ? 0 : ((void)(what), (*(counter))++, 1))
    #define FM_DEBUG_BUILD 0
    #endif
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define fm_poison(p, n) ASAN_POISON_MEMORY_REGION((p), (n))
    #define fm_unpoison(p, n) ASAN_UNPOISON_MEMORY_REGION((p), (n))
    #else
    #define fm_poison(p, n) ((void)(p), (void)(n))
    #define fm_unpoison(p, n) ((void)(p), (void)(n))
    #endif
    """
    bint fm_impossible(uint64_t *counter, bint ok, const char *what)   # true: it happened
    void fm_poison(void *p, size_t n)
    void fm_unpoison(void *p, size_t n)
    bint FM_DEBUG_BUILD
