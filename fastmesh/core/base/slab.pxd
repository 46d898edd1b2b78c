# Slabs: fixed-size blocks for one worker, without malloc on the request path.
#
# A Slab maps regions of many blocks and keeps free ones on a last-in-first-out list, so that the block
# handed out is the one most likely in the cache. Regions are returned to the system only with the slab: what
# a burst needed is kept for the next one.
# Blocks are not aligned to pages on purpose: neighbours start in different cache sets.
# Ownership: who calls slab_get owns the block until slab_put. Not thread-safe: one worker, one thread.

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from fastmesh.core.base.check cimport fm_fault, fm_poison, fm_unpoison
from fastmesh.core.sys.posix cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)

cdef struct SlabRegion:
    SlabRegion *next
    void *memory
    size_t size

cdef struct SlabFree:
    SlabFree *next

cdef struct Slab:
    size_t block          # bytes of a block
    size_t step           # blocks of a region
    SlabFree *free
    SlabRegion *regions
    uint64_t in_use       # blocks handed out: a balance counter
    uint64_t total
    uint64_t limit        # most blocks there may ever be


cdef inline void slab_init(Slab *s, size_t block, size_t region_bytes, uint64_t limit) noexcept nogil:
    """A slab of blocks of `block` bytes (rounded up to 16), grown by about `region_bytes` at a time."""
    s.block = (block + 15) & ~<size_t>15
    s.step = region_bytes // s.block
    if s.step < 4:
        s.step = 4
    s.free = NULL
    s.regions = NULL
    s.in_use = 0
    s.total = 0
    s.limit = limit


cdef inline bint _slab_grow(Slab *s) noexcept nogil:
    cdef SlabRegion *r
    cdef char *p
    cdef size_t i
    if s.total + s.step > s.limit:
        return False
    r = <SlabRegion *>malloc(sizeof(SlabRegion))
    if r == NULL:
        return False
    r.size = s.block * s.step
    r.memory = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if r.memory == MAP_FAILED:
        free(r)
        return False
    r.next = s.regions
    s.regions = r
    s.total += s.step
    # Lowest address on top of the list. Only the link is written: for small blocks that touches every
    # page of the region once, which is why regions of small blocks are kept small.
    p = <char *>r.memory
    i = s.step
    while i > 0:
        i -= 1
        (<SlabFree *>(p + i * s.block)).next = s.free
        s.free = <SlabFree *>(p + i * s.block)
        fm_poison(<char *>s.free + sizeof(SlabFree), s.block - sizeof(SlabFree))
    return True


cdef inline void *slab_get(Slab *s) noexcept nogil:
    """A block with undefined contents, or NULL at the limit or out of memory."""
    cdef SlabFree *b = s.free
    if fm_fault():
        return NULL
    if b == NULL:
        if not _slab_grow(s):
            return NULL
        b = s.free
    s.free = b.next
    s.in_use += 1
    fm_unpoison(b, s.block)
    return b


cdef inline void slab_put(Slab *s, void *block) noexcept nogil:
    cdef SlabFree *b = <SlabFree *>block
    b.next = s.free
    s.free = b
    s.in_use -= 1
    fm_poison(<char *>b + sizeof(SlabFree), s.block - sizeof(SlabFree))


cdef inline void slab_free(Slab *s) noexcept nogil:
    """Give everything back. The caller has asserted that `in_use` is 0."""
    cdef SlabRegion *r
    while s.regions != NULL:
        r = s.regions
        s.regions = r.next
        fm_unpoison(r.memory, r.size)
        munmap(r.memory, r.size)
        free(r)
    s.free = NULL
