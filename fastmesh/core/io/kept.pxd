# What is kept of a request for another try: its head and as much of its body as has come, in no wire format.
#
# A Kept owns its buffers. The copy of a Message stands in one Buf, its text behind it; only as many of its fields
# are there as it has.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.buffer cimport Buf, Pool, buf_class_for, buf_drop, buf_get, queue_clear, queue_copy
from fastmesh.core.io.state cimport Kept
from fastmesh.core.wire.message cimport Field, MAX_FIELDS, Message


cdef inline Buf *message_copy(Pool *pool, const Message *m) noexcept nogil:
    """A copy of `m` that stands by itself; NULL without memory."""
    cdef size_t front = sizeof(Message) - (MAX_FIELDS - m.nfields) * sizeof(Field)
    cdef int cls = buf_class_for(front + m.head_len)
    cdef Buf *b = buf_get(pool, cls) if cls >= 0 else NULL
    if b == NULL:
        return NULL
    memcpy(b.data, m, front)
    memcpy(b.data + front, m.base, m.head_len)
    b.end = <uint32_t>(front + m.head_len)
    message_of(b).base = b.data + front
    return b


cdef inline Message *message_of(Buf *b) noexcept nogil:
    """The copy in `b`; NULL for NULL."""
    return <Message *>b.data if b != NULL else NULL


cdef inline void kept_drop(Pool *pool, Kept *k) noexcept nogil:
    """There will be no other try."""
    if k.head != NULL:
        buf_drop(pool, k.head)
        k.head = NULL
    if k.trailers != NULL:
        buf_drop(pool, k.trailers)
        k.trailers = NULL
    queue_clear(pool, &k.body)


cdef inline bint kept_body(Pool *pool, Kept *k, const char *p, size_t n) noexcept nogil:
    """Add body bytes. False without memory: then nothing is kept any more."""
    if queue_copy(pool, &k.body, p, n) == 0:
        return True
    kept_drop(pool, k)
    return False


cdef inline bint kept_trailers(Pool *pool, Kept *k, const Message *m) noexcept nogil:
    """Likewise with the trailers, if there are any."""
    if m == NULL:
        return True
    k.trailers = message_copy(pool, m)
    if k.trailers != NULL:
        return True
    kept_drop(pool, k)
    return False
