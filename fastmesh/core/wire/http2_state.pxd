# HTTP/2 (RFC 9113): the state of a connection and of a stream, and what the codec calls its owner with.
#
# The codec is sans-I/O and lies around libnghttp2, which does framing, HPACK and the state machine of
# streams. What nghttp2 is laxer on, or decides by version, is decided here: the meaning of heads
# (http2_head), floods and priorities (http2_pace), windows (http2_flow). Both roles are the same code.
#
# Ownership. An H2 is embedded in its owner's connection, an H2Stream in its owner's stream; each is its
# owner's FIRST member and its owner's memory. nghttp2 knows an H2Stream by its stream user data, and by
# nothing else; it is found anew by its id in every callback, so that a hook may end any stream at any time.
# A stream that the codec has forgotten (h2_reset, h2_forget, after `closed`) has h2 == NULL, no output, and
# no pointer to it is left. Streams hang in the list `streams` from the moment they have an id until they
# are forgotten.
#
# Memory. A head that is being received is built in one Buf; there is one such Buf at most, and none between
# heads. An idle connection holds nothing but its nghttp2 session, whose memory comes from `heap`.
#
# The end. `fault` is the reason for which the connection cannot go on. From then on nothing is received;
# h2_pack sends one GOAWAY and says the reason. nghttp2 is not asked again after an error that it calls
# fatal.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmesh.core.base.buffer cimport Buf, Pool, Queue, buf_drop, queue_clear
from fastmesh.core.base.heap cimport Heap
from fastmesh.core.base.list cimport Node, list_append, list_remove
from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.sys.nghttp2 cimport (
    NGHTTP2_ERR_NOMEM, nghttp2_session, nghttp2_session_get_stream_user_data,
)
from fastmesh.core.wire.message cimport LENGTH_UNKNOWN, Message

ctypedef Heap H2Heap

cdef enum:
    H2_CLIENT = 0
    H2_SERVER = 1

cdef enum:  # error codes (RFC 9113 7) that owners have use for
    H2_NO_ERROR = 0
    H2_PROTOCOL_ERROR = 1
    H2_INTERNAL_ERROR = 2
    H2_REFUSED = 7
    H2_CANCEL = 8
    H2_CONNECT_ERROR = 10
    H2_ENHANCE_YOUR_CALM = 11

cdef enum:
    H2_OUT_HIGH = 65536       # from here h2_data says: wait
    H2_OUT_LOW = 16384        # from here `writable` follows
    H2_OUT_ALL = 1048576      # all streams of a connection together: from here h2_data says to each: wait
    H2_MOVE = 1024            # bytes of a Buf from which it is passed on by reference
    H2_MAX_INTERIM = 32       # interim heads of one response
    H2_MAX_ANSWERS = 1024     # acknowledgements and refusals that may wait to be packed
    H2_MOST_INTERIM = 2       # of a stream that wait to be packed: from here h2_respond says: wait

cdef enum:  # H2.flags
    H2F_PACKED = 1            # the preface has been packed
    H2F_SETTINGS_IN = 2       # the peer's first SETTINGS are in
    H2F_GOAWAY_IN = 4
    H2F_GOAWAY_OUT = 8        # one that refuses new streams; not the notice
    H2F_DEAD = 16             # nghttp2 is not to be asked again
    H2F_LAST_OUT = 32         # the GOAWAY of `fault` has been packed
    H2F_EXTENDED = 64         # we announced SETTINGS_ENABLE_CONNECT_PROTOCOL
    H2F_BDP = 128             # the PING that is under way measures

cdef enum:  # H2Stream.flags
    H2S_HEAD_IN = 1           # the peer's head has been delivered (the final one)
    H2S_END_IN = 2            # the peer's END_STREAM is in
    H2S_BAD = 4               # the peer's message is malformed: nothing more of it is delivered
    H2S_HEAD_OUT = 8          # our head has been queued (the final one)
    H2S_FIN = 16              # h2_finish was called, or END_STREAM is on the head
    H2S_END_OUT = 32          # our END_STREAM has been packed
    H2S_WAITING = 64          # nghttp2 waits for more output
    H2S_FULL = 128            # h2_data said: wait
    H2S_SENT = 256            # something of it has been packed
    H2S_BEHIND = 512          # RST_STREAM follows our END_STREAM
    H2S_TUNNEL = 1024         # CONNECT: DATA are not the content of a message

cdef enum:  # H2Head.flags
    H2H_METHOD = 1            # pseudo-fields that are there
    H2H_SCHEME = 2
    H2H_AUTHORITY = 4
    H2H_PATH = 8
    H2H_PROTOCOL = 16
    H2H_STATUS = 32
    H2H_FIELDS = 64           # the first other field was there
    H2H_REQUEST = 128
    H2H_TRAILERS = 256
    H2H_HOST_LATE = 512       # Host is not the first field
    H2H_COOKIES = 1024        # crumbs that do not stand together

cdef enum:  # H2.pace: what is counted
    H2P_RESET = 0             # resets by the peer of streams that were not answered yet (CVE-2023-44487)
    H2P_PROVOKED              # resets that the peer made us send (CVE-2025-8671)
    H2P_SETTINGS
    H2P_PING
    H2P_EMPTY                 # frames with nothing in them
    H2P_PRIORITY              # PRIORITY and frames of unknown kinds
    H2P_WINDOW
    H2P_COUNT

cdef struct H2Limits:
    uint32_t max_streams          # SETTINGS_MAX_CONCURRENT_STREAMS that is announced (server)
    uint32_t stream_window        # initial receive window of a stream, bytes
    uint32_t stream_window_max    # what it may grow to
    uint32_t held_max             # bytes held over all streams above which the connection's window stays away
    uint32_t max_head             # bytes of a header list (RFC 9113 6.5.2), announced
    bint extended_connect         # server: RFC 8441 is announced

cdef struct H2Extra:              # what is added to a head that is sent
    uint64_t skip                 # a bit for each FieldId that is left out
    const char *lines             # "name: value\r\n" in lower case, in front of the message's own
    size_t lines_len
    const char *scheme            # request: used before the message's own
    size_t scheme_len
    const char *protocol          # request: ":protocol" of an extended CONNECT; before the message's own
    size_t protocol_len
    const char *authority         # request: if the message has none
    size_t authority_len
    int via                       # 10, 11, 20: Via for the version that the message came with; 0: none

cdef struct H2Head:               # the head that is being received
    Buf *buf                      # a Message, and its text behind it; NULL between heads
    int32_t id
    int bad                       # a reason: it is malformed or too large, and no more stored
    uint32_t list                 # bytes as RFC 9113 6.5.2 counts them
    uint32_t seen                 # a bit for each FieldId that is there
    uint16_t flags
    uint16_t cookie               # index of the Cookie field
    uint16_t host                 # index of the Host field

cdef struct H2Scan:               # where the peer's next frame begins
    uint8_t head[9]               # of a frame header that is not whole yet
    uint8_t have
    uint8_t preface               # bytes of the client's magic that are still to come
    uint8_t skip                  # what is left of the frame's payload is not shown to nghttp2
    uint8_t cut                   # bytes of priority that are still to be cut out of HEADERS
    uint8_t padded                # the pad length comes before them
    uint32_t left                 # payload of the frame that is still to come
    uint32_t block                # bytes of the header block that is under way; 0: none
    uint32_t block_frames

cdef struct H2:                   # one connection
    nghttp2_session *session
    H2Hooks *hooks
    Pool *pool
    H2Heap *heap
    uint8_t role
    uint8_t flags
    uint8_t ended                 # the owner ended it with an error's GOAWAY, which is no fault
    uint8_t _pad
    int fault                     # a reason, or 0
    uint64_t now_ms               # set by the owner before every call
    Node streams
    uint32_t open                 # streams in the list
    size_t queued                 # bytes in the `out` of all streams
    uint32_t max_head
    uint32_t answers              # frames that the peer asked for and that may not be packed yet
    int32_t closing               # the stream whose RST_STREAM of the peer is being worked on
    H2Head head
    H2Scan scan
    uint64_t pace[7]              # H2P_COUNT: when it would have used up nothing, us (see rate.pxd)
    # windows
    uint32_t window               # of a stream, as last announced
    uint32_t window_max
    uint32_t held_max
    uint32_t held                 # bytes delivered and not consumed, over all streams
    uint32_t owed                 # bytes received for which the connection's window was not given back
    uint32_t sample               # bytes received since the measuring PING was sent
    uint32_t measure_at           # bytes to be received before the next one is sent
    # PING, SETTINGS
    uint64_t ping_at              # when the keep-alive PING without answer was sent; 0: none
    uint64_t settings_at          # when the SETTINGS without answer were sent; 0: none
    # sending
    Queue *tx                     # inside h2_pack only
    size_t most

cdef struct H2Stream:
    H2 *h2                        # NULL: not opened yet, or forgotten
    Node node
    int32_t id                    # 0: not opened yet
    uint16_t flags
    uint8_t method                # client: of its request
    uint8_t interim               # client: interim heads that came; server: that wait to be packed
    Queue out                     # body bytes to be framed
    Buf *trailers                 # field lines to go behind `out`, or NULL
    uint32_t held                 # bytes delivered and not consumed
    uint32_t behind               # error code of the RST_STREAM that follows END_STREAM
    uint64_t left                 # content-length still to come, LENGTH_UNKNOWN without one

cdef struct H2Hooks:
    H2Stream *(*open)(H2 *h) noexcept nogil
    void (*head)(H2 *h, H2Stream *s, Message *m, bint end) noexcept nogil
    void (*data)(H2 *h, H2Stream *s, char *p, size_t n) noexcept nogil
    void (*end)(H2 *h, H2Stream *s, Message *trailers) noexcept nogil
    void (*bad)(H2 *h, H2Stream *s, int reason) noexcept nogil
    void (*closed)(H2 *h, H2Stream *s, uint32_t code, bint by_peer) noexcept nogil
    void (*writable)(H2 *h, H2Stream *s) noexcept nogil
    void (*settings)(H2 *h) noexcept nogil
    void (*goaway)(H2 *h, int32_t last, uint32_t code) noexcept nogil


cdef inline H2Stream *h2_of_node(Node *n) noexcept nogil:
    """The stream that hangs in `streams` by `n`, which stands behind its first member."""
    return <H2Stream *>(<char *>n - sizeof(H2 *))


cdef inline int h2_fail(H2 *h, int reason) noexcept nogil:
    """The connection cannot go on, and nghttp2 is not asked again: the first reason, negative."""
    if h.fault == 0:
        h.fault = reason
    h.flags |= H2F_DEAD
    return -h.fault


cdef inline int h2_check(H2 *h, int r) noexcept nogil:
    """What nghttp2 returned for something that fails only for lack of memory: 0 or a reason."""
    return h2_fail(h, R_NO_MEMORY) if r == NGHTTP2_ERR_NOMEM else 0


cdef inline H2Stream *h2_find(H2 *h, int32_t id) noexcept nogil:
    """The stream `id`, if it has not been forgotten."""
    return <H2Stream *>nghttp2_session_get_stream_user_data(h.session, id)


cdef inline void h2_unlink(H2 *h, H2Stream *s) noexcept nogil:
    """Forget `s`: what it holds is given back, and nothing of ours points to it."""
    list_remove(&s.node)
    h.open -= 1
    s.h2 = NULL
    h.queued -= s.out.bytes
    queue_clear(h.pool, &s.out)
    if s.trailers != NULL:
        buf_drop(h.pool, s.trailers)
        s.trailers = NULL
    h.held -= s.held
    s.held = 0


cdef inline void h2_link(H2 *h, H2Stream *s, int32_t id) noexcept nogil:
    s.h2 = h
    s.id = id
    s.left = LENGTH_UNKNOWN
    list_append(&h.streams, &s.node)
    h.open += 1
