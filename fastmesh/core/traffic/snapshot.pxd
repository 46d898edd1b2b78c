# The snapshot as a worker holds it: what the configuration says, resolved into plain structs.
#
# Immutable once loaded, except for the balancers' cursors. Everything in it is allocated at load time and
# freed with the last reference: exchanges and tunnels hold one, the worker holds one on the newest. A
# Listener or Service of an old snapshot therefore stays valid until the last exchange that uses it ends.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from fastmesh.core.sys.posix cimport sockaddr_storage, socklen_t
from fastmesh.core.traffic.counters cimport ServiceRow
from fastmesh.core.traffic.destination cimport Destinations
from fastmesh.core.traffic.policy cimport Policy
from fastmesh.core.traffic.text_index cimport Text

cdef enum:  # Protocol
    PROTO_HTTP = 0
    PROTO_TCP
    PROTO_AUTO

cdef enum:  # TlsMode
    TLS_NONE = 0
    TLS_MESH
    TLS_PERMISSIVE
    TLS_PUBLIC            # ordinary TLS, by the names of servers
    TLS_PASSTHROUGH       # opaque, the service chosen by the name that the client asks for

cdef enum:  # ForwardedMode
    FWD_KEEP = 0
    FWD_APPEND
    FWD_REPLACE
    FWD_REMOVE
    FWD_AUTO              # append where the caller sent one

cdef enum:  # SvcProtocol
    SVC_AUTO = 0          # TLS: by ALPN; plaintext: HTTP/1.1, but HTTP/2 for gRPC
    SVC_HTTP1
    SVC_HTTP2             # plaintext: by prior knowledge
    SVC_TCP               # opaque; HTTP that comes all the same is as with SVC_AUTO

cdef enum:  # ReuseRetry
    REUSE_REPLAYABLE = 0
    REUSE_IDEMPOTENT
    REUSE_OFF

cdef enum:  # Normalize
    NORMALIZE_AUTO = 0    # where rules speak of paths
    NORMALIZE_ON
    NORMALIZE_OFF         # never: what is not in normal form is refused where rules speak of paths

cdef struct Endpoint:
    sockaddr_storage address
    socklen_t address_len
    Text text             # "127.0.0.1:9000", "[::1]:80", "unix:/run/x"
    int32_t health        # its byte in the table of the Area; -1: nobody checks it
    uint8_t keep_port     # is connected to on the port that the client wanted; the address has none
    uint8_t keep_caller   # is connected to with the client's address, where that is of the same family
    uint8_t original      # is connected to where the client wanted to go; it has no address
    void *pool            # its connections: owned by the io floor, counted there

cdef struct Service:
    Text name
    Text spiffe_id        # what the peer must prove, with TLS
    uint32_t slot
    void *tls_ctx         # SSL_CTX with TLS_PUBLIC, else NULL
    uint8_t tls           # enum TlsMode
    uint8_t protocol      # enum SvcProtocol
    uint8_t reuse_retry   # enum ReuseRetry
    uint8_t original      # stands for all destinations that no service has; its endpoint is any of them
    uint8_t local         # the application: its endpoints are 127.0.0.1 and ::1, in this order
    uint32_t nendpoints
    Endpoint *endpoints
    uint32_t cursor       # round robin
    uint8_t *health       # the table of the Area; NULL: none of the endpoints is checked
    uint32_t connect_timeout_ms
    uint32_t response_timeout_ms
    uint32_t pool_idle_max
    uint32_t pool_idle_timeout_ms
    uint32_t mesh_connections     # HTTP/2 connections per endpoint, as long as its limit of streams allows
    uint32_t h2_ping_ms   # 0: no sign of life is asked for
    uint32_t h2_ping_timeout_ms
    ServiceRow *row
    Policy *policy        # NULL: no rules

cdef struct SniRoute:
    Text name             # lower case; of a wildcard what follows the "*"
    uint8_t wildcard
    int32_t service

cdef struct PortConf:
    uint16_t port         # that the client wanted
    uint8_t protocol      # enum Protocol
    int32_t service       # inbound: the application there; otherwise -1

cdef struct ListenerConf:
    Text name
    uint8_t outbound      # role: routes by Host where no service is named
    uint8_t inbound
    uint8_t transparent   # where the client wanted to go decides; `service` is -1
    uint8_t reject        # what no service has is not passed through
    uint8_t protocol      # enum Protocol
    uint8_t tls           # enum TlsMode
    uint8_t http2         # clients may speak it; never with PROTO_TCP or TLS_PASSTHROUGH
    uint8_t grpc_web      # is translated to gRPC
    uint8_t x_forwarded   # enum ForwardedMode
    uint8_t forwarded
    uint8_t via
    uint8_t client_cert   # enum ForwardedMode: x-forwarded-client-cert
    uint8_t normalize     # enum Normalize
    uint8_t keep_slashes  # encoded ones are part of their segment
    int32_t service       # index, or -1: by Host
    int32_t direct        # transparent and inbound: for connections made to the listener itself; -1: refused
    PortConf *ports       # transparent: in the order of their numbers
    uint32_t nports
    void *tls_ctx         # SSL_CTX with TLS_PUBLIC, else NULL
    SniRoute *sni         # with TLS_PASSTHROUGH: services by name
    uint32_t nsni
    Policy *policy        # NULL: no rules
    uint32_t header_timeout_ms
    uint32_t idle_timeout_ms
    uint32_t stream_idle_timeout_ms
    uint32_t tcp_idle_timeout_ms
    uint32_t max_connections
    uint64_t max_connection_age_ms    # 0: as old as the certificates
    uint32_t h2_max_streams   # open at once on one connection
    uint32_t h2_ping_ms       # 0: no sign of life is asked for
    uint32_t h2_ping_timeout_ms
    uint32_t max_handshakes   # under way at once; 0: no limit
    uint32_t handshake_rate   # a second, for each source; 0: no limit

cdef struct Snapshot:
    uint32_t refs
    uint32_t number
    uint32_t nservices
    Service *services
    uint32_t nlisteners
    ListenerConf *listeners
    Destinations destinations     # whose they are, for transparent listeners
    int32_t passthrough   # the service that stands for all others; -1: none
    uint32_t mark         # SO_MARK of our own connections; 0: none
    uint32_t names_mask   # open-addressing table: hash of the name -> index + 1
    uint32_t *names
    void *server_ctx      # SSL_CTX, or NULL without identity
    void *client_ctx
    int64_t not_after     # end of our certificate, Unix seconds; 0 without identity
    Text own_id           # SPIFFE id of this workload; empty without identity
    Policy *policies      # all of them: they own regexes
    double log_sample     # 0: no access log
    void *blocks          # list of allocations (Block)

cdef struct Block:
    Block *next


cdef inline ListenerConf *listener_named(const Snapshot *s, const char *name, size_t n) noexcept nogil:
    """The listener of that name; NULL: there is none."""
    cdef uint32_t i
    for i in range(s.nlisteners):
        if s.listeners[i].name.len == n and memcmp(s.listeners[i].name.ptr, name, n) == 0:
            return &s.listeners[i]
    return NULL

