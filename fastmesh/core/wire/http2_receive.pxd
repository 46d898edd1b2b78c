# What comes in on an HTTP/2 connection: bytes to frames, frames to the owner's hooks.
#
# h2_receive shows the bytes to nghttp2, frame by frame counted (http2_pace); nghttp2 calls back; a callback
# finds its stream by its id, and calls a hook last, because the hook may end any stream. What a callback
# finds wrong with the connection becomes its fault, and nghttp2 is stopped there and then.

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.reason cimport (
    R_BAD_FRAMING, R_BAD_LENGTH, R_BAD_TRAILER, R_H2_OUTPUT_FLOOD, R_H2_PROTOCOL, R_INTERNAL, R_NO_MEMORY,
    R_UPSTREAM_BAD_RESPONSE, R_UPSTREAM_H2_FLOOD, R_UPSTREAM_H2_PROTOCOL,
)
from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_CONTINUATION, NGHTTP2_DATA, NGHTTP2_ERR_BAD_CLIENT_MAGIC, NGHTTP2_ERR_CALLBACK_FAILURE,
    NGHTTP2_ERR_FLOODED, NGHTTP2_ERR_NOMEM, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE,
    NGHTTP2_FLAG_PADDED, NGHTTP2_GOAWAY, NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS, NGHTTP2_PING,
    NGHTTP2_PROTOCOL_ERROR, NGHTTP2_REFUSED_STREAM, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS, nghttp2_frame,
    nghttp2_session, nghttp2_session_mem_recv, nghttp2_session_set_stream_user_data,
    nghttp2_submit_rst_stream,
)
from fastmesh.core.wire.http2_flow cimport h2_arrived, h2_give, h2_measured
from fastmesh.core.wire.http2_head cimport (
    h2_head_begin, h2_head_drop, h2_head_field, h2_head_request, h2_head_response, h2_head_trailers,
    h2_message,
)
from fastmesh.core.wire.http2_pace cimport H2_FRAME_HEAD, h2_answer, h2_frame, h2_pace
from fastmesh.core.wire.http2_state cimport (
    H2, H2F_GOAWAY_IN, H2F_SETTINGS_IN, H2H_REQUEST, H2H_TRAILERS, H2P_EMPTY, H2P_PROVOKED, H2P_RESET,
    H2S_BAD, H2S_END_IN, H2S_END_OUT, H2S_HEAD_IN, H2S_TUNNEL, H2Scan, H2Stream, H2_CLIENT, H2_MAX_INTERIM,
    H2_SERVER, h2_check, h2_fail, h2_find, h2_link, h2_unlink,
)
from fastmesh.core.wire.message cimport (
    FRAMING_LENGTH, FRAMING_NONE, LENGTH_UNKNOWN, MSG_INTERIM, M_CONNECT, Message,
)


# ---- heads -------------------------------------------------------------------------------------------

cdef inline void h2_bad(H2 *h, H2Stream *s, int reason) noexcept nogil:
    """The peer's message is malformed. A server's owner answers; a malformed response ends its stream."""
    cdef int r
    s.flags |= H2S_BAD
    if h.role == H2_CLIENT:
        if not s.flags & H2S_END_IN or not s.flags & H2S_END_OUT:
            h2_check(h, nghttp2_submit_rst_stream(h.session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_PROTOCOL_ERROR))
    elif s.flags & H2S_HEAD_IN:
        # The request is on its way already: what is begun in vain counts (CVE-2025-8671).
        r = h2_pace(h, H2P_PROVOKED)
        if r < 0:
            h2_fail(h, -r)
    h.hooks.bad(h, s, reason)


cdef inline int h2_headers_begin(nghttp2_session *session, const nghttp2_frame *frame,
                                 void *user) noexcept nogil:
    """A header block begins: of a new stream (server), or of one that is open."""
    cdef H2 *h = <H2 *>user
    cdef int32_t id = frame.hd.stream_id
    cdef H2Stream *s
    cdef int r
    if frame.hd.type != NGHTTP2_HEADERS:
        return 0
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        s = NULL
        if h2_head_begin(h, id, H2H_REQUEST):
            s = h.hooks.open(h)
        if s == NULL:
            h2_head_drop(h)
            r = h2_answer(h)
            if r < 0:
                return h2_fail(h, -r)
            return h2_check(
                h, nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_REFUSED_STREAM))
        nghttp2_session_set_stream_user_data(session, id, s)
        h2_link(h, s, id)
        return 0
    s = h2_find(h, id)
    if s == NULL or s.flags & H2S_BAD:
        h2_head_drop(h)
        return 0
    if not h2_head_begin(h, id, H2H_TRAILERS if s.flags & H2S_HEAD_IN else 0):
        h2_bad(h, s, R_NO_MEMORY)
    return 0


cdef inline int h2_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t n,
                          const uint8_t *value, size_t len, uint8_t flags, void *user) noexcept nogil:
    """One field of the block."""
    cdef H2 *h = <H2 *>user
    if h.head.buf != NULL:
        h2_head_field(h, <const char *>name, n, <const char *>value, len)
    return 0


cdef inline void _h2_ended(H2 *h, H2Stream *s, Message *trailers) noexcept nogil:
    """The peer's message is complete, if the content is (RFC 9113 8.1.1)."""
    if s.left != LENGTH_UNKNOWN and s.left:
        h2_bad(h, s, R_UPSTREAM_BAD_RESPONSE if h.role == H2_CLIENT else R_BAD_LENGTH)
    else:
        h.hooks.end(h, s, trailers)


cdef inline int _h2_block_in(H2 *h, H2Stream *s, bint end) noexcept nogil:
    """The header block of `s` is whole: 0, or the reason why it is malformed."""
    cdef Message *m
    cdef int r
    if s.flags & H2S_HEAD_IN:
        if not end or s.flags & H2S_TUNNEL:
            # RFC 9113 8.1: trailers end the message
            return R_UPSTREAM_BAD_RESPONSE if h.role == H2_CLIENT else R_BAD_TRAILER
        return h2_head_trailers(h)
    if h.role == H2_SERVER:
        r = h2_head_request(h, end)
    else:
        r = h2_head_response(h, s.method, end)
    if r:
        return r
    m = h2_message(&h.head)
    if m.flags & MSG_INTERIM:
        s.interim += 1
        return R_UPSTREAM_BAD_RESPONSE if s.interim > H2_MAX_INTERIM else 0
    s.flags |= H2S_HEAD_IN
    if m.framing == FRAMING_LENGTH:
        s.left = m.length
    elif h.role == H2_CLIENT and s.method == M_CONNECT and m.status < 300 or m.method == M_CONNECT:
        s.flags |= H2S_TUNNEL
    elif m.framing == FRAMING_NONE:
        s.left = 0
    return 0


cdef inline void _h2_headers(H2 *h, H2Stream *s, bint end) noexcept nogil:
    """HEADERS of `s` are in, with all that belongs to them."""
    cdef bint trailers = s.flags & H2S_HEAD_IN
    cdef int32_t id = s.id
    cdef int r
    if end:
        s.flags |= H2S_END_IN
    if h.head.buf == NULL or h.head.id != id:
        return
    r = _h2_block_in(h, s, end)
    if r:
        h2_head_drop(h)
        h2_bad(h, s, r)
    elif trailers:
        _h2_ended(h, s, h2_message(&h.head))
    else:
        h.hooks.head(h, s, h2_message(&h.head), end)
    if h.head.id == id:
        h2_head_drop(h)


# ---- other frames ------------------------------------------------------------------------------------

cdef inline int h2_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *p, size_t n,
                         void *user) noexcept nogil:
    """Bytes of DATA."""
    cdef H2 *h = <H2 *>user
    cdef H2Stream *s = h2_find(h, id)
    if s == NULL or s.flags & H2S_BAD:
        h2_arrived(h, NULL, n)
        return 0
    if not s.flags & H2S_HEAD_IN or s.left != LENGTH_UNKNOWN and s.left < n:
        # before the final head, or more than was announced
        h2_arrived(h, NULL, n)
        h2_bad(h, s, R_UPSTREAM_BAD_RESPONSE if h.role == H2_CLIENT else R_BAD_LENGTH)
        return NGHTTP2_ERR_CALLBACK_FAILURE if h.fault else 0
    if s.left != LENGTH_UNKNOWN:
        s.left -= n
    h2_arrived(h, s, n)
    h.hooks.data(h, s, <char *>p, n)
    return NGHTTP2_ERR_CALLBACK_FAILURE if h.fault else 0


cdef inline int _h2_data_end(H2 *h, const nghttp2_frame *frame) noexcept nogil:
    """A DATA frame is whole."""
    cdef H2Stream *s
    if not frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        if frame.hd.flags & NGHTTP2_FLAG_PADDED and frame.hd.length == frame.data.padlen:
            return h2_pace(h, H2P_EMPTY)
        return 0
    s = h2_find(h, frame.hd.stream_id)
    if s == NULL:
        return 0
    s.flags |= H2S_END_IN
    if s.flags & H2S_BAD:
        return 0
    if not s.flags & H2S_HEAD_IN:
        h2_bad(h, s, R_UPSTREAM_BAD_RESPONSE if h.role == H2_CLIENT else R_BAD_FRAMING)
    else:
        _h2_ended(h, s, NULL)
    return 0


cdef inline int _h2_reset_in(H2 *h, const nghttp2_frame *frame) noexcept nogil:
    """RST_STREAM; nghttp2 closes the stream next."""
    cdef H2Stream *s = h2_find(h, frame.hd.stream_id)
    h.closing = frame.hd.stream_id
    if s == NULL or h.role == H2_SERVER and not s.flags & H2S_END_OUT:
        # What it ends was work in vain, or is over already.
        return h2_pace(h, H2P_RESET)
    return 0


cdef inline int h2_frame_in(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    """A frame is whole."""
    cdef H2 *h = <H2 *>user
    cdef uint8_t kind = frame.hd.type
    cdef H2Stream *s
    cdef int r = 0
    if kind == NGHTTP2_HEADERS:
        s = h2_find(h, frame.hd.stream_id)
        if s != NULL:
            _h2_headers(h, s, frame.hd.flags & NGHTTP2_FLAG_END_STREAM)
    elif kind == NGHTTP2_DATA:
        r = _h2_data_end(h, frame)
    elif kind == NGHTTP2_RST_STREAM:
        r = _h2_reset_in(h, frame)
    elif kind == NGHTTP2_SETTINGS:
        if frame.hd.flags & NGHTTP2_FLAG_ACK:
            h.settings_at = 0
        elif not h.flags & H2F_SETTINGS_IN:
            h.flags |= H2F_SETTINGS_IN
            h.hooks.settings(h)
    elif kind == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK:
            if frame.ping.opaque_data[0] == c"w":
                h2_measured(h)
            elif frame.ping.opaque_data[0] == c"k":
                h.ping_at = 0
    elif kind == NGHTTP2_GOAWAY:
        h.flags |= H2F_GOAWAY_IN
        h.hooks.goaway(h, frame.goaway.last_stream_id, frame.goaway.error_code)
    if r < 0:
        h2_fail(h, -r)
    return NGHTTP2_ERR_CALLBACK_FAILURE if h.fault else 0


cdef inline int h2_frame_invalid(nghttp2_session *session, const nghttp2_frame *frame, int error,
                                 void *user) noexcept nogil:
    """nghttp2 resets a stream, or ends the connection, for what the peer did."""
    cdef H2 *h = <H2 *>user
    cdef int r
    if h2_find(h, frame.hd.stream_id) != NULL:
        return 0                      # counted when its RST_STREAM is packed
    r = h2_pace(h, H2P_PROVOKED)
    if r < 0:
        h2_fail(h, -r)
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef inline int h2_stream_closed(nghttp2_session *session, int32_t id, uint32_t code,
                                 void *user) noexcept nogil:
    """nghttp2 forgets a stream when this returns."""
    cdef H2 *h = <H2 *>user
    cdef H2Stream *s = h2_find(h, id)
    cdef bint by_peer = h.closing == id
    if by_peer:
        h.closing = 0
    if h.head.id == id:
        h2_head_drop(h)
    if s == NULL:
        return 0
    if h.role == H2_CLIENT and code == NGHTTP2_REFUSED_STREAM:
        # its GOAWAY, or a limit of its, that came before the request could leave
        by_peer = True
    nghttp2_session_set_stream_user_data(session, id, NULL)
    h2_unlink(h, s)
    h2_give(h)
    h.hooks.closed(h, s, code, by_peer)
    return 0


cdef inline uint32_t h2_block_of(H2 *h) noexcept nogil:
    """The stream whose header block is under way: a frame of it is not whole or not the last. 0: there is none."""
    cdef uint8_t *p = h.scan.head
    if h.scan.block == 0 and (h.scan.left == 0 or p[3] != NGHTTP2_HEADERS and p[3] != NGHTTP2_CONTINUATION):
        return 0
    return (<uint32_t>p[5] & 0x7F) << 24 | <uint32_t>p[6] << 16 | <uint32_t>p[7] << 8 | p[8]


# ---- bytes -------------------------------------------------------------------------------------------

cdef inline int _h2_show(H2 *h, const char *p, size_t n) noexcept nogil:
    """Show bytes to nghttp2: 0 or a reason."""
    cdef ssize_t r
    if n == 0:
        return 0
    r = nghttp2_session_mem_recv(h.session, <const uint8_t *>p, n)
    if h.fault:
        return h2_fail(h, h.fault)
    if r >= 0:
        return 0
    if r == NGHTTP2_ERR_NOMEM:
        return h2_fail(h, R_NO_MEMORY)
    if r == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
        return h2_fail(h, R_UPSTREAM_H2_PROTOCOL if h.role == H2_CLIENT else R_H2_PROTOCOL)
    if r == NGHTTP2_ERR_FLOODED:
        return h2_fail(h, R_UPSTREAM_H2_FLOOD if h.role == H2_CLIENT else R_H2_OUTPUT_FLOOD)
    return h2_fail(h, R_INTERNAL)


cdef inline int _h2_walk(H2 *h, const char *p, size_t n) noexcept nogil:
    """Count the frames in p[:n] and show nghttp2 all of them but what says priorities: 0 or a reason."""
    cdef H2Scan *f = &h.scan
    cdef const char *end = p + n
    cdef const char *run = p          # what nghttp2 has not seen yet begins here
    cdef size_t k
    cdef int r
    while p < end:
        k = <size_t>(end - p)
        if f.preface:
            k = f.preface if k > f.preface else k
            f.preface -= <uint8_t>k
            p += k
            continue
        if f.left:
            if f.padded and f.cut:
                # the pad length stands before the priority, and stays
                f.padded = 0
                k = 1
            elif f.cut:
                r = _h2_show(h, run, <size_t>(p - run))
                if r < 0:
                    return r
                k = f.cut if k > f.cut else k
                f.cut -= <uint8_t>k
                run = p + k
            else:
                k = f.left if k > f.left else k
                if f.skip:
                    run = p + k
            p += k
            f.left -= <uint32_t>k
            continue
        if f.have == 0 and k >= H2_FRAME_HEAD:
            memcpy(f.head, p, H2_FRAME_HEAD)
            r = h2_frame(h, f.head)
            if r < 0:
                return h2_fail(h, -r)
            if f.skip or f.cut:
                r = _h2_show(h, run, <size_t>(p - run))
                if r == 0 and f.cut:
                    r = _h2_show(h, <const char *>f.head, H2_FRAME_HEAD)
                if r < 0:
                    return r
                run = p + H2_FRAME_HEAD
            p += H2_FRAME_HEAD
            continue
        # a header in pieces is shown when it is whole
        if f.have == 0:
            r = _h2_show(h, run, <size_t>(p - run))
            if r < 0:
                return r
        if k > <size_t>(H2_FRAME_HEAD - f.have):
            k = H2_FRAME_HEAD - f.have
        memcpy(f.head + f.have, p, k)
        f.have += <uint8_t>k
        p += k
        run = p
        if f.have < H2_FRAME_HEAD:
            continue
        f.have = 0
        r = h2_frame(h, f.head)
        if r < 0:
            return h2_fail(h, -r)
        if not f.skip:
            r = _h2_show(h, <const char *>f.head, H2_FRAME_HEAD)
            if r < 0:
                return r
    return _h2_show(h, run, <size_t>(p - run))


cdef inline int h2_receive(H2 *h, const char *p, size_t n) noexcept nogil:
    """Take all n bytes: 0, or a reason for which the connection cannot go on (h2_pack packs the last words).

    Some of nghttp2's own judgements are known only when it packs its GOAWAY: then h2_pack says the reason.
    """
    cdef int r
    if h.fault:
        return -h.fault
    r = _h2_walk(h, p, n)
    if r < 0:
        h2_head_drop(h)
    return r
