# The structs of the io floor: what a worker is made of while it moves bytes. No code.
#
#   Worker     one event loop: epoll, clock, timers, buffers, the newest snapshot; everything hangs off it
#   Conn       one socket (with TLS if asked): a receive stash, a transmit queue, a timer, an owner
#   End        one side of an exchange as the exchange sees it: a codec's vtable, whatever is on the wire
#   Exchange   one request and its response, between two Ends; knows no wire format
#   Flow       bytes moved by the kernel (splice) from one Conn to another
#   Upstream   the connections of one worker to one endpoint
#   Listener   a listening socket and its configuration
#   Downstream a client's connection: who it is and how long it may stay, whatever it speaks
#
# Rules that every function here keeps:
#   - Nothing is freed while its event batch is being worked through: closed Conns go to `w.dead`.
#   - No input handler runs inside another: who wants a peer to read again puts it on `w.ready`.
#   - Output is queued and flushed once a turn (`w.dirty`); nobody else calls send.
#   - A Conn's owner never touches it after conn_close, and hears nothing of it any more.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmesh.core.base.buffer cimport Buf, Pool, Queue
from fastmesh.core.base.heap cimport Heap
from fastmesh.core.base.list cimport Node
from fastmesh.core.base.rate cimport RateTable
from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo
from fastmesh.core.base.shared cimport Shared, SharedTexts
from fastmesh.core.base.slab cimport Slab
from fastmesh.core.base.timer cimport Timer, Wheel
from fastmesh.core.sys.openssl cimport SSL_SESSION
from fastmesh.core.sys.posix cimport epoll_event
from fastmesh.core.traffic.admit cimport Caller
from fastmesh.core.traffic.counters cimport AreaHeader, ServiceRow, WorkerRow
from fastmesh.core.traffic.destination cimport Destination
from fastmesh.core.traffic.policy_caller cimport PolicyFacts
from fastmesh.core.traffic.policy_judge cimport Decision
from fastmesh.core.traffic.policy_scratch cimport PolicyScratch
from fastmesh.core.traffic.ring cimport Ring
from fastmesh.core.traffic.snapshot cimport Endpoint, ListenerConf, Service, Snapshot
from fastmesh.core.wire.grpc_web cimport GrpcWeb
from fastmesh.core.wire.http1_chunked cimport Http1Chunked
from fastmesh.core.wire.http2_state cimport H2, H2Hooks, H2Stream
from fastmesh.core.wire.message cimport Message
from fastmesh.core.wire.request_line cimport RequestLine
from fastmesh.core.wire.tls cimport Tls, TlsEngine

cdef enum:
    INPUT_SCRATCH = 65536         # most bytes taken from a socket in one call
    WIRE_SCRATCH = 98304          # ciphertext of one flush: 80 KiB and its records' overhead
    LINES_SCRATCH = 147456        # the fields of two heads, and what a proxy adds
    ALT_SCRATCH = 73728           # a head of the greatest size with another line in it
    TX_HIGH = 98304               # queued bytes at which the source is told to stop ...
    TX_LOW = 32768                # ... and below which it is told to go on
    REPLAY_MAX = 65536            # bytes of a request kept for another try
    TURN_EVENTS = 64              # events a turn works through: what they touch stays in the cache
    TURN_HANDSHAKES = 1           # clients' handshakes a turn drives one step: each may cost a private-key operation
    INPUT_BUDGET = 262144         # bytes one connection may bring in a turn before the others' turn
    SPLICE_MIN = 65536            # bytes still to come that make a pipe worth while
    PIPE_BYTES = 262144
    PIPES_KEPT = 32
    LINGER_MS = 2000              # how long what a client still sends is read and thrown away ...
    LINGER_BYTES = 1048576        # ... and how much of it
    PEER_TEXT = 56                # "[ipv6]:port" with its NUL

cdef enum:  # ConnFlag
    C_READABLE = 1                # the kernel may have input: no EAGAIN since the last edge
    C_WRITABLE = 2                # the kernel takes output: no EAGAIN since the last edge
    C_EOF = 4                     # the peer's end of stream has been read
    C_EOF_TOLD = 8
    C_PAUSED = 16                 # the owner wants no input now
    C_DIRTY = 32                  # on w.dirty
    C_DEAD = 64                   # closed; memory goes at the end of the turn
    C_CONNECTING = 128
    C_HANDSHAKE = 256             # TLS handshake under way
    C_TLS = 512
    C_TX_HIGH = 1024              # the source was told to stop; on_drained is owed
    C_SHUT_WANTED = 2048          # shutdown(SHUT_WR) once everything queued has left
    C_SHUT = 4096
    C_CLOSE_FLUSHED = 8192        # close once everything queued has left
    C_UPSTREAM = 16384            # towards an endpoint
    C_RDHUP = 32768               # the peer has finished sending; what it sent may not be read yet
    C_SNIFF_TLS = 65536           # permissive: the first byte tells TLS from plaintext
    C_CUT = 131072                # close with a reset: what was sent is not whole
    C_EARLY = 262144              # TLS: drive it even without new input
    C_BULK = 524288               # the owner expects much: read into buffers that can be handed on
    C_RESUMED = 1048576           # offer `rx` again though nothing was added
    C_TRUNCATED = 2097152         # TLS: the end came without close_notify
    C_LINGER = 4194304            # after the shutdown, wait only LINGER_MS for the peer's end
    C_OLD_TRUST = 8388608         # TLS: its handshake is judged by a trust that is no more in force
    C_HANDED = 16777216           # came from a sibling, which may hold its descriptor for another moment
    C_LATE = 33554432             # its first bytes were waited for in vain, or not at all

cdef struct Worker
cdef struct Conn
cdef struct End
cdef struct Exchange
cdef struct Flow
cdef struct Listener
cdef struct Upstream
cdef struct Source

ctypedef void (*EventFn)(Worker *w, Source *s, uint32_t events) noexcept nogil

cdef struct Source:               # what epoll's data points at
    EventFn on_event
    int fd                        # -1: closed

cdef struct ConnOps:
    # `n` bytes at `p` arrived: how many were taken. The rest is offered again with what follows it.
    size_t (*on_input)(Worker *w, Conn *c, char *p, size_t n) noexcept nogil
    # No more input will come; told once, after the input that was taken, with what was not taken dropped.
    void (*on_eof)(Worker *w, Conn *c) noexcept nogil
    # The queue has fallen below TX_LOW after it had reached TX_HIGH.
    void (*on_drained)(Worker *w, Conn *c) noexcept nogil
    # The connection is of no use any more (negative reason's number); the owner must close it.
    void (*on_error)(Worker *w, Conn *c, int reason) noexcept nogil
    # Connected (with TLS: and the handshake done).
    void (*on_ready)(Worker *w, Conn *c) noexcept nogil
    # The timer has fired.
    void (*on_timer)(Worker *w, Conn *c) noexcept nogil
    # The rest may be NULL.
    # About to be flushed: queue what was put off until now. True: there is more once this has left.
    bint (*on_flush)(Worker *w, Conn *c) noexcept nogil
    # The worker drains: end what is idle, soon; what is busy after that.
    void (*on_drain)(Worker *w, Conn *c) noexcept nogil
    # `expires_ms` is another one now.
    void (*on_expiry)(Worker *w, Conn *c) noexcept nogil
    # Is no exchange on it?
    bint (*idle)(Conn *c) noexcept nogil

cdef struct Conn:
    Source src                    # first: epoll gives us a Source
    uint32_t flags                # enum ConnFlag
    uint32_t idle_ms              # progress puts the timer this far ahead; 0: leaves it alone
    ConnOps *ops
    void *owner
    Conn *next_dirty
    Queue tx                      # bytes to send (with TLS: plaintext)
    Queue wire                    # with TLS: ciphertext the kernel did not take yet
    Buf *rx                       # received, offered, not taken yet
    Buf *cipher                   # with TLS: received, not yet decrypted
    Flow *flow_in                 # the flow that reads from here
    Flow *flow_out                # the flow that writes to here
    Node ready                    # on w.ready, or on w.shaking
    Node all                      # on w.downs or w.ups
    uint64_t expires_ms           # on the worker's clock: the certificates it was made with are over; 0: never
    Timer timer
    Tls tls

cdef struct EndOps:
    # Queue a head: request or response, also interim. 0, 1: queued, but stop, as with data; or a negative reason.
    int (*head)(Worker *w, End *e, Message *m) noexcept nogil
    # Queue body bytes. 0, 1: queued, but stop until exchange_writable; or a negative reason.
    int (*data)(Worker *w, End *e, const char *p, size_t n) noexcept nogil
    # The message is complete; `trailers` may be NULL. 0, 1: and no more of the other message will come; or a reason.
    int (*finish)(Worker *w, End *e, Message *trailers) noexcept nogil
    # Both messages went well: keep the connection or close it, as the codec knows.
    void (*release)(Worker *w, End *e) noexcept nogil
    # The exchange ends here and now: close what cannot be used again. `code`: the HTTP/2 error code with which the
    # other side was reset, or 0.
    void (*abort)(Worker *w, End *e, int reason, uint32_t code) noexcept nogil
    # Deliver body bytes again.
    void (*resume)(Worker *w, End *e) noexcept nogil
    # The Conn whose raw bytes are the message's, for splice and upgrade; NULL where framing is in the way.
    Conn *(*raw)(Worker *w, End *e) noexcept nogil
    # Give the Conn away (upgrade): the End is freed, the Conn lives on without an owner.
    Conn *(*detach)(Worker *w, End *e) noexcept nogil

cdef struct End:
    EndOps *ops
    Exchange *ex                  # NULL: no exchange

cdef struct Peer:                 # a client's address
    char text[56]                 # PEER_TEXT: "ip:port"; empty for a Unix socket
    uint8_t len
    uint8_t ip_len                # the address alone is text[0:ip_len]
    uint8_t own                   # `to` is the listener's own address
    Destination to                # transparent listeners: where it wanted to go
    Destination caller            # transparent listeners: its address, without a port

cdef struct Kept:                 # a request as far as it has come, in no wire format: for another try
    Buf *head                     # a Message and its text; NULL: nothing is kept
    Buf *trailers                 # likewise, or NULL
    Queue body

cdef enum:  # ExchangeFlag
    X_REUSED = 1                  # sent on a connection that had served before
    X_BYTE_SEEN = 2               # the endpoint has answered with at least a byte
    X_UPGRADE = 4                 # the request asks for an upgrade
    X_TUNNEL = 8                  # CONNECT: bytes after the head are the tunnel's
    X_HEAD_SENT = 16              # a final response head went down
    X_REQ_DONE = 32               # the request has been received whole
    X_RESP_DONE = 64
    X_LOG = 128                   # goes into the access log
    X_FAILING = 256               # our own answer is being sent
    X_FRESH = 512                 # no pooled connection for this try
    X_OPAQUE = 1024               # a TCP tunnel: no status, no latency
    X_UNPROVEN = 2048             # its connection proved less than the listener asks for now
    X_PARKED = 4096               # the connection is being made: what is kept goes out once it stands
    X_SHARED = 8192               # its connection serves others at the same time
    X_GRPC = 16384                # the request is gRPC
    X_EXTENDED = 32768            # an upgrade or CONNECT with HTTP/2 on a side: what follows the heads are bodies

cdef struct Exchange:
    End *down
    End *up                       # NULL before an endpoint is chosen, and after it failed
    Listener *listener
    ListenerConf *conf
    Snapshot *snapshot            # a reference
    Service *service              # NULL: no service of that name
    Endpoint *endpoint
    Shared *identity              # of the caller, or NULL; a reference
    Shared *client_cert           # for x-forwarded-client-cert: memory of the downstream end, or NULL
    Decision decision             # of the rules
    Kept kept                     # the request, until the endpoint has begun to answer
    Timer deadline                # of a gRPC call
    Buf *log                      # method, authority, path, source: only with X_LOG
    Node all                      # on w.exchanges
    uint64_t start_us
    uint64_t bytes_in             # request body
    uint64_t bytes_out            # response body
    uint32_t reset                # the error code with which a peer has reset its stream, to be passed on; 0: none
    uint32_t flags                # enum ExchangeFlag
    uint16_t status
    uint16_t reason
    uint16_t log_len[4]
    uint8_t method
    uint8_t version               # of the downstream message: 10, 11, 20
    uint8_t tries                 # endpoints tried
    uint8_t retries
    uint8_t framing               # of the request: enum Framing
    uint8_t secure                # the client came with TLS
    Peer *peer                    # the client: memory of the downstream end
    GrpcWeb web                   # its flags are 0: not gRPC-Web

cdef struct Flow:
    Conn *src
    Conn *dst
    int pipe_in                   # read end; -1: there is no pipe
    int pipe_out                  # write end
    size_t held                   # bytes in the pipe
    uint64_t left                 # bytes still to take from src; LENGTH_UNKNOWN: until its end
    uint64_t moved
    bint much                     # comes at a time: the kernel moves it
    bint eof
    # The flow has moved everything (reason 0), or cannot go on. It is freed by its owner.
    void (*on_done)(Worker *w, Flow *f, int reason) noexcept nogil
    void *owner

cdef struct Upstream:             # the connections of one worker to one endpoint of one service
    Node idle                     # H1Client.idle, most recently used first
    Node dialling                 # Dialling.all: connections under way
    Node unclaimed                # Dialling.left: of these, what nobody waits for any more, newest first
    Node h2                       # H2Conn.pooled
    Node all                      # on w.upstreams
    uint32_t nidle
    uint32_t nunclaimed
    uint32_t nconns
    uint32_t refs                 # snapshots that name it
    SSL_SESSION *session          # for the next handshake
    uint64_t spare_after_ms       # before that no further connection is begun for those that come later
    uint32_t nh2                  # connections that speak HTTP/2 and take more requests
    uint8_t speaks                # enum Speaks: what the endpoint chose last time it had the choice; 0: not known
    # Service name, address and TLS mode: what makes it the same one in a new snapshot. With TLS_MESH it ends with the
    # SPIFFE ID that the endpoint must prove.
    char *key
    # Where what clients are or want is part of a connection (`several`): one for each, made at first use.
    Node *kinds                   # Upstream.alike, by hash; NULL: none yet
    Node used                     # Upstream.turn, used last first
    uint32_t nkinds
    # Of one of these:
    Node alike
    Node turn
    Destination of                # the port, the client's address, or the destination that its connections are for

cdef struct Listener:
    Source src                    # first
    Listener *next
    ListenerConf *conf            # of `snapshot`
    Snapshot *snapshot            # a reference: the newest that names this listener
    uint32_t nconns
    uint32_t nhandshakes          # of its connections: those whose handshake is not over
    bint paused                   # out of descriptors: accept again when the timer fires
    Timer timer
    uint32_t number               # the same in all workers
    uint32_t *words               # of all workers (traffic/share); NULL: it is not shared out
    uint64_t handed_us            # when those handed over so far would have left at an even pace
    Destination bound             # its address as it listens
    char name[256]

cdef struct Downstream:           # a client's connection as every codec towards clients keeps it
    Listener *listener            # it is counted there
    Caller caller                 # who it is (a reference), and which rules can concern it
    Shared *client_cert           # for x-forwarded-client-cert; NULL without identity; a reference
    uint64_t opened_ms
    Peer peer
    uint8_t retired               # its age is reached, or its listener withdrawn: it closes after this answer, or
                                  # soon if there is none

cdef struct H1Server:             # HTTP/1.1 towards a client: the downstream codec's state
    End end                       # first: the exchange gives us an End
    Conn *conn
    Downstream client
    uint64_t left                 # request body bytes to come (length framing); lingering: bytes thrown away
    Http1Chunked chunked
    uint32_t scan
    uint8_t state                 # enum H1State
    uint8_t framing               # of the request
    uint8_t out_framing           # of the response
    uint8_t keep_alive            # the connection stays open after this exchange
    uint8_t served                # it has had a request
    uint8_t http10
    uint8_t head_only             # the request is HEAD
    uint8_t expects               # the request said "Expect: 100-continue"

cdef struct PoolConf:             # of the service that dialled, which a connection may outlive
    uint32_t idle_ms
    uint32_t idle_max

cdef struct Dialling:             # a connection to an endpoint under way
    Conn *conn
    Upstream *upstream
    Node all                      # on Upstream.dialling
    Node waiting                  # Parked.node: the exchanges that are to have it
    Node left                     # on Upstream.unclaimed
    ServiceRow *row               # of the service that dialled; in memory that outlives it
    PoolConf pool
    uint32_t ping_ms              # as in H2Conn
    uint32_t ping_timeout_ms
    uint64_t begun_ms
    uint8_t offers                # enum Speaks: what we would speak
    uint8_t tunnel                # the last that came to wait wants a tunnel, which no pooled connection becomes

cdef enum Speaks:                 # as the bits TLS_ALPN_*
    SPEAKS_H1 = 1
    SPEAKS_H2 = 2

cdef struct Parked:               # the upstream End of an exchange whose connection is under way
    End end                       # first
    Dialling *on
    Node node                     # on Dialling.waiting

cdef struct H1Client:             # HTTP/1.1 towards an endpoint
    End end                       # first
    Conn *conn
    Upstream *upstream
    Node idle                     # on Upstream.idle
    uint64_t left
    size_t queued                 # bytes of the request that were queued: as many in `tx` are all of it
    Http1Chunked chunked
    uint32_t scan
    PoolConf pool
    char accept[28]               # WEBSOCKET_ACCEPT: what the endpoint must prove, where the key is ours
    uint8_t state
    uint8_t framing               # of the response
    uint8_t out_framing           # of the request
    uint8_t keep_alive
    uint8_t request_done
    uint8_t raw                   # switched: bytes as they are, both ways, until their ends

cdef enum H1State:
    H1_HEAD = 0                   # a head is awaited
    H1_BODY
    H1_TRAILERS
    H1_DONE                       # the message is complete; the exchange goes on
    H1_DISCARD                    # lingering: what comes is thrown away
    H1_IDLE                       # client: in the pool

cdef struct H2Conn:               # a connection that speaks HTTP/2, in either role
    H2 h2                         # first: the codec's hooks give us an H2
    Worker *w
    Conn *conn
    Downstream client             # towards a client
    Upstream *upstream            # towards an endpoint
    Node pooled                   # on Upstream.h2, while it takes more requests
    Node streams                  # H2End.node
    Node waiting                  # Parked.node: what depends on the endpoint's settings, which are not here yet
    Timer leave                   # the second step of going away
    Timer agree                   # looks whether our settings have been acknowledged
    PoolConf pool
    uint32_t nstreams
    uint32_t ping_ms              # without a sign of the peer for so long, while there are streams: ask; 0: never
    uint32_t ping_timeout_ms
    uint32_t discarded            # bytes thrown away after the end
    uint32_t heading              # the stream whose head is not whole: its clock runs; 0: none
    uint8_t state                 # enum H2State
    uint8_t pinged                # the clock of an answer to a PING runs
    uint8_t late                  # our settings should have been acknowledged

cdef enum H2State:
    H2_OPEN = 0
    H2_LEAVING                    # a first GOAWAY has gone out, or one has come: no new requests of ours
    H2_LEFT                       # the second: the end comes with the last stream
    H2_DISCARD                    # lingering: what comes is thrown away

cdef struct H2End:                # a stream: an End of an exchange, until the codec has sent all that it was given
    H2Stream s                    # first: the codec's hooks give us an H2Stream
    End end
    H2Conn *on
    Node node                     # on H2Conn.streams
    Timer timer
    uint32_t idle_ms              # progress puts the timer this far ahead
    uint16_t flags                # enum H2EndFlag

cdef enum H2EndFlag:
    E_IN_DONE = 1                 # the peer's message is whole
    E_OUT_DONE = 2                # ours has been given to the codec whole
    E_HEAD_ONLY = 4               # the request is HEAD
    E_GONE = 8                    # the codec has forgotten it
    E_EXPECTS = 16                # its client waits for 100 before it sends the body
    E_BAD = 32                    # the peer's message is malformed

cdef struct Original:             # an endpoint of a tunnel's own: where the client wanted to go
    Endpoint endpoint
    char text[56]                 # DESTINATION_TEXT

cdef struct Tunnel:               # opaque bytes both ways
    Conn *down
    Conn *up
    Listener *listener            # of `down`, counted there; NULL once that is gone
    Exchange *ex                  # what is accounted and logged when the tunnel ends
    Node all
    Timer expiry                  # the end of the certificates, where tunnels end with them
    Original *original            # passed through; NULL: the service has endpoints
    uint8_t halves                # directions that have ended
    uint8_t watch                 # enum Watch
    uint8_t guarded               # HTTP must not pass: `line` reads what the client begins with
    RequestLine line
    PolicyFacts facts             # of the client; its identity is the exchange's reference
    Peer peer

cdef enum Watch:                  # who speaks first, until somebody has: it may turn out not to be opaque
    WATCH_NONE = 0
    WATCH_SILENT                  # the client had its time and said nothing: is it the server?
    WATCH_LEARNED                 # the client was not waited for: is it still the server?
    WATCH_ENDED                   # only to begin with: the client has ended without a word

cdef struct Ops:                  # vtables: a header-only module can hold no static of its own
    ConnOps h1_server
    ConnOps h1_client
    ConnOps tunnel_down
    ConnOps tunnel_up
    ConnOps leaving               # towards an endpoint, TLS: closes when it has said goodbye
    ConnOps accepted              # until the handshake is done and the protocol known
    ConnOps late                  # a tunnel's client that nobody has heard of yet
    ConnOps dialling              # likewise, towards an endpoint
    ConnOps h2_server
    ConnOps h2_client
    EndOps server_end
    EndOps client_end
    EndOps parked_end
    EndOps h2_server_end
    EndOps h2_client_end
    H2Hooks h2_server_hooks
    H2Hooks h2_client_hooks
    # upwards calls: set by the modules above
    int (*dial)(Worker *w, Exchange *ex) noexcept nogil
    # Both connections become a tunnel; `rest` is what the endpoint has sent behind its head.
    void (*upgrade)(Worker *w, Exchange *ex, const char *rest, size_t n) noexcept nogil
    void (*flow_pump)(Worker *w, Flow *f) noexcept nogil
    void (*flow_free)(Worker *w, Flow *f) noexcept nogil
    void (*connected)(Worker *w, Conn *c) noexcept nogil
    # A permissive listener's client speaks TLS.
    void (*start_tls)(Worker *w, Conn *c) noexcept nogil
    # The first bytes of a client's handshake are there: get ready for them. False: it was closed.
    bint (*open_tls)(Worker *w, Conn *c) noexcept nogil
    void (*pool_drop)(Worker *w, void *upstream) noexcept nogil

cdef struct Inbox:                # where siblings hand us connections
    Source src                    # first
    int spare                     # a descriptor held so that the next message finds room for its own; -1: none
    bint paused                   # out of descriptors: look again when the timer fires
    bint shut                     # a drain has begun: nothing is handed over any more
    Timer timer
    int *siblings                 # the sending ends of all workers' inboxes, by slot; ours is -1
    uint32_t nsiblings            # workers; 0: there is only one

cdef struct Worker:
    int ep
    int control_fd
    uint32_t slot
    uint64_t now_ms               # CLOCK_MONOTONIC, once a turn
    uint64_t now_us
    uint64_t wall_us              # CLOCK_REALTIME - CLOCK_MONOTONIC, as it was when last looked at
    uint64_t wall_check_ms        # when it is looked at again
    Pool pool
    Slab conns
    Slab exchanges
    Slab servers
    Slab clients
    Slab diallings
    Slab parked
    Slab h2s
    Slab h2_ends
    Heap heap                     # what libnghttp2 allocates
    Slab flows
    Slab tunnels
    Slab originals
    Wheel wheel
    Conn *dirty
    Conn *dead
    Node ready
    Node shaking                  # clients whose handshake can go on: after everything else, a few a turn
    uint32_t shake_put_off
    Node downs
    Node ups
    Node dead_ends                # streams that are over: their memory goes at the turn's end
    Node all_exchanges
    Node all_tunnels
    Node upstreams
    Listener *listeners
    Inbox inbox
    Snapshot *snapshot
    uint32_t loads                # snapshots loaded so far
    SharedTexts identities
    SharedTexts client_certs
    PolicyScratch policy
    TlsEngine tls
    RateTable handshake_rates     # by address of the client
    char *input                   # INPUT_SCRATCH bytes: what recv fills
    char *plain                   # INPUT_SCRATCH bytes: what TLS decrypts into
    char *wire                    # WIRE_SCRATCH bytes
    char *lines                   # LINES_SCRATCH bytes: field lines on their way into a head
    char *alt_text                # ALT_SCRATCH bytes: what the gRPC-Web bridge writes, until it is passed on
    Buf *handoff                  # the Buf that the bytes given to on_input fill: it may be taken
    int pipes[64]                 # 2 * PIPES_KEPT: free pipes
    int npipes
    uint64_t pipes_open
    uint64_t tls_open
    uint64_t fds_open
    uint64_t snapshots            # loaded and still held by somebody
    AreaHeader *area
    WorkerRow *row
    Ring *ring
    bint withdrawn                # inbound listeners accept no more; outbound ones serve on
    bint draining
    uint64_t drain_deadline
    bint control_ready
    uint64_t log_random
    Ops ops
    ReasonInfo reasons[96]        # R_COUNT of them
    Message msg                   # what a parser fills
    Message answer                # what our own answers are parsed into
    Message alt                   # a head as the gRPC-Web bridge passes it on, in `alt_text`
    epoll_event events[64]        # TURN_EVENTS
