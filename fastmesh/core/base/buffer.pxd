# Buffers: reference-counted blocks of bytes in three sizes, and queues of them.
#
# A Buf holds bytes [start, end) of its data. It sits in at most ONE queue (`next`), and may besides be
# kept by others that hold a reference (`refs`): such keepers read it, only the last one may append. Its
# size class decides which slab it returns to. Small ones carry heads and short messages, medium ones what
# is read from a socket, large ones a head of the greatest allowed size.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmesh.core.base.slab cimport Slab, slab_free, slab_get, slab_init, slab_put

cdef enum:  # BufClass
    BUF_SMALL = 0
    BUF_MEDIUM = 1
    BUF_LARGE = 2
    BUF_CLASSES = 3

cdef enum:
    # Payload sizes. With the header, none is a multiple of a page or of 4 KiB (see slab.pxd).
    SMALL_SIZE = 2016
    MEDIUM_SIZE = 16384
    LARGE_SIZE = 73728

cdef struct Buf:
    Buf *next
    uint32_t start
    uint32_t end
    uint32_t cap
    uint16_t refs
    uint8_t cls
    uint8_t _pad
    char data[1]          # `cap` bytes

cdef struct Pool:         # the buffers of a worker
    Slab slab[3]

cdef struct Queue:        # bytes on their way out, oldest first
    Buf *head
    Buf *tail
    size_t bytes


cdef inline void pool_init(Pool *p, uint64_t max_bytes) noexcept nogil:
    """Buffers that together never exceed about `max_bytes` in any one class."""
    cdef size_t head = 32
    slab_init(&p.slab[BUF_SMALL], SMALL_SIZE + head, 131072, max_bytes // SMALL_SIZE)
    slab_init(&p.slab[BUF_MEDIUM], MEDIUM_SIZE + head + 64, 1 << 20, max_bytes // MEDIUM_SIZE)
    slab_init(&p.slab[BUF_LARGE], LARGE_SIZE + head + 192, 1 << 20, max_bytes // LARGE_SIZE)


cdef inline uint64_t pool_in_use(Pool *p) noexcept nogil:
    return p.slab[0].in_use + p.slab[1].in_use + p.slab[2].in_use


cdef inline void pool_free(Pool *p) noexcept nogil:
    slab_free(&p.slab[0])
    slab_free(&p.slab[1])
    slab_free(&p.slab[2])


cdef inline Buf *buf_get(Pool *p, int cls) noexcept nogil:
    cdef Buf *b = <Buf *>slab_get(&p.slab[cls])
    if b != NULL:
        b.next = NULL
        b.start = 0
        b.end = 0
        b.cap = SMALL_SIZE if cls == BUF_SMALL else (MEDIUM_SIZE if cls == BUF_MEDIUM else LARGE_SIZE)
        b.refs = 1
        b.cls = <uint8_t>cls
    return b


cdef inline int buf_class_for(size_t n) noexcept nogil:
    """The smallest class that holds `n` bytes, or -1."""
    if n <= SMALL_SIZE:
        return BUF_SMALL
    if n <= MEDIUM_SIZE:
        return BUF_MEDIUM
    if n <= LARGE_SIZE:
        return BUF_LARGE
    return -1


cdef inline void buf_drop(Pool *p, Buf *b) noexcept nogil:
    """Give up one reference."""
    b.refs -= 1
    if b.refs == 0:
        slab_put(&p.slab[b.cls], b)


cdef inline void queue_push(Queue *q, Buf *b) noexcept nogil:
    """Append `b`, whose reference passes to the queue. `b` is in no queue."""
    b.next = NULL
    if q.tail == NULL:
        q.head = b
    else:
        q.tail.next = b
    q.tail = b
    q.bytes += b.end - b.start


cdef inline char *queue_reserve(Pool *p, Queue *q, size_t n) noexcept nogil:
    """Room for `n` contiguous bytes at the queue's end, to be followed by queue_commit; NULL: no memory.

    A tail that somebody else keeps (refs > 1) is not written to: its keeper counts on its end.
    """
    cdef Buf *b = q.tail
    cdef int cls
    if b != NULL and b.cap - b.end >= n and b.refs == 1:
        return b.data + b.end
    cls = buf_class_for(n)
    if cls < 0:
        return NULL
    b = buf_get(p, cls)
    if b == NULL:
        return NULL
    queue_push(q, b)
    return b.data


cdef inline void queue_commit(Queue *q, size_t n) noexcept nogil:
    q.tail.end += <uint32_t>n
    q.bytes += n


cdef inline int queue_copy(Pool *p, Queue *q, const char *src, size_t n) noexcept nogil:
    """Append a copy of `n` bytes; 0, or -1 without memory (what was appended stays)."""
    cdef Buf *b = q.tail
    cdef size_t room
    if b != NULL and b.refs == 1:
        room = b.cap - b.end
        if room > n:
            room = n
        memcpy(b.data + b.end, src, room)
        b.end += <uint32_t>room
        q.bytes += room
        src += room
        n -= room
    while n > 0:
        b = buf_get(p, BUF_SMALL if n <= SMALL_SIZE else BUF_MEDIUM)
        if b == NULL:
            return -1
        room = b.cap if n > b.cap else n
        memcpy(b.data, src, room)
        b.end = <uint32_t>room
        queue_push(q, b)
        src += room
        n -= room
    return 0


cdef inline void queue_consume(Pool *p, Queue *q, size_t n) noexcept nogil:
    """Remove `n` bytes (at most q.bytes) from the front."""
    cdef Buf *b
    cdef size_t have
    q.bytes -= n
    while n > 0:
        b = q.head
        have = b.end - b.start
        if have > n:
            b.start += <uint32_t>n
            return
        n -= have
        q.head = b.next
        if q.head == NULL:
            q.tail = NULL
        b.next = NULL
        buf_drop(p, b)
    # an empty buffer at the front (start == end) would block nothing but must not linger
    while q.head != NULL and q.head.start == q.head.end:
        b = q.head
        q.head = b.next
        if q.head == NULL:
            q.tail = NULL
        b.next = NULL
        buf_drop(p, b)


cdef inline void queue_clear(Pool *p, Queue *q) noexcept nogil:
    cdef Buf *b
    while q.head != NULL:
        b = q.head
        q.head = b.next
        b.next = NULL
        buf_drop(p, b)
    q.tail = NULL
    q.bytes = 0
