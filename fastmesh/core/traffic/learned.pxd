# What a worker has learned of destinations whose protocol it had to tell from the first bytes: those of whom nothing
# came in time, and those where the server speaks first, for which there is nothing to wait for.
#
# A table of bounded size, each destination in one of WAYS places; the one not seen for longest makes room. Written by
# one worker, read by the agent at any time: what it reads may be half of one row and half of the next.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from fastmesh.core.traffic.destination cimport DEST_NONE, Destination, destination_equal, destination_hash

cdef enum:
    LEARNED_MAX = 256             # a power of two
    LEARNED_WAYS = 8
    DETECT_BUCKETS = 10           # 9 bounds and the rest

cdef struct Learned:
    Destination at                # of family DEST_NONE: free
    int32_t service               # its counter row; -1: none
    uint32_t timeouts             # connections that were waited for in vain
    uint32_t skipped              # connections that were not waited for
    uint8_t server_first
    uint64_t seen_ms

cdef struct Detection:            # of one worker
    uint64_t delays[16]           # DETECT_BUCKETS, not cumulative: how long protocols took to tell
    uint64_t delay_sum_ms
    uint64_t any_server           # somewhere the server has spoken first: a look is worth while
    Learned rows[256]             # LEARNED_MAX


cdef inline uint32_t detect_bound_ms(int i) noexcept nogil:
    """Upper bound of bucket `i` in milliseconds."""
    if i == 0: return 1
    if i == 1: return 2
    if i == 2: return 5
    if i == 3: return 10
    if i == 4: return 20
    if i == 5: return 35
    if i == 6: return 50
    if i == 7: return 75
    return 100


cdef inline void detect_observe(Detection *d, uint64_t ms) noexcept nogil:
    cdef int i = 0
    while i < DETECT_BUCKETS - 1 and ms > detect_bound_ms(i):
        i += 1
    d.delays[i] += 1
    d.delay_sum_ms += ms


cdef inline Learned *learned_find(Detection *d, const Destination *to) noexcept nogil:
    """What is known of a destination; NULL: nothing."""
    cdef uint32_t at = destination_hash(to)
    cdef uint32_t i
    for i in range(<uint32_t>LEARNED_WAYS):
        if destination_equal(&d.rows[(at + i) & (LEARNED_MAX - 1)].at, to):
            return &d.rows[(at + i) & (LEARNED_MAX - 1)]
    return NULL


cdef inline Learned *learned_server_first(Detection *d, const Destination *to) noexcept nogil:
    """Its row if the server speaks first there, so that nothing has to be waited for; else NULL."""
    cdef Learned *row = learned_find(d, to) if d.any_server else NULL
    return row if row != NULL and row.server_first else NULL


cdef inline void learned_skipped(Learned *row, uint64_t now_ms) noexcept nogil:
    """A connection there was not waited for."""
    row.skipped += 1
    row.seen_ms = now_ms


cdef inline void learned_timeout(Detection *d, const Destination *to, int32_t service, uint64_t now_ms) noexcept nogil:
    """Nothing came in time for the first bytes of a connection there."""
    cdef uint32_t at = destination_hash(to)
    cdef Learned *row = learned_find(d, to)
    cdef Learned *one
    cdef uint32_t i
    if row == NULL:
        for i in range(<uint32_t>LEARNED_WAYS):
            one = &d.rows[(at + i) & (LEARNED_MAX - 1)]
            if row == NULL or one.at.family == DEST_NONE and row.at.family != DEST_NONE or (
                    row.at.family != DEST_NONE and one.seen_ms < row.seen_ms):
                row = one
        row.at.family = DEST_NONE                # whoever reads now sees a free one
        row.timeouts = row.skipped = 0
        row.server_first = 0
        row.service = service
        row.at = to[0]
    row.service = service
    row.timeouts += 1
    row.seen_ms = now_ms


cdef inline void learned_spoke(Detection *d, const Destination *to, bint server) noexcept nogil:
    """Who spoke first on a connection whose client had been given its time, or was not waited for."""
    cdef Learned *row = learned_find(d, to)
    if row != NULL:
        row.server_first = server
        d.any_server |= server
