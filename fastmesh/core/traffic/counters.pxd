# The counters and rings that workers and agent share.
#
# One Area is a memfd: a header, then for every worker slot a WorkerRow, `services` ServiceRows, `rules`
# RuleRows, a log ring (`ring`), a Detection (`learned`) and its Dials, then for every listener a word of each worker
# (`share`), then for every checked endpoint a byte: 0, or HEALTH_BAD. The agent alone writes those, workers read one
# for each choice of an endpoint (`balance`); they stay as they are when it has gone.
# A worker writes only its own slot and is the only writer there; the agent reads all of them and adds up, so nothing
# here is locked or atomic except the ring's two positions and the listeners' words. A worker that replaces a dead one
# goes on with the same rows; it zeroes the gauges first. Adding a counter: a line in the enum, a line in
# `face/names.pxd`.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmesh.core.traffic.dials cimport Dials
from fastmesh.core.traffic.learned cimport Detection
from fastmesh.core.traffic.ring cimport Ring
from fastmesh.core.wire.tls_tickets cimport TlsTickets

cdef enum:  # Counter
    # gauges first: [0, G_COUNT) are zeroed when a worker starts
    G_DOWNSTREAM_CONNECTIONS = 0
    G_UPSTREAM_CONNECTIONS
    G_UPSTREAM_IDLE
    G_EXCHANGES
    G_BUFFERS
    G_TUNNELS
    G_H2_DOWNSTREAM           # HTTP/2 connections
    G_H2_UPSTREAM
    G_COUNT
    K_DOWNSTREAM_CONNECTIONS = G_COUNT
    K_DOWNSTREAM_REFUSED
    K_UPSTREAM_CONNECTIONS
    K_UPSTREAM_CONNECT_FAILURES
    K_BYTES_DOWNSTREAM_IN
    K_BYTES_DOWNSTREAM_OUT
    K_BYTES_UPSTREAM_IN
    K_BYTES_UPSTREAM_OUT
    K_TLS_HANDSHAKES_DOWNSTREAM
    K_TLS_HANDSHAKES_UPSTREAM
    K_TLS_RESUMED_DOWNSTREAM
    K_TLS_RESUMED_UPSTREAM
    K_TLS_FAILED_DOWNSTREAM
    K_TLS_FAILED_UPSTREAM
    K_TUNNELS
    K_HANDED_OUT
    K_HANDED_IN
    K_DETECT_TIMEOUTS
    K_DETECT_SKIPPED
    K_PASSED_THROUGH
    K_REGEX_LIMITS
    K_RETIRED_AGE
    K_RETIRED_CERTIFICATE_DOWNSTREAM
    K_RETIRED_CERTIFICATE_UPSTREAM
    K_RETIRED_REPLACED
    K_RETIRED_REVOKED_DOWNSTREAM
    K_RETIRED_REVOKED_UPSTREAM
    K_RETIRED_UNTRUSTED_DOWNSTREAM
    K_RETIRED_UNTRUSTED_UPSTREAM
    K_HTTP10_DOWNSTREAM       # requests by their version: as they came, as they were sent on
    K_HTTP11_DOWNSTREAM
    K_HTTP2_DOWNSTREAM
    K_HTTP11_UPSTREAM
    K_HTTP2_UPSTREAM
    K_H2_STREAMS_DOWNSTREAM
    K_H2_STREAMS_UPSTREAM
    K_H2_REFUSED_DOWNSTREAM   # streams that were not processed: by us, by the endpoint
    K_H2_REFUSED_UPSTREAM
    K_H2_RESETS_RECEIVED_DOWNSTREAM
    K_H2_RESETS_SENT_DOWNSTREAM
    K_H2_RESETS_RECEIVED_UPSTREAM
    K_H2_RESETS_SENT_UPSTREAM
    K_H2_GOAWAYS_RECEIVED_DOWNSTREAM
    K_H2_GOAWAYS_SENT_DOWNSTREAM
    K_H2_GOAWAYS_RECEIVED_UPSTREAM
    K_H2_GOAWAYS_SENT_UPSTREAM
    K_H2_PINGS_DOWNSTREAM     # ours, that ask for a sign of life
    K_H2_PINGS_UPSTREAM
    K_H2_FLOODS_DOWNSTREAM    # connections closed for too much of what costs the peer nothing
    K_H2_FLOODS_UPSTREAM
    K_IMPOSSIBLE
    K_SNAPSHOT
    K_COUNT

cdef enum:  # ServiceCounter
    S_STATUS_1XX = 0          # upgraded exchanges end with 101
    S_STATUS_2XX
    S_STATUS_3XX
    S_STATUS_4XX
    S_STATUS_5XX
    S_STATUS_NONE             # ended before a status was sent
    S_LOCAL                   # answers that fastmesh made itself
    S_CONNECTS
    S_CONNECT_FAILURES
    S_RETRIES
    S_REUSED_DEAD             # reused connections that died without a response byte, request replayed
    S_BYTES_SENT              # request body bytes towards the service
    S_BYTES_RECEIVED          # response body bytes from it
    S_ACTIVE                  # a gauge
    S_HEALTH_PANICS           # went to an endpoint that is not healthy: none of the service is
    S_COUNT

cdef enum:  # RuleCounter
    A_ALLOWED = 0
    A_DENIED
    A_AUDITED                 # would have been denied
    A_COUNT

cdef enum:
    LATENCY_BUCKETS = 18      # 17 bounds and the rest
    AREA_MAGIC = 0x464D4152
    AREA_PAGE = 4096          # the header has one, slots begin at one
    HEALTH_BAD = 1            # of an endpoint: it failed its checks

cdef struct WorkerRow:
    uint64_t counters[80]     # enum Counter
    uint64_t reasons[96]      # enum Reason

cdef struct ServiceRow:
    uint64_t counters[16]     # enum ServiceCounter
    uint64_t latency[18]      # LATENCY_BUCKETS, not cumulative
    uint64_t latency_sum_us

cdef struct RuleRow:
    uint64_t counters[4]      # enum RuleCounter

cdef struct AreaHeader:
    uint32_t magic
    uint32_t workers
    uint32_t services
    uint32_t rules
    uint32_t listeners
    uint32_t health           # bytes: one for each endpoint that can be checked
    uint64_t slot_bytes
    uint64_t size
    TlsTickets tickets        # the same in all workers, also in later ones; the supervisor turns them


cdef inline size_t _area_slot_bytes(uint32_t services, uint32_t rules) noexcept nogil:
    cdef size_t n = (sizeof(WorkerRow) + services * sizeof(ServiceRow) + rules * sizeof(RuleRow) + sizeof(Ring)
                     + sizeof(Detection) + sizeof(Dials))
    return (n + AREA_PAGE - 1) & ~<size_t>(AREA_PAGE - 1)


cdef inline AreaHeader area_plan(uint32_t workers, uint32_t services, uint32_t rules, uint32_t listeners,
                                 uint32_t health) noexcept nogil:
    """The header of an area with that much room: what it lies in has `size` bytes, all zero but for this."""
    cdef AreaHeader a
    memset(&a, 0, sizeof(AreaHeader))
    a.magic = AREA_MAGIC
    a.workers = workers
    a.services = services
    a.rules = rules
    a.listeners = listeners
    a.health = health
    a.slot_bytes = _area_slot_bytes(services, rules)
    a.size = AREA_PAGE + workers * a.slot_bytes + listeners * _area_words_bytes(workers) + health
    return a


cdef inline bint area_is(const AreaHeader *a, size_t size) noexcept nogil:
    """Are these bytes, at least a page, an area?"""
    return a.magic == AREA_MAGIC and a.size == size


cdef inline char *area_slot(AreaHeader *a, uint32_t slot) noexcept nogil:
    return <char *>a + AREA_PAGE + slot * a.slot_bytes


cdef inline WorkerRow *area_worker(AreaHeader *a, uint32_t slot) noexcept nogil:
    return <WorkerRow *>area_slot(a, slot)


cdef inline ServiceRow *area_service(AreaHeader *a, uint32_t slot, uint32_t service) noexcept nogil:
    return <ServiceRow *>(area_slot(a, slot) + sizeof(WorkerRow)) + service


cdef inline RuleRow *area_rule(AreaHeader *a, uint32_t slot, uint32_t rule) noexcept nogil:
    return <RuleRow *>(area_slot(a, slot) + sizeof(WorkerRow) + a.services * sizeof(ServiceRow)) + rule


cdef inline Ring *area_ring(AreaHeader *a, uint32_t slot) noexcept nogil:
    return <Ring *>(area_slot(a, slot) + sizeof(WorkerRow) + a.services * sizeof(ServiceRow)
                    + a.rules * sizeof(RuleRow))


cdef inline Detection *area_detection(AreaHeader *a, uint32_t slot) noexcept nogil:
    return <Detection *>(<char *>area_ring(a, slot) + sizeof(Ring))


cdef inline Dials *area_dials(AreaHeader *a, uint32_t slot) noexcept nogil:
    return <Dials *>(<char *>area_detection(a, slot) + sizeof(Detection))


cdef inline size_t _area_words_bytes(uint32_t workers) noexcept nogil:
    """Of one listener: whole cache lines, so that two listeners do not meet in one."""
    return (workers * sizeof(uint32_t) + 63) & ~<size_t>63


cdef inline uint32_t *area_words(AreaHeader *a, uint32_t listener) noexcept nogil:
    """The words of all workers for a listener."""
    return <uint32_t *>(area_slot(a, a.workers) + listener * _area_words_bytes(a.workers))


cdef inline uint8_t *area_health(AreaHeader *a) noexcept nogil:
    """The bytes of all checked endpoints."""
    return <uint8_t *>area_words(a, a.listeners)


cdef inline int latency_bucket(uint64_t us) noexcept nogil:
    """The bucket of a duration; bounds as in `latency_bound_us`."""
    cdef int i
    for i in range(LATENCY_BUCKETS - 1):
        if us <= latency_bound_us(i):
            return i
    return LATENCY_BUCKETS - 1


cdef inline uint64_t latency_bound_us(int i) noexcept nogil:
    """Upper bound of bucket `i` in microseconds: 1-2.5-5 steps from 100 us to 10 s, then 60 s."""
    if i == 0: return 100
    if i == 1: return 250
    if i == 2: return 500
    if i == 3: return 1000
    if i == 4: return 2500
    if i == 5: return 5000
    if i == 6: return 10000
    if i == 7: return 25000
    if i == 8: return 50000
    if i == 9: return 100000
    if i == 10: return 250000
    if i == 11: return 500000
    if i == 12: return 1000000
    if i == 13: return 2500000
    if i == 14: return 5000000
    if i == 15: return 10000000
    return 60000000
