# Which endpoint of a service the next try goes to.

from libc.stdint cimport uint32_t

from fastmesh.core.traffic.snapshot cimport Endpoint, Service


cdef inline Endpoint *balance(Service *s) noexcept nogil:
    """Round robin over all endpoints; NULL if the service has none."""
    cdef uint32_t at
    if s.nendpoints == 0:
        return NULL
    at = s.cursor
    if at >= s.nendpoints:
        at = 0
    s.cursor = at + 1
    return &s.endpoints[at]


cdef inline Endpoint *another(Service *s, Endpoint *e) noexcept nogil:
    """The one behind `e`, for a request that could not be sent there: as many calls as there are endpoints go through
    all of them, whatever others ask meanwhile."""
    return e + 1 if e + 1 < s.endpoints + s.nendpoints else s.endpoints
