# Assertions on the impossible, in three tiers; input from a peer never reaches any of them.
#
#   impossible(w, ok)   a state the code excludes: debug and asan builds abort, release counts and goes on
#   poison/unpoison     tell AddressSanitizer which bytes of a slab are not to be touched
#   fault()             debug and asan builds: true once in FASTMESH_FAULT calls, by chance, so that tests reach
#                       what follows when memory is short; release: never, and free

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <stdio.h>
    #include <stdlib.h>
    #if defined(FM_DEBUG)
    #define fm_impossible(counter, ok, what) \
        ((ok) ? 0 : (fprintf(stderr, "fastmesh: impossible: %s\\n", (what)), abort(), 1))
    #define FM_DEBUG_BUILD 1
    static int fm_fault(void) {
        static long one_in = -1;
        static unsigned long long state = 88172645463325252ull;
        if (one_in < 0) {
            const char *text = getenv("FASTMESH_FAULT");
            one_in = text ? atol(text) : 0;
        }
        if (one_in <= 0) return 0;
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (long)((state >> 33) % (unsigned long long)one_in) == 0;
    }
    #else
    #define fm_impossible(counter, ok, what) ((ok) ? 0 : ((void)(what), (*(counter))++, 1))
    #define FM_DEBUG_BUILD 0
    #define fm_fault() 0
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
    bint fm_fault()
    bint FM_DEBUG_BUILD
