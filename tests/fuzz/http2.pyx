# Fuzz target of the HTTP/2 codec, both roles, for libFuzzer. Only the C that Cython makes of it runs, never Python.
#
# Input: a byte of mode (bit 0: client; 1: extended CONNECT; 2: small limits; 3: memory runs short; 4: passive, see below),
# a byte n, n bytes that say what the owner does and how the bytes are cut (over and over), and what the peer sends
# behind its preface. What must hold:
#   - what is delivered is in the peer's frames, as a second reader has them (http2_judge): nothing of a malformed
#     message, the same fields in the same order, the same content, as much of it as content-length says;
#   - no hook is called out of order, or for a stream that is over: its memory is freed at once, under ASan;
#   - what is held is bounded, and is the sum of what the streams hold;
#   - a stream that may send something does, and who was told to wait is told to go on;
#   - in the end nothing is left of the memory;
#   - a passive owner, which only takes, sees the same however the bytes are cut.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strlen

from fastmesh.core.base.buffer cimport BUF_CLASSES, BUF_MEDIUM, Buf, Pool, Queue, buf_get, pool_in_use, pool_init, queue_clear
from fastmesh.core.base.heap cimport HEAP_CLASSES, Heap, heap_init
from fastmesh.core.base.list cimport Node
from fastmesh.core.base.reason cimport R_COUNT
from fastmesh.core.base.slab cimport Slab, SlabFree
from fastmesh.core.sys.nghttp2 cimport nghttp2_session
from fastmesh.core.wire.http1 cimport http1_parse_request, http1_parse_response
from fastmesh.core.wire.http2 cimport h2_free, h2_goaway, h2_goaway_notice, h2_init, h2_may_open, h2_ping
from fastmesh.core.wire.http2_flow cimport h2_consume
from fastmesh.core.wire.http2_receive cimport h2_receive
from fastmesh.core.wire.http2_send cimport (
    h2_data, h2_finish, h2_forget, h2_pack, h2_request, h2_reset, h2_reset_behind, h2_respond, h2_wants_write,
)
from fastmesh.core.wire.http2_state cimport (
    H2, H2Hooks, H2Limits, H2S_END_IN, H2S_END_OUT, H2S_FIN, H2S_FULL, H2S_HEAD_OUT, H2Stream, H2_CANCEL, H2_CLIENT,
    H2_ENHANCE_YOUR_CALM, H2_NO_ERROR, H2_OUT_LOW, H2_SERVER, h2_of_node,
)
from fastmesh.core.wire.message cimport (
    FRAMING_LENGTH, FRAMING_NONE, LENGTH_UNKNOWN, MSG_HTTP2, MSG_INTERIM, M_CONNECT, M_GET, M_HEAD, Message,
)
from http2_judge cimport (
    Judge, JudgeBlock, check_message, fail, judge_block, judge_data, judge_find, judge_malformed, judge_read,
    judge_same,
)

cdef extern from * nogil:
    """
    #include <nghttp2/nghttp2.h>
    """
    int32_t nghttp2_session_get_stream_remote_window_size(nghttp2_session *, int32_t)
    int32_t nghttp2_session_get_remote_window_size(nghttp2_session *)

cdef enum:
    SLOTS = 64
    ROOM = 1 << 20            # of a transmit queue that takes all
    TEMPLATES = 6

cdef struct Stream:
    H2Stream s                # the codec's, first
    int slot
    int heads                 # field blocks that were delivered
    bint final                # the final head among them
    bint ended
    bint bad
    bint head_out
    bint finished
    bint behind               # h2_reset_behind was called
    bint waits                # h2_data or h2_respond said so
    uint64_t body
    uint64_t content          # hash of it
    uint64_t length

cdef struct Owner:            # of one connection
    H2 h                      # the codec's, first
    bint passive
    bint extended
    bint over                 # it said a GOAWAY behind which nothing comes
    bint scarce               # memory runs short now and then
    uint32_t window
    Stream *streams[64]       # SLOTS
    uint64_t trace            # hash of what was delivered

cdef struct Choices:
    const uint8_t *p
    size_t n
    size_t at

cdef struct Shortage:         # while it lasts, there is no memory but what is given back meanwhile
    bint on
    SlabFree *free[27]        # of the pool's slabs and the heap's
    uint64_t limit[27]

cdef struct Templates:
    bint done
    Message request[6]        # TEMPLATES
    Message response[6]
    Message trailers

cdef Pool pool
cdef Heap heap
cdef H2Hooks hooks
cdef Judge judge
cdef Choices choices
cdef Templates ours
cdef Queue tx
cdef Shortage shortage


cdef uint32_t choose(uint32_t n) noexcept nogil:
    """What the input says next: 0 to n - 1."""
    cdef uint32_t b
    if choices.n == 0:
        return 0
    b = choices.p[choices.at % choices.n] ^ <uint32_t>(choices.at // choices.n * 29 & 0xFF)
    choices.at += 1
    return b % n


cdef uint64_t mix(uint64_t h, const void *p, size_t n) noexcept nogil:
    cdef const uint8_t *b = <const uint8_t *>p
    cdef size_t i
    for i in range(n):
        h = (h ^ b[i]) * 0x100000001B3ULL
    return h


cdef void note(Owner *o, int what, int32_t id, const void *p, size_t n) noexcept nogil:
    """Into the trace."""
    o.trace = mix(mix(mix(o.trace, &what, sizeof(what)), &id, sizeof(id)), p, n)


# ---- memory --------------------------------------------------------------------------------------------

cdef void shortage_set(bint on) noexcept nogil:
    cdef Slab *slab
    cdef SlabFree *last
    cdef int i
    if on == shortage.on:
        return
    shortage.on = on
    for i in range(BUF_CLASSES + HEAP_CLASSES):
        slab = &pool.slab[i] if i < BUF_CLASSES else &heap.slab[i - BUF_CLASSES]
        if on:
            shortage.free[i] = slab.free
            shortage.limit[i] = slab.limit
            slab.free = NULL
            slab.limit = 0
            continue
        slab.limit = shortage.limit[i]
        if slab.free == NULL:
            slab.free = shortage.free[i]
            continue
        last = slab.free
        while last.next != NULL:
            last = last.next
        last.next = shortage.free[i]


# ---- streams -------------------------------------------------------------------------------------------

cdef Stream *new_stream(Owner *o) noexcept nogil:
    cdef Stream *s
    cdef int i
    for i in range(SLOTS):
        if o.streams[i] == NULL:
            s = <Stream *>calloc(1, sizeof(Stream))
            s.slot = i
            s.length = LENGTH_UNKNOWN
            o.streams[i] = s
            return s
    return NULL


cdef void drop_stream(Owner *o, Stream *s) noexcept nogil:
    """The codec has forgotten it."""
    if s.s.h2 != NULL or s.s.out.bytes or s.s.out.head != NULL or s.s.trailers != NULL or s.s.held:
        fail(b"a forgotten stream still has something")
    o.streams[s.slot] = NULL
    free(s)


cdef Stream *some_stream(Owner *o) noexcept nogil:
    cdef int k = <int>choose(SLOTS)
    cdef int i
    for i in range(SLOTS):
        if o.streams[(i + k) % SLOTS] != NULL and o.streams[(i + k) % SLOTS].s.h2 != NULL:
            return o.streams[(i + k) % SLOTS]
    return NULL


cdef void send_body(Owner *o, Stream *s) noexcept nogil:
    """Some body, perhaps its end."""
    cdef uint32_t n = 1 << choose(15)
    cdef Buf *take = NULL
    cdef char *p
    cdef int r = 0
    if s.finished or s.waits or not s.head_out:
        return
    if choose(2):
        take = buf_get(&pool, BUF_MEDIUM)
        if take == NULL:
            return
        take.end = n
        memset(take.data, c"x", n)
        r = h2_data(&o.h, &s.s, NULL, 0, take)
    else:
        p = <char *>malloc(n)
        memset(p, c"y", n)
        r = h2_data(&o.h, &s.s, p, n, NULL)
        free(p)
    s.waits = r == 1
    if r >= 0 and choose(2):
        s.finished = h2_finish(&o.h, &s.s, &ours.trailers if choose(3) == 0 else NULL) == 0


cdef void act(Owner *o, Stream *s) noexcept nogil:
    """Do to `s` what the input says. It may be gone afterwards."""
    cdef uint32_t what = choose(16)
    cdef bint end
    if o.passive or s == NULL or s.s.h2 == NULL or s.s.id == 0:
        return
    if what == 0:
        h2_reset(&o.h, &s.s, H2_CANCEL)
        drop_stream(o, s)
    elif what == 1:
        h2_forget(&o.h, &s.s)
        drop_stream(o, s)
    elif what == 2:
        h2_consume(&o.h, &s.s, s.s.held)
    elif what == 3:
        h2_consume(&o.h, &s.s, s.s.held // 2)
    elif what == 4 and s.head_out:
        if not s.finished:
            s.finished = h2_finish(&o.h, &s.s, NULL) == 0
    elif what == 5 and s.finished:
        s.behind = True
        h2_reset_behind(&o.h, &s.s, H2_NO_ERROR)
    elif what < 10:
        send_body(o, s)
    elif o.h.role == H2_SERVER and not s.head_out:
        if what == 10:
            # interim heads: of too many at once one has to wait, as with content
            s.waits = h2_respond(&o.h, &s.s, &ours.response[5], NULL, False) == 1 or s.waits
            return
        end = what < 13
        s.head_out = h2_respond(&o.h, &s.s, &ours.response[choose(5)], NULL, end) == 0
        s.finished = s.head_out and end
        if what == 15:
            send_body(o, s)


cdef void ask(Owner *o) noexcept nogil:
    """Client: one more request."""
    cdef Stream *s
    cdef bint end = choose(2)
    if o.h.role == H2_SERVER or not h2_may_open(&o.h):
        return
    s = new_stream(o)
    if s == NULL:
        return
    if h2_request(&o.h, &s.s, &ours.request[choose(TEMPLATES)], NULL, end) < 0:
        drop_stream(o, s)
        return
    s.head_out = True
    s.finished = end


cdef void stir(Owner *o) noexcept nogil:
    """Between hooks, or from within one, on any stream."""
    cdef uint32_t what = choose(24)
    if o.passive:
        return
    if what == 0:
        h2_ping(&o.h)
    elif what == 1 and choose(4) == 0:
        h2_goaway_notice(&o.h)
    elif what == 2 and choose(8) == 0:
        h2_goaway(&o.h, H2_NO_ERROR)
    elif what == 3 and choose(8) == 0:
        o.over = True
        h2_goaway(&o.h, H2_ENHANCE_YOUR_CALM)
    elif what < 8:
        ask(o)
    elif what < 20:
        act(o, some_stream(o))
    elif o.scarce:
        shortage_set(what < 22)


# ---- hooks ---------------------------------------------------------------------------------------------

cdef Stream *known(H2 *h, H2Stream *s) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *mine = <Stream *>s
    if o.streams[mine.slot] != mine:
        fail(b"a hook for a stream that is gone")
    return mine


cdef H2Stream *on_open(H2 *h) noexcept nogil:
    cdef Owner *o = <Owner *>h
    if h.role == H2_CLIENT:
        fail(b"a client is pushed at")
    if not o.passive and choose(16) == 1:
        return NULL
    return <H2Stream *>new_stream(o)


cdef void check_block(Owner *o, Stream *s, Message *m, bint end, bint trailers) noexcept nogil:
    """The block was there, is not malformed, and says what `m` says."""
    cdef bint request = o.h.role == H2_SERVER
    cdef JudgeBlock *b = judge_block(&judge, s.s.id, s.heads)
    s.heads += 1
    check_message(m)
    note(o, 1 + end + 2 * trailers, s.s.id, m.base, m.head_len)
    if b == NULL:
        if not judge.full:
            fail(b"a head that nobody sent")
        return
    if b.end != end:
        fail(b"another END_STREAM")
    if judge_malformed(&judge, b, request, o.extended, trailers):
        fail(b"what is malformed is delivered")
    judge_same(&judge, b, m, request, trailers)


cdef void on_head(H2 *h, H2Stream *stream, Message *m, bint end) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if s.final or s.ended or s.bad:
        fail(b"a head out of order")
    if not m.flags & MSG_HTTP2 or h.role == H2_SERVER and m.status or h.role == H2_CLIENT and m.status < 100:
        fail(b"another kind of head")
    check_block(o, s, m, end, False)
    if m.flags & MSG_INTERIM:
        if h.role == H2_SERVER or end:
            fail(b"an interim head that is none")
    else:
        s.final = True
        s.ended = end
        if m.framing == FRAMING_LENGTH:
            s.length = m.length
        elif m.framing == FRAMING_NONE and not (s.s.method == M_CONNECT or m.method == M_CONNECT):
            s.length = 0
        if end and s.length != 0 and s.length != LENGTH_UNKNOWN:
            fail(b"content-length without content")
    act(o, s)
    stir(o)


cdef void on_data(H2 *h, H2Stream *stream, char *p, size_t n) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if not s.final or s.ended or s.bad or n == 0:
        fail(b"DATA out of order")
    judge_data(&judge, s.s.id, s.body, p, n)
    # Into the trace at the end only: content that is too long may come up to its length, or not at all.
    s.content = mix(s.content, p, n)
    s.body += n
    if s.length != LENGTH_UNKNOWN and s.body > s.length:
        fail(b"more than content-length")
    if o.passive or choose(2):
        h2_consume(h, stream, n)
    act(o, s)
    stir(o)


cdef void on_end(H2 *h, H2Stream *stream, Message *trailers) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if not s.final or s.ended or s.bad:
        fail(b"the end out of order")
    if s.length != LENGTH_UNKNOWN and s.body != s.length:
        fail(b"less than content-length")
    if trailers != NULL:
        check_block(o, s, trailers, True, True)
    note(o, 9, s.s.id, &s.content, sizeof(s.content))
    s.ended = True
    act(o, s)
    stir(o)


cdef void on_bad(H2 *h, H2Stream *stream, int reason) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if reason <= 0 or reason >= R_COUNT:
        fail(b"no such reason")
    if s.bad or s.ended and s.s.method != M_HEAD:
        fail(b"malformed out of order")
    note(o, 16 + reason, s.s.id, NULL, 0)
    s.bad = True
    if o.passive:
        return
    if h.role == H2_SERVER and not s.head_out and choose(2):
        s.head_out = s.finished = h2_respond(h, stream, &ours.response[4], NULL, True) == 0
        h2_reset_behind(h, stream, H2_NO_ERROR)
    elif choose(2):
        h2_reset(h, stream, H2_CANCEL)
        drop_stream(o, s)
    stir(o)


cdef void on_closed(H2 *h, H2Stream *stream, uint32_t code, bint by_peer) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if code == H2_NO_ERROR and not by_peer and not s.bad and not s.behind and not (
            s.ended and s.finished):
        fail(b"over, with no error, before its end")
    drop_stream(o, s)
    stir(o)


cdef void on_writable(H2 *h, H2Stream *stream) noexcept nogil:
    cdef Owner *o = <Owner *>h
    cdef Stream *s = known(h, stream)
    if not s.waits or s.s.out.bytes > H2_OUT_LOW:
        fail(b"nobody waits to write")
    s.waits = False
    if choose(2):
        send_body(o, s)
    else:
        act(o, s)
    stir(o)


cdef void on_settings(H2 *h) noexcept nogil:
    stir(<Owner *>h)


cdef void on_goaway(H2 *h, int32_t last, uint32_t code) noexcept nogil:
    stir(<Owner *>h)


# ---- a connection --------------------------------------------------------------------------------------

cdef void begin() noexcept nogil:
    """What every input needs."""
    cdef const char *text
    cdef uint32_t scan
    cdef int i
    cdef const char *requests[6]
    cdef const char *responses[6]
    ours.done = True
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
    requests[0] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    requests[1] = b"HEAD /?b HTTP/1.1\r\nHost: a:80\r\nTE: trailers\r\nConnection: te\r\n\r\n"
    requests[2] = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"
    requests[3] = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-Long: aaaaaaaaaaaaaaaaaa\r\n\r\n"
    requests[4] = b"OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n"
    requests[5] = b"PUT http://b?c HTTP/1.1\r\nHost: b\r\nCookie: a=b\r\n\r\n"
    responses[0] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    responses[1] = b"HTTP/1.1 204 \r\n\r\n"
    responses[2] = b"HTTP/1.1 304 \r\nETag: a\r\n\r\n"
    responses[3] = b"HTTP/1.1 503 \r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    responses[4] = b"HTTP/1.1 400 \r\nContent-Length: 0\r\n\r\n"
    responses[5] = b"HTTP/1.1 103 \r\nLink: a\r\n\r\n"
    for i in range(TEMPLATES):
        text = requests[i]
        scan = 0
        if http1_parse_request(text, strlen(text), &scan, &ours.request[i]) <= 0:
            fail(b"a request of ours")
        text = responses[i]
        scan = 0
        if http1_parse_response(text, strlen(text), &scan, M_GET, &ours.response[i]) <= 0:
            fail(b"a response of ours")
    ours.trailers = ours.response[2]


cdef void check_state(Owner *o) noexcept nogil:
    """What is held is bounded and adds up."""
    cdef Node *n = o.h.streams.next
    cdef H2Stream *s
    cdef uint64_t held = 0
    cdef uint32_t open = 0
    while n != &o.h.streams:
        s = h2_of_node(n)
        if s.h2 != &o.h or known(&o.h, s) == NULL:
            fail(b"a stream in the list that is gone")
        if s.held > (o.window if o.window > 65535 else 65535):
            fail(b"more is held of a stream than its window")
        held += s.held
        open += 1
        n = n.next
    if held != o.h.held or open != o.h.open:
        fail(b"the sum of what is held")
    if held > 2 * <uint64_t>o.h.held_max:
        fail(b"more is held than the connection's window")


cdef void check_sent(Owner *o) noexcept nogil:
    """All that could go has been packed."""
    cdef Node *n = o.h.streams.next
    cdef H2Stream *s
    if h2_wants_write(&o.h):
        fail(b"not all is packed")
    if o.over:
        return
    while n != &o.h.streams:
        s = h2_of_node(n)
        n = n.next
        if s.flags & H2S_FULL and s.out.bytes <= H2_OUT_LOW or s.flags & H2S_FULL and not (<Stream *>s).waits:
            fail(b"who waits is not told")
        if not s.flags & H2S_HEAD_OUT or s.flags & H2S_END_OUT:
            continue
        if s.out.bytes and nghttp2_session_get_stream_remote_window_size(o.h.session, s.id) > 0 and (
                nghttp2_session_get_remote_window_size(o.h.session) > 0):
            fail(b"a stream is stuck with content")
        if s.out.bytes == 0 and s.flags & H2S_FIN and nghttp2_session_get_stream_remote_window_size(
                o.h.session, s.id) > 0 and nghttp2_session_get_remote_window_size(o.h.session) > 0:
            fail(b"a stream is stuck before its end")


cdef uint64_t drive(const uint8_t *p, size_t size, uint8_t mode, bint whole) noexcept nogil:
    """One connection; the hash of what was delivered."""
    cdef Owner *o = <Owner *>calloc(1, sizeof(Owner))
    cdef H2Limits limits
    cdef char *piece
    cdef size_t n, most
    cdef uint64_t trace
    cdef int i
    cdef int r = 0
    memset(&limits, 0, sizeof(limits))
    limits.max_streams = 8 if mode & 4 else 100
    limits.stream_window = 1024 if mode & 4 else 65535
    limits.stream_window_max = 8192 if mode & 4 else 262144
    limits.held_max = 65535 if mode & 4 else 1 << 20
    limits.max_head = 1024 if mode & 4 else 65536
    limits.extended_connect = (mode & 2) != 0
    o.passive = (mode & 16) != 0
    o.scarce = (mode & 24) == 8
    o.extended = limits.extended_connect
    o.window = limits.stream_window_max
    o.h.now_ms = 1000
    if h2_init(&o.h, H2_CLIENT if mode & 1 else H2_SERVER, &limits, &hooks, &pool, &heap) < 0:
        free(o)
        return 0
    if mode & 1:
        for i in range(4):
            # passive: always the same ones
            if o.passive:
                ask_all(o, i)
            else:
                ask(o)
    else:
        r = h2_receive(&o.h, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24)
    while size and r == 0:
        if whole:
            n = size
        elif choose(3):
            n = 1 + choose(32)
        else:
            n = 1 + choose(256) * 16
        if n > size:
            n = size
        piece = <char *>malloc(n)
        memcpy(piece, p, n)
        r = h2_receive(&o.h, piece, n)
        free(piece)
        p += n
        size -= n
        check_state(o)
        if o.passive:
            continue
        o.h.now_ms += choose(64)
        stir(o)
        most = ROOM if choose(4) else 1 + choose(256) * 64
        if choose(8):
            if r == 0:
                r = h2_pack(&o.h, &tx, most)
            if r == 0 and tx.bytes < most:
                check_sent(o)
            queue_clear(&pool, &tx)
            check_state(o)
        stir(o)
    if r < 0:
        o.trace = 1           # what came in the same piece as what ends it may not have been looked at
    if r == 0:
        r = h2_pack(&o.h, &tx, ROOM)
        if r == 0 and tx.bytes < ROOM:
            check_sent(o)
    if r < 0:
        if -r >= R_COUNT:
            fail(b"no such reason")
        i = h2_pack(&o.h, &tx, ROOM)
        if i >= 0 and not o.h.fault:
            fail(b"a fault is forgotten")
        if h2_wants_write(&o.h):
            fail(b"something behind the last words")
        if h2_receive(&o.h, b"\0", 1) == 0:
            fail(b"it goes on behind the last words")
    shortage_set(False)
    queue_clear(&pool, &tx)
    check_state(o)
    h2_free(&o.h)
    for i in range(SLOTS):
        if o.streams[i] != NULL:
            drop_stream(o, o.streams[i])
    trace = o.trace
    free(o)
    if heap.in_use or heap.bytes or pool_in_use(&pool):
        fail(b"memory is left")
    return trace


cdef void ask_all(Owner *o, int i) noexcept nogil:
    """Passive client: request number i."""
    cdef Stream *s = new_stream(o)
    if h2_request(&o.h, &s.s, &ours.request[i], NULL, True) < 0:
        drop_stream(o, s)
        return
    s.head_out = s.finished = True


cdef public int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) noexcept nogil:
    cdef uint8_t mode
    cdef uint64_t first
    if not ours.done:
        begin()
    if size < 2 or size - 2 < input[1]:
        return 0
    mode = input[0]
    choices.p = input + 2
    choices.n = input[1]
    choices.at = 0
    input += 2 + choices.n
    size -= 2 + choices.n
    judge_read(&judge, input, size)
    first = drive(input, size, mode, (mode & 16) != 0)
    if mode & 16:
        if drive(input, size, mode, False) != first:
            fail(b"cuts change the reading")
    return 0
