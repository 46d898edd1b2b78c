# HTTP/2 (RFC 9113) over libnghttp2, both roles: a connection's life. See http2_state.pxd for the contract.
#
# A turn of an owner: set now_ms; h2_receive what came (hooks are called); then h2_pack, once, what is to go.
# h2_pack follows every h2_receive, or acknowledgements wait.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.base.buffer cimport Pool
from fastmesh.core.base.heap cimport Heap, heap_alloc, heap_calloc, heap_free, heap_realloc
from fastmesh.core.base.list cimport list_empty, list_init
from fastmesh.core.base.reason cimport R_H2_SETTINGS_TIMEOUT, R_NO_MEMORY, R_UPSTREAM_H2_PROTOCOL
from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_FLAG_NONE, NGHTTP2_INITIAL_WINDOW_SIZE, NGHTTP2_NO_ERROR, NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL,
    NGHTTP2_SETTINGS_ENABLE_PUSH, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
    NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, fm_h2_no_own_limits, nghttp2_mem, nghttp2_option, nghttp2_option_del,
    nghttp2_option_new, nghttp2_option_set_max_outbound_ack, nghttp2_option_set_max_reserved_remote_streams,
    nghttp2_option_set_max_send_header_block_length, nghttp2_option_set_no_auto_window_update,
    nghttp2_option_set_no_closed_streams, nghttp2_option_set_no_http_messaging, nghttp2_session_callbacks,
    nghttp2_session_callbacks_del, nghttp2_session_callbacks_new,
    nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback,
    nghttp2_session_callbacks_set_on_frame_not_send_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_frame_send_callback, nghttp2_session_callbacks_set_on_header_callback,
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback,
    nghttp2_session_callbacks_set_on_stream_close_callback, nghttp2_session_callbacks_set_send_data_callback,
    nghttp2_session_check_request_allowed, nghttp2_session_client_new3, nghttp2_session_del,
    nghttp2_session_get_last_proc_stream_id, nghttp2_session_get_remote_settings, nghttp2_session_server_new3,
    nghttp2_session_set_local_window_size, nghttp2_session_terminate_session, nghttp2_settings_entry,
    nghttp2_settings_id, nghttp2_submit_goaway, nghttp2_submit_ping, nghttp2_submit_settings,
    nghttp2_submit_shutdown_notice,
)
from fastmesh.core.wire.http2_head cimport h2_head_drop
from fastmesh.core.wire.http2_receive cimport (
    h2_chunk, h2_frame_in, h2_frame_invalid, h2_header, h2_headers_begin, h2_stream_closed,
)
from fastmesh.core.wire.http2_send cimport h2_frame_not_sent, h2_frame_sent, h2_send_output
from fastmesh.core.wire.http2_state cimport (
    H2, H2F_DEAD, H2F_EXTENDED, H2F_GOAWAY_IN, H2F_GOAWAY_OUT, H2F_SETTINGS_IN, H2Hooks, H2Limits, H2_SERVER,
    h2_check, h2_fail, h2_of_node, h2_unlink,
)
from fastmesh.core.wire.message cimport MAX_HEAD

cdef enum:
    H2_MAX_HEAD_OUT = 262144      # bytes that a head of ours may come to, compressed
    H2_MAX_WINDOW = 0x7FFFFFFF


cdef inline void *_h2_malloc(size_t n, void *heap) noexcept nogil:
    return heap_alloc(<Heap *>heap, n)


cdef inline void _h2_free(void *p, void *heap) noexcept nogil:
    heap_free(<Heap *>heap, p)


cdef inline void *_h2_calloc(size_t n, size_t size, void *heap) noexcept nogil:
    return heap_calloc(<Heap *>heap, n, size)


cdef inline void *_h2_realloc(void *p, size_t n, void *heap) noexcept nogil:
    return heap_realloc(<Heap *>heap, p, n)


cdef inline int _h2_session(H2 *h) noexcept nogil:
    """The nghttp2 session: 0 or -R_NO_MEMORY."""
    cdef nghttp2_session_callbacks *c = NULL
    cdef nghttp2_option *o = NULL
    cdef nghttp2_mem mem
    cdef int r
    if nghttp2_session_callbacks_new(&c) != 0 or nghttp2_option_new(&o) != 0:
        nghttp2_session_callbacks_del(c)
        return -R_NO_MEMORY
    nghttp2_session_callbacks_set_on_begin_headers_callback(c, h2_headers_begin)
    nghttp2_session_callbacks_set_on_header_callback(c, h2_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(c, h2_chunk)
    nghttp2_session_callbacks_set_on_frame_recv_callback(c, h2_frame_in)
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(c, h2_frame_invalid)
    nghttp2_session_callbacks_set_on_stream_close_callback(c, h2_stream_closed)
    nghttp2_session_callbacks_set_on_frame_send_callback(c, h2_frame_sent)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(c, h2_frame_not_sent)
    nghttp2_session_callbacks_set_send_data_callback(c, h2_send_output)
    # Windows, messages and limits are the codec's business.
    nghttp2_option_set_no_auto_window_update(o, 1)
    nghttp2_option_set_no_http_messaging(o, 1)
    nghttp2_option_set_no_closed_streams(o, 1)
    nghttp2_option_set_max_send_header_block_length(o, H2_MAX_HEAD_OUT)
    nghttp2_option_set_max_outbound_ack(o, 1 << 20)
    nghttp2_option_set_max_reserved_remote_streams(o, 0)
    fm_h2_no_own_limits(o)
    mem.mem_user_data = h.heap
    mem.malloc = _h2_malloc
    mem.free = _h2_free
    mem.calloc = _h2_calloc
    mem.realloc = _h2_realloc
    if h.role == H2_SERVER:
        r = nghttp2_session_server_new3(&h.session, c, h, o, &mem)
    else:
        r = nghttp2_session_client_new3(&h.session, c, h, o, &mem)
    nghttp2_option_del(o)
    nghttp2_session_callbacks_del(c)
    return 0 if r == 0 else -R_NO_MEMORY


cdef inline int _h2_settings(H2 *h, const H2Limits *l) noexcept nogil:
    """Queue SETTINGS and the connection's window: 0 or nghttp2's error."""
    cdef nghttp2_settings_entry entries[4]
    cdef int n = 2
    cdef int r
    entries[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    entries[0].value = h.window
    entries[1].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[1].value = h.max_head
    if h.role == H2_SERVER:
        entries[n].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        entries[n].value = l.max_streams
        n += 1
        if l.extended_connect:
            h.flags |= H2F_EXTENDED
            entries[n].settings_id = NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL
            entries[n].value = 1
            n += 1
    else:
        entries[n].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
        entries[n].value = 0
        n += 1
    r = nghttp2_submit_settings(h.session, NGHTTP2_FLAG_NONE, entries, n)
    if r == 0:
        r = nghttp2_session_set_local_window_size(h.session, NGHTTP2_FLAG_NONE, 0, <int32_t>h.held_max)
    return r


cdef inline int h2_init(H2 *h, int role, const H2Limits *l, H2Hooks *hooks, Pool *pool,
                        Heap *heap) noexcept nogil:
    """Begin a connection; preface, SETTINGS and the connection's window are queued. 0 or -R_NO_MEMORY.

    Of what `h` holds only now_ms is looked at. `hooks`, `pool` and `heap` live longer than the connection.
    After a failure there is nothing to free.
    """
    cdef uint64_t now_ms = h.now_ms
    memset(h, 0, sizeof(H2))
    h.role = <uint8_t>role
    h.hooks = hooks
    h.pool = pool
    h.heap = heap
    h.now_ms = now_ms
    list_init(&h.streams)
    h.max_head = l.max_head if l.max_head < MAX_HEAD else MAX_HEAD
    h.window = l.stream_window if l.stream_window <= H2_MAX_WINDOW else H2_MAX_WINDOW
    h.window_max = l.stream_window_max if l.stream_window_max <= H2_MAX_WINDOW else H2_MAX_WINDOW
    # not below what RFC 9113 6.9.2 gives every connection
    h.held_max = l.held_max if l.held_max > NGHTTP2_INITIAL_WINDOW_SIZE else NGHTTP2_INITIAL_WINDOW_SIZE
    if h.held_max > H2_MAX_WINDOW // 2:
        h.held_max = H2_MAX_WINDOW // 2
    h.measure_at = h.window // 2
    h.scan.preface = 24 if role == H2_SERVER else 0
    if _h2_session(h) < 0:
        h.session = NULL
        return -R_NO_MEMORY
    if _h2_settings(h, l) != 0:
        nghttp2_session_del(h.session)
        h.session = NULL
        return -R_NO_MEMORY
    h.settings_at = now_ms if now_ms else 1
    return 0


cdef inline void h2_free(H2 *h) noexcept nogil:
    """End a connection; not from a hook. Every stream that is still open is forgotten without `closed`."""
    while not list_empty(&h.streams):
        h2_unlink(h, h2_of_node(h.streams.next))
    h2_head_drop(h)
    if h.session != NULL:
        nghttp2_session_del(h.session)
        h.session = NULL
    h.flags |= H2F_DEAD


# ---- the connection ------------------------------------------------------------------------------------

cdef inline void h2_goaway_notice(H2 *h) noexcept nogil:
    """Server, first step of an orderly end (RFC 9113 6.8): GOAWAY that refuses nothing yet."""
    if not h.flags & H2F_DEAD:
        h2_check(h, nghttp2_submit_shutdown_notice(h.session))


cdef inline void h2_goaway(H2 *h, uint32_t code) noexcept nogil:
    """GOAWAY with the last stream that was begun: later ones are refused. An error ends the connection."""
    if h.flags & H2F_DEAD:
        return
    h.flags |= H2F_GOAWAY_OUT
    if code == NGHTTP2_NO_ERROR:
        h2_check(h, nghttp2_submit_goaway(h.session, NGHTTP2_FLAG_NONE,
                                          nghttp2_session_get_last_proc_stream_id(h.session), code, NULL, 0))
    else:
        h.ended = 1
        h2_check(h, nghttp2_session_terminate_session(h.session, code))


cdef inline int h2_ping(H2 *h) noexcept nogil:
    """A keep-alive PING, unless one is under way: 0 or a reason."""
    cdef uint8_t opaque[8]
    if h.fault:
        return -h.fault
    if h.ping_at:
        return 0
    memset(opaque, c"k", 8)
    h.ping_at = h.now_ms if h.now_ms else 1
    return h2_check(h, nghttp2_submit_ping(h.session, NGHTTP2_FLAG_NONE, opaque))


cdef inline uint64_t h2_settings_since(H2 *h) noexcept nogil:
    """When the first SETTINGS were queued, if they are not acknowledged yet, ms; 0: they are."""
    return h.settings_at


cdef inline void h2_settings_late(H2 *h) noexcept nogil:
    """They have waited for long enough (RFC 9113 6.5.3): h2_pack says so, and the connection ends."""
    h2_fail(h, R_H2_SETTINGS_TIMEOUT if h.role == H2_SERVER else R_UPSTREAM_H2_PROTOCOL)


cdef inline uint32_t h2_peer_streams(H2 *h) noexcept nogil:
    """Client: how many streams the peer allows at a time; 100 until it has said."""
    return nghttp2_session_get_remote_settings(h.session,
                                               <nghttp2_settings_id>NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)


cdef inline int h2_peer_extended(H2 *h) noexcept nogil:
    """Client: does the peer take extended CONNECT (RFC 8441 3)? 1, 0, or -1: it has not said yet."""
    if not h.flags & H2F_SETTINGS_IN:
        return -1
    return nghttp2_session_get_remote_settings(
        h.session, <nghttp2_settings_id>NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL) == 1


cdef inline bint h2_may_open(H2 *h) noexcept nogil:
    """Client: whether another stream may be opened now: the peer's limit, GOAWAY on either side, ids."""
    return (h.fault == 0 and not h.flags & (H2F_DEAD | H2F_GOAWAY_IN | H2F_GOAWAY_OUT)
            and h.open < h2_peer_streams(h) and nghttp2_session_check_request_allowed(h.session))
