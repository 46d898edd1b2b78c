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
