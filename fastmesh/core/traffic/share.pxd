# Which worker a new connection of a listener goes to: to the one with the fewest.
#
# A listener has a word for each worker, in memory that all of them share: bit 0 says that the worker takes
# connections of this listener, the bits above it count those that it has or is about to get. Who accepts one chooses
# a worker and counts it there in one step (share_choose): the word that was looked at is swapped for one more, or the
# choice is made anew. Counts of others that have risen meanwhile make the choice only better, so in a burst on all
# workers at once nobody gets more than if they had come one by one.
#
# A worker knows exactly how many it has. What siblings count for it beyond that is on its way to it; if a sibling
# dies on the way the count stays too high until share_settle, and what a worker has is never counted lower than it is
# (`least` in share_move), whatever became of the word meanwhile.

from libc.stdint cimport int64_t, uint32_t

from fastmesh.core.sys.atomic cimport fm_load_word, fm_swap_word

cdef enum:
    SHARE_TAKES = 1           # bit 0 of a word
    SHARE_ONE = 2             # a connection
    SHARE_EVEN = 16           # one more than others have is too many for every so many of one's own
    SHARE_TRIES = 64          # a swap fails only when another has succeeded


cdef inline uint32_t share_count(uint32_t word) noexcept nogil:
    return word >> 1


cdef inline void share_move(uint32_t *word, int by, uint32_t least) noexcept nogil:
    """Count `by` more (or less), but at least `least`."""
    cdef uint32_t seen
    cdef uint32_t new
    cdef int64_t n
    while True:
        seen = fm_load_word(word)
        n = <int64_t>share_count(seen) + by
        if n < least:
            n = least
        new = <uint32_t>n * SHARE_ONE | seen & SHARE_TAKES
        if new == seen or fm_swap_word(word, seen, new):
            return


cdef inline void share_takes(uint32_t *word, bint takes) noexcept nogil:
    """Whether siblings may choose the worker of this word."""
    cdef uint32_t seen
    cdef uint32_t new
    while True:
        seen = fm_load_word(word)
        new = seen | SHARE_TAKES if takes else seen & ~<uint32_t>SHARE_TAKES
        if new == seen or fm_swap_word(word, seen, new):
            return


cdef inline void share_settle(uint32_t *word, uint32_t has) noexcept nogil:
    """The worker has so many, and none is on its way."""
    cdef uint32_t seen = fm_load_word(word)
    while not fm_swap_word(word, seen, has * SHARE_ONE | seen & SHARE_TAKES):
        seen = fm_load_word(word)


cdef inline void share_reset(uint32_t *word) noexcept nogil:
    """Its worker has died: it has none, and takes none."""
    cdef uint32_t seen = fm_load_word(word)
    while not fm_swap_word(word, seen, 0):
        seen = fm_load_word(word)


cdef inline uint32_t share_choose(uint32_t *words, uint32_t workers, uint32_t own) noexcept nogil:
    """The worker for a connection that `own` has accepted, counted for it. The more `own` has, the more another must
    lack to be chosen: a few connections are dealt out evenly, thousands stay where they are."""
    cdef uint32_t mine
    cdef uint32_t held
    cdef uint32_t best
    cdef uint32_t best_word
    cdef uint32_t word
    cdef uint32_t at
    cdef uint32_t i
    cdef int tries
    for tries in range(SHARE_TRIES):
        best = own
        mine = best_word = fm_load_word(&words[own])
        held = share_count(mine)
        if held > 0:                             # else nobody has fewer
            at = own
            for i in range(workers - 1):
                at = at + 1 if at + 1 < workers else 0
                word = fm_load_word(&words[at])
                if word & SHARE_TAKES and share_count(word) < share_count(best_word):
                    best = at
                    best_word = word
            if best != own and held - share_count(best_word) <= held // SHARE_EVEN:
                best = own
                best_word = mine
        if fm_swap_word(&words[best], best_word, best_word + SHARE_ONE):
            return best
    share_move(&words[own], 1, 0)
    return own
