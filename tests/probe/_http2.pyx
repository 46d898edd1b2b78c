"""The HTTP/2 codec for tests: connections in memory, driven by bytes, and what they call back as tuples."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastmesh.core.base.buffer cimport (
    BUF_MEDIUM, Buf, Pool, Queue, buf_get, pool_free, pool_in_use, pool_init, queue_clear,
)
from fastmesh.core.base.check cimport FM_DEBUG_BUILD
from fastmesh.core.base.heap cimport Heap, heap_free_all, heap_init
from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo, reasons_init
from fastmesh.core.wire.http1 cimport http1_method, http1_parse_request, http1_parse_response
from fastmesh.core.wire.http1_chunked cimport http1_parse_trailers
from fastmesh.core.wire.http1_scan cimport http1_field_id
from fastmesh.core.wire.http1_write cimport http1_copy_fields, http1_head_bound, http1_write_request_line
from fastmesh.core.wire.http2 cimport (
    h2_free, h2_goaway, h2_goaway_notice, h2_init, h2_may_open, h2_peer_extended, h2_peer_streams, h2_ping,
    h2_settings_since,
)
from fastmesh.core.wire.http2_flow cimport h2_consume
from fastmesh.core.wire.http2_receive cimport h2_receive
from fastmesh.core.wire.http2_send cimport (
    h2_data, h2_finish, h2_forget, h2_pack, h2_request, h2_reset, h2_reset_behind, h2_respond,
    h2_sent_nothing, h2_wants_write,
)
from fastmesh.core.wire.http2_state cimport H2, H2Extra, H2Hooks, H2Limits, H2Stream, H2_CLIENT, H2_SERVER
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, Field, LENGTH_UNKNOWN,
    MSG_EXPECT_CONTINUE, MSG_HAS_HOP, MSG_HTTP2, MSG_INTERIM, MSG_KEEP_ALIVE, MSG_TE_TRAILERS, Message, Span,
)

SERVER = H2_SERVER
CLIENT = H2_CLIENT

cdef ReasonInfo reasons[R_COUNT]
reasons_init(reasons)

FRAMINGS = {
    FRAMING_NONE: "none", FRAMING_LENGTH: "length", FRAMING_CHUNKED: "chunked", FRAMING_CLOSE: "close",
}


class Refused(Exception):
    """The codec said a reason; args[0] is its name."""


cdef name_of(int reason):
    return (<bytes>reasons[reason].name).decode()


cdef check(int r):
    if r < 0:
        raise Refused(name_of(-r))
    return r


cdef bytes span(const Message *m, Span s):
    assert s.at <= m.head_len and s.len <= m.head_len - s.at, "a span outside the head"
    return m.base[s.at:s.at + s.len]


cdef list fields_of(const Message *m):
    """(name, value, stays behind) of each, after checking that the lines are whole and follow one another."""
    cdef const Field *f
    cdef int i
    result = []
    for i in range(m.nfields):
        f = &m.fields[i]
        assert f.at + <size_t>f.line_len <= m.head_len
        assert f.value_at == f.at + f.name_len + 2 and f.value_at + f.value_len + 2 == f.at + f.line_len
        assert m.base[f.at + f.name_len:f.at + f.name_len + 2] == b": "
        assert m.base[f.at + f.line_len - 2:f.at + f.line_len] == b"\r\n"
        assert i == 0 or f.at == m.fields[i - 1].at + m.fields[i - 1].line_len
        assert f.id == http1_field_id(m.base + f.at, f.name_len)
        assert not f.flags & FIELD_HOP or m.flags & MSG_HAS_HOP
        result.append((m.base[f.at:f.at + f.name_len], m.base[f.value_at:f.value_at + f.value_len],
                       bool(f.flags & FIELD_HOP)))
    assert m.base[m.head_len - 2:m.head_len] == b"\r\n"
    return result


cdef dict show(const Message *m, bint server):
    assert m.flags & MSG_HTTP2 and m.flags & MSG_KEEP_ALIVE
    result = {
        "fields": fields_of(m),
        "framing": FRAMINGS[m.framing],
        "length": None if m.length == LENGTH_UNKNOWN else m.length,
        "expect": bool(m.flags & MSG_EXPECT_CONTINUE),
        "te": bool(m.flags & MSG_TE_TRAILERS),
    }
    if server:
        assert m.status == 0
        assert m.method == http1_method(m.base + m.method_name.at, m.method_name.len)
        result["method"] = span(m, m.method_name)
        result["path"] = span(m, m.path)
        result["authority"] = span(m, m.authority)
        result["scheme"] = span(m, m.scheme)
        result["protocol"] = span(m, m.protocol)
    else:
        result["status"] = m.status
        result["interim"] = bool(m.flags & MSG_INTERIM)
    return result


cdef class Worker:
    """What the connections of a worker share: buffers and nghttp2's memory."""
    cdef Pool pool
    cdef Heap heap

    def __cinit__(self, size_t buffers=1 << 26, size_t heap=1 << 26):
        pool_init(&self.pool, buffers)
        heap_init(&self.heap, heap)

    def __dealloc__(self):
        pool_free(&self.pool)
        heap_free_all(&self.heap)

    @property
    def buffers(self):
        return pool_in_use(&self.pool)

    @property
    def blocks(self):
        return self.heap.in_use

    @property
    def bytes(self):
        return self.heap.bytes


cdef struct Link:               # an owner's connection and stream: the codec's structs come first
    H2 h
    void *conn

cdef struct Stream:
    H2Stream s
    int32_t id


cdef Conn conn_of(H2 *h):
    return <Conn>(<Link *>h).conn


cdef H2Stream *hook_open(H2 *h) noexcept with gil:
    cdef Conn c = conn_of(h)
    cdef Stream *s
    if c.refuse:
        return NULL
    s = <Stream *>calloc(1, sizeof(Stream))
    return &s.s


cdef void hook_head(H2 *h, H2Stream *s, Message *m, bint end) noexcept with gil:
    cdef Conn c = conn_of(h)
    c.know(s)
    c.happened(("head", s.id, show(m, h.role == H2_SERVER), bool(end)), m)


cdef void hook_data(H2 *h, H2Stream *s, char *p, size_t n) noexcept with gil:
    conn_of(h).happened(("data", s.id, <bytes>p[:n]), NULL)


cdef void hook_end(H2 *h, H2Stream *s, Message *trailers) noexcept with gil:
    conn_of(h).happened(("end", s.id, None if trailers == NULL else fields_of(trailers)), NULL)


cdef void hook_bad(H2 *h, H2Stream *s, int reason) noexcept with gil:
    cdef Conn c = conn_of(h)
    c.know(s)
    c.happened(("bad", s.id, name_of(reason)), NULL)


cdef void hook_closed(H2 *h, H2Stream *s, uint32_t code, bint by_peer) noexcept with gil:
    cdef Conn c = conn_of(h)
    assert s.h2 == NULL and s.out.head == NULL and s.trailers == NULL
    c.streams.pop(s.id, None)
    id = s.id
    memset(s, 0xA5, sizeof(Stream))
    free(s)
    c.happened(("closed", id, code, bool(by_peer)), NULL)


cdef void hook_writable(H2 *h, H2Stream *s) noexcept with gil:
    conn_of(h).happened(("writable", s.id), NULL)


cdef void hook_settings(H2 *h) noexcept with gil:
    conn_of(h).happened(("settings",), NULL)


cdef void hook_goaway(H2 *h, int32_t last, uint32_t code) noexcept with gil:
    conn_of(h).happened(("goaway", last, code), NULL)


cdef class Conn:
    """One connection. `events`: what the hooks were called with; `react` is called inside of them."""
    cdef Link link
    cdef H2Hooks hooks
    cdef readonly Worker worker
    cdef public list events
    cdef public object react
    cdef public bint refuse
    cdef public bytes line            # the last request head as HTTP/1 would write it
    cdef object failed
    cdef dict streams
    cdef bint alive
    

    def __cinit__(self, Worker worker, int role, *, max_streams=1000, stream_window=65536,
                  stream_window_max=262144, held_max=1 << 20, max_head=65536, extended_connect=True,
                  now_ms=1000):
        cdef H2Limits limits
        self.worker = worker
        self.events = []
        self.streams = {}
        limits.max_streams = max_streams
        limits.stream_window = stream_window
        limits.stream_window_max = stream_window_max
        limits.held_max = held_max
        limits.max_head = max_head
        limits.extended_connect = extended_connect
        self.hooks.open = hook_open
        self.hooks.head = hook_head
        self.hooks.data = hook_data
        self.hooks.end = hook_end
        self.hooks.bad = hook_bad
        self.hooks.closed = hook_closed
        self.hooks.writable = hook_writable
        self.hooks.settings = hook_settings
        self.hooks.goaway = hook_goaway
        self.link.conn = <void *>self
        self.link.h.now_ms = now_ms
        check(h2_init(&self.link.h, role, &limits, &self.hooks, &worker.pool, &worker.heap))
        self.alive = True

    cdef void know(self, H2Stream *s):
        self.streams[s.id] = <size_t>s

    cdef void happened(self, tuple event, Message *m):
        cdef char *out
        cdef size_t n
        if m != NULL and self.link.h.role == H2_SERVER:
            # what the HTTP/1 side would make of it, in a block of the size that it counts on
            out = <char *>malloc(http1_head_bound(m, 0))
            n = http1_write_request_line(out, m)
            n += http1_copy_fields(out + n, m)
            assert n <= http1_head_bound(m, 0)
            self.line = out[:n]
            free(out)
        self.events.append(event)
        if self.react is not None:
            try:
                self.react(event)
            except BaseException as e:
                self.failed = e

    cdef H2Stream *stream(self, int32_t id) except NULL:
        return <H2Stream *><size_t>self.streams[id]

    cdef int outcome(self, int r) except? -1:
        if self.failed is not None:
            e, self.failed = self.failed, None
            raise e
        return check(r)

    def take(self):
        """The events so far; they are forgotten."""
        events, self.events = self.events, []
        return events

    @property
    def now_ms(self):
        return self.link.h.now_ms

    @now_ms.setter
    def now_ms(self, value):
        self.link.h.now_ms = value

    def receive(self, bytes data):
        """Show data, in a heap block of exactly its size; raises Refused."""
        cdef size_t n = len(data)
        cdef char *block = <char *>malloc(n)
        cdef int r
        if n:
            memcpy(block, <char *>data, n)
        r = h2_receive(&self.link.h, block, n)
        free(block)
        self.outcome(r)

    def pack(self, size_t most=1 << 30):
        """What is to be sent; raises Refused, whose args[1] is what was packed for the last time."""
        cdef Queue tx
        cdef Buf *b
        cdef Py_ssize_t total
        cdef int r
        memset(&tx, 0, sizeof(tx))
        r = h2_pack(&self.link.h, &tx, most)
        parts = []
        total = <Py_ssize_t>tx.bytes
        b = tx.head
        while b != NULL:
            parts.append(b.data[b.start:b.end])
            b = b.next
        queue_clear(&self.worker.pool, &tx)
        data = b"".join(parts)
        assert len(data) == total
        if self.failed is not None:
            e, self.failed = self.failed, None
            raise e
        if r < 0:
            raise Refused(name_of(-r), data)
        return data

    def request(self, bytes head, bint end=True, *, skip=(), bytes lines=b"", int via=0, bytes scheme=b"",
                bytes protocol=b"", bytes authority=b""):
        """Open a stream with a request head in HTTP/1's form: its id."""
        cdef Message m
        cdef H2Extra x
        cdef uint32_t scan = 0
        cdef Stream *s
        assert http1_parse_request(head, len(head), &scan, &m) == len(head)
        memset(&x, 0, sizeof(x))
        for name in skip:
            x.skip |= <uint64_t>1 << http1_field_id(name, len(name))
        x.lines, x.lines_len = lines, len(lines)
        x.via = via
        x.scheme, x.scheme_len = scheme, len(scheme)
        x.protocol, x.protocol_len = protocol, len(protocol)
        x.authority, x.authority_len = authority, len(authority)
        s = <Stream *>calloc(1, sizeof(Stream))
        r = h2_request(&self.link.h, &s.s, &m, &x, end)
        if r < 0:
            free(s)
            check(r)
        self.know(&s.s)
        return s.s.id

    def respond(self, int32_t id, bytes head, bint end=True, *, skip=(), bytes lines=b"", int via=0):
        """A response head in HTTP/1's form."""
        cdef Message m
        cdef H2Extra x
        cdef uint32_t scan = 0
        assert http1_parse_response(head, len(head), &scan, http1_method(b"GET", 3), &m) == len(head)
        memset(&x, 0, sizeof(x))
        for name in skip:
            x.skip |= <uint64_t>1 << http1_field_id(name, len(name))
        x.lines, x.lines_len = lines, len(lines)
        x.via = via
        check(h2_respond(&self.link.h, self.stream(id), &m, &x, end))

    def data(self, int32_t id, bytes data, bint take=False):
        """Queue body bytes; `take`: in a buffer whose reference passes. Whether to wait for "writable"."""
        cdef Buf *b = NULL
        if take:
            assert len(data) <= 16384
            b = buf_get(&self.worker.pool, BUF_MEDIUM)
            if b == NULL:
                raise Refused("no_memory")
            memcpy(b.data, <char *>data, len(data))
            b.end = len(data)
        return bool(check(h2_data(&self.link.h, self.stream(id), data, len(data), b)))

    def finish(self, int32_t id, bytes trailers=b""):
        cdef Message m
        cdef uint32_t scan = 0
        if not trailers:
            check(h2_finish(&self.link.h, self.stream(id), NULL))
            return
        assert http1_parse_trailers(trailers, len(trailers), &scan, &m) == len(trailers)
        check(h2_finish(&self.link.h, self.stream(id), &m))

    def reset(self, int32_t id, uint32_t code=8):
        cdef H2Stream *s = self.stream(id)
        h2_reset(&self.link.h, s, code)
        self.gone(id, s)

    def forget(self, int32_t id):
        cdef H2Stream *s = self.stream(id)
        h2_forget(&self.link.h, s)
        self.gone(id, s)

    cdef void gone(self, int32_t id, H2Stream *s):
        assert s.h2 == NULL and s.out.head == NULL and s.trailers == NULL
        del self.streams[id]
        memset(s, 0xA5, sizeof(Stream))
        free(s)

    def reset_behind(self, int32_t id, uint32_t code=0):
        h2_reset_behind(&self.link.h, self.stream(id), code)

    def sent_nothing(self, int32_t id):
        return bool(h2_sent_nothing(self.stream(id)))

    def consume(self, int32_t id, size_t n):
        h2_consume(&self.link.h, self.stream(id), n)

    def queued(self, int32_t id):
        return self.stream(id).out.bytes

    def goaway_notice(self):
        h2_goaway_notice(&self.link.h)

    def goaway(self, uint32_t code=0):
        h2_goaway(&self.link.h, code)

    def ping(self):
        check(h2_ping(&self.link.h))

    @property
    def ping_since(self):
        return self.link.h.ping_at

    @property
    def settings_since(self):
        return h2_settings_since(&self.link.h)

    @property
    def open(self):
        return self.link.h.open

    @property
    def known(self):
        return sorted(self.streams)

    @property
    def may_open(self):
        return bool(h2_may_open(&self.link.h))

    @property
    def may_extend(self):
        return h2_peer_extended(&self.link.h) == 1

    @property
    def peer_streams(self):
        return h2_peer_streams(&self.link.h)

    @property
    def wants_write(self):
        return bool(h2_wants_write(&self.link.h))

    @property
    def held(self):
        return self.link.h.held

    @property
    def window(self):
        return self.link.h.window

    @property
    def building(self):
        """Whether a head is under construction."""
        return self.link.h.head.buf != NULL

    def close(self):
        """End it; the streams that were open are freed as their owner would."""
        if not self.alive:
            return
        self.alive = False
        h2_free(&self.link.h)
        for at in self.streams.values():
            assert (<H2Stream *><size_t>at).h2 == NULL and (<H2Stream *><size_t>at).out.head == NULL
            free(<void *><size_t>at)
        self.streams.clear()

    def __dealloc__(self):
        if self.alive:
            h2_free(&self.link.h)
            for at in self.streams.values():
                free(<void *><size_t>at)


def sizes():
    """Bytes of the codec's own structs."""
    return {"connection": sizeof(H2), "stream": sizeof(H2Stream)}


def faults_happen():
    """Whether FASTMESH_FAULT means anything in this build."""
    return bool(FM_DEBUG_BUILD)


# ---- cost ----------------------------------------------------------------------------------------------

cdef struct Bench:
    H2 h
    Message m                   # what the server answers, or the client asks
    H2Extra x
    H2Stream *spare[1024]
    int spares
    int done
    size_t body


cdef H2Stream *bench_open(H2 *h) noexcept nogil:
    cdef Bench *b = <Bench *>h
    if b.spares == 0:
        return NULL
    b.spares -= 1
    memset(b.spare[b.spares], 0, sizeof(H2Stream))
    return b.spare[b.spares]


cdef char bench_body[16384]


cdef void bench_head(H2 *h, H2Stream *s, Message *m, bint end) noexcept nogil:
    cdef Bench *b = <Bench *>h
    if h.role == H2_SERVER:
        h2_respond(h, s, &b.m, &b.x, b.body == 0)
        if b.body:
            h2_data(h, s, bench_body, b.body, NULL)
            h2_finish(h, s, NULL)


cdef void bench_data(H2 *h, H2Stream *s, char *p, size_t n) noexcept nogil:
    h2_consume(h, s, n)


cdef void bench_end(H2 *h, H2Stream *s, Message *trailers) noexcept nogil:
    pass


cdef void bench_bad(H2 *h, H2Stream *s, int reason) noexcept nogil:
    pass


cdef void bench_closed(H2 *h, H2Stream *s, uint32_t code, bint by_peer) noexcept nogil:
    cdef Bench *b = <Bench *>h
    b.spare[b.spares] = s
    b.spares += 1
    b.done += 1


cdef void bench_writable(H2 *h, H2Stream *s) noexcept nogil:
    pass


cdef void bench_settings(H2 *h) noexcept nogil:
    pass


cdef void bench_goaway(H2 *h, int32_t last, uint32_t code) noexcept nogil:
    pass


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * 1e9 + t.tv_nsec


cdef int bench_carry(Bench *a, Bench *b, Pool *pool, double *packing, double *receiving) noexcept nogil:
    """What a packs, b receives."""
    cdef Queue tx
    cdef Buf *buf
    cdef int r
    cdef double t0 = now()
    cdef double t1
    memset(&tx, 0, sizeof(tx))
    r = h2_pack(&a.h, &tx, 1 << 30)
    t1 = now()
    packing[0] += t1 - t0
    buf = tx.head
    while buf != NULL and r == 0:
        r = h2_receive(&b.h, buf.data + buf.start, buf.end - buf.start)
        buf = buf.next
    queue_clear(pool, &tx)
    receiving[0] += now() - t1
    return r


def nanoseconds(Worker worker, bytes request, bytes response, size_t body, int streams, int rounds):
    """(client packs, server receives and answers, server packs, client receives): ns a request, each."""
    cdef Bench *client = <Bench *>calloc(1, sizeof(Bench))
    cdef Bench *server = <Bench *>calloc(1, sizeof(Bench))
    cdef H2Hooks hooks
    cdef H2Limits limits
    cdef uint32_t scan = 0
    cdef H2Stream *pool = <H2Stream *>calloc(2 * streams, sizeof(H2Stream))
    cdef H2Stream *s
    cdef double t[4]
    cdef double t0
    cdef int i, j
    cdef int r = 0
    memset(&limits, 0, sizeof(limits))
    memset(t, 0, sizeof(t))
    limits.max_streams = 1000
    limits.stream_window = limits.stream_window_max = 65536
    limits.held_max = 1 << 24
    limits.max_head = 65536
    hooks.open = bench_open
    hooks.head = bench_head
    hooks.data = bench_data
    hooks.end = bench_end
    hooks.bad = bench_bad
    hooks.closed = bench_closed
    hooks.writable = bench_writable
    hooks.settings = bench_settings
    hooks.goaway = bench_goaway
    assert http1_parse_request(request, len(request), &scan, &client.m) > 0
    assert http1_parse_response(response, len(response), &scan, 1, &server.m) > 0
    for i in range(streams):
        client.spare[i] = &pool[i]
        server.spare[i] = &pool[streams + i]
    client.spares = server.spares = streams
    server.body = body
    check(h2_init(&client.h, H2_CLIENT, &limits, &hooks, &worker.pool, &worker.heap))
    check(h2_init(&server.h, H2_SERVER, &limits, &hooks, &worker.pool, &worker.heap))
    with nogil:
        r = bench_carry(client, server, &worker.pool, &t[0], &t[1])
        if r == 0:
            r = bench_carry(server, client, &worker.pool, &t[2], &t[3])
        memset(t, 0, sizeof(t))
        for i in range(rounds):
            client.h.now_ms += 10
            server.h.now_ms += 10
            t0 = now()
            for j in range(streams):
                s = bench_open(&client.h)
                if r == 0:
                    r = h2_request(&client.h, s, &client.m, &client.x, True)
            t[0] += now() - t0
            if r == 0:
                r = bench_carry(client, server, &worker.pool, &t[0], &t[1])
            if r == 0:
                r = bench_carry(server, client, &worker.pool, &t[2], &t[3])
    done = client.done
    h2_free(&client.h)
    h2_free(&server.h)
    free(pool)
    free(client)
    free(server)
    check(r)
    assert done == rounds * streams, f"{done} of {rounds * streams}"
    return tuple(t[k] / (rounds * streams) for k in range(4))
