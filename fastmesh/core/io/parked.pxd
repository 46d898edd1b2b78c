# Exchanges that wait for something to stand which they can be sent on: a connection under way (dialling), or what its
# peer has to say first (h2_client). Each has a Parked for its upstream End.

from libc.stddef cimport size_t

from fastmesh.core.base.list cimport Node, list_empty, list_remove
from fastmesh.core.base.slab cimport slab_put
from fastmesh.core.io.state cimport Exchange, Parked, Worker


cdef inline Parked *parked_of(Node *n) noexcept nogil:
    return <Parked *>(<char *>n - <size_t>&(<Parked *>NULL).node)


cdef inline Exchange *parked_next(Worker *w, Node *waiting) noexcept nogil:
    """The first that waits, whose End is gone then; NULL: none is left."""
    cdef Parked *p
    cdef Exchange *x
    if list_empty(waiting):
        return NULL
    p = parked_of(waiting.next)
    list_remove(&p.node)
    x = p.end.ex
    slab_put(&w.parked, p)
    x.up = NULL
    return x
