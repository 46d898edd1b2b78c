# C11-style atomics of gcc and clang, for what is shared in memory. Declarations only.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #define fm_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define fm_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define fm_load_byte(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define fm_store_byte(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define fm_load_word(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define fm_swap_word(p, old, new) __sync_bool_compare_and_swap((p), (old), (new))
    #define fm_fence() __atomic_thread_fence(__ATOMIC_ACQ_REL)
    #define fm_likely(x) __builtin_expect(!!(x), 1)
    #define fm_unlikely(x) __builtin_expect(!!(x), 0)
    """
    uint64_t fm_load_acquire(uint64_t *p)
    void fm_store_release(uint64_t *p, uint64_t v)
    # of a byte that says all there is to say: nothing else is read because of it
    uint8_t fm_load_byte(uint8_t *p)
    void fm_store_byte(uint8_t *p, uint8_t v)
    uint32_t fm_load_word(uint32_t *p)
    # True: `p` held `old`, and holds `new` now
    bint fm_swap_word(uint32_t *p, uint32_t old, uint32_t new)
    void fm_fence()
    bint fm_likely(bint x)
    bint fm_unlikely(bint x)
