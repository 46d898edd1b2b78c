# Fuzz target of the way between HTTP/1 and HTTP/2, for libFuzzer: a head of one, written by the other codec, and read
# again by somebody else. Only the C that Cython makes of it runs, never Python.
#
# Input: a byte of mode (bit 0: from HTTP/2, else from HTTP/1; 1: a response; bits 2-3, from HTTP/1: the request method
# it answers; from HTTP/2, bit 3: END_STREAM), then a head: as HTTP/1 has it, or fields as (length, name, length,
# value). What must hold of what the first codec accepts:
#   - from HTTP/2: it is one head of HTTP/1, to the last byte, for our parser and for llhttp, with the same
#     method, target, host, fields in the same order, and no more than one framing; a second request behind it is
#     read as the second one;
#   - from HTTP/1: it is one field block that an independent reader finds well-formed, with the same fields, and that
#     our codec accepts on the other side;
#   - and back again, nothing has changed.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from fastmesh.core.base.buffer cimport Buf, Pool, Queue, pool_in_use, pool_init, queue_clear
from fastmesh.core.base.heap cimport Heap, heap_init
from fastmesh.core.base.reason cimport (
    R_HEAD_TOO_LARGE, R_LINE_TOO_LONG, R_TOO_MANY_FIELDS, R_UPSTREAM_HEAD_TOO_LARGE,
)
from fastmesh.core.wire.http1 cimport http1_parse_request, http1_parse_response
from fastmesh.core.wire.http1_write cimport (
    http1_copy_fields, http1_has_field, http1_head_bound, http1_write_request_line, http1_write_status_line,
)
from fastmesh.core.wire.http2 cimport h2_free, h2_init
from fastmesh.core.wire.http2_receive cimport h2_receive
from fastmesh.core.wire.http2_send cimport h2_pack, h2_request, h2_respond
from fastmesh.core.wire.http2_state cimport H2, H2Hooks, H2Limits, H2Stream, H2_CLIENT, H2_SERVER
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_LENGTH, FRAMING_NONE, F_CONNECTION, F_CONTENT_LENGTH, F_COOKIE, F_EXPECT,
    F_HOST, F_KEEP_ALIVE, F_PROXY_CONNECTION, F_TE, F_TRANSFER_ENCODING, F_UPGRADE, Field, LENGTH_UNKNOWN,
    MAX_FIELDS, MSG_HTTP10, MSG_HTTP2, MSG_INTERIM, MSG_TE_TRAILERS, MSG_UPGRADE, M_CONNECT, M_GET, M_HEAD, Message,
    Span,
)
from http2_judge cimport (
    Judge, JudgeBlock, JudgeField, check_message, fail, judge_block, judge_find, judge_malformed, judge_read,
    judge_same, span_is,
)

cdef extern from "llhttp.h" nogil:
    ctypedef struct llhttp_t:
        uint8_t method
        uint16_t status_code
        uint16_t flags
        uint64_t content_length
    ctypedef struct llhttp_settings_t:
        int (*on_message_complete)(llhttp_t *) noexcept nogil
        int (*on_headers_complete)(llhttp_t *) noexcept nogil
        int (*on_header_value_complete)(llhttp_t *) noexcept nogil
    enum:
        HTTP_REQUEST
        HTTP_RESPONSE
        HPE_OK
        HPE_PAUSED
        HPE_PAUSED_UPGRADE
        HPE_INVALID_METHOD
        F_CHUNKED
        LLHTTP_CONTENT_LENGTH "F_CONTENT_LENGTH"
    void llhttp_settings_init(llhttp_settings_t *)
    void llhttp_init(llhttp_t *, int, const llhttp_settings_t *)
    int llhttp_execute(llhttp_t *, const char *, size_t)
    const char *llhttp_get_error_pos(const llhttp_t *)
    const char *llhttp_get_error_reason(const llhttp_t *)

cdef extern from "nghttp2/nghttp2.h" nogil:
    ctypedef struct nghttp2_hd_deflater:
        pass
    ctypedef struct deflate_nv "nghttp2_nv":
        uint8_t *name
        uint8_t *value
        size_t namelen
        size_t valuelen
        uint8_t flags
    int nghttp2_hd_deflate_new(nghttp2_hd_deflater **, size_t)
    void nghttp2_hd_deflate_del(nghttp2_hd_deflater *)
    ssize_t nghttp2_hd_deflate_hd(nghttp2_hd_deflater *, uint8_t *, size_t, const deflate_nv *, size_t)

cdef enum:
    FIELDS = 160              # of a list that the input says
    FRAMES = 1 << 19

cdef struct Side:             # a connection in memory that keeps the first head it is given
    H2 h                      # the codec's, first
    H2Stream stream
    bint opened
    bint have                 # a head was delivered
    bint end
    int bad
    Message head
    char text[1 << 18]

cdef Pool pool
cdef Heap heap
cdef H2Hooks hooks
cdef Judge judge
cdef bint begun
cdef Side near                # the codec that reads the input, or writes
cdef Side far                 # the one that reads what was written
cdef uint8_t frames[524288]   # FRAMES
cdef int seen_heads
cdef int seen_fields


# ---- HTTP/2 in memory ------------------------------------------------------------------------------------

cdef H2Stream *on_open(H2 *h) noexcept nogil:
    cdef Side *s = <Side *>h
    if s.opened:
        return NULL
    s.opened = True
    memset(&s.stream, 0, sizeof(H2Stream))
    return &s.stream


cdef void on_head(H2 *h, H2Stream *stream, Message *m, bint end) noexcept nogil:
    cdef Side *s = <Side *>h
    if s.have or s.bad:
        fail(b"two heads")
    check_message(m)
    s.have = True
    s.end = end
    s.head = m[0]
    memcpy(s.text, m.base, m.head_len)
    s.head.base = s.text


cdef void on_data(H2 *h, H2Stream *s, char *p, size_t n) noexcept nogil:
    fail(b"content out of a head")


cdef void on_end(H2 *h, H2Stream *s, Message *trailers) noexcept nogil:
    fail(b"a message out of a head")


cdef void on_bad(H2 *h, H2Stream *stream, int reason) noexcept nogil:
    (<Side *>h).bad = reason


cdef void on_closed(H2 *h, H2Stream *s, uint32_t code, bint by_peer) noexcept nogil:
    pass


cdef void on_writable(H2 *h, H2Stream *s) noexcept nogil:
    pass


cdef void on_settings(H2 *h) noexcept nogil:
    pass


cdef void on_goaway(H2 *h, int32_t last, uint32_t code) noexcept nogil:
    fail(b"a GOAWAY")


cdef void start(Side *s, int role) noexcept nogil:
    cdef H2Limits limits
    cdef Queue tx
    memset(&limits, 0, sizeof(limits))
    memset(&tx, 0, sizeof(tx))
    limits.max_streams = 10
    limits.stream_window = limits.stream_window_max = 65535
    limits.held_max = 1 << 20
    limits.max_head = 65536
    limits.extended_connect = True
    s.opened = s.have = s.end = False
    s.bad = 0
    memset(&s.stream, 0, sizeof(H2Stream))
    if h2_init(&s.h, role, &limits, &hooks, &pool, &heap) < 0 or h2_pack(&s.h, &tx, 1 << 20) < 0:
        fail(b"no session")
    queue_clear(&pool, &tx)


cdef void stop(Side *s) noexcept nogil:
    h2_free(&s.h)


cdef size_t packed(Side *s) noexcept nogil:
    """What it sends now, in `frames`."""
    cdef Queue tx
    cdef Buf *b
    cdef size_t n = 0
    memset(&tx, 0, sizeof(tx))
    if h2_pack(&s.h, &tx, 1 << 18) < 0:
        fail(b"what is sent breaks a rule")
    b = tx.head
    while b != NULL:
        memcpy(frames + n, b.data + b.start, b.end - b.start)
        n += b.end - b.start
        b = b.next
    queue_clear(&pool, &tx)
    return n


# ---- HTTP/1 ----------------------------------------------------------------------------------------------

cdef size_t write_head(char *out, const Message *m) noexcept nogil:
    """As the HTTP/1 ends of the proxy write a head of any version."""
    cdef size_t n
    if m.status:
        n = http1_write_status_line(out, m)
        n += http1_copy_fields(out + n, m)
        if m.flags & MSG_INTERIM or m.status == 204:
            pass
        elif m.framing == FRAMING_CHUNKED:
            memcpy(out + n, b"transfer-encoding: chunked\r\n", 28)
            n += 28
        elif m.framing == FRAMING_LENGTH and not http1_has_field(m, F_CONTENT_LENGTH):
            memcpy(out + n, b"content-length: 0\r\n", 19)
            n += 19
    else:
        n = http1_write_request_line(out, m)
        n += http1_copy_fields(out + n, m)
        if m.flags & MSG_TE_TRAILERS:
            memcpy(out + n, b"connection: te\r\nte: trailers\r\n", 30)
            n += 30
        if m.framing == FRAMING_CHUNKED:
            memcpy(out + n, b"transfer-encoding: chunked\r\n", 28)
            n += 28
    memcpy(out + n, b"\r\n", 2)
    return n + 2


cdef int on_headers_complete(llhttp_t *p) noexcept nogil:
    global seen_heads
    seen_heads += 1
    if p.flags & F_CHUNKED and p.flags & LLHTTP_CONTENT_LENGTH:
        fail(b"llhttp sees two framings")
    return 1                  # there is no body here: the next head follows


cdef int on_header_value_complete(llhttp_t *p) noexcept nogil:
    global seen_fields
    seen_fields += 1
    return 0


cdef void read_by_llhttp(const char *head, size_t n, bint response, int fields) noexcept nogil:
    """One head of `fields` fields, and if another one follows, two."""
    global seen_heads, seen_fields
    cdef const char *probe = b"HTTP/1.1 204 \r\nX: y\r\n\r\n" if response else b"GET /second HTTP/1.1\r\nHost: b\r\n\r\n"
    cdef llhttp_settings_t settings
    cdef llhttp_t parser
    cdef char *both = <char *>malloc(n + strlen(probe))
    cdef const char *p = both
    cdef int e
    memcpy(both, head, n)
    memcpy(both + n, probe, strlen(probe))
    seen_heads = seen_fields = 0
    llhttp_settings_init(&settings)
    settings.on_headers_complete = on_headers_complete
    settings.on_header_value_complete = on_header_value_complete
    llhttp_init(&parser, HTTP_RESPONSE if response else HTTP_REQUEST, &settings)
    e = llhttp_execute(&parser, both, n)
    if e == HPE_INVALID_METHOD:
        free(both)
        return
    if e != HPE_OK and e != HPE_PAUSED_UPGRADE:
        fprintf(stderr, b"llhttp: %d %s\n", e, llhttp_get_error_reason(&parser))
        fail(b"llhttp refuses what is written")
    if seen_heads != 1 or seen_fields != fields:
        fail(b"llhttp sees another number of heads or fields")
    if e == HPE_PAUSED_UPGRADE:
        if llhttp_get_error_pos(&parser) != both + n:
            fail(b"llhttp sees a tunnel before the end of the head")
    free(both)


cdef bint same_span(const Message *a, const Span *s, const Message *b, const Span *t) noexcept nogil:
    return s.len == t.len and memcmp(a.base + s.at, b.base + t.at, s.len) == 0


cdef bint same_field(const Message *a, const Field *f, const Message *b, const Field *g, bint fold) noexcept nogil:
    """Names and values; `fold`: the second name is in lower case."""
    cdef uint8_t ch
    cdef size_t i
    if f.name_len != g.name_len or f.value_len != g.value_len:
        return False
    for i in range(f.name_len):
        ch = <uint8_t>a.base[f.at + i]
        if fold and c"A" <= ch <= c"Z":
            ch |= 32
        if ch != <uint8_t>b.base[g.at + i]:
            return False
    return memcmp(a.base + f.value_at, b.base + g.value_at, f.value_len) == 0


cdef bint added(const Message *m, const Field *f) noexcept nogil:
    """A field that says framing or hop, which each hop writes for itself."""
    return f.flags & FIELD_HOP or f.id == F_TRANSFER_ENCODING or f.id == F_CONNECTION or f.id == F_TE


# ---- from HTTP/2 -----------------------------------------------------------------------------------------

cdef size_t encode_list(const uint8_t *p, size_t size, bint end) noexcept nogil:
    """HEADERS and CONTINUATION in `frames` for the fields that the input says; 0: they cannot be encoded."""
    cdef nghttp2_hd_deflater *deflater = NULL
    cdef deflate_nv nv[160]
    cdef uint8_t *block
    cdef size_t n = 0
    cdef size_t at = 0
    cdef size_t k
    cdef ssize_t r
    while size >= 2 and n < FIELDS:
        nv[n].namelen = p[0]
        if size < 2 + nv[n].namelen:
            break
        nv[n].name = <uint8_t *>p + 1
        nv[n].valuelen = p[1 + nv[n].namelen]
        nv[n].value = <uint8_t *>p + 2 + nv[n].namelen
        nv[n].flags = 0
        if size < 2 + nv[n].namelen + nv[n].valuelen:
            nv[n].valuelen = size - 2 - nv[n].namelen
        k = 2 + nv[n].namelen + nv[n].valuelen
        p += k
        size -= k
        n += 1
    if n == 0 or nghttp2_hd_deflate_new(&deflater, 4096) != 0:
        return 0
    block = <uint8_t *>malloc(1 << 17)
    r = nghttp2_hd_deflate_hd(deflater, block, 1 << 17, nv, n)
    nghttp2_hd_deflate_del(deflater)
    if r < 0:
        free(block)
        return 0
    n = 0
    while True:
        k = <size_t>r - at
        if k > 16384:
            k = 16384
        frames[n] = 0
        frames[n + 1] = <uint8_t>(k >> 8)
        frames[n + 2] = <uint8_t>k
        frames[n + 3] = 9 if at else 1
        frames[n + 4] = (4 if at + k == <size_t>r else 0) | (1 if end and at == 0 else 0)
        memset(frames + n + 5, 0, 3)
        frames[n + 8] = 1
        memcpy(frames + n + 9, block + at, k)
        n += 9 + k
        at += k
        if at == <size_t>r:
            break
    free(block)
    return n


cdef void reread_http1(const char *text, size_t n, const Message *m, int method) noexcept nogil:
    """text[:n] is `m` in HTTP/1, and nothing else."""
    cdef Message *copy = <Message *>malloc(sizeof(Message))
    cdef char *head = <char *>malloc(n)
    cdef const Field *f
    cdef uint32_t scan = 0
    cdef bint sized = False
    cdef bint chunked = False
    cdef int i, r
    cdef int k = 0
    memcpy(head, text, n)
    if m.status:
        r = http1_parse_response(head, n, &scan, method, copy)
    else:
        r = http1_parse_request(head, n, &scan, copy)
    if r < 0:
        # a response has one reason for both: too long, or a field too many with the framing that HTTP/2 does not need
        if not (r == -R_HEAD_TOO_LARGE or r == -R_LINE_TOO_LONG or r == -R_TOO_MANY_FIELDS or (
                r == -R_UPSTREAM_HEAD_TOO_LARGE and (n > 60000 or m.nfields == MAX_FIELDS))):
            fprintf(stderr, b"reason %d: %.*s\n", r, <int>n, head)
            fail(b"what is written is refused")
        free(head)
        free(copy)
        return
    if <size_t>r != n:
        fail(b"what is written is another head")
    if m.status != copy.status:
        fail(b"another status")
    if m.status == 0 and not (
            same_span(m, &m.method_name, copy, &copy.method_name) and same_span(m, &m.authority, copy, &copy.authority)
            and same_span(m, &m.path, copy, &copy.path)):
        fail(b"another method, path or authority")
    for i in range(m.nfields):
        f = &m.fields[i]
        if f.flags & FIELD_HOP:
            continue
        if k == copy.nfields or not same_field(m, f, copy, &copy.fields[k], False):
            fail(b"another field")
        k += 1
    for i in range(copy.nfields):
        f = &copy.fields[i]
        if i >= k and not (f.id == F_CONNECTION or f.id == F_TE or f.id == F_TRANSFER_ENCODING or (
                f.id == F_CONTENT_LENGTH and m.status)):
            fail(b"a field too many")
        sized = sized or f.id == F_CONTENT_LENGTH
        chunked = chunked or f.id == F_TRANSFER_ENCODING
    if sized and chunked:
        fail(b"two framings")
    if m.status == 0 and m.method != M_CONNECT and (copy.framing != m.framing or copy.length != m.length) and not (
            m.framing == FRAMING_NONE and copy.framing == FRAMING_LENGTH and copy.length == 0):
        fail(b"another framing of a request")
    if m.status and method == M_GET and not m.flags & MSG_INTERIM and (
            copy.framing != m.framing or copy.length != m.length):
        fail(b"another framing of a response")
    if copy.flags & MSG_UPGRADE:
        fail(b"an upgrade out of HTTP/2")
    read_by_llhttp(head, n, m.status > 0, copy.nfields)
    free(head)
    free(copy)


cdef void from_http2(const uint8_t *p, size_t size, bint response, bint end) noexcept nogil:
    cdef size_t n = encode_list(p, size, end)
    cdef char *text
    cdef Message ask
    cdef Side *s = &near
    cdef uint32_t scan = 0
    cdef const char *get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    if n == 0:
        return
    start(s, H2_CLIENT if response else H2_SERVER)
    if response:
        http1_parse_request(get, strlen(get), &scan, &ask)
        if h2_request(&s.h, &s.stream, &ask, NULL, True) < 0:
            fail(b"no request")
        flush(s)
        h2_receive(&s.h, b"\0\0\0\4\0\0\0\0\0", 9)
    else:
        h2_receive(&s.h, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33)
    h2_receive(&s.h, <const char *>frames, n)
    if s.have:
        judge_read(&judge, frames, n)
        if judge.nblocks != 1 or judge_malformed(&judge, &judge.blocks[0], not response, True, False):
            fail(b"what is malformed is accepted")
        judge_same(&judge, &judge.blocks[0], &s.head, not response, False)
    if s.have and s.head.method != M_CONNECT:         # tunnels are not forwarded
        text = <char *>malloc(http1_head_bound(&s.head, 128))
        n = write_head(text, &s.head)
        if n > http1_head_bound(&s.head, 128):
            fail(b"http1_head_bound")
        reread_http1(text, n, &s.head, M_GET)
        free(text)
    stop(s)


cdef void flush(Side *s) noexcept nogil:
    """What it sends is of no interest."""
    cdef Queue tx
    memset(&tx, 0, sizeof(tx))
    h2_pack(&s.h, &tx, 1 << 18)
    queue_clear(&pool, &tx)


# ---- from HTTP/1 -----------------------------------------------------------------------------------------

cdef bint goes(const Message *m, const Field *f) noexcept nogil:
    """Does a field of HTTP/1 go on into HTTP/2 as it is? (RFC 9113 8.2.2)"""
    if f.flags & FIELD_HOP:
        return False
    return not (f.id == F_CONNECTION or f.id == F_KEEP_ALIVE or f.id == F_PROXY_CONNECTION or f.id == F_TE
                or f.id == F_TRANSFER_ENCODING or f.id == F_UPGRADE or f.id == F_HOST and m.status == 0)


cdef void reread_http2(const Message *m, const JudgeBlock *b) noexcept nogil:
    """The block says what `m` says: pseudo-fields, and the other fields in order, their names in lower case."""
    cdef const JudgeField *j
    cdef const Field *f
    cdef size_t c
    cdef int i
    cdef int k = 0
    cdef uint8_t ch
    if m.status == 0:
        if not span_is(m, &m.method_name, judge_find(&judge, b, b":method", 7)):
            fail(b"another method")
        if not span_is(m, &m.authority, judge_find(&judge, b, b":authority", 10)):
            fail(b"another authority")
        j = judge_find(&judge, b, b":path", 5)
        if m.method == M_CONNECT:
            if j != NULL:
                fail(b"CONNECT with a path")
        elif m.path.len == 0:
            if j.len != 1 or j.value[0] != c"*":
                fail(b"another path")
        elif m.base[m.path.at] == c"?":
            if j.len != m.path.len + 1 or j.value[0] != c"/" or memcmp(j.value + 1, m.base + m.path.at, m.path.len):
                fail(b"another path")
        elif not span_is(m, &m.path, j):
            fail(b"another path")
    for i in range(b.count):
        j = &judge.fields[b.first + i]
        if j.name[0] == c":":
            continue
        while k < m.nfields and not goes(m, &m.fields[k]):
            k += 1
        if k == m.nfields:
            if not (m.flags & MSG_TE_TRAILERS and j.n == 2 and i == b.count - 1):
                fail(b"a field too many")
            continue
        f = &m.fields[k]
        k += 1
        if f.name_len != j.n or f.value_len != j.len or memcmp(m.base + f.value_at, j.value, j.len):
            fail(b"another field")
        for c in range(j.n):
            ch = <uint8_t>m.base[f.at + c]
            if (ch | 32 if c"A" <= ch <= c"Z" else ch) != <uint8_t>j.name[c]:
                fail(b"another name")
    while k < m.nfields and not goes(m, &m.fields[k]):
        k += 1
    if k != m.nfields:
        fail(b"a field is missing")


cdef void from_http1(const char *data, size_t size, bint response, int method) noexcept nogil:
    cdef Message *m = <Message *>malloc(sizeof(Message))
    cdef char *head = <char *>malloc(size)
    cdef char *text
    cdef uint32_t scan = 0
    cdef const char *asked
    cdef Message ask
    cdef bint whole
    cdef size_t n
    cdef int r
    memcpy(head, data, size)
    if response:
        r = http1_parse_response(head, size, &scan, method, m)
    else:
        r = http1_parse_request(head, size, &scan, m)
    # 101 and upgrades have no counterpart, and tunnels are not forwarded
    if r <= 0 or m.status == 101 or m.flags & MSG_UPGRADE or m.method == M_CONNECT:
        free(head)
        free(m)
        return
    whole = m.framing == FRAMING_NONE and not (method == M_CONNECT and m.status // 100 == 2)
    if m.flags & MSG_INTERIM:
        whole = False
    asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    if method == M_HEAD:
        asked = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    elif method == M_CONNECT:
        asked = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"
    start(&near, H2_SERVER if response else H2_CLIENT)
    start(&far, H2_CLIENT if response else H2_SERVER)
    if response:
        scan = 0
        http1_parse_request(asked, strlen(asked), &scan, &ask)
        if h2_request(&far.h, &far.stream, &ask, NULL, True) < 0:
            fail(b"no request")
        h2_receive(&near.h, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33)
        n = packed(&far)
        h2_receive(&near.h, <const char *>frames, n)
        if not near.have:
            fail(b"the request is refused")
        flush(&near)
        r = h2_respond(&near.h, &near.stream, m, NULL, whole)
    else:
        h2_receive(&far.h, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33)
        flush(&far)
        r = h2_request(&near.h, &near.stream, m, NULL, whole)
    if r < 0:
        fail(b"a head cannot be sent")
    if response:
        h2_receive(&far.h, b"\0\0\0\4\0\0\0\0\0", 9)
    n = packed(&near)
    if n:
        judge_read(&judge, frames, n)
        if judge.nblocks != 1:
            fail(b"not one head is sent")
        reread_http2(m, &judge.blocks[0])
        h2_receive(&far.h, <const char *>frames, n)
        if judge_malformed(&judge, &judge.blocks[0], not response, True, False) and not (
                not response and m.authority.len == 0):
            fail(b"what is sent is malformed")
        if far.have:
            judge_same(&judge, &judge.blocks[0], &far.head, not response, False)
            if not response and (far.head.framing != m.framing or far.head.length != m.length) and not whole:
                fail(b"another framing on the other side")
            if response and method != M_CONNECT and not m.flags & MSG_INTERIM:
                if m.framing == FRAMING_LENGTH and (far.head.framing != FRAMING_LENGTH or far.head.length != m.length):
                    fail(b"another length on the other side")
                if m.framing == FRAMING_NONE and far.head.framing != FRAMING_NONE:
                    fail(b"a body on the other side")
            # and back
            if far.head.method != M_CONNECT:
                text = <char *>malloc(http1_head_bound(&far.head, 128))
                n = write_head(text, &far.head)
                reread_http1(text, n, &far.head, method)
                free(text)
        elif not (far.bad == R_HEAD_TOO_LARGE or far.bad == R_TOO_MANY_FIELDS or m.authority.len == 0):
            fprintf(stderr, b"reason %d\n", far.bad)
            fail(b"what is sent is refused")
    stop(&near)
    stop(&far)
    free(head)
    free(m)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) noexcept nogil:
    global begun
    cdef int method = M_GET
    cdef uint8_t mode
    if not begun:
        begun = True
        pool_init(&pool, 1 << 28)
        heap_init(&heap, 1 << 28)
        hooks.open = on_open
        hooks.head = on_head
        hooks.data = on_data
        hooks.end = on_end
        hooks.bad = on_bad
        hooks.closed = on_closed
        hooks.writable = on_writable
        hooks.settings = on_settings
        hooks.goaway = on_goaway
    if size < 1:
        return 0
    mode = input[0]
    near.h.now_ms = far.h.now_ms = 1000
    if mode & 1:
        from_http2(input + 1, size - 1, (mode & 2) != 0, (mode & 8) != 0)
    else:
        if mode >> 2 & 3 == 1:
            method = M_HEAD
        elif mode >> 2 & 3 == 2:
            method = M_CONNECT
        if not mode & 2:
            method = M_GET
        from_http1(<const char *>input + 1, size - 1, (mode & 2) != 0, method)
    if heap.in_use or pool_in_use(&pool):
        fail(b"memory is left")
    return 0
