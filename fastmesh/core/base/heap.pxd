# Heaps: memory in size classes for one worker, for libraries that want malloc (nghttp2).
#
# Every class is a slab of its own: what was freed is handed out again first, and once the worker is warm
# nothing of a class asks the system. Four classes a doubling keep the waste below a fifth. What is larger
# than the largest class comes from malloc. A block is preceded by its class and size, because such
# libraries free without a size. Not thread-safe: one worker, one thread.
#
# Balance: `in_use` counts blocks, `bytes` what was asked for; both are 0 when all is given back.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastmesh.core.base.check cimport fm_fault
from fastmesh.core.base.slab cimport Slab, slab_free, slab_get, slab_init, slab_put

cdef enum:
    HEAP_CLASSES = 24
    HEAP_SMALL = 1024         # up to here the class is looked up in a table
    HEAP_OWN = 0xFF           # "class" of a block from malloc
    HEAP_HEAD = 16

cdef struct HeapHead:
    uint32_t cls
    uint32_t _pad
    uint64_t size             # what was asked for

cdef struct Heap:
    Slab slab[24]             # HEAP_CLASSES
    uint32_t size[24]         # payload of each
    uint8_t small[65]         # class by 16 bytes, up to HEAP_SMALL
    uint64_t in_use
    uint64_t bytes


cdef inline uint32_t _heap_class_size(int i) noexcept nogil:
    """32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320 ... 1024, then six larger ones."""
    if i < 6:
        return <uint32_t>(32 + 16 * i)
    if i < 18:
        return <uint32_t>((4 + (i - 6) % 4) << ((i - 6) // 4 + 5))
    if i == 18:
        return 1024
    if i == 19:
        return 2048
    if i == 20:
        return 4096
    if i == 21:
        return 8192
    # The buffer in which nghttp2 packs a frame of 16 KiB, and what one of twice that size would need.
    return 16480 if i == 22 else 32864


cdef inline void heap_init(Heap *h, uint64_t max_bytes) noexcept nogil:
    """A heap whose classes never exceed about `max_bytes` each."""
    cdef int i, cls
    cdef size_t block, region
    for i in range(HEAP_CLASSES):
        h.size[i] = _heap_class_size(i)
        block = h.size[i] + HEAP_HEAD
        region = 65536 if h.size[i] <= 2048 else 524288
        slab_init(&h.slab[i], block, region, max_bytes // block)
    cls = 0
    for i in range(65):
        while h.size[cls] < <uint32_t>(16 * i):
            cls += 1
        h.small[i] = <uint8_t>cls
    h.in_use = 0
    h.bytes = 0


cdef inline void heap_free_all(Heap *h) noexcept nogil:
    """Give everything back to the system. The caller has asserted that `in_use` is 0."""
    cdef int i
    for i in range(HEAP_CLASSES):
        slab_free(&h.slab[i])


cdef inline void *heap_alloc(Heap *h, size_t n) noexcept nogil:
    """`n` bytes with undefined contents, or NULL."""
    cdef HeapHead *b
    cdef int cls
    if n <= HEAP_SMALL:
        cls = h.small[(n + 15) >> 4]
    else:
        cls = 19
        while cls < HEAP_CLASSES and h.size[cls] < n:
            cls += 1
    if cls < HEAP_CLASSES:
        b = <HeapHead *>slab_get(&h.slab[cls])
    else:
        cls = HEAP_OWN
        b = NULL if fm_fault() or n > <size_t>-1 - HEAP_HEAD else <HeapHead *>malloc(n + HEAP_HEAD)
    if b == NULL:
        return NULL
    b.cls = <uint32_t>cls
    b.size = n
    h.in_use += 1
    h.bytes += n
    return <char *>b + HEAP_HEAD


cdef inline void heap_free(Heap *h, void *p) noexcept nogil:
    cdef HeapHead *b
    if p == NULL:
        return
    b = <HeapHead *>(<char *>p - HEAP_HEAD)
    h.in_use -= 1
    h.bytes -= b.size
    if b.cls == HEAP_OWN:
        free(b)
    else:
        slab_put(&h.slab[b.cls], b)


cdef inline void *heap_calloc(Heap *h, size_t n, size_t size) noexcept nogil:
    cdef void *p
    if size and n > <size_t>-1 // size:
        return NULL
    p = heap_alloc(h, n * size)
    if p != NULL:
        memset(p, 0, n * size)
    return p


cdef inline void *heap_realloc(Heap *h, void *p, size_t n) noexcept nogil:
    """As realloc: on failure `p` stays as it is."""
    cdef HeapHead *b
    cdef void *q
    if p == NULL:
        return heap_alloc(h, n)
    b = <HeapHead *>(<char *>p - HEAP_HEAD)
    if b.cls != HEAP_OWN and n <= h.size[b.cls]:
        h.bytes += n - b.size
        b.size = n
        return p
    q = heap_alloc(h, n)
    if q != NULL:
        memcpy(q, p, b.size if b.size < n else n)
        heap_free(h, p)
    return q
