# The HTTP/1 codec for tests. Every parse happens in a heap block of exactly the size of the data, so that
# a sanitizer build sees any byte read beyond it.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo, reasons_init
from fastmesh.core.wire.http1 cimport http1_method, http1_parse_request, http1_parse_response
from fastmesh.core.wire.http1_chunked cimport (
    HTTP1_DATA, HTTP1_END, HTTP1_MORE, Http1Chunked, http1_chunked, http1_parse_trailers,
)
from fastmesh.core.wire.http1_scan cimport http1_field_id
from fastmesh.core.wire.http1_write cimport (
    http1_copy_fields, http1_copy_fields_skip, http1_head_bound, http1_write_chunk_size,
    http1_write_request_line, http1_write_status_line,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, Field, MSG_EXPECT_CONTINUE, MSG_HAS_HOP,
    MSG_HTTP10, MSG_INTERIM, MSG_KEEP_ALIVE, MSG_TE_TRAILERS, MSG_UPGRADE, Message, Span,
)

cdef enum:
    REQUEST = 0
    RESPONSE = 1
    TRAILERS = 2

cdef ReasonInfo reasons[R_COUNT]
reasons_init(reasons)

FRAMINGS = {
    FRAMING_NONE: "none", FRAMING_LENGTH: "length", FRAMING_CHUNKED: "chunked", FRAMING_CLOSE: "close",
}
FLAGS = {
    MSG_KEEP_ALIVE: "keep_alive", MSG_UPGRADE: "upgrade", MSG_EXPECT_CONTINUE: "expect_continue",
    MSG_TE_TRAILERS: "te_trailers", MSG_HTTP10: "http10", MSG_INTERIM: "interim",
}


class Refused(Exception):
    """The codec refused the input; args[0] is the name of the reason."""


cdef refuse(int r):
    return Refused((<bytes>reasons[-r].name).decode())


cdef class Block:
    """Bytes in a heap block of exactly their size."""
    cdef char *at
    cdef size_t len

    def __cinit__(self, bytes data, size_t start=0, size_t stop=<size_t>-1):
        if stop > <size_t>len(data):
            stop = len(data)
        self.len = stop - start
        self.at = <char *>malloc(self.len)
        if self.at == NULL and self.len:
            raise MemoryError()
        if self.len:
            memcpy(self.at, <char *>data + start, self.len)

    def __dealloc__(self):
        free(self.at)


cdef bytes span(const Message *m, Span s, size_t size):
    cdef size_t skipped = 0
    assert s.at <= size and s.len <= size - s.at, "a span outside the buffer"
    return m.base[s.at:s.at + s.len]


cdef dict show(const Message *m, const char *block, size_t size, int kind):
    """The message as Python values, after checking that every position lies inside the block."""
    cdef size_t inside = size - (m.base - block)
    cdef const Field *f
    cdef int i
    assert m.base >= block and m.head_len <= inside
    fields = []
    for i in range(m.nfields):
        f = &m.fields[i]
        assert f.at + <size_t>f.line_len <= m.head_len
        assert f.at + f.name_len < f.value_at and f.value_at + f.value_len + 2 <= f.at + f.line_len
        assert m.base[f.at + f.name_len] == c":" and m.base[f.at + f.line_len - 1] == c"\n"
        assert i == 0 or f.at == m.fields[i - 1].at + m.fields[i - 1].line_len
        assert f.id == http1_field_id(m.base + f.at, f.name_len)
        assert not f.flags & FIELD_HOP or m.flags & MSG_HAS_HOP
        name = m.base[f.at:f.at + f.name_len]
        fields.append((name, m.base[f.value_at:f.value_at + f.value_len], bool(f.flags & FIELD_HOP)))
    result = {"head_len": m.head_len, "skipped": m.base - block, "fields": fields}
    if kind == TRAILERS:
        return result
    result["framing"] = FRAMINGS[m.framing]
    result["length"] = m.length if m.framing in (FRAMING_NONE, FRAMING_LENGTH) else None
    result["flags"] = []
    for bit, flag in FLAGS.items():
        if m.flags & <int>bit:
            result["flags"].append(flag)
    if m.flags & MSG_UPGRADE:
        result["upgrade"] = span(m, m.upgrade, m.head_len)
    if kind == REQUEST:
        result["method"] = span(m, m.method_name, m.head_len)
        assert m.method == http1_method(m.base + m.method_name.at, m.method_name.len)
        result["path"] = span(m, m.path, m.head_len)
        result["authority"] = span(m, m.authority, m.head_len)
        result["scheme"] = span(m, m.scheme, m.head_len)
    else:
        result["status"] = m.status
        result["reason"] = span(m, m.reason, m.head_len)
    return result


cdef object run(bytes data, object stops, int kind, int method, Message *m):
    """Parse growing prefixes of data; the result of the first call that says more than "incomplete"."""
    cdef uint32_t scan = 0
    cdef int r = 0
    cdef Block block
    for stop in stops:
        block = Block(data, 0, stop)
        # what a caller's memory holds does not matter
        memset(m, 0xA5, sizeof(Message))
        if kind == REQUEST:
            r = http1_parse_request(block.at, block.len, &scan, m)
        elif kind == RESPONSE:
            r = http1_parse_response(block.at, block.len, &scan, method, m)
        else:
            r = http1_parse_trailers(block.at, block.len, &scan, m)
        if r < 0:
            raise refuse(r)
        if r > 0:
            assert <size_t>r <= block.len and scan == 0
            assert r == m.base - block.at + m.head_len
            return block, r
    return None


cdef object parse(bytes data, object stops, int kind, bytes method):
    cdef Message m
    cdef Block block
    if stops is None:
        stops = (len(data),)
    found = run(data, stops, kind, http1_method(method, len(method)), &m)
    if found is None:
        return None
    block = found[0]
    result = show(&m, block.at, block.len, kind)
    result["used"] = found[1]
    return result


def parse_request(bytes data, stops=None):
    """The request head at the start of data as a dict, None if it is not whole; raises Refused.

    `stops`: the lengths of data to show the parser one after the other, default all of it at once.
    """
    return parse(data, stops, REQUEST, b"")


def parse_response(bytes data, bytes method=b"GET", stops=None):
    """The head of a response to `method`, as parse_request."""
    return parse(data, stops, RESPONSE, method)


def parse_trailers(bytes data, stops=None):
    """The trailer section at the start of data, as parse_request."""
    return parse(data, stops, TRAILERS, b"")


def chunked(bytes data, stops=None):
    """Decode a chunked body that arrives in pieces ending at `stops`.

    (the body so far, bytes consumed, whether it is complete); raises Refused.
    """
    cdef Http1Chunked st
    cdef Block block
    cdef const char *piece
    cdef size_t piece_len, used
    cdef size_t at = 0
    cdef int r
    memset(&st, 0, sizeof(st))
    body = []
    for stop in (len(data),) if stops is None else stops:
        while True:
            block = Block(data, at, stop)
            r = http1_chunked(&st, block.at, block.len, &used, &piece, &piece_len)
            if r < 0:
                raise refuse(r)
            assert used <= block.len
            at += used
            if r == HTTP1_DATA:
                assert piece_len and piece >= block.at and piece + piece_len == block.at + used
                body.append(piece[:piece_len])
                continue
            assert piece_len == 0
            if r == HTTP1_END:
                return b"".join(body), at, True
            assert r == HTTP1_MORE and used == block.len
            break
    return b"".join(body), at, False


def copy_fields(bytes data, bint response=False, bytes method=b"GET", skip=None):
    """What http1_copy_fields (with `skip`, a set of field names: its variant) makes of a whole head."""
    cdef Message m
    cdef Block out
    cdef size_t n
    cdef uint64_t mask = 0
    found = run(data, (len(data),), RESPONSE if response else REQUEST, http1_method(method, len(method)), &m)
    out = Block(bytes(m.head_len))
    if skip is None:
        n = http1_copy_fields(out.at, &m)
    else:
        for name in skip:
            mask |= <uint64_t>1 << http1_field_id(name, len(name))
        n = http1_copy_fields_skip(out.at, &m, mask)
    return out.at[:n]


def first_line(bytes data, bint response=False, bytes method=b"GET"):
    """The first line that http1_write makes for the next hop."""
    cdef Message m
    cdef Block out
    cdef size_t n
    found = run(data, (len(data),), RESPONSE if response else REQUEST, http1_method(method, len(method)), &m)
    out = Block(bytes(http1_head_bound(&m, 0)))
    n = http1_write_status_line(out.at, &m) if response else http1_write_request_line(out.at, &m)
    return out.at[:n]


def chunk_size(size_t n):
    cdef char out[32]
    return out[:http1_write_chunk_size(out, n)]


def field_id(bytes name):
    return http1_field_id(name, len(name))


def nanoseconds(bytes data, int rounds, bint response=False):
    """Nanoseconds that one parse of the whole head takes, over `rounds` parses."""
    cdef Message m
    cdef timespec t0, t1
    cdef uint32_t scan = 0
    cdef const char *buf = data
    cdef size_t size = len(data)
    cdef int i
    cdef int r = 0
    cdef int method = http1_method(b"GET", 3)
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &t0)
        for i in range(rounds):
            scan = 0
            if response:
                r += http1_parse_response(buf, size, &scan, method, &m)
            else:
                r += http1_parse_request(buf, size, &scan, &m)
        clock_gettime(CLOCK_MONOTONIC, &t1)
    if r <= 0:
        raise ValueError("not a whole head")
    return ((t1.tv_sec - t0.tv_sec) * 1e9 + (t1.tv_nsec - t0.tv_nsec)) / rounds


def nanoseconds_in_pieces(bytes data, size_t step, int rounds):
    """Nanoseconds that a request head takes that arrives `step` bytes at a time, with a call for each piece."""
    cdef Message m
    cdef timespec t0, t1
    cdef uint32_t scan
    cdef const char *buf = data
    cdef size_t size = len(data)
    cdef size_t at
    cdef int i
    cdef int r = 0
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &t0)
        for i in range(rounds):
            scan = 0
            at = 0
            r = 0
            while r == 0 and at < size:
                at = at + step if at + step < size else size
                r = http1_parse_request(buf, at, &scan, &m)
        clock_gettime(CLOCK_MONOTONIC, &t1)
    if r <= 0:
        raise ValueError("not a whole head")
    return ((t1.tv_sec - t0.tv_sec) * 1e9 + (t1.tv_nsec - t0.tv_nsec)) / rounds
