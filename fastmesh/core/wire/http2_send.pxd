# What goes out on an HTTP/2 connection: heads, bodies, trailers, resets; and packing it all into frames.
#
# Everything is queued, in nghttp2 (heads, control frames) or in the stream's `out` (body), and becomes
# bytes in h2_pack, once a turn: what a turn said of a stream leaves in as few frames as it fits in, with
# END_STREAM on the last of them. nghttp2 asks for body bytes by frame; a Buf that fits into a frame as it
# is passes into `tx` by reference. A hook called from here (closed, writable) may call whatever one called
# from h2_receive may.

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.buffer cimport (
    BUF_MEDIUM, BUF_SMALL, Buf, Queue, SMALL_SIZE, buf_class_for, buf_drop, buf_get, queue_consume,
    queue_copy, queue_push,
)
from fastmesh.core.base.reason cimport (
    R_H2_COMPRESSION, R_H2_FLOW_CONTROL, R_H2_FRAME_SIZE, R_H2_PROTOCOL, R_H2_PROVOKED_FLOOD, R_H2_SETTINGS_FLOOD,
    R_H2_SETTINGS_TIMEOUT, R_INTERNAL, R_NO_MEMORY, R_UPSTREAM_H2_FLOOD, R_UPSTREAM_H2_PROTOCOL,
)
from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_COMPRESSION_ERROR, NGHTTP2_DATA, NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_COPY,
    NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_DEFERRED,
    NGHTTP2_ERR_NOMEM, NGHTTP2_ERR_PAUSE, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE, NGHTTP2_FLOW_CONTROL_ERROR,
    NGHTTP2_FRAME_SIZE_ERROR, NGHTTP2_GOAWAY, NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS, NGHTTP2_INTERNAL_ERROR,
    NGHTTP2_NO_ERROR, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS_TIMEOUT, nghttp2_data_provider, nghttp2_data_source,
    nghttp2_frame, nghttp2_nv, nghttp2_session, nghttp2_session_get_last_proc_stream_id, nghttp2_session_mem_send,
    nghttp2_session_resume_data, nghttp2_session_set_stream_user_data, nghttp2_session_want_write,
    nghttp2_submit_headers, nghttp2_submit_request, nghttp2_submit_response, nghttp2_submit_rst_stream,
    nghttp2_submit_trailer,
)
from fastmesh.core.wire.http2_fields cimport (
    H2Fields, h2_fields_done, h2_fields_request, h2_fields_response, h2_nv_fields, h2_nv_lines,
)
from fastmesh.core.wire.http2_flow cimport h2_give
from fastmesh.core.wire.http2_head cimport h2_head_drop
from fastmesh.core.wire.http2_pace cimport h2_pace, h2_pace_window_credit
from fastmesh.core.wire.http2_state cimport (
    H2, H2Extra, H2F_DEAD, H2F_LAST_OUT, H2F_PACKED, H2P_PROVOKED, H2S_BEHIND, H2S_END_IN, H2S_END_OUT, H2S_FIN,
    H2S_FULL, H2S_HEAD_OUT, H2S_SENT, H2S_WAITING, H2Stream, H2_CANCEL, H2_CLIENT, H2_MOST_INTERIM, H2_MOVE,
    H2_OUT_ALL, H2_OUT_HIGH, H2_OUT_LOW, H2_SERVER, h2_check, h2_fail, h2_find, h2_link, h2_unlink,
)
from fastmesh.core.wire.message cimport Message


# ---- a stream's sending side ---------------------------------------------------------------------------

cdef inline int _h2_queue_head(H2 *h, H2Stream *s, H2Fields *f, bint request, bint final,
                               bint end) noexcept nogil:
    """Submit the list: 0 or a reason."""
    cdef nghttp2_data_provider body
    cdef nghttp2_data_provider *data = NULL
    cdef int r
    body.source.ptr = NULL
    body.read_callback = h2_read_output
    if not end:
        data = &body
    if request:
        r = nghttp2_submit_request(h.session, NULL, f.nv, f.n, data, s)
        if r > 0:
            h2_link(h, s, r)
            r = 0
    elif final:
        r = nghttp2_submit_response(h.session, s.id, f.nv, f.n, data)
    else:
        r = nghttp2_submit_headers(h.session, NGHTTP2_FLAG_NONE, s.id, NULL, f.nv, f.n, NULL)
    h2_fields_done(f, h.pool)
    if r == NGHTTP2_ERR_NOMEM:
        return h2_fail(h, R_NO_MEMORY)
    if r < 0:
        return -R_INTERNAL
    if final:
        s.flags |= H2S_HEAD_OUT
        if end:
            s.flags |= H2S_FIN
    return 0


cdef inline int h2_request(H2 *h, H2Stream *s, const Message *m, const H2Extra *x, bint end) noexcept nogil:
    """Client: open `s` (zeroed, or forgotten) with the head `m`: 0 or a reason. h2_may_open has said yes.

    `end`: nothing follows. `x` may be NULL, here as in h2_respond.
    """
    cdef H2Fields f
    cdef int r
    if h.fault:
        return -h.fault
    r = h2_fields_request(&f, h.pool, m, x)
    if r < 0:
        return r
    s.flags = 0
    s.interim = 0
    s.method = m.method
    s.held = 0
    return _h2_queue_head(h, s, &f, True, True, end)


cdef inline int h2_respond(H2 *h, H2Stream *s, const Message *m, const H2Extra *x, bint end) noexcept nogil:
    """Server: the head of the response, or an interim one (1xx): 0 or a reason. Interim also 1: queued, but
    wait for `writable`, as no window bounds heads."""
    cdef H2Fields f
    cdef int r
    if h.fault or s.h2 == NULL:
        return -h.fault if h.fault else -R_INTERNAL
    if s.flags & H2S_HEAD_OUT:
        return -R_INTERNAL
    h2_fields_response(&f, m, x)
    r = _h2_queue_head(h, s, &f, False, m.status >= 200, end and m.status >= 200)
    if r < 0 or m.status >= 200:
        return r
    s.interim += 1
    if s.interim < H2_MOST_INTERIM:
        return 0
    s.flags |= H2S_FULL
    return 1


cdef inline void _h2_resume(H2 *h, H2Stream *s) noexcept nogil:
    if s.flags & H2S_WAITING:
        s.flags &= ~H2S_WAITING
        h2_check(h, nghttp2_session_resume_data(h.session, s.id))


cdef inline int h2_data(H2 *h, H2Stream *s, const char *p, size_t n, Buf *take) noexcept nogil:
    """Queue body bytes: p[:n], copied, or those of `take`, whose reference passes to the stream.

    0; 1: queued, but wait for `writable`; or a reason (then `take` is dropped too). A stream that waits because
    of what the others hold goes on once its own bytes have left: whoever takes none stalls nobody else.
    """
    cdef size_t had = s.out.bytes
    cdef int r = 0
    if h.fault or s.h2 == NULL:
        if take != NULL:
            buf_drop(h.pool, take)
        return -h.fault if h.fault else -R_INTERNAL
    if take != NULL:
        if take.start == take.end:
            buf_drop(h.pool, take)
        else:
            queue_push(&s.out, take)
    elif n:
        r = queue_copy(h.pool, &s.out, p, n)
    h.queued += s.out.bytes - had
    if r < 0:
        return -R_NO_MEMORY
    _h2_resume(h, s)
    if s.out.bytes >= H2_OUT_HIGH or h.queued >= H2_OUT_ALL and s.out.bytes > 0:
        s.flags |= H2S_FULL
        return 1
    return 0


cdef inline int _h2_trailers(H2 *h, H2Stream *s, H2Fields *f) noexcept nogil:
    s.flags |= H2S_FIN
    return h2_check(h, nghttp2_submit_trailer(h.session, s.id, f.nv, f.n))


cdef inline Buf *_h2_keep(H2 *h, const H2Fields *f) noexcept nogil:
    """The list as lines, for later; NULL without memory."""
    cdef const nghttp2_nv *nv
    cdef char *p
    cdef Buf *b
    cdef size_t n = 0
    cdef size_t i
    cdef int cls
    for i in range(f.n):
        n += f.nv[i].namelen + f.nv[i].valuelen + 4
    cls = buf_class_for(n)
    if cls < 0:
        return NULL
    b = buf_get(h.pool, cls)
    if b == NULL:
        return NULL
    p = b.data
    for i in range(f.n):
        nv = &f.nv[i]
        memcpy(p, nv.name, nv.namelen)
        p += nv.namelen
        memcpy(p, b": ", 2)
        memcpy(p + 2, nv.value, nv.valuelen)
        p += 2 + nv.valuelen
        memcpy(p, b"\r\n", 2)
        p += 2
    b.end = <uint32_t>n
    return b


cdef inline int h2_finish(H2 *h, H2Stream *s, const Message *trailers) noexcept nogil:
    """END_STREAM behind what is queued, on trailers if there are any: 0 or a reason."""
    cdef H2Fields f
    cdef Buf *b
    if h.fault or s.h2 == NULL:
        return -h.fault if h.fault else -R_INTERNAL
    if s.flags & H2S_FIN:
        return 0
    if trailers != NULL:
        f.n = 0
        h2_nv_fields(&f, trailers, 0)
        if f.n and s.out.bytes == 0 and (h.role == H2_SERVER or s.flags & H2S_SENT):
            # At once, because nothing is before them: h2_read_output is only asked when there is a window. (A
            # request that has not left is overtaken: nghttp2 has a queue of its own for what opens streams.)
            return _h2_trailers(h, s, &f)
        if f.n:
            b = _h2_keep(h, &f)
            if b == NULL:
                return -R_NO_MEMORY
            s.trailers = b
    s.flags |= H2S_FIN
    _h2_resume(h, s)
    return 0


cdef inline void h2_reset(H2 *h, H2Stream *s, uint32_t code) noexcept nogil:
    """RST_STREAM now: output is dropped and `s` forgotten, no hook is called; it may be freed at once."""
    if s.h2 == NULL:
        return
    if not h.flags & H2F_DEAD:
        if not s.flags & H2S_END_IN or not s.flags & H2S_END_OUT:
            # nothing, if there is one under way already
            h2_check(h, nghttp2_submit_rst_stream(h.session, NGHTTP2_FLAG_NONE, s.id, code))
        nghttp2_session_set_stream_user_data(h.session, s.id, NULL)
    h2_unlink(h, s)
    h2_give(h)
    if h.head.id == s.id:
        h2_head_drop(h)


cdef inline void h2_forget(H2 *h, H2Stream *s) noexcept nogil:
    """Forget `s`: as h2_reset, with the frame that it takes to end what is not over yet."""
    h2_reset(h, s, H2_CANCEL)


cdef inline void h2_reset_behind(H2 *h, H2Stream *s, uint32_t code) noexcept nogil:
    """RST_STREAM once our END_STREAM has been packed, if the peer has not ended by then (RFC 9113 8.1).

    `closed` follows.
    """
    if s.h2 == NULL:
        return
    s.behind = code
    if s.flags & H2S_END_OUT and not s.flags & H2S_END_IN:
        h2_check(h, nghttp2_submit_rst_stream(h.session, NGHTTP2_FLAG_NONE, s.id, code))
    s.flags |= H2S_BEHIND


cdef inline bint h2_sent_nothing(H2Stream *s) noexcept nogil:
    """Client: not a byte of its request has been packed yet."""
    return not s.flags & H2S_SENT


# ---- nghttp2 asks ------------------------------------------------------------------------------------

cdef inline size_t _h2_frame_size(const Queue *q, size_t most) noexcept nogil:
    """How many of the queued bytes the next frame takes: whole Bufs if that makes it long enough."""
    cdef const Buf *b = q.head
    cdef size_t n = 0
    if q.bytes <= most:
        return q.bytes
    while b != NULL and n + (b.end - b.start) <= most:
        n += b.end - b.start
        b = b.next
    return n if n and n >= most // 4 else most


cdef inline ssize_t h2_read_output(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length,
                                   uint32_t *flags, nghttp2_data_source *source, void *user) noexcept nogil:
    """nghttp2 may send a DATA frame of at most `length` bytes: how many, and whether they are the last."""
    cdef H2 *h = <H2 *>user
    cdef H2Stream *s = h2_find(h, id)
    cdef H2Fields f
    cdef size_t n
    if s == NULL:
        return NGHTTP2_ERR_DEFERRED
    n = _h2_frame_size(&s.out, length)
    if n == s.out.bytes and s.flags & H2S_FIN:
        flags[0] = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_COPY
        if s.trailers != NULL:
            flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
            f.n = 0
            h2_nv_lines(&f, s.trailers.data, s.trailers.end)
            if _h2_trailers(h, s, &f) < 0:
                return NGHTTP2_ERR_CALLBACK_FAILURE
            buf_drop(h.pool, s.trailers)
            s.trailers = NULL
        return <ssize_t>n
    if n == 0:
        s.flags |= H2S_WAITING
        return NGHTTP2_ERR_DEFERRED
    flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
    return <ssize_t>n


cdef inline int _h2_put(H2 *h, const char *p, size_t n) noexcept nogil:
    """Append a copy to tx: 0, or -1 without memory. The first Buf is small, those behind it are not."""
    cdef Buf *b = h.tx.tail
    cdef size_t room
    while n:
        if b == NULL or b.refs != 1 or b.cap == b.end:
            b = buf_get(h.pool, BUF_SMALL if b == NULL and n <= SMALL_SIZE else BUF_MEDIUM)
            if b == NULL:
                return -1
            queue_push(h.tx, b)
        room = b.cap - b.end
        if room > n:
            room = n
        memcpy(b.data + b.end, p, room)
        b.end += <uint32_t>room
        h.tx.bytes += room
        p += room
        n -= room
    return 0


cdef inline int _h2_move(H2 *h, Queue *q, size_t n) noexcept nogil:
    """Move n bytes from q to tx: long Bufs by reference, what is short or a part is copied; 0 or -1."""
    cdef Buf *b
    cdef size_t have
    while n:
        b = q.head
        have = b.end - b.start
        if have >= H2_MOVE and have <= n:
            q.head = b.next
            if q.head == NULL:
                q.tail = NULL
            q.bytes -= have
            n -= have
            queue_push(h.tx, b)
            continue
        if have > n:
            have = n
        if _h2_put(h, b.data + b.start, have) < 0:
            return -1
        queue_consume(h.pool, q, have)
        n -= have
    return 0


cdef inline void _h2_go_on(H2 *h, H2Stream *s) noexcept nogil:
    """Something of `s` has been packed: its source is told to go on, if it waits and enough has left."""
    if s.flags & H2S_FULL and s.out.bytes <= H2_OUT_LOW and (h.role == H2_CLIENT or s.interim == 0):
        s.flags &= ~H2S_FULL
        h.hooks.writable(h, s)


cdef inline int h2_send_output(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length,
                               nghttp2_data_source *source, void *user) noexcept nogil:
    """nghttp2 sends the DATA frame that h2_read_output said."""
    cdef H2 *h = <H2 *>user
    cdef H2Stream *s = h2_find(h, frame.hd.stream_id)
    if s == NULL or s.out.bytes < length or h.tx == NULL:
        h2_fail(h, R_INTERNAL)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    if _h2_put(h, <const char *>framehd, 9) < 0 or _h2_move(h, &s.out, length) < 0:
        # Half a frame: nothing can follow it.
        h2_fail(h, R_NO_MEMORY)
        h.flags |= H2F_LAST_OUT
        return NGHTTP2_ERR_CALLBACK_FAILURE
    h.queued -= length
    h2_pace_window_credit(h)
    _h2_go_on(h, s)
    return NGHTTP2_ERR_PAUSE if h.tx.bytes >= h.most else 0


cdef inline int h2_frame_sent(nghttp2_session *session, const nghttp2_frame *frame,
                              void *user) noexcept nogil:
    """A frame has been packed."""
    cdef H2 *h = <H2 *>user
    cdef uint8_t kind = frame.hd.type
    cdef bint end = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    cdef H2Stream *s
    if kind == NGHTTP2_HEADERS or kind == NGHTTP2_DATA and end:
        s = h2_find(h, frame.hd.stream_id)
        if s == NULL:
            return 0
        s.flags |= H2S_SENT
        if end:
            s.flags |= H2S_END_OUT
            if s.flags & H2S_BEHIND and not s.flags & H2S_END_IN:
                h2_check(h, nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s.id, s.behind))
        elif h.role == H2_SERVER and s.interim:
            s.interim -= 1
            _h2_go_on(h, s)
    elif kind == NGHTTP2_RST_STREAM:
        s = h2_find(h, frame.hd.stream_id)
        if s != NULL and not s.flags & H2S_BEHIND and h2_pace(h, H2P_PROVOKED) < 0:
            # nghttp2 reset it: the peer broke a rule, at the price of a frame
            h2_fail(h, R_UPSTREAM_H2_FLOOD if h.role == H2_CLIENT else R_H2_PROVOKED_FLOOD)
            return NGHTTP2_ERR_CALLBACK_FAILURE
    elif kind == NGHTTP2_GOAWAY and frame.goaway.error_code != NGHTTP2_NO_ERROR and h.fault == 0 and (
            not h.ended):
        h.fault = h2_reason(h, frame.goaway.error_code)
        h.flags |= H2F_LAST_OUT
    return 0


cdef inline int h2_frame_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int error,
                                  void *user) noexcept nogil:
    """A frame that cannot be sent any more: a head that is too large for nghttp2 ends its stream."""
    cdef H2 *h = <H2 *>user
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat != NGHTTP2_HCAT_REQUEST and (
            h2_find(h, frame.hd.stream_id) != NULL):
        h2_check(h, nghttp2_submit_rst_stream(
            session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_INTERNAL_ERROR))
    return 0


cdef inline int h2_reason(H2 *h, uint32_t code) noexcept nogil:
    """The reason for which nghttp2 ended the connection with `code`."""
    if code == NGHTTP2_INTERNAL_ERROR:
        return R_INTERNAL
    if h.role == H2_CLIENT:
        return R_UPSTREAM_H2_FLOOD if code == NGHTTP2_ENHANCE_YOUR_CALM else R_UPSTREAM_H2_PROTOCOL
    if code == NGHTTP2_FLOW_CONTROL_ERROR:
        return R_H2_FLOW_CONTROL
    if code == NGHTTP2_FRAME_SIZE_ERROR:
        return R_H2_FRAME_SIZE
    if code == NGHTTP2_COMPRESSION_ERROR:
        return R_H2_COMPRESSION
    if code == NGHTTP2_ENHANCE_YOUR_CALM:
        return R_H2_SETTINGS_FLOOD
    return R_H2_PROTOCOL


# ---- packing -----------------------------------------------------------------------------------------

cdef inline uint32_t _h2_code(H2 *h) noexcept nogil:
    """The error code that says `fault`."""
    if h.fault == R_NO_MEMORY or h.fault == R_INTERNAL:
        return NGHTTP2_INTERNAL_ERROR
    if h.fault == R_H2_PROTOCOL or h.fault == R_UPSTREAM_H2_PROTOCOL:
        return 1
    if h.fault == R_H2_SETTINGS_TIMEOUT:
        return NGHTTP2_SETTINGS_TIMEOUT
    return NGHTTP2_ENHANCE_YOUR_CALM


cdef inline void _h2_last_words(H2 *h) noexcept nogil:
    """GOAWAY by hand, as nghttp2 is not to be asked any more; behind a preface if there was none."""
    cdef char frame[26]
    cdef uint32_t code = _h2_code(h)
    cdef uint32_t last = <uint32_t>nghttp2_session_get_last_proc_stream_id(h.session)
    cdef int i
    for i in range(26):
        frame[i] = 0
    frame[3] = 4                      # an empty SETTINGS
    frame[11] = 8
    frame[12] = NGHTTP2_GOAWAY
    for i in range(4):
        frame[18 + i] = <char>(last >> (24 - 8 * i) & 0xFF)
        frame[22 + i] = <char>(code >> (24 - 8 * i) & 0xFF)
    if h.role == H2_CLIENT and not h.flags & H2F_PACKED:
        return                        # not a word was said: nobody waits for one
    if h.flags & H2F_PACKED:
        _h2_put(h, frame + 9, 17)
    else:
        _h2_put(h, frame, 26)


cdef inline int h2_pack(H2 *h, Queue *tx, size_t most) noexcept nogil:
    """Frames of all streams into tx, until tx.bytes >= most or there is nothing to send: 0, or a reason.

    With a reason tx has the GOAWAY that says it: it is flushed, and the connection closed.
    """
    cdef const uint8_t *p
    cdef ssize_t n = 0
    h.tx = tx
    h.most = most
    while not h.flags & H2F_DEAD and tx.bytes < most:
        n = nghttp2_session_mem_send(h.session, &p)
        if n <= 0:
            if n == 0 and tx.bytes < most:
                h.answers = 0
            break
        h.flags |= H2F_PACKED
        if _h2_put(h, <const char *>p, <size_t>n) < 0:
            h2_fail(h, R_NO_MEMORY)
            h.flags |= H2F_LAST_OUT
    if n < 0:
        h2_fail(h, R_NO_MEMORY if n == NGHTTP2_ERR_NOMEM else R_INTERNAL)
    if h.fault:
        if not h.flags & H2F_LAST_OUT:
            _h2_last_words(h)
            h.flags |= H2F_LAST_OUT
        h.flags |= H2F_DEAD
        h.tx = NULL
        return -h.fault
    h.tx = NULL
    return 0


cdef inline bint h2_wants_write(H2 *h) noexcept nogil:
    """Whether there is anything that h2_pack could send now."""
    if h.fault:
        return not h.flags & H2F_LAST_OUT
    return nghttp2_session_want_write(h.session)
