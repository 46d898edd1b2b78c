# C11-style atomics of gcc and clang, for the rings in shared memory. Declarations only.

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #define fm_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define fm_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define fm_likely(x) __builtin_expect(!!(x), 1)
    #define fm_unlikely(x) __builtin_expect(!!(x), 0)
    """
    uint64_t fm_load_acquire(uint64_t *p)
    void fm_store_release(uint64_t *p, uint64_t v)
    bint fm_likely(bint x)
    bint fm_unlikely(bint x)
