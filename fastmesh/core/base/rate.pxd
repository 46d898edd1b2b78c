# A rate limit for each key of an unbounded set, in a table of fixed size (GCRA: one time stamp a key).
#
# A key's stamp is the time at which it would have used up nothing; a step is let through while the stamp is at
# most `burst_us` ahead, and puts it ahead by `period_us`. Keys that hash to a full set take the place of the one
# that is the least ahead: whoever floods with many keys only forgets the quiet ones. Keys are hashed with the
# caller's seed, so that nobody outside can choose their set.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    RATE_SETS = 1024
    RATE_WAYS = 4

cdef struct RateSlot:
    uint64_t key              # hash; 0: free
    uint64_t ahead_us         # on the caller's clock

cdef struct RateTable:        # zeros: empty
    uint64_t seed
    RateSlot slots[4096]      # RATE_SETS * RATE_WAYS


cdef inline uint64_t rate_key(const RateTable *t, const unsigned char *p, uint32_t n) noexcept nogil:
    """A key's hash, never 0."""
    cdef uint64_t h = t.seed ^ 0x9E3779B97F4A7C15ULL
    cdef uint32_t i
    for i in range(n):
        h = (h ^ p[i]) * 0xD6E8FEB86659FD93ULL
        h ^= h >> 32
    return h | 1


cdef inline bint rate_allows(RateTable *t, uint64_t key, uint64_t now_us, uint64_t period_us, uint64_t burst_us) noexcept nogil:
    """Take one step for `key`, if it is within its rate."""
    cdef RateSlot *s = &t.slots[(key >> 32) % RATE_SETS * RATE_WAYS]
    cdef RateSlot *mine = NULL
    cdef RateSlot *least = s
    cdef uint64_t ahead
    cdef int i
    for i in range(RATE_WAYS):
        if s[i].key == key:
            mine = &s[i]
            break
        if s[i].ahead_us < least.ahead_us:
            least = &s[i]
    if mine == NULL:
        mine = least
        mine.key = key
        mine.ahead_us = 0
    ahead = mine.ahead_us if mine.ahead_us > now_us else now_us
    if ahead - now_us > burst_us:
        return False
    mine.ahead_us = ahead + period_us
    return True
