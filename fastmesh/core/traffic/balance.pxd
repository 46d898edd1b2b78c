# Which endpoint of a service the next try goes to.
#
# Endpoints that failed their health checks are passed over. They are the last choice, never none: when all of them
# are unhealthy, all of them are used, and a request that no healthy one takes is offered to the others. What the
# agent says of an endpoint is one byte that may change at any time: two looks at it may differ, so nothing here
# relies on that, only the order in which endpoints are tried does.

from libc.stdint cimport uint32_t

from fastmesh.core.sys.atomic cimport fm_likely, fm_load_byte, fm_unlikely
from fastmesh.core.traffic.counters cimport HEALTH_BAD, S_HEALTH_PANICS
from fastmesh.core.traffic.destination cimport DEST_INET6, Destination
from fastmesh.core.traffic.snapshot cimport Endpoint, Service


cdef inline bint _healthy(Service *s, Endpoint *e) noexcept nogil:
    return e.health < 0 or fm_load_byte(&s.health[e.health]) != HEALTH_BAD


cdef inline Endpoint *_behind(Service *s, Endpoint *e) noexcept nogil:
    return e + 1 if e + 1 < s.endpoints + s.nendpoints else s.endpoints


cdef inline Endpoint *balance(Service *s) noexcept nogil:
    """Round robin over the healthy endpoints, over all if none is healthy (counted); NULL if the service has none."""
    cdef uint32_t at
    cdef uint32_t i
    cdef Endpoint *e
    if s.nendpoints == 0:
        return NULL
    at = s.cursor
    if at >= s.nendpoints:
        at = 0
    s.cursor = at + 1
    e = &s.endpoints[at]
    if s.health == NULL or fm_likely(_healthy(s, e)):
        return e
    for i in range(1, s.nendpoints):
        e = _behind(s, e)
        if _healthy(s, e):
            s.cursor = <uint32_t>(e - s.endpoints) + 1       # the turn is taken: the healthy share evenly
            return e
    s.row.counters[S_HEALTH_PANICS] += 1
    return &s.endpoints[at]


cdef inline Endpoint *first_endpoint(Service *s, const Destination *to) noexcept nogil:
    """Where the first try goes; of an application, which has both families, to the one that the client used."""
    if fm_unlikely(s.local):
        return &s.endpoints[to.family == DEST_INET6]
    return balance(s)


cdef inline Endpoint *another(Service *s, Endpoint *e, uint32_t tries) noexcept nogil:
    """The one behind `e`, for a request that could not be sent there, after `tries` tries: as many calls as there are
    endpoints go through all of them, whatever others ask meanwhile; through the healthy ones first."""
    cdef Endpoint *first = _behind(s, e)
    cdef uint32_t healthy = 0
    cdef uint32_t i
    cdef bint wanted
    if s.health == NULL:
        return first
    for i in range(s.nendpoints):
        healthy += _healthy(s, &s.endpoints[i])
    wanted = tries < healthy
    e = first
    for i in range(s.nendpoints):
        if _healthy(s, e) == wanted:
            return e
        e = _behind(s, e)
    return first
