# Memory of a snapshot while it is loaded. With the GIL, never on the request path.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from fastmesh.core.traffic.snapshot cimport Block, Snapshot
from fastmesh.core.traffic.text_index cimport Text


cdef inline void *load_block(Snapshot *s, size_t n) except NULL:
    """Zeroed memory that lives as long as the snapshot."""
    cdef Block *b = <Block *>calloc(1, sizeof(Block) + n)
    if b == NULL:
        raise MemoryError()
    b.next = <Block *>s.blocks
    s.blocks = b
    return b + 1


cdef inline int load_text(Snapshot *s, Text *out, object value) except -1:
    cdef bytes raw = (value or "").encode()
    out.len = <uint32_t>len(raw)
    out.ptr = <char *>load_block(s, len(raw) + 1)
    memcpy(out.ptr, <char *>raw, len(raw))
    return 0
