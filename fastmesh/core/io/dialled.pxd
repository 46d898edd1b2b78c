# Our own connections, remembered for a moment, and recognised when rules bring them back to us.

from libc.stdint cimport uint32_t

from fastmesh.core.io.original cimport destination_of
from fastmesh.core.io.state cimport Worker
from fastmesh.core.sys.posix cimport getpeername, getsockname, sockaddr, sockaddr_storage, socklen_t
from fastmesh.core.traffic.counters cimport area_dials
from fastmesh.core.traffic.destination cimport Destination
from fastmesh.core.traffic.dials cimport dial_note, dial_noted


cdef inline void dialled(Worker *w, int fd, const sockaddr_storage *to) noexcept nogil:
    """A connection to `to` has been begun on `fd`."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef Destination ours
    cdef Destination theirs
    if getsockname(fd, <sockaddr *>&address, &size) == 0:
        destination_of(&address, &ours)
        destination_of(to, &theirs)
        dial_note(area_dials(w.area, w.slot), &ours, &theirs, w.now_ms)


cdef inline bint dialled_by_us(Worker *w, int fd, const Destination *to) noexcept nogil:
    """Is the client on `fd`, which wanted to go to `to`, this worker or a sibling?"""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(sockaddr_storage)
    cdef Destination source
    cdef uint32_t i
    if getpeername(fd, <sockaddr *>&address, &size) != 0:
        return False                             # it has gone: that is found in a moment
    destination_of(&address, &source)
    for i in range(w.area.workers):
        if dial_noted(area_dials(w.area, i), &source, to, w.now_ms):
            return True
    return False
