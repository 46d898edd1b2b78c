# The ring through which a worker hands the access log to the agent: one writer, one reader, nobody waits.
#
# It lies in shared memory (`counters`). A record is a LogRecord and its texts behind each other, rounded up to 8
# bytes; it may go around the ring's end. The reader believes nothing: what a worker that died has left behind must
# not lead it astray.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmesh.core.sys.atomic cimport fm_load_acquire, fm_store_release

cdef enum:
    RING_BYTES = 262144

cdef enum:  # LogText: what is behind a LogRecord, in this order
    LOG_LISTENER = 0
    LOG_SERVICE
    LOG_METHOD
    LOG_AUTHORITY
    LOG_PATH
    LOG_SOURCE
    LOG_UPSTREAM
    LOG_IDENTITY
    LOG_RULE                  # empty: no rule decided
    LOG_TEXTS

cdef struct Ring:             # single producer (worker), single consumer (agent), bytes
    uint64_t head             # bytes ever written (producer)
    uint64_t _pad1[7]
    uint64_t tail             # bytes ever consumed
    uint64_t _pad2[7]
    uint64_t dropped          # records that found no room (producer)
    uint64_t _pad3[7]
    char data[262144]         # RING_BYTES

cdef struct LogRecord:        # the fixed part
    uint32_t size             # of the whole record, rounded up to 8
    uint16_t status
    uint16_t reason
    uint64_t wall_us          # UNIX time of the request's start
    uint64_t duration_us
    uint64_t bytes_in
    uint64_t bytes_out
    uint32_t snapshot
    uint8_t retries
    uint8_t version           # 10, 11, 20; 0: opaque TCP
    uint16_t lengths[9]       # enum LogText
    uint8_t verdict           # enum Verdict
    uint8_t audit             # a refusal that was let through
    uint8_t by_service        # the service's rules decided


cdef inline void _ring_put(Ring *r, uint64_t *at, const char *src, size_t n) noexcept nogil:
    """Copy into the ring at position `at`, around its end. `src` may be NULL if `n` is 0."""
    cdef size_t where = <size_t>(at[0] & (RING_BYTES - 1))
    cdef size_t first = RING_BYTES - where
    if n == 0:
        return
    if first > n:
        first = n
    memcpy(r.data + where, src, first)
    memcpy(r.data, src + first, n - first)
    at[0] += n


cdef inline bint ring_write(Ring *r, LogRecord *rec, const char **texts) noexcept nogil:
    """Append one record and the texts of its lengths; False (and counted) if the reader is too far behind."""
    cdef size_t n = sizeof(LogRecord)
    cdef uint64_t head = r.head
    cdef int i
    for i in range(LOG_TEXTS):
        n += rec.lengths[i]
    n = (n + 7) & ~<size_t>7
    if head - fm_load_acquire(&r.tail) + n > RING_BYTES:
        r.dropped += 1
        return False
    rec.size = <uint32_t>n
    cdef uint64_t at = head
    _ring_put(r, &at, <const char *>rec, sizeof(LogRecord))
    for i in range(LOG_TEXTS):
        _ring_put(r, &at, texts[i], rec.lengths[i])
    fm_store_release(&r.head, head + n)
    return True


cdef inline void _ring_get(const Ring *r, uint64_t at, char *dst, size_t n) noexcept nogil:
    """Copy out of the ring from position `at`, around its end."""
    cdef size_t where = <size_t>(at & (RING_BYTES - 1))
    cdef size_t first = RING_BYTES - where
    if first > n:
        first = n
    memcpy(dst, r.data + where, first)
    memcpy(dst + first, r.data, n - first)


cdef inline bint ring_next(Ring *r, LogRecord *rec) noexcept nogil:
    """The fixed part of the oldest record, which stays; False: there is none, or what is there is none."""
    cdef uint64_t head = fm_load_acquire(&r.head)
    cdef uint64_t there = head - r.tail
    if there == 0:
        return False
    if sizeof(LogRecord) <= there <= RING_BYTES:
        _ring_get(r, r.tail, <char *>rec, sizeof(LogRecord))
        if sizeof(LogRecord) <= rec.size <= there:
            return True
    fm_store_release(&r.tail, head)              # nothing can be told apart in it
    return False


cdef inline void ring_take(Ring *r, const LogRecord *rec, char *whole) noexcept nogil:
    """Take the record of `ring_next` out; `whole` has room for its size."""
    _ring_get(r, r.tail, whole, rec.size)
    fm_store_release(&r.tail, r.tail + rec.size)
