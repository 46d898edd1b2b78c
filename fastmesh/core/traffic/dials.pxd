# Connections that we have just begun, so that one which comes back to us is known: rules that take our own traffic over
# too would have us answer ourselves until the descriptors run out.
#
# Each worker writes a table of its own in the memory that all share, and reads those of all. A row is what tells one
# connection of this host from all others, both ends of it, and holds for as long as a first packet may be under way.
# Rows make room for each other: one that is missed comes back once more.

from libc.stdint cimport uint64_t

from fastmesh.core.traffic.destination cimport Destination, destination_equal, destination_hash

cdef enum:
    DIALS_MAX = 256               # a power of two
    DIAL_MS = 3000                # SYN, and two repetitions

cdef struct Dial:
    Destination source            # our end
    Destination to
    uint64_t at_ms

cdef struct Dials:                # of one worker
    Dial rows[256]                # DIALS_MAX


cdef inline Dial *_row(Dials *d, const Destination *source) noexcept nogil:
    return &d.rows[destination_hash(source) & (DIALS_MAX - 1)]


cdef inline void dial_note(Dials *d, const Destination *source, const Destination *to, uint64_t now_ms) noexcept nogil:
    cdef Dial *row = _row(d, source)
    row.source = source[0]
    row.to = to[0]
    row.at_ms = now_ms


cdef inline bint dial_noted(Dials *d, const Destination *source, const Destination *to,
                            uint64_t now_ms) noexcept nogil:
    cdef const Dial *row = _row(d, source)
    return (destination_equal(&row.source, source) and destination_equal(&row.to, to)
            and now_ms < row.at_ms + DIAL_MS)
