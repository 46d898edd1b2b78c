# What the numbers of the data plane are called outside: reasons, counters, bounds of histograms, decisions.
#
# A row of a counter is (name without its prefix, kind, help, labels); several rows may share a name.

from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo, SIDE_DOWNSTREAM, SIDE_LOCAL, SIDE_UPSTREAM, reasons_init
from fastmesh.core.traffic.counters cimport LATENCY_BUCKETS, latency_bound_us
from fastmesh.core.traffic.learned cimport DETECT_BUCKETS, detect_bound_ms
from fastmesh.core.traffic.policy_judge cimport ALLOWED, DENIED


cdef inline tuple reason_rows():
    """(name, side, HTTP status, text, gRPC status) by enum Reason."""
    cdef ReasonInfo table[R_COUNT]
    cdef dict sides = {SIDE_LOCAL: "local", SIDE_DOWNSTREAM: "downstream", SIDE_UPSTREAM: "upstream"}
    cdef int i
    reasons_init(table)
    return tuple([((<bytes>table[i].name).decode(), sides[table[i].side], <int>table[i].status,
                   (<bytes>table[i].text).decode(), <int>table[i].grpc) for i in range(R_COUNT)])


cdef inline tuple latency_bounds():
    """In seconds, without the last (infinite) one."""
    return tuple([latency_bound_us(i) / 1e6 for i in range(LATENCY_BUCKETS - 1)])


cdef inline tuple detect_bounds():
    """In seconds, without the last (infinite) one."""
    return tuple([detect_bound_ms(i) / 1e3 for i in range(DETECT_BUCKETS - 1)])


cdef inline str verdict_name(int verdict):
    """None: nothing was judged."""
    return "allow" if verdict == ALLOWED else "deny" if verdict == DENIED else None


cdef inline tuple decision_names():
    """By enum RuleCounter."""
    return ("allow", "deny", "audit")


cdef inline list _sides(str name, str text):
    """A counter downstream and one upstream."""
    return [(name, "counter", text, {"side": side}) for side in ("downstream", "upstream")]


cdef inline list _directions(str name, str text):
    """Counters downstream and upstream, of what came and what went."""
    return [(name, "counter", text, {"side": side, "direction": direction})
            for side in ("downstream", "upstream") for direction in ("received", "sent")]


cdef inline tuple counter_rows():
    """By enum Counter."""
    cdef list rows = [
        ("downstream_connections_open", "gauge", "Client connections that are open.", {}),
        ("upstream_connections_open", "gauge", "Connections to endpoints that are open.", {}),
        ("upstream_idle_connections", "gauge", "Connections to endpoints that wait in a pool.", {}),
        ("exchanges", "gauge", "Requests under way.", {}),
        ("buffers", "gauge", "Buffers in use.", {}),
        ("tunnels", "gauge", "Opaque tunnels (TCP, CONNECT, upgraded connections) that are open.", {}),
        ("downstream_http2_connections", "gauge", "HTTP/2 connections with clients that are open.", {}),
        ("upstream_http2_connections", "gauge", "HTTP/2 connections to endpoints that are open.", {}),
        ("downstream_connections_total", "counter", "Client connections accepted.", {}),
        ("downstream_refused_total", "counter", "Client connections closed at once: a limit, or no memory.", {}),
        ("upstream_connections_total", "counter", "Connections to endpoints attempted.", {}),
        ("upstream_connect_failures_total", "counter", "Connections to endpoints that could not be made.", {}),
        *_directions("bytes_total", "Bytes through sockets."),
        *_sides("tls_handshakes_total", "TLS handshakes completed."),
        *_sides("tls_resumed_total", "TLS handshakes that resumed a session."),
        *_sides("tls_failed_total", "TLS handshakes that failed."),
        ("tunnels_total", "counter", "Opaque tunnels opened.", {}),
    ]
    rows += [
        ("connections_handed_over_total", "counter",
         "Client connections handed to another worker before they were read.", {"direction": direction})
        for direction in ("sent", "received")]
    rows += [
        ("detect_timeouts_total", "counter", "Connections whose protocol could not be told in time.", {}),
        ("detect_skipped_total", "counter", "Connections not waited for: their server is known to speak first.", {}),
        ("passthrough_connections_total", "counter",
         "Connections passed through to a destination that no service has.", {}),
        ("regex_limits_total", "counter",
         "Regexes of rules that hit their limit: no match to allow, one to deny.", {}),
    ]
    rows += [
        ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
         {"side": side, "cause": cause})
        for side, cause in (
            ("downstream", "age"), ("downstream", "certificate"), ("upstream", "certificate"),
            ("upstream", "replaced"), ("downstream", "revoked"), ("upstream", "revoked"),
            ("downstream", "untrusted"), ("upstream", "untrusted"))]
    rows += [
        ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
         {"side": side, "protocol": protocol})
        for side, protocol in (
            ("downstream", "HTTP/1.0"), ("downstream", "HTTP/1.1"), ("downstream", "HTTP/2"),
            ("upstream", "HTTP/1.1"), ("upstream", "HTTP/2"))]
    rows += [
        *_sides("http2_streams_total", "HTTP/2 streams opened."),
        *_sides("http2_streams_refused_total", "HTTP/2 streams opened and not processed."),
        *_directions("http2_resets_total", "HTTP/2 streams ended by RST_STREAM."),
        *_directions("http2_goaways_total", "HTTP/2 connections told by GOAWAY to take no more streams."),
        *_sides("http2_pings_total", "Signs of life asked for on HTTP/2 connections."),
        *_sides("http2_floods_total", "HTTP/2 connections closed because of floods of cheap frames."),
        ("impossible_total", "counter", "States that the code excludes: a defect if not 0.", {}),
        ("snapshot", "gauge", "Number of the configuration snapshot in force.", {}),
    ]
    return tuple(rows)


cdef inline tuple service_counter_rows():
    """By enum ServiceCounter."""
    cdef list classes = [
        ("requests_total", "counter", "Requests ended, by status class.", {"code": code})
        for code in ("1xx", "2xx", "3xx", "4xx", "5xx", "none")]
    return (
        *classes,
        ("local_answers_total", "counter", "Answers that the proxy made itself.", {}),
        ("connects_total", "counter", "Connections made to endpoints.", {}),
        ("connect_failures_total", "counter", "Connections to endpoints that failed.", {}),
        ("retries_total", "counter", "Further tries.", {}),
        ("reused_dead_total", "counter", "Requests repeated because a reused connection had died.", {}),
        ("request_bytes_total", "counter", "Request body bytes received.", {}),
        ("response_bytes_total", "counter", "Response body bytes sent.", {}),
        ("requests_active", "gauge", "Requests and tunnels under way.", {}),
        ("health_panics_total", "counter", "Requests sent although no endpoint is healthy, to one that is not.", {}),
    )
