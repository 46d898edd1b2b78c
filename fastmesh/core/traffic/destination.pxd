# Destinations: where clients wanted to go before their connections were taken over, and whose they are.
#
# A Destinations is made with the snapshot and never changed: open addressing over address, port and family. An entry
# is of one port, or of all ports of an address (port 0), which counts where none is of that port. What several
# services claim in the same way is shared: then Host, or the name in a TLS hello, says which of them is meant.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    DEST_SHARED = -2              # in the place of a service

cdef enum:  # DestFamily
    DEST_NONE = 0
    DEST_SLOT = 1                 # no address: the counter row of a service, where nothing was taken over
    DEST_INET = 4
    DEST_INET6 = 6

cdef struct Destination:          # 20 bytes without holes: compared and hashed as they are
    uint8_t address[16]           # IPv4: the first four, the others are 0
    uint16_t port                 # host order; in a table 0: any
    uint8_t family                # enum DestFamily
    uint8_t zero

cdef struct DestinationEntry:
    Destination at                # family DEST_NONE: free
    int32_t service               # index, or DEST_SHARED
    uint32_t first                # with DEST_SHARED: in `sharers` from here ...
    uint32_t count                # ... so many

cdef struct Destinations:
    uint32_t mask
    uint32_t used
    uint8_t any_port              # there are entries of all ports of an address
    DestinationEntry *entries     # NULL: none
    int32_t *sharers


cdef inline bint destination_is_local_to_link(const Destination *d) noexcept nogil:
    """Is it an address of IPv6 (RFC 4291, 2.5.6) that says nothing without its link, which is not kept?"""
    return d.family == DEST_INET6 and d.address[0] == 0xfe and d.address[1] & 0xc0 == 0x80


cdef inline uint32_t destination_hash(const Destination *d) noexcept nogil:
    cdef uint64_t a
    cdef uint64_t b
    cdef uint32_t c
    memcpy(&a, d.address, 8)
    memcpy(&b, d.address + 8, 8)
    memcpy(&c, &d.port, 4)
    a = (a ^ c) * <uint64_t>0x9E3779B97F4A7C15
    a = (a ^ (a >> 32) ^ b) * <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(a >> 32)


cdef inline bint destination_equal(const Destination *a, const Destination *b) noexcept nogil:
    return memcmp(a, b, sizeof(Destination)) == 0


cdef inline bint destination_loopback(const Destination *d) noexcept nogil:
    """127.0.0.0/8, ::1."""
    if d.family == DEST_INET:
        return d.address[0] == 127
    return d.family == DEST_INET6 and memcmp(d.address, b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", 16) == 0


cdef inline DestinationEntry *destination_slot(const Destinations *t, const Destination *d) noexcept nogil:
    """The entry of just `d`, or the free one where it belongs. The table is never full."""
    cdef uint32_t at = destination_hash(d) & t.mask
    while t.entries[at].at.family != DEST_NONE and not destination_equal(&t.entries[at].at, d):
        at = (at + 1) & t.mask
    return &t.entries[at]


cdef inline const DestinationEntry *destination_find(const Destinations *t, const Destination *d) noexcept nogil:
    """Whose `d` is: by its port, else by its address alone; NULL: nobody's."""
    cdef const DestinationEntry *e
    cdef Destination any_port
    if t.entries == NULL:
        return NULL
    e = destination_slot(t, d)
    if e.at.family != DEST_NONE:
        return e
    if not t.any_port:
        return NULL
    any_port = d[0]
    any_port.port = 0
    e = destination_slot(t, &any_port)
    return e if e.at.family != DEST_NONE else NULL


cdef inline bint destination_sharer(const Destinations *t, const DestinationEntry *e, int32_t service) noexcept nogil:
    """Is the shared entry also of that service?"""
    cdef uint32_t i
    for i in range(e.count):
        if t.sharers[e.first + i] == service:
            return True
    return False
