# cython: language_level=3
"""The data plane's composition root: the `Worker` that Python runs, and the `Area` it shares with the agent.

Everything that decides or moves lives in `fastmesh/core`; this module gives it a Python face. See the type
stub `_core.pyi` for the interface.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen

from fastmesh.core.base.buffer cimport pool_in_use
from fastmesh.core.base.reason cimport (
    R_BAD_REQUEST_LINE, R_BAD_TARGET, R_CONNECT_NOT_ALLOWED, R_COUNT, R_NO_ENDPOINT, R_NO_SERVICE, R_TLS_HANDSHAKE,
    ReasonInfo, SIDE_DOWNSTREAM, SIDE_LOCAL, SIDE_UPSTREAM, reasons_init,
)
from fastmesh.core.base.shared cimport shared_get, shared_put
from fastmesh.core.base.timer cimport timer_init
from fastmesh.core.io.handover cimport handover_settle, inbox_open, listener_share
from fastmesh.core.io.listener cimport (
    inbox_empty, inbox_event, listener_again, listener_event, listener_watch, pass_on,
)
from fastmesh.core.io.load cimport load_snapshot, mesh_context
from fastmesh.core.io.loop cimport (
    TURN_AGAIN, TURN_CONTROL, TURN_SIGNAL, control_event, worker_clock, worker_drain, worker_free,
    worker_init, worker_release, worker_turn, worker_withdraw,
)
from fastmesh.core.io.original cimport DESTINATION_TEXT, destination_of, destination_text
from fastmesh.core.io.retire cimport retire_denied
from fastmesh.core.io.snapshot_ref cimport snapshot_ref, snapshot_unref
from fastmesh.core.io.state cimport Listener, Source
from fastmesh.core.io.state cimport Worker as CWorker
from fastmesh.core.sys.atomic cimport fm_load_acquire, fm_load_byte, fm_store_byte, fm_store_release
from fastmesh.core.sys.posix cimport (
    AF_INET, AF_INET6, getsockname, sockaddr, sockaddr_storage, socklen_t, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, F_DUPFD_CLOEXEC, IPPROTO_TCP, MAP_FAILED, MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE, PR_SET_NAME,
    SOL_SOCKET, SO_KEEPALIVE, TCP_NODELAY, epoll_ctl, epoll_event, fcntl, inet_pton, malloc_trim, memfd_create, mmap, munmap, prctl,
    setsockopt,
)
from fastmesh.core.traffic.counters cimport (
    AREA_MAGIC, A_COUNT, AreaHeader, HEALTH_BAD, K_COUNT, K_SNAPSHOT, LATENCY_BUCKETS, LogRecord, RING_BYTES, Ring, RuleRow, S_COUNT,
    ServiceRow, WorkerRow, area_detection, area_health, area_ring, area_rule, area_service, area_slot_bytes, area_words, area_words_bytes,
    area_worker, latency_bound_us,
)
from fastmesh.core.traffic.admit cimport Caller, admit, admit_opaque
from fastmesh.core.traffic.destination cimport DEST_INET, DEST_INET6, DEST_NONE, DEST_SLOT, Destination
from fastmesh.core.traffic.detect cimport detect_last
from fastmesh.core.traffic.learned cimport DETECT_BUCKETS, Detection, LEARNED_MAX, Learned, detect_bound_ms
from fastmesh.core.traffic.transparent cimport Choice, choose, choose_unknown, route_original, sharer_by_name
from fastmesh.core.traffic.policy_judge cimport ALLOWED, DENIED, Decision, NO_VERDICT
from fastmesh.core.traffic.policy_scratch cimport policy_compile
from fastmesh.core.traffic.route cimport route
from fastmesh.core.traffic.share cimport SHARE_TAKES, share_count, share_reset
from fastmesh.core.sys.pcre2 cimport pcre2_code, pcre2_code_free, pcre2_get_error_message
from fastmesh.core.traffic.snapshot cimport (
    ListenerConf, PROTO_AUTO, PROTO_HTTP, Service, Snapshot, TLS_PASSTHROUGH,
)
from fastmesh.core.wire.http1 cimport http1_parse_request
from fastmesh.core.wire.message cimport M_CONNECT, Message
from fastmesh.core.wire.path cimport path_normalise
from fastmesh.core.sys.openssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, ERR_clear_error, PEM_read_bio_X509, SSL_CTX, SSL_CTX_free, TLS1_2_VERSION, X509,
    X509_free, X509_get0_notAfter, X509_get0_notBefore,
)
from fastmesh.core.wire.sniff cimport SNIFF_HELLO, SNIFF_NAME_MAX, sniff_hello
from fastmesh.core.wire.tls_facts cimport asn1_seconds, now_seconds
from fastmesh.core.wire.tls_public cimport tls_public_client, tls_public_server
from fastmesh.core.wire.tls_tickets cimport tickets_rotate

import json
import os

RUN_CONTROL = 1
RUN_DRAINED = 2

_SIDES = {SIDE_LOCAL: "local", SIDE_DOWNSTREAM: "downstream", SIDE_UPSTREAM: "upstream"}


cdef tuple _reasons():
    cdef ReasonInfo table[R_COUNT]
    cdef int i
    reasons_init(table)
    return tuple([((<bytes>table[i].name).decode(), _SIDES[table[i].side], <int>table[i].status,
                   (<bytes>table[i].text).decode(), <int>table[i].grpc) for i in range(R_COUNT)])


REASONS = _reasons()
LATENCY_BOUNDS = tuple([latency_bound_us(i) / 1e6 for i in range(LATENCY_BUCKETS - 1)])

# One line for each of enum Counter, in its order.
COUNTERS = (
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
    ("bytes_total", "counter", "Bytes through sockets.", {"side": "downstream", "direction": "received"}),
    ("bytes_total", "counter", "Bytes through sockets.", {"side": "downstream", "direction": "sent"}),
    ("bytes_total", "counter", "Bytes through sockets.", {"side": "upstream", "direction": "received"}),
    ("bytes_total", "counter", "Bytes through sockets.", {"side": "upstream", "direction": "sent"}),
    ("tls_handshakes_total", "counter", "TLS handshakes completed.", {"side": "downstream"}),
    ("tls_handshakes_total", "counter", "TLS handshakes completed.", {"side": "upstream"}),
    ("tls_resumed_total", "counter", "TLS handshakes that resumed a session.", {"side": "downstream"}),
    ("tls_resumed_total", "counter", "TLS handshakes that resumed a session.", {"side": "upstream"}),
    ("tls_failed_total", "counter", "TLS handshakes that failed.", {"side": "downstream"}),
    ("tls_failed_total", "counter", "TLS handshakes that failed.", {"side": "upstream"}),
    ("tunnels_total", "counter", "Opaque tunnels opened.", {}),
    ("connections_handed_over_total", "counter", "Client connections handed to another worker before they were read.",
     {"direction": "sent"}),
    ("connections_handed_over_total", "counter", "Client connections handed to another worker before they were read.",
     {"direction": "received"}),
    ("detect_timeouts_total", "counter", "Connections whose protocol could not be told in time.", {}),
    ("detect_skipped_total", "counter", "Connections not waited for: their server is known to speak first.", {}),
    ("passthrough_connections_total", "counter", "Connections passed through to a destination that no service has.", {}),
    ("regex_limits_total", "counter", "Regexes of rules that hit their limit: no match to allow, one to deny.", {}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "downstream", "cause": "age"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "downstream", "cause": "certificate"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "upstream", "cause": "certificate"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "upstream", "cause": "replaced"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "downstream", "cause": "revoked"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "upstream", "cause": "revoked"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "downstream", "cause": "untrusted"}),
    ("connections_retired_total", "counter", "Connections ended because of what they were made with.",
     {"side": "upstream", "cause": "untrusted"}),
    ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
     {"side": "downstream", "protocol": "HTTP/1.0"}),
    ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
     {"side": "downstream", "protocol": "HTTP/1.1"}),
    ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
     {"side": "downstream", "protocol": "HTTP/2"}),
    ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
     {"side": "upstream", "protocol": "HTTP/1.1"}),
    ("http_requests_total", "counter", "Requests, by the version they came in or were sent on in.",
     {"side": "upstream", "protocol": "HTTP/2"}),
    ("http2_streams_total", "counter", "HTTP/2 streams opened.", {"side": "downstream"}),
    ("http2_streams_total", "counter", "HTTP/2 streams opened.", {"side": "upstream"}),
    ("http2_streams_refused_total", "counter", "HTTP/2 streams opened and not processed.", {"side": "downstream"}),
    ("http2_streams_refused_total", "counter", "HTTP/2 streams opened and not processed.", {"side": "upstream"}),
    ("http2_resets_total", "counter", "HTTP/2 streams ended by RST_STREAM.",
     {"side": "downstream", "direction": "received"}),
    ("http2_resets_total", "counter", "HTTP/2 streams ended by RST_STREAM.",
     {"side": "downstream", "direction": "sent"}),
    ("http2_resets_total", "counter", "HTTP/2 streams ended by RST_STREAM.",
     {"side": "upstream", "direction": "received"}),
    ("http2_resets_total", "counter", "HTTP/2 streams ended by RST_STREAM.",
     {"side": "upstream", "direction": "sent"}),
    ("http2_goaways_total", "counter", "HTTP/2 connections told by GOAWAY to take no more streams.",
     {"side": "downstream", "direction": "received"}),
    ("http2_goaways_total", "counter", "HTTP/2 connections told by GOAWAY to take no more streams.",
     {"side": "downstream", "direction": "sent"}),
    ("http2_goaways_total", "counter", "HTTP/2 connections told by GOAWAY to take no more streams.",
     {"side": "upstream", "direction": "received"}),
    ("http2_goaways_total", "counter", "HTTP/2 connections told by GOAWAY to take no more streams.",
     {"side": "upstream", "direction": "sent"}),
    ("http2_pings_total", "counter", "Signs of life asked for on HTTP/2 connections.", {"side": "downstream"}),
    ("http2_pings_total", "counter", "Signs of life asked for on HTTP/2 connections.", {"side": "upstream"}),
    ("http2_floods_total", "counter", "HTTP/2 connections closed because of floods of cheap frames.",
     {"side": "downstream"}),
    ("http2_floods_total", "counter", "HTTP/2 connections closed because of floods of cheap frames.",
     {"side": "upstream"}),
    ("impossible_total", "counter", "States that the code excludes: a defect if not 0.", {}),
    ("snapshot", "gauge", "Number of the configuration snapshot in force.", {}),
)

# One line for each of enum ServiceCounter, in its order.
SERVICE_COUNTERS = (
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "1xx"}),
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "2xx"}),
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "3xx"}),
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "4xx"}),
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "5xx"}),
    ("requests_total", "counter", "Requests ended, by status class.", {"code": "none"}),
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

# Upper bounds of the histogram of detection delays in seconds, without the last (infinite) one.
DETECT_BOUNDS = tuple([detect_bound_ms(i) / 1e3 for i in range(DETECT_BUCKETS - 1)])

# The decisions that are counted for each rule, in the order of enum RuleCounter.
DECISIONS = ("allow", "deny", "audit")
_VERDICTS = {NO_VERDICT: None, ALLOWED: "allow", DENIED: "deny"}

assert len(DECISIONS) == A_COUNT
assert len(COUNTERS) == K_COUNT and len(SERVICE_COUNTERS) == S_COUNT
assert K_COUNT <= 80 and R_COUNT <= 96          # the room in a WorkerRow


cdef class Area:
    """Counters and access-log rings in shared memory, one slot a worker."""

    cdef AreaHeader *header
    cdef readonly int fd

    def __cinit__(self):
        self.header = NULL
        self.fd = -1

    def __dealloc__(self):
        if self.header != NULL:
            munmap(self.header, self.header.size)
        if self.fd >= 0:
            os.close(self.fd)

    @staticmethod
    def create(int workers, int services=1024, int rules=4096, int listeners=1024, int health=16384):
        cdef Area self = Area.__new__(Area)
        cdef size_t slot = area_slot_bytes(services, rules)
        cdef size_t size = 4096 + workers * slot + listeners * area_words_bytes(workers) + health
        if workers < 1 or services < 1 or rules < 0 or listeners < 0 or health < 0:
            raise ValueError("an area needs at least one worker and one service")
        self.fd = memfd_create(b"fastmesh-area", MFD_CLOEXEC)
        if self.fd < 0:
            raise OSError("memfd_create failed")
        os.ftruncate(self.fd, size)
        self._map(size)
        self.header.magic = AREA_MAGIC
        self.header.workers = workers
        self.header.services = services
        self.header.rules = rules
        self.header.listeners = listeners
        self.header.health = health
        self.header.slot_bytes = slot
        self.header.size = size
        self.rotate_tickets()
        return self

    @staticmethod
    def attach(int fd):
        cdef Area self = Area.__new__(Area)
        cdef size_t size = os.fstat(fd).st_size
        self.fd = os.dup(fd)
        if size < 4096:
            raise ValueError("the descriptor is no area")
        self._map(size)
        if self.header.magic != AREA_MAGIC or self.header.size != size:
            munmap(self.header, size)
            self.header = NULL
            raise ValueError("the descriptor is no area")
        return self

    cdef int _map(self, size_t size) except -1:
        cdef void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if p == MAP_FAILED:
            raise MemoryError()
        self.header = <AreaHeader *>p
        return 0

    def rotate_tickets(self):
        """New session tickets get a new key; those of the one until now are still taken, and renewed. One process
        at a time may call this."""
        if not tickets_rotate(&self.header.tickets, now_seconds()):
            raise OSError("the system has no randomness")

    @property
    def ticket_turn(self):
        """How many keys of session tickets there have been."""
        return fm_load_acquire(&self.header.tickets.turn)

    @property
    def workers(self):
        return self.header.workers

    @property
    def services(self):
        return self.header.services

    @property
    def rules(self):
        return self.header.rules

    @property
    def checkable(self):
        return self.header.health

    cdef uint8_t *_health(self, int slot) except NULL:
        if not 0 <= slot < <int>self.header.health:
            raise IndexError("no such slot")
        return area_health(self.header) + slot

    def healthy(self, int slot):
        return fm_load_byte(self._health(slot)) != HEALTH_BAD

    def set_healthy(self, int slot, bint healthy):
        fm_store_byte(self._health(slot), 0 if healthy else HEALTH_BAD)

    cdef int _check(self, int slot, int service) except -1:
        if not 0 <= slot < <int>self.header.workers or not 0 <= service < <int>self.header.services:
            raise IndexError("no such slot")
        return 0

    def worker_counters(self, int slot):
        self._check(slot, 0)
        cdef WorkerRow *row = area_worker(self.header, slot)
        return [row.counters[i] for i in range(K_COUNT)]

    def reason_counters(self, int slot):
        self._check(slot, 0)
        cdef WorkerRow *row = area_worker(self.header, slot)
        return [row.reasons[i] for i in range(R_COUNT)]

    def service_counters(self, int slot, int service):
        self._check(slot, service)
        cdef ServiceRow *row = area_service(self.header, slot, service)
        return [row.counters[i] for i in range(S_COUNT)]

    def service_latency(self, int slot, int service):
        self._check(slot, service)
        cdef ServiceRow *row = area_service(self.header, slot, service)
        return [row.latency[i] for i in range(LATENCY_BUCKETS)], row.latency_sum_us / 1e6

    def detect_delays(self, int slot):
        self._check(slot, 0)
        cdef Detection *d = area_detection(self.header, slot)
        return [d.delays[i] for i in range(DETECT_BUCKETS)], d.delay_sum_ms / 1e3

    def learned(self, int slot):
        self._check(slot, 0)
        cdef Detection *d = area_detection(self.header, slot)
        cdef Learned row
        cdef char text[DESTINATION_TEXT]
        cdef list out = []
        for i in range(LEARNED_MAX):
            row = d.rows[i]
            if row.at.family == DEST_NONE:
                continue
            name = None
            if row.at.family != DEST_SLOT:
                destination_text(&row.at, text)
                name = (<bytes><char *>text).decode()
            out.append((name, row.service, bool(row.server_first), row.timeouts, row.skipped))
        return out

    def rule_counters(self, int slot, int rule):
        self._check(slot, 0)
        if not 0 <= rule < <int>self.header.rules:
            raise IndexError("no such slot")
        cdef RuleRow *row = area_rule(self.header, slot, rule)
        return [row.counters[i] for i in range(A_COUNT)]

    def shares(self, int listener):
        """For each worker: how many connections of the listener it has or is about to get; None: it takes none."""
        if not 0 <= listener < <int>self.header.listeners:
            raise IndexError("no such listener")
        cdef uint32_t *words = area_words(self.header, listener)
        return [share_count(words[i]) if words[i] & SHARE_TAKES else None for i in range(self.header.workers)]

    def forget(self, int slot, int listeners):
        """The worker of this slot has died: of the first `listeners` listeners it has no connection, and takes
        none."""
        self._check(slot, 0)
        for i in range(min(listeners, <int>self.header.listeners)):
            share_reset(&area_words(self.header, i)[slot])

    def log_dropped(self, int slot):
        self._check(slot, 0)
        return area_ring(self.header, slot).dropped

    def log_read(self, int slot, int limit=1000):
        self._check(slot, 0)
        cdef Ring *ring = area_ring(self.header, slot)
        cdef uint64_t head = fm_load_acquire(&ring.head)
        cdef uint64_t tail = ring.tail
        cdef LogRecord rec
        cdef list out = []
        cdef bytes raw
        cdef size_t at
        cdef size_t first
        if head - tail > RING_BYTES:                # a worker that died while writing cannot do this; do not trust it
            tail = head
        while tail < head and len(out) < limit:
            at = <size_t>(tail & (RING_BYTES - 1))
            first = min(sizeof(LogRecord), RING_BYTES - at)
            memcpy(&rec, ring.data + at, first)
            memcpy(<char *>&rec + first, ring.data, sizeof(LogRecord) - first)
            if rec.size < sizeof(LogRecord) or rec.size > head - tail:
                tail = head
                break
            first = min(<size_t>rec.size, RING_BYTES - at)
            raw = ring.data[at:at + first]
            if first < rec.size:
                raw += ring.data[0:rec.size - first]
            out.append(_record(slot, &rec, raw))
            tail += rec.size
        fm_store_release(&ring.tail, tail)
        return out


cdef dict _record(int slot, LogRecord *rec, bytes raw):
    cdef list texts = []
    cdef size_t at = sizeof(LogRecord)
    for n in (rec.listener_len, rec.service_len, rec.method_len, rec.authority_len, rec.path_len, rec.source_len,
              rec.upstream_len, rec.identity_len, rec.rule_len):
        texts.append(raw[at:at + n].decode("utf-8", "backslashreplace"))
        at += n
    return {
        "time": rec.wall_us / 1e6,
        "worker": slot,
        "listener": texts[0],
        "service": texts[1],
        "method": texts[2],
        "authority": texts[3],
        "path": texts[4],
        "status": rec.status,
        "reason": REASONS[rec.reason][0] if 0 < rec.reason < R_COUNT else None,
        "duration": rec.duration_us / 1e6,
        "bytes_in": rec.bytes_in,
        "bytes_out": rec.bytes_out,
        "source": texts[5],
        "upstream": texts[6] or None,
        "identity": texts[7] or None,
        "decision": _VERDICTS.get(rec.verdict),
        "rule": texts[8] or ("default" if rec.verdict else None),
        "rules_of": ("service" if rec.by_service else "listener") if rec.verdict else None,
        "audit": bool(rec.audit),
        "protocol": {0: "TCP", 10: "HTTP/1.0", 11: "HTTP/1.1", 20: "HTTP/2"}.get(rec.version, "?"),
        "retries": rec.retries,
        "snapshot": rec.snapshot,
    }


def regex_error(str pattern):
    """What is wrong with a regex of a rule, and at which of its bytes; None: nothing."""
    cdef bytes raw = pattern.encode()
    cdef int error = 0
    cdef size_t offset = 0
    cdef unsigned char text[256]
    cdef pcre2_code *code = policy_compile(raw, len(raw), &error, &offset)
    if code != NULL:
        pcre2_code_free(code)
        return None
    pcre2_get_error_message(error, text, sizeof(text))
    return (<bytes><char *>text).decode(), offset


def normalize_path(str path, bint keep_slashes=False):
    """A path without its query in the form that rules compare and endpoints get; None: it is refused."""
    cdef bytearray work = bytearray(path.encode())
    cdef size_t n = len(work)
    if path_normalise(<char *>work, &n, keep_slashes) < 0:
        return None
    return bytes(work[:n]).decode()


def tls_material_error(certificate, key, ca):
    """What is wrong with a certificate and its key, or with the roots to trust (PEM; None: not asked); None:
    nothing."""
    cdef char err[512]
    cdef bytes a = (certificate or "").encode()
    cdef bytes b = (key or "").encode()
    cdef bytes c = (ca or "").encode()
    cdef SSL_CTX *ctx
    if certificate is not None:
        ctx = tls_public_server(b"", a, b, NULL, NULL, NULL, 0, TLS1_2_VERSION, err, sizeof(err))
    else:
        ctx = tls_public_client(b"localhost", c, NULL, NULL, NULL, 0, TLS1_2_VERSION, err, sizeof(err))
    if ctx == NULL:
        return (<bytes>err).decode("utf-8", "replace")
    SSL_CTX_free(ctx)
    return None


def identity_error(dict identity, str trust_domain):
    """What a worker would have against the identity of a snapshot; None: nothing."""
    try:
        for server in (True, False):
            SSL_CTX_free(mesh_context(server, identity, trust_domain, NULL))
    except ValueError as error:
        return str(error)
    return None


def certificate_times(str pem):
    """When the first certificate in `pem` is valid: Unix seconds, the second one is out of it. (-1, -1): there is
    none."""
    cdef bytes raw = pem.encode()
    cdef BIO *bio = BIO_new_mem_buf(<const char *>raw, <int>len(raw))
    cdef X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL) if bio != NULL else NULL
    BIO_free(bio)
    ERR_clear_error()
    if cert == NULL:
        return -1, -1
    times = asn1_seconds(X509_get0_notBefore(cert)), asn1_seconds(X509_get0_notAfter(cert))
    X509_free(cert)
    return times


cdef class Worker:
    """One event loop. See `fastmesh/core/io/loop.pxd`."""

    cdef CWorker *w
    cdef Area area
    cdef Source *control

    def __cinit__(self, Area area, int slot):
        area._check(slot, 0)
        self.area = area
        self.w = <CWorker *>calloc(1, sizeof(CWorker))
        self.control = <Source *>calloc(1, sizeof(Source))
        if self.w == NULL or self.control == NULL:
            raise MemoryError()
        if worker_init(self.w, area.header, slot) != 0:
            raise OSError("a worker cannot be set up: out of memory or file descriptors")

    def __dealloc__(self):
        if self.w != NULL:
            worker_free(self.w)
            worker_release(self.w)
            free(self.w)
        free(self.control)

    def load(self, bytes snapshot):
        """Take a snapshot into force: for new exchanges at once; those under way keep theirs."""
        cdef Snapshot *s
        cdef Snapshot *old = self.w.snapshot
        cdef Listener *l
        try:
            d = json.loads(snapshot)
            s = load_snapshot(self.w, d)
        except (KeyError, TypeError, AttributeError, OverflowError) as e:
            raise ValueError(f"malformed snapshot: {type(e).__name__}: {e}") from None
        self.w.snapshot = s
        self.w.loads += 1
        l = self.w.listeners
        while l != NULL:
            # A listener that the new snapshot does not name goes on with what it has until it is stopped.
            self._bind(l, s)
            l = l.next
        worker_clock(self.w)
        if old != NULL:
            retire_denied(self.w, old)
            self._retire(old)
        self.w.row.counters[K_SNAPSHOT] = s.number
        malloc_trim(0)

    cdef int _retire(self, Snapshot *old) except -1:
        snapshot_unref(self.w, old)
        return 0

    cdef bint _bind(self, Listener *l, Snapshot *s) except -1:
        cdef uint32_t i
        for i in range(s.nlisteners):
            if strlen(l.name) == s.listeners[i].name.len and l.name == s.listeners[i].name.ptr[:s.listeners[i].name.len]:
                snapshot_ref(s)
                if l.snapshot != NULL:
                    snapshot_unref(self.w, l.snapshot)
                l.snapshot = s
                l.conf = &s.listeners[i]
                return True
        return False

    def siblings(self, int inbox, list outboxes):
        """Share connections with the workers of all slots: they send to `inbox` what they hand to us. `outboxes`: the
        sending ends by slot; ours is not used. All are duplicated. Once, before `listen`."""
        cdef CWorker *w = self.w
        cdef uint32_t count = <uint32_t>len(outboxes)
        cdef uint32_t i
        if w.inbox.siblings != NULL or w.listeners != NULL or not w.slot < count <= w.area.workers:
            raise ValueError("not these siblings, or not now")
        w.inbox.siblings = <int *>calloc(count, sizeof(int))
        if w.inbox.siblings == NULL:
            raise MemoryError()
        for i in range(count):
            w.inbox.siblings[i] = -1
        w.inbox.nsiblings = count
        for i in range(count):
            if i != w.slot:
                w.inbox.siblings[i] = fcntl(<int>outboxes[i], F_DUPFD_CLOEXEC, 0)
                if w.inbox.siblings[i] < 0:
                    raise OSError("a sibling's inbox cannot be used: out of descriptors, or none")
        w.inbox.src.on_event = inbox_event
        if not inbox_open(w, fcntl(inbox, F_DUPFD_CLOEXEC, 0)):
            raise OSError("the inbox cannot be watched")

    def settle(self):
        """A sibling has died: what it was about to hand us, and did not, will not come."""
        worker_clock(self.w)
        inbox_empty(self.w)
        handover_settle(self.w)

    def listen(self, str name, int fd, int number=-1):
        """Accept on `fd` for the listener `name` of the snapshot. The descriptor is duplicated. `number`: what all
        workers call it; with siblings its connections are shared out."""
        cdef Listener *l
        cdef sockaddr_storage address
        cdef socklen_t size = sizeof(sockaddr_storage)
        cdef int one = 1
        cdef bytes raw = name.encode()
        if self.w.snapshot == NULL:
            raise ValueError("no snapshot is loaded")
        l = <Listener *>calloc(1, sizeof(Listener))
        if l == NULL:
            raise MemoryError()
        if <size_t>len(raw) >= sizeof(l.name):
            free(l)
            raise ValueError("a listener's name is too long")
        memcpy(l.name, <char *>raw, len(raw))
        if not self._bind(l, self.w.snapshot):
            free(l)
            raise ValueError(f"the snapshot has no listener {name!r}")
        l.src.on_event = listener_event
        l.src.fd = os.dup(fd)
        if getsockname(l.src.fd, <sockaddr *>&address, &size) == 0:
            destination_of(&address, &l.bound)
        timer_init(&l.timer, listener_again)
        listener_share(self.w, l, number)
        # Accepted sockets inherit these. Unix sockets refuse the first, which does not matter.
        setsockopt(l.src.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int))
        setsockopt(l.src.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(int))
        if not listener_watch(self.w, l):
            os.close(l.src.fd)
            snapshot_unref(self.w, l.snapshot)
            free(l)
            raise OSError(f"listener {name!r}: the descriptor cannot be watched")
        l.next = self.w.listeners
        self.w.listeners = l

    def run(self, int control_fd):
        """Turn until `control_fd` is readable (RUN_CONTROL) or a drain has ended (RUN_DRAINED)."""
        cdef CWorker *w = self.w
        cdef epoll_event ev
        cdef int r
        if w.control_fd >= 0 and w.control_fd != control_fd:
            epoll_ctl(w.ep, EPOLL_CTL_DEL, w.control_fd, NULL)
        self.control.on_event = control_event
        self.control.fd = control_fd
        ev.events = EPOLLIN
        ev.data.ptr = self.control
        # A number may have been closed and given out anew since: then it is not registered.
        if (epoll_ctl(w.ep, EPOLL_CTL_MOD, control_fd, &ev) != 0
                and epoll_ctl(w.ep, EPOLL_CTL_ADD, control_fd, &ev) != 0):
            raise OSError("the control descriptor cannot be watched")
        w.control_fd = control_fd
        while True:
            with nogil:
                r = worker_turn(w, 1000 if w.draining else -1)
                while r == TURN_AGAIN:
                    r = worker_turn(w, 1000 if w.draining else -1)
            if r == TURN_SIGNAL:
                PyErr_CheckSignals()                # Python's handlers run now; one may raise
                continue
            return RUN_CONTROL if r == TURN_CONTROL else RUN_DRAINED

    def explain(self, str listener, bytes data, identity=None, source=None, int port=0, destination=None):
        """What would become of a connection that begins so, asked of what the data plane asks."""
        cdef CWorker *w = self.w
        cdef Snapshot *s = w.snapshot
        cdef ListenerConf *conf = NULL
        cdef Service *service = NULL
        cdef Caller caller
        cdef Decision decision
        cdef Message *m = &w.msg
        cdef bytearray work = bytearray(data)
        cdef bytes raw
        cdef bint http = False
        cdef bint told = False
        cdef Destination wanted
        cdef Choice choice
        cdef char name[SNIFF_NAME_MAX]
        cdef size_t name_len = 0
        cdef int32_t to = -1
        cdef uint32_t scan = 0
        cdef uint32_t i
        cdef int r = 0
        memset(&decision, 0, sizeof(Decision))
        memset(&caller, 0, sizeof(Caller))
        if source is not None:
            raw = source.encode()
            caller.facts.family = 6 if ":" in source else 4
            if inet_pton(AF_INET6 if ":" in source else AF_INET, raw, caller.facts.address) != 1:
                raise ValueError(f"{source!r} is no IP address")
        caller.facts.port = <uint16_t>port
        for i in range(s.nlisteners):
            if s.listeners[i].name.ptr[:s.listeners[i].name.len] == listener.encode():
                conf = &s.listeners[i]
        if conf == NULL:
            raise ValueError(f"the snapshot has no listener {listener!r}")
        if identity is not None:
            raw = identity.encode()
            caller.facts.identity = shared_get(&w.identities, raw, <uint32_t>len(raw))
            if caller.facts.identity == NULL:
                raise MemoryError()
        memset(&wanted, 0, sizeof(Destination))
        memset(&choice, 0, sizeof(Choice))
        if conf.transparent:
            wanted.port = caller.facts.port
            if destination is not None:
                raw = destination[0].encode()
                wanted.family = DEST_INET6 if ":" in destination[0] else DEST_INET
                wanted.port = <uint16_t>destination[1]
                if inet_pton(AF_INET6 if ":" in destination[0] else AF_INET, raw, wanted.address) != 1:
                    raise ValueError(f"{destination[0]!r} is no IP address")
            choose(s, conf, &wanted, destination is None, &choice)
            caller.facts.port = choice.port
            r = -choice.reason
            told = choice.protocol != PROTO_HTTP and (
                choice.protocol != PROTO_AUTO or detect_last(conf, <char *>work, len(work)) != 1)
            to = choice.service
            if r == 0 and told and choice.shared != NULL:
                if sniff_hello(<char *>work, len(work), name, &name_len) == SNIFF_HELLO:
                    to = sharer_by_name(s, choice.shared, name, name_len)
                if to < 0:
                    choose_unknown(s, conf, &choice)
                    to = choice.service
                    r = -choice.reason
        if r < 0 or told:
            pass
        elif conf.tls == TLS_PASSTHROUGH:
            r = pass_on(conf, <char *>work, len(work), &to)
            r = r if r < 0 else 0 if r else -R_TLS_HANDSHAKE
        elif conf.transparent or conf.protocol == PROTO_HTTP or conf.protocol == PROTO_AUTO and detect_last(conf, <char *>work, len(work)) == 1:
            http = True
            r = http1_parse_request(<char *>work, len(work), &scan, m)
            r = r if r < 0 else 0 if r == <int>len(work) else -R_BAD_REQUEST_LINE
        else:
            to = conf.service
        if r == 0:
            if http and conf.transparent:
                service = route_original(
                    s, conf, &wanted, destination is None, m.base + m.authority.at, m.authority.len,
                    &caller.facts.port)
                if service == NULL and choice.shared != NULL:
                    choose_unknown(s, conf, &choice)        # as the first request of a connection
                    http = False
                    r = -choice.reason
                    service = &s.services[s.passthrough] if r == 0 else NULL
            elif http:
                service = route(s, conf, m.base + m.authority.at, m.authority.len)
            elif to >= 0:
                service = &s.services[to]
            if service == NULL:
                r = r or -R_NO_SERVICE
            elif http:
                r = admit(&w.policy, conf, service, &caller, w.loads, m, &decision)
            else:
                r = admit_opaque(conf, service, &caller, w.loads, &decision)
            if r == 0 and http and m.method == M_CONNECT and not conf.outbound:
                r = -R_CONNECT_NOT_ALLOWED
            elif r == 0 and service.nendpoints == 0 and not service.original:
                r = -R_NO_ENDPOINT
        shared_put(&w.identities, caller.facts.identity)
        path = None
        if http and r != -R_BAD_TARGET and m.path.len > 0 and service != NULL:
            path = m.base[m.path.at:m.path.at + m.path.len].decode("utf-8", "backslashreplace")
        return {
            "reason": REASONS[-r][0] if r < 0 else None,
            "protocol": "http" if http else "opaque",
            "service": service.name.ptr[:service.name.len].decode() if service != NULL else None,
            "endpoints": [] if service == NULL else [
                service.endpoints[i].text.ptr[:service.endpoints[i].text.len].decode()
                for i in range(service.nendpoints)],
            "path": path,
            "decision": _VERDICTS[decision.verdict],
            "rule": None if decision.verdict == NO_VERDICT else "default" if decision.rule == NULL else (
                decision.rule.name.ptr[:decision.rule.name.len].decode()),
            "rules_of": None if decision.verdict == NO_VERDICT else "service" if decision.service else "listener",
            "audit": bool(decision.audit),
        }

    def withdraw(self):
        """Inbound listeners stop accepting, and let exchanges end; outbound ones serve on."""
        worker_clock(self.w)
        worker_withdraw(self.w)

    def drain(self, int deadline_ms):
        """Stop accepting and let exchanges end; run() returns RUN_DRAINED then, or after `deadline_ms`."""
        worker_clock(self.w)
        worker_drain(self.w, deadline_ms)

    def close(self):
        """End everything. The balance counters: what is not 0 has leaked."""
        cdef CWorker *w = self.w
        worker_free(w)
        return {
            "connections": w.conns.in_use,
            "exchanges": w.exchanges.in_use,
            "servers": w.servers.in_use,
            "clients": w.clients.in_use,
            "diallings": w.diallings.in_use,
            "parked": w.parked.in_use,
            "http2": w.h2s.in_use,
            "streams": w.h2_ends.in_use,
            "heap": w.heap.in_use,
            "flows": w.flows.in_use,
            "tunnels": w.tunnels.in_use,
            "originals": w.originals.in_use,
            "buffers": pool_in_use(&w.pool),
            "texts": w.identities.count + w.client_certs.count,
            "timers": w.wheel.armed,
            "tls": w.tls_open,
            "pipes": w.pipes_open,
            "descriptors": w.fds_open,
            "snapshots": w.snapshots,
        }


def set_title(str title):
    """Make ps and top show `title` for this process: written over its arguments, cut to their length.

    The area is where /proc/PID/stat says (proc(5): arg_start, arg_end).
    """
    cdef bytes raw = title.encode()
    cdef char *start
    cdef size_t room
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rsplit(b")", 1)[1].split()
    start = <char *><size_t>int(fields[45])
    room = int(fields[46]) - int(fields[45])
    if start == NULL or room < 2:
        return
    raw = raw[:room - 1]
    memset(start, 0, room)
    memcpy(start, <char *>raw, len(raw))
    prctl(PR_SET_NAME, <unsigned long><char *>raw, 0, 0, 0)
