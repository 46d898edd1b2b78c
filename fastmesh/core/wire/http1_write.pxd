# Serialising HTTP/1: first lines, kept fields, chunk sizes.
#
# Contract: every function writes at `out` and returns the bytes written; the caller has made room.
# http1_head_bound says how much a whole head can need. Nothing is terminated with NUL.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from fastmesh.core.wire.message cimport FIELD_HOP, Field, MSG_HAS_HOP, M_CONNECT, Message

cdef enum:
    HTTP1_CHUNK_SIZE_MAX = 18    # bytes that http1_write_chunk_size writes at most


cdef inline size_t http1_head_bound(const Message *m, size_t extra) noexcept nogil:
    """What suffices for m written anew (first line, all fields, empty line) with `extra` bytes of fields."""
    return <size_t>m.head_len + extra + 64


cdef inline size_t http1_write_chunk_size(char *out, size_t n) noexcept nogil:
    """The line before a chunk of n bytes: "1a2b\\r\\n", at most HTTP1_CHUNK_SIZE_MAX bytes."""
    cdef const char *digits = b"0123456789abcdef"
    cdef size_t length = 1
    cdef size_t i
    while n >> (4 * length - 1) >> 1:
        length += 1
    for i in range(length):
        out[length - 1 - i] = digits[(n >> (4 * i)) & 15]
    out[length] = c"\r"
    out[length + 1] = c"\n"
    return length + 2


cdef inline size_t http1_write_request_line(char *out, const Message *m) noexcept nogil:
    """The request line for the next hop: origin-form, "*", or authority-form for CONNECT; always HTTP/1.1."""
    cdef size_t n = m.method_name.len
    memcpy(out, m.base + m.method_name.at, n)
    out[n] = c" "
    n += 1
    if m.method == M_CONNECT:
        memcpy(out + n, m.base + m.authority.at, m.authority.len)
        n += m.authority.len
    elif m.path.len == 0:
        # RFC 9112 3.2.4: OPTIONS of an absolute-form without path asks about the server
        out[n] = c"*"
        n += 1
    else:
        if m.base[m.path.at] == c"?":
            # RFC 9110 4.2.3: an empty path is "/"
            out[n] = c"/"
            n += 1
        memcpy(out + n, m.base + m.path.at, m.path.len)
        n += m.path.len
    memcpy(out + n, b" HTTP/1.1\r\n", 11)
    return n + 11


cdef inline size_t http1_write_status_line(char *out, const Message *m) noexcept nogil:
    """The status line for the next hop: always HTTP/1.1, with the reason phrase as it was received."""
    memcpy(out, b"HTTP/1.1 ", 9)
    out[9] = <char>(c"0" + m.status // 100)
    out[10] = <char>(c"0" + m.status // 10 % 10)
    out[11] = <char>(c"0" + m.status % 10)
    out[12] = c" "
    memcpy(out + 13, m.base + m.reason.at, m.reason.len)
    memcpy(out + 13 + m.reason.len, b"\r\n", 2)
    return <size_t>m.reason.len + 15


cdef inline size_t http1_write_via(char *out, bint http10) noexcept nogil:
    """Via for a message that was received as HTTP/1.0 or HTTP/1.1 (RFC 9110 7.6.3)."""
    memcpy(out, b"via: 1.0 fastmesh\r\n" if http10 else b"via: 1.1 fastmesh\r\n", 19)
    return 19


cdef inline size_t http1_write_upgrade(char *out, const Message *m) noexcept nogil:
    """Upgrade as it was received, and the Connection that it wants (RFC 9110 7.8)."""
    memcpy(out, b"connection: upgrade\r\nupgrade: ", 30)
    memcpy(out + 30, m.base + m.upgrade.at, m.upgrade.len)
    memcpy(out + 30 + m.upgrade.len, b"\r\n", 2)
    return <size_t>m.upgrade.len + 32


cdef inline size_t http1_copy_fields_skip(char *out, const Message *m, uint64_t skip) noexcept nogil:
    """The fields that go on, without those whose FieldId is a bit of `skip`; a run is one memcpy."""
    cdef const Field *f
    cdef size_t n = 0
    cdef uint32_t run_at = 0
    cdef uint32_t run_end = 0
    cdef int i
    for i in range(m.nfields):
        f = &m.fields[i]
        if f.flags & FIELD_HOP or (skip >> f.id) & 1:
            continue
        if f.at != run_end:
            memcpy(out + n, m.base + run_at, run_end - run_at)
            n += run_end - run_at
            run_at = f.at
        run_end = f.at + f.line_len
    memcpy(out + n, m.base + run_at, run_end - run_at)
    return n + (run_end - run_at)


cdef inline size_t http1_copy_fields(char *out, const Message *m) noexcept nogil:
    """All fields that go on, as received."""
    cdef const Field *last
    cdef uint32_t at
    if m.nfields == 0:
        return 0
    if m.flags & MSG_HAS_HOP:
        return http1_copy_fields_skip(out, m, 0)
    last = &m.fields[m.nfields - 1]
    at = m.fields[0].at
    memcpy(out, m.base + at, last.at + last.line_len - at)
    return last.at + last.line_len - at
