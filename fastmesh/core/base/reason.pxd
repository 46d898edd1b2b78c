# The reasons: one enum for everything that ends a request, a connection or a handshake otherwise than well.
#
# Every function of the core returns 0 or a positive number for progress and a negative *reason*
# otherwise: `return -R_BAD_HOST`. A reason is set once, where the fact is known. One table
# (`reasons_init`) maps it to its name, its side, the HTTP status and gRPC code an answer carries, and
# whether another try is safe without knowing more. The names are public: `x-fastmesh-reason`, metrics,
# access log. Never renumber for beauty, never reuse a name for another fact.

from libc.stdint cimport uint8_t, uint16_t

cdef enum:  # Side
    SIDE_LOCAL = 0        # fastmesh itself decided
    SIDE_DOWNSTREAM = 1   # the peer that called
    SIDE_UPSTREAM = 2     # the endpoint we called

cdef enum:  # Reason
    R_NONE = 0
    # connect: the way to an endpoint
    R_NO_ENDPOINT = 1
    R_CONNECT_REFUSED
    R_CONNECT_TIMEOUT
    R_CONNECT_UNREACHABLE
    R_CONNECT_FAILED
    # protocol: what a downstream peer sent
    R_BAD_REQUEST_LINE
    R_BAD_TARGET
    R_BAD_VERSION
    R_BAD_FIELD
    R_BAD_HOST
    R_BAD_LENGTH
    R_BAD_FRAMING
    R_BAD_TRANSFER_CODING
    R_BAD_CHUNK
    R_BAD_TRAILER
    R_BAD_UPGRADE
    R_LINE_TOO_LONG
    R_HEAD_TOO_LARGE
    R_TOO_MANY_FIELDS
    R_PROTOCOL_UNKNOWN
    # protocol: what an endpoint sent
    R_UPSTREAM_BAD_RESPONSE
    R_UPSTREAM_HEAD_TOO_LARGE
    R_UPSTREAM_CLOSED
    R_UPSTREAM_RESET
    R_UPSTREAM_TRUNCATED
    # io
    R_DOWNSTREAM_CLOSED
    R_DOWNSTREAM_RESET
    # policy
    R_NO_SERVICE
    R_DENIED
    R_CONNECT_NOT_ALLOWED
    # limits of time
    R_HEADER_TIMEOUT
    R_BODY_TIMEOUT
    R_IDLE_TIMEOUT
    R_UPSTREAM_TIMEOUT
    R_STREAM_TIMEOUT
    # TLS, inbound: we are the server
    R_TLS_NO_CERTIFICATE
    R_TLS_UNTRUSTED
    R_TLS_EXPIRED
    R_TLS_IDENTITY
    R_TLS_REVOKED
    R_TLS_NOT_TLS
    R_TLS_VERSION
    R_TLS_HANDSHAKE
    R_TLS_TIMEOUT
    R_TLS_BUSY
    R_TLS_RATE
    # TLS, outbound: we are the client
    R_UPSTREAM_TLS_UNTRUSTED
    R_UPSTREAM_TLS_EXPIRED
    R_UPSTREAM_TLS_IDENTITY
    R_UPSTREAM_TLS_REVOKED
    R_UPSTREAM_TLS_REFUSED
    R_UPSTREAM_TLS_HANDSHAKE
    R_UPSTREAM_TLS_TIMEOUT
    # HTTP/2: what a peer's connection or stream ended with
    R_H2_PROTOCOL
    R_H2_FRAME_SIZE
    R_H2_FLOW_CONTROL
    R_H2_COMPRESSION
    R_H2_SETTINGS_TIMEOUT
    R_H2_PING_TIMEOUT
    R_H2_RESET_FLOOD
    R_H2_PROVOKED_FLOOD
    R_H2_SETTINGS_FLOOD
    R_H2_PING_FLOOD
    R_H2_EMPTY_FLOOD
    R_H2_PRIORITY_FLOOD
    R_H2_WINDOW_FLOOD
    R_H2_HEADER_FLOOD
    R_H2_OUTPUT_FLOOD
    R_STREAM_RESET
    R_UPSTREAM_STREAM_RESET
    R_UPSTREAM_STREAM_REFUSED
    R_UPSTREAM_GOAWAY
    R_UPSTREAM_H2_PROTOCOL
    R_UPSTREAM_H2_FLOOD
    R_UPSTREAM_PING_TIMEOUT
    R_UPSTREAM_NOT_HTTP2
    R_UPSTREAM_NO_UPGRADE
    # local
    R_DRAINING
    R_OVERLOADED
    R_NO_MEMORY
    R_INTERNAL
    R_IDENTITY_EXPIRED
    R_CERTIFICATES_OVER
    R_DEADLINE
    R_BAD_GRPC_WEB
    # connections that were taken over
    R_LOOP
    R_UNKNOWN_DESTINATION
    R_LATE_HTTP
    R_COUNT


cdef struct ReasonInfo:
    const char *name      # public, snake_case
    const char *text      # one line for the body of an answer: what is the matter, no inner detail
    uint16_t status       # HTTP status of the answer, 0: none is sent
    uint8_t grpc          # gRPC status code
    uint8_t side          # enum Side
    uint8_t retry_safe    # another endpoint may be tried: the request cannot have been processed


cdef inline void _row(ReasonInfo *table, int reason, const char *name, int side, int status, int grpc,
                      bint retry_safe, const char *text) noexcept nogil:
    table[reason].name = name
    table[reason].text = text
    table[reason].status = <uint16_t>status
    table[reason].grpc = <uint8_t>grpc
    table[reason].side = <uint8_t>side
    table[reason].retry_safe = retry_safe


cdef inline void reasons_init(ReasonInfo *t) noexcept nogil:
    """Fill `t[R_COUNT]`.

    The gRPC code says what a caller should do next. UNAVAILABLE (14) invites another try, so it stands where
    the request went nowhere, or where the connection broke under it (which every gRPC library tells so);
    DEADLINE_EXCEEDED (4) where the time for the answer ran out, since trying that again makes it worse;
    INTERNAL (13) where a peer broke a protocol. A limit of ours is UNAVAILABLE: nothing was done, another proxy
    or endpoint may have room. Only memory is RESOURCE_EXHAUSTED (8): it can run out in the middle of a request.
    No row but the first may say OK (0).
    """
    _row(t, R_NONE, b"none", SIDE_LOCAL, 0, 0, False, b"")
    _row(t, R_NO_ENDPOINT, b"no_endpoint", SIDE_LOCAL, 503, 14, True, b"the service has no endpoint that can be reached")
    _row(t, R_CONNECT_REFUSED, b"connect_refused", SIDE_UPSTREAM, 502, 14, True, b"the endpoint refused the connection")
    _row(t, R_CONNECT_TIMEOUT, b"connect_timeout", SIDE_UPSTREAM, 504, 14, True, b"the endpoint did not accept the connection in time")
    _row(t, R_CONNECT_UNREACHABLE, b"connect_unreachable", SIDE_UPSTREAM, 502, 14, True, b"the endpoint cannot be reached")
    _row(t, R_CONNECT_FAILED, b"connect_failed", SIDE_UPSTREAM, 502, 14, True, b"the connection to the endpoint failed")
    _row(t, R_BAD_REQUEST_LINE, b"bad_request_line", SIDE_DOWNSTREAM, 400, 13, False, b"the request line is malformed")
    _row(t, R_BAD_TARGET, b"bad_target", SIDE_DOWNSTREAM, 400, 13, False, b"the request target is malformed")
    _row(t, R_BAD_VERSION, b"bad_version", SIDE_DOWNSTREAM, 505, 13, False, b"the HTTP version is not supported")
    _row(t, R_BAD_FIELD, b"bad_field", SIDE_DOWNSTREAM, 400, 13, False, b"a header field is malformed")
    _row(t, R_BAD_HOST, b"bad_host", SIDE_DOWNSTREAM, 400, 13, False, b"the Host field is missing, repeated or malformed")
    _row(t, R_BAD_LENGTH, b"bad_length", SIDE_DOWNSTREAM, 400, 13, False, b"Content-Length is malformed or repeated with other values")
    _row(t, R_BAD_FRAMING, b"bad_framing", SIDE_DOWNSTREAM, 400, 13, False, b"Content-Length and Transfer-Encoding exclude each other")
    _row(t, R_BAD_TRANSFER_CODING, b"bad_transfer_coding", SIDE_DOWNSTREAM, 400, 13, False, b"the transfer coding is not supported")
    _row(t, R_BAD_CHUNK, b"bad_chunk", SIDE_DOWNSTREAM, 400, 13, False, b"the chunked body is malformed")
    _row(t, R_BAD_TRAILER, b"bad_trailer", SIDE_DOWNSTREAM, 400, 13, False, b"a trailer field is malformed")
    _row(t, R_BAD_UPGRADE, b"bad_upgrade", SIDE_DOWNSTREAM, 400, 13, False, b"the upgrade request is malformed")
    _row(t, R_LINE_TOO_LONG, b"line_too_long", SIDE_DOWNSTREAM, 414, 13, False, b"the request line is longer than 16 KiB")
    _row(t, R_HEAD_TOO_LARGE, b"head_too_large", SIDE_DOWNSTREAM, 431, 13, False, b"the header section is larger than 64 KiB")
    _row(t, R_TOO_MANY_FIELDS, b"too_many_fields", SIDE_DOWNSTREAM, 431, 13, False, b"there are more than 128 header fields")
    _row(t, R_PROTOCOL_UNKNOWN, b"protocol_unknown", SIDE_DOWNSTREAM, 0, 13, False, b"the first bytes are of no protocol that is served here")
    _row(t, R_UPSTREAM_BAD_RESPONSE, b"upstream_bad_response", SIDE_UPSTREAM, 502, 13, False, b"the endpoint sent a malformed response")
    _row(t, R_UPSTREAM_HEAD_TOO_LARGE, b"upstream_head_too_large", SIDE_UPSTREAM, 502, 13, False, b"the endpoint sent too large a header section")
    _row(t, R_UPSTREAM_CLOSED, b"upstream_closed", SIDE_UPSTREAM, 502, 14, False, b"the endpoint closed the connection before it answered")
    _row(t, R_UPSTREAM_RESET, b"upstream_reset", SIDE_UPSTREAM, 502, 14, False, b"the endpoint reset the connection before it answered")
    _row(t, R_UPSTREAM_TRUNCATED, b"upstream_truncated", SIDE_UPSTREAM, 502, 14, False, b"the endpoint's response ended early")
    _row(t, R_DOWNSTREAM_CLOSED, b"downstream_closed", SIDE_DOWNSTREAM, 499, 1, False, b"the client closed the connection")
    _row(t, R_DOWNSTREAM_RESET, b"downstream_reset", SIDE_DOWNSTREAM, 499, 1, False, b"the client reset the connection")
    _row(t, R_NO_SERVICE, b"no_service", SIDE_LOCAL, 404, 12, False, b"no service of that name")
    _row(t, R_DENIED, b"denied", SIDE_LOCAL, 403, 7, False, b"not allowed")
    _row(t, R_CONNECT_NOT_ALLOWED, b"connect_not_allowed", SIDE_LOCAL, 405, 12, False, b"CONNECT is not routed here")
    _row(t, R_HEADER_TIMEOUT, b"header_timeout", SIDE_DOWNSTREAM, 408, 4, False, b"the header section did not arrive in time")
    _row(t, R_BODY_TIMEOUT, b"body_timeout", SIDE_DOWNSTREAM, 408, 4, False, b"the body did not arrive in time")
    _row(t, R_IDLE_TIMEOUT, b"idle_timeout", SIDE_LOCAL, 0, 14, False, b"the connection was idle for too long")
    _row(t, R_UPSTREAM_TIMEOUT, b"upstream_timeout", SIDE_UPSTREAM, 504, 4, False, b"the endpoint did not answer in time")
    _row(t, R_STREAM_TIMEOUT, b"stream_timeout", SIDE_UPSTREAM, 504, 4, False, b"nothing moved for too long")
    _row(t, R_TLS_NO_CERTIFICATE, b"tls_no_certificate", SIDE_DOWNSTREAM, 0, 16, False, b"the client presented no certificate")
    _row(t, R_TLS_UNTRUSTED, b"tls_untrusted", SIDE_DOWNSTREAM, 0, 16, False, b"the client's certificate is not signed by a trusted authority")
    _row(t, R_TLS_EXPIRED, b"tls_expired", SIDE_DOWNSTREAM, 0, 16, False, b"the client's certificate is not valid at this time")
    _row(t, R_TLS_IDENTITY, b"tls_identity", SIDE_DOWNSTREAM, 0, 16, False, b"the client's certificate proves no identity of this trust domain")
    _row(t, R_TLS_REVOKED, b"tls_revoked", SIDE_DOWNSTREAM, 0, 16, False, b"the client's certificate has been revoked")
    _row(t, R_TLS_NOT_TLS, b"tls_not_tls", SIDE_DOWNSTREAM, 0, 16, False, b"the client did not speak TLS")
    _row(t, R_TLS_VERSION, b"tls_version", SIDE_DOWNSTREAM, 0, 16, False, b"the client offers no accepted TLS version or cipher")
    _row(t, R_TLS_HANDSHAKE, b"tls_handshake", SIDE_DOWNSTREAM, 0, 16, False, b"the TLS handshake with the client failed")
    _row(t, R_TLS_TIMEOUT, b"tls_timeout", SIDE_DOWNSTREAM, 0, 14, False, b"the TLS handshake with the client took too long")
    _row(t, R_TLS_BUSY, b"tls_busy", SIDE_LOCAL, 0, 14, False, b"too many TLS handshakes are under way on the listener")
    _row(t, R_TLS_RATE, b"tls_rate", SIDE_DOWNSTREAM, 0, 8, False, b"too many TLS handshakes from the client's address")
    _row(t, R_UPSTREAM_TLS_UNTRUSTED, b"upstream_tls_untrusted", SIDE_UPSTREAM, 502, 14, True, b"the endpoint's certificate is not signed by a trusted authority")
    _row(t, R_UPSTREAM_TLS_EXPIRED, b"upstream_tls_expired", SIDE_UPSTREAM, 502, 14, True, b"the endpoint's certificate is not valid at this time")
    _row(t, R_UPSTREAM_TLS_IDENTITY, b"upstream_tls_identity", SIDE_UPSTREAM, 502, 14, True, b"the endpoint proved another identity than the service's")
    _row(t, R_UPSTREAM_TLS_REVOKED, b"upstream_tls_revoked", SIDE_UPSTREAM, 502, 14, True, b"the endpoint's certificate has been revoked")
    _row(t, R_UPSTREAM_TLS_REFUSED, b"upstream_tls_refused", SIDE_UPSTREAM, 502, 14, True, b"the endpoint refused our certificate")
    _row(t, R_UPSTREAM_TLS_HANDSHAKE, b"upstream_tls_handshake", SIDE_UPSTREAM, 502, 14, True, b"the TLS handshake with the endpoint failed")
    _row(t, R_UPSTREAM_TLS_TIMEOUT, b"upstream_tls_timeout", SIDE_UPSTREAM, 504, 14, True, b"the TLS handshake with the endpoint took too long")
    _row(t, R_H2_PROTOCOL, b"h2_protocol_error", SIDE_DOWNSTREAM, 0, 13, False, b"the client broke the rules of HTTP/2")
    _row(t, R_H2_FRAME_SIZE, b"h2_frame_size", SIDE_DOWNSTREAM, 0, 13, False, b"the client sent an HTTP/2 frame of a wrong size")
    _row(t, R_H2_FLOW_CONTROL, b"h2_flow_control", SIDE_DOWNSTREAM, 0, 13, False, b"the client sent more than HTTP/2's flow control allows")
    _row(t, R_H2_COMPRESSION, b"h2_compression", SIDE_DOWNSTREAM, 0, 13, False, b"the client sent a header block that cannot be decompressed")
    _row(t, R_H2_SETTINGS_TIMEOUT, b"h2_settings_timeout", SIDE_DOWNSTREAM, 0, 14, False, b"the client did not acknowledge the HTTP/2 settings in time")
    _row(t, R_H2_PING_TIMEOUT, b"h2_ping_timeout", SIDE_DOWNSTREAM, 0, 14, False, b"the client did not answer an HTTP/2 PING in time")
    _row(t, R_H2_RESET_FLOOD, b"h2_reset_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client opened and reset too many HTTP/2 streams")
    _row(t, R_H2_PROVOKED_FLOOD, b"h2_provoked_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client provoked too many resets of HTTP/2 streams")
    _row(t, R_H2_SETTINGS_FLOOD, b"h2_settings_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent too many HTTP/2 SETTINGS")
    _row(t, R_H2_PING_FLOOD, b"h2_ping_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent too many HTTP/2 PINGs")
    _row(t, R_H2_EMPTY_FLOOD, b"h2_empty_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent too many empty HTTP/2 frames")
    _row(t, R_H2_PRIORITY_FLOOD, b"h2_priority_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent too many HTTP/2 frames that mean nothing here")
    _row(t, R_H2_WINDOW_FLOOD, b"h2_window_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent too many HTTP/2 WINDOW_UPDATEs")
    _row(t, R_H2_HEADER_FLOOD, b"h2_header_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client sent an HTTP/2 header block without end")
    _row(t, R_H2_OUTPUT_FLOOD, b"h2_output_flood", SIDE_DOWNSTREAM, 0, 8, False, b"the client asked for more HTTP/2 frames than it took")
    _row(t, R_STREAM_RESET, b"stream_reset", SIDE_DOWNSTREAM, 499, 1, False, b"the client reset the HTTP/2 stream")
    _row(t, R_UPSTREAM_STREAM_RESET, b"upstream_stream_reset", SIDE_UPSTREAM, 502, 14, False, b"the endpoint reset the HTTP/2 stream")
    _row(t, R_UPSTREAM_STREAM_REFUSED, b"upstream_stream_refused", SIDE_UPSTREAM, 503, 14, True, b"the endpoint refused the HTTP/2 stream")
    _row(t, R_UPSTREAM_GOAWAY, b"upstream_goaway", SIDE_UPSTREAM, 503, 14, True, b"the endpoint went away before it processed the request")
    _row(t, R_UPSTREAM_H2_PROTOCOL, b"upstream_h2_protocol_error", SIDE_UPSTREAM, 502, 13, False, b"the endpoint broke the rules of HTTP/2")
    _row(t, R_UPSTREAM_H2_FLOOD, b"upstream_h2_flood", SIDE_UPSTREAM, 502, 13, False, b"the endpoint flooded the HTTP/2 connection")
    _row(t, R_UPSTREAM_PING_TIMEOUT, b"upstream_ping_timeout", SIDE_UPSTREAM, 504, 14, False, b"the endpoint did not answer an HTTP/2 PING in time")
    _row(t, R_UPSTREAM_NOT_HTTP2, b"upstream_not_http2", SIDE_UPSTREAM, 502, 14, True, b"the endpoint does not speak HTTP/2")
    _row(t, R_UPSTREAM_NO_UPGRADE, b"upstream_no_upgrade", SIDE_UPSTREAM, 502, 12, False, b"the endpoint takes no upgrades over HTTP/2")
    _row(t, R_DRAINING, b"draining", SIDE_LOCAL, 503, 14, False, b"the proxy is shutting down")
    _row(t, R_OVERLOADED, b"overloaded", SIDE_LOCAL, 503, 14, False, b"a limit of the proxy is reached")
    _row(t, R_NO_MEMORY, b"no_memory", SIDE_LOCAL, 503, 8, False, b"the proxy is out of memory")
    _row(t, R_INTERNAL, b"internal", SIDE_LOCAL, 500, 13, False, b"an error inside the proxy")
    _row(t, R_IDENTITY_EXPIRED, b"identity_expired", SIDE_LOCAL, 503, 14, True, b"the proxy's own certificate is over")
    _row(t, R_CERTIFICATES_OVER, b"certificates_over", SIDE_LOCAL, 0, 14, False, b"the certificates that the connection was made with are over")
    _row(t, R_DEADLINE, b"deadline", SIDE_LOCAL, 504, 4, False, b"the caller's deadline is over")
    _row(t, R_LOOP, b"loop", SIDE_DOWNSTREAM, 0, 14, False, b"the connection was made to the transparent listener itself")
    _row(t, R_UNKNOWN_DESTINATION, b"unknown_destination", SIDE_DOWNSTREAM, 0, 14, False, b"no service has the destination of the connection")
    _row(t, R_LATE_HTTP, b"late_http", SIDE_DOWNSTREAM, 0, 13, False, b"HTTP came on a connection that is carried as opaque bytes")
    _row(t, R_BAD_GRPC_WEB, b"bad_grpc_web", SIDE_DOWNSTREAM, 400, 13, False, b"the gRPC-Web body is not valid base64")
