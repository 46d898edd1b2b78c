# Windows of what is received on an HTTP/2 connection (RFC 9113 5.2, 6.9).
#
# A stream's window is given back as its owner consumes; what is not consumed bounds what the peer may send.
# The connection's window only bounds the sum: it is given back as bytes arrive while less than `held_max`
# is held over all streams, so that one slow stream stalls no other. nghttp2 sends a WINDOW_UPDATE once half
# a window is due.
#
# A stream's window starts small and grows with need: while data flow, a PING measures how many bytes come
# in one round trip. If that is more than two thirds of the window, the window is what limits, and it
# doubles, for all streams, up to a maximum. A measurement that found nothing makes the next one wait for
# twice the bytes.

from libc.stdint cimport uint8_t, uint32_t

from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_FLAG_NONE, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, nghttp2_session_consume_connection,
    nghttp2_session_consume_stream, nghttp2_settings_entry, nghttp2_submit_ping, nghttp2_submit_settings,
)
from fastmesh.core.wire.http2_state cimport H2, H2F_BDP, H2F_DEAD, H2S_BAD, H2S_END_IN, H2Stream, h2_check

cdef enum:
    H2_MEASURE_MAX = 1 << 26      # bytes between two measurements, at most


cdef inline void h2_give(H2 *h) noexcept nogil:
    """Give the connection's window back, if not too much is held."""
    cdef uint32_t n = h.owed
    if n and h.held < h.held_max and not h.flags & H2F_DEAD:
        h.owed = 0
        h2_check(h, nghttp2_session_consume_connection(h.session, n))


cdef inline void h2_arrived(H2 *h, H2Stream *s, size_t n) noexcept nogil:
    """n bytes of DATA came in; for `s`, or, NULL, for nobody."""
    cdef uint8_t opaque[8]
    cdef int i
    h.owed += <uint32_t>n
    if s != NULL:
        s.held += <uint32_t>n
        h.held += <uint32_t>n
    h2_give(h)
    if h.window >= h.window_max:
        return
    h.sample += <uint32_t>n
    if not h.flags & H2F_BDP and h.sample >= h.measure_at:
        for i in range(8):
            opaque[i] = c"w"
        if nghttp2_submit_ping(h.session, NGHTTP2_FLAG_NONE, opaque) == 0:
            h.flags |= H2F_BDP
            h.sample = 0


cdef inline void h2_measured(H2 *h) noexcept nogil:
    """The measuring PING came back."""
    cdef nghttp2_settings_entry entry
    if not h.flags & H2F_BDP:
        return
    h.flags &= <uint8_t>~H2F_BDP
    if h.sample > h.window // 3 * 2:
        h.window = h.window * 2 if h.window * 2 < h.window_max else h.window_max
        entry.settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entry.value = h.window
        h2_check(h, nghttp2_submit_settings(h.session, NGHTTP2_FLAG_NONE, &entry, 1))
        h.measure_at = h.window // 2
    elif h.measure_at < H2_MEASURE_MAX:
        h.measure_at *= 2
    h.sample = 0


cdef inline void h2_consume(H2 *h, H2Stream *s, size_t n) noexcept nogil:
    """n of the bytes given to `data` have gone on: give the window back."""
    if n > s.held:
        n = s.held
    s.held -= <uint32_t>n
    h.held -= <uint32_t>n
    if h.flags & H2F_DEAD or n == 0:
        return
    h2_give(h)
    if not s.flags & (H2S_END_IN | H2S_BAD):
        # Who has said all needs no window.
        h2_check(h, nghttp2_session_consume_stream(h.session, s.id, n))
