# Floods on an HTTP/2 connection, and the frames before nghttp2 sees them.
#
# Everything that a peer can do without being answered for it has a pace: so many at once, so many a second
# (a bucket as in base/rate.pxd, on the owner's clock). What honest peers do stays below by an order of
# magnitude: a gRPC client that cancels some hundred streams a second is honest. Who is above it is cut off:
# ENHANCE_YOUR_CALM (RFC 9113 10.5).
#
# h2_scan walks over the frame headers of what was received. Counting there depends neither on nghttp2's
# version nor on its mood: it ignores some frames without telling anybody. Priorities (deprecated, RFC 9113
# 5.3.2) are cut out on the way, so that nghttp2 shares the connection among the streams evenly and no peer
# can make one starve another.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmesh.core.base.reason cimport (
    R_H2_EMPTY_FLOOD, R_H2_HEADER_FLOOD, R_H2_OUTPUT_FLOOD, R_H2_PING_FLOOD, R_H2_PRIORITY_FLOOD,
    R_H2_PROVOKED_FLOOD, R_H2_RESET_FLOOD, R_H2_SETTINGS_FLOOD, R_H2_WINDOW_FLOOD, R_UPSTREAM_H2_FLOOD,
)
from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_CONTINUATION, NGHTTP2_DATA, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_HEADERS, NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_PADDED, NGHTTP2_FLAG_PRIORITY, NGHTTP2_GOAWAY, NGHTTP2_HEADERS, NGHTTP2_PING,
    NGHTTP2_PRIORITY, NGHTTP2_PUSH_PROMISE, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS, NGHTTP2_WINDOW_UPDATE,
)
from fastmesh.core.wire.http2_state cimport (
    H2, H2P_EMPTY, H2P_PING, H2P_PRIORITY, H2P_PROVOKED, H2P_RESET, H2P_SETTINGS, H2P_WINDOW, H2Scan, H2_CLIENT,
    H2_MAX_ANSWERS,
)

cdef enum:
    H2_MAX_BLOCK_FRAMES = 64      # CONTINUATION frames of one header block; 64 KiB need four
    H2_FRAME_HEAD = 9
    H2_PRIORITY_LEN = 5


cdef inline int h2_flood(H2 *h, int kind) noexcept nogil:
    """The reason for which a connection ends that exceeds the pace of `kind`, negative."""
    if h.role == H2_CLIENT:
        return -R_UPSTREAM_H2_FLOOD
    if kind == H2P_RESET:
        return -R_H2_RESET_FLOOD
    if kind == H2P_PROVOKED:
        return -R_H2_PROVOKED_FLOOD
    if kind == H2P_SETTINGS:
        return -R_H2_SETTINGS_FLOOD
    if kind == H2P_PING:
        return -R_H2_PING_FLOOD
    if kind == H2P_EMPTY:
        return -R_H2_EMPTY_FLOOD
    if kind == H2P_PRIORITY:
        return -R_H2_PRIORITY_FLOOD
    return -R_H2_WINDOW_FLOOD


cdef inline int h2_answer(H2 *h) noexcept nogil:
    """Count a frame that the peer has asked for: 0, or the reason if it does not take them."""
    h.answers += 1
    if h.answers <= H2_MAX_ANSWERS:
        return 0
    return -R_UPSTREAM_H2_FLOOD if h.role == H2_CLIENT else -R_H2_OUTPUT_FLOOD


cdef inline int h2_pace(H2 *h, int kind) noexcept nogil:
    """Count one of `kind`: 0, or the reason of the flood."""
    cdef uint64_t now = h.now_ms * 1000
    cdef uint64_t ahead = h.pace[kind]
    cdef uint64_t period, burst
    if kind == H2P_RESET:
        period, burst = 2000, 1000       # 500 a second, 1000 at once
    elif kind == H2P_PROVOKED:
        period, burst = 5000, 400
    elif kind == H2P_SETTINGS:
        period, burst = 100000, 100
    elif kind == H2P_PING:
        # Clients that measure send one with every round trip.
        period, burst = 500, 10000
    elif kind == H2P_EMPTY:
        period, burst = 5000, 1000
    elif kind == H2P_PRIORITY:
        period, burst = 500, 10000
    else:
        period, burst = 100, 20000
    if ahead < now:
        ahead = now
    if ahead - now > period * burst:
        return h2_flood(h, kind)
    h.pace[kind] = ahead + period
    return 0


cdef inline void h2_pace_window_credit(H2 *h) noexcept nogil:
    """A DATA frame has left: four WINDOW_UPDATEs may come for it at no charge."""
    if h.pace[<int>H2P_WINDOW] > 400:
        h.pace[<int>H2P_WINDOW] -= 400


cdef inline int _h2_block(H2 *h, H2Scan *f, uint32_t length, uint8_t flags) noexcept nogil:
    """A frame of a header block of `length` bytes begins."""
    f.block += length + 1
    f.block_frames += 1
    if f.block > 2 * h.max_head + 16384 or f.block_frames > H2_MAX_BLOCK_FRAMES:
        # A header list that is merely too large is answered (431); one that does not end is not waited for.
        return -R_UPSTREAM_H2_FLOOD if h.role == H2_CLIENT else -R_H2_HEADER_FLOOD
    if flags & NGHTTP2_FLAG_END_HEADERS:
        f.block = 0
        f.block_frames = 0
    return 0


cdef inline int h2_frame(H2 *h, uint8_t *p) noexcept nogil:
    """Count the frame whose header is at p, and say in h.scan what of it is shown to nghttp2; 0 or a reason.

    The header may be changed, where priority is cut out of HEADERS.
    """
    cdef H2Scan *f = &h.scan
    cdef uint32_t length = <uint32_t>p[0] << 16 | <uint32_t>p[1] << 8 | p[2]
    cdef uint8_t kind = p[3]
    cdef uint8_t flags = p[4]
    cdef int r
    cdef bint stream = p[5] & 0x7F or p[6] or p[7] or p[8]
    f.left = length
    f.skip = 0
    f.cut = 0
    if kind == NGHTTP2_DATA:
        if length == 0 and not flags & NGHTTP2_FLAG_END_STREAM:
            return h2_pace(h, H2P_EMPTY)
        return 0
    if kind == NGHTTP2_HEADERS:
        f.block = 0
        f.block_frames = 0
        if flags & NGHTTP2_FLAG_PRIORITY and stream and length >= (
                H2_PRIORITY_LEN + 1 if flags & NGHTTP2_FLAG_PADDED else H2_PRIORITY_LEN):
            f.cut = H2_PRIORITY_LEN
            f.padded = 1 if flags & NGHTTP2_FLAG_PADDED else 0
            length -= H2_PRIORITY_LEN
            p[0] = <uint8_t>(length >> 16)
            p[1] = <uint8_t>(length >> 8)
            p[2] = <uint8_t>length
            p[4] = flags & ~NGHTTP2_FLAG_PRIORITY
        return _h2_block(h, f, length, flags)
    if kind == NGHTTP2_CONTINUATION or kind == NGHTTP2_PUSH_PROMISE:
        if length == 0 and h2_pace(h, H2P_EMPTY) < 0:
            return h2_flood(h, H2P_EMPTY)
        return _h2_block(h, f, length, flags)
    if kind == NGHTTP2_WINDOW_UPDATE:
        return h2_pace(h, H2P_WINDOW)
    if kind == NGHTTP2_RST_STREAM or kind == NGHTTP2_GOAWAY:
        return 0                      # counted where it is known what they end
    if kind == NGHTTP2_PING or kind == NGHTTP2_SETTINGS:
        if flags & NGHTTP2_FLAG_ACK:
            return h2_pace(h, H2P_PING)
        r = h2_pace(h, H2P_PING if kind == NGHTTP2_PING else H2P_SETTINGS)
        return r if r < 0 else h2_answer(h)
    if kind == NGHTTP2_PRIORITY:
        # A wrong one is nghttp2's business, and one inside a header block is no priority at all.
        f.skip = length == H2_PRIORITY_LEN and stream and f.block == 0
    return h2_pace(h, H2P_PRIORITY)
