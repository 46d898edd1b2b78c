# cython: language_level=3
"""The data plane's composition root: the `Worker` that Python runs, and the `Area` it shares with the agent.

What decides or moves lives on the floors of `fastmesh/core`, what turns it into Python's objects on the topmost,
`core/face`; here they get the names that Python calls. See the type stub `_core.pyi` for the interface.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from fastmesh.core.base.reason cimport R_COUNT
from fastmesh.core.face.balance cimport balance
from fastmesh.core.face.checks cimport (
    certificate_validity, check_identity, check_path, check_regex, check_tls,
)
from fastmesh.core.face.explain cimport explain
from fastmesh.core.face.listen cimport listen_on, listen_siblings
from fastmesh.core.face.load cimport load_snapshot
from fastmesh.core.face.log cimport log_take
from fastmesh.core.face.names cimport (
    counter_rows, decision_names, detect_bounds, latency_bounds, reason_rows, service_counter_rows,
)
from fastmesh.core.face.title cimport title_set
from fastmesh.core.io.handover cimport handover_settle
from fastmesh.core.io.listener cimport inbox_empty
from fastmesh.core.io.loop cimport (
    TURN_CONTROL, TURN_SIGNAL, worker_clock, worker_control, worker_drain, worker_free, worker_init, worker_load,
    worker_release, worker_turns, worker_withdraw,
)
from fastmesh.core.io.original cimport DESTINATION_TEXT, destination_text
from fastmesh.core.io.state cimport Source
from fastmesh.core.io.state cimport Worker as CWorker
from fastmesh.core.sys.atomic cimport fm_load_acquire, fm_load_byte, fm_store_byte
from fastmesh.core.sys.posix cimport (
    MAP_FAILED, MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE, memfd_create, mmap, munmap,
)
from fastmesh.core.traffic.counters cimport (
    AREA_PAGE, A_COUNT, AreaHeader, HEALTH_BAD, K_COUNT, LATENCY_BUCKETS, RuleRow, S_COUNT, ServiceRow, WorkerRow,
    area_detection, area_health, area_is, area_plan, area_ring, area_rule, area_service, area_words, area_worker,
)
from fastmesh.core.traffic.destination cimport DEST_NONE, DEST_SLOT
from fastmesh.core.traffic.learned cimport DETECT_BUCKETS, Detection, LEARNED_MAX, Learned
from fastmesh.core.traffic.share cimport SHARE_TAKES, share_count, share_reset
from fastmesh.core.wire.tls_facts cimport now_seconds
from fastmesh.core.wire.tls_tickets cimport tickets_rotate

import json
import os

RUN_CONTROL = 1
RUN_DRAINED = 2

REASONS = reason_rows()
COUNTERS = counter_rows()
SERVICE_COUNTERS = service_counter_rows()
DECISIONS = decision_names()
LATENCY_BOUNDS = latency_bounds()
DETECT_BOUNDS = detect_bounds()

assert len(DECISIONS) == A_COUNT
assert len(COUNTERS) == K_COUNT and len(SERVICE_COUNTERS) == S_COUNT
assert K_COUNT <= 80 and R_COUNT <= 96          # the room in a WorkerRow


cdef class Area:
    """Counters and access-log rings in shared memory, one slot a worker. See `fastmesh/core/traffic/counters.pxd`."""

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
        cdef AreaHeader plan
        if workers < 1 or services < 1 or rules < 0 or listeners < 0 or health < 0:
            raise ValueError("an area needs at least one worker and one service")
        plan = area_plan(workers, services, rules, listeners, health)
        self.fd = memfd_create(b"fastmesh-area", MFD_CLOEXEC)
        if self.fd < 0:
            raise OSError("memfd_create failed")
        os.ftruncate(self.fd, plan.size)
        self._map(plan.size)
        self.header[0] = plan
        self.rotate_tickets()
        return self

    @staticmethod
    def attach(int fd):
        cdef Area self = Area.__new__(Area)
        cdef size_t size = os.fstat(fd).st_size
        self.fd = os.dup(fd)
        if size < AREA_PAGE:
            raise ValueError("the descriptor is no area")
        self._map(size)
        if not area_is(self.header, size):
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

    cdef int _check(self, int slot, int service) except -1:
        if not 0 <= slot < <int>self.header.workers or not 0 <= service < <int>self.header.services:
            raise IndexError("no such slot")
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

    def rule_counters(self, int slot, int rule):
        self._check(slot, 0)
        if not 0 <= rule < <int>self.header.rules:
            raise IndexError("no such slot")
        cdef RuleRow *row = area_rule(self.header, slot, rule)
        return [row.counters[i] for i in range(A_COUNT)]

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
        return log_take(area_ring(self.header, slot), slot, limit, REASONS)


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
        try:
            worker_load(self.w, load_snapshot(self.w, json.loads(snapshot)))
        except (KeyError, TypeError, AttributeError, OverflowError) as e:
            raise ValueError(f"malformed snapshot: {type(e).__name__}: {e}") from None

    def siblings(self, int inbox, list outboxes):
        """Share connections with the workers of all slots: they send to `inbox` what they hand to us. `outboxes`: the
        sending ends by slot; ours is not used. All are duplicated. Once, before `listen`."""
        listen_siblings(self.w, inbox, outboxes)

    def settle(self):
        """A sibling has died: what it was about to hand us, and did not, will not come."""
        worker_clock(self.w)
        inbox_empty(self.w)
        handover_settle(self.w)

    def listen(self, str name, int fd, int number=-1):
        """Accept on `fd` for the listener `name` of the snapshot. The descriptor is duplicated. `number`: what all
        workers call it; with siblings its connections are shared out."""
        listen_on(self.w, name, fd, number)

    def run(self, int control_fd):
        """Turn until `control_fd` is readable (RUN_CONTROL) or a drain has ended (RUN_DRAINED)."""
        cdef int r
        if not worker_control(self.w, self.control, control_fd):
            raise OSError("the control descriptor cannot be watched")
        while True:
            with nogil:
                r = worker_turns(self.w)
            if r != TURN_SIGNAL:
                return RUN_CONTROL if r == TURN_CONTROL else RUN_DRAINED
            PyErr_CheckSignals()                    # Python's handlers run now; one may raise

    def explain(self, str listener, bytes data, identity=None, source=None, int port=0, destination=None):
        """What would become of a connection that begins so, asked of what the data plane asks."""
        return explain(self.w, listener, data, identity, source, port, destination)

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
        worker_free(self.w)
        return balance(self.w)


def regex_error(str pattern):
    """What is wrong with a regex of a rule, and at which of its bytes; None: nothing."""
    return check_regex(pattern)


def normalize_path(str path, bint keep_slashes=False):
    """A path without its query in the form that rules compare and endpoints get; None: it is refused."""
    return check_path(path, keep_slashes)


def tls_material_error(certificate, key, ca):
    """What is wrong with a certificate and its key, or with the roots to trust (PEM; None: not asked); None:
    nothing."""
    return check_tls(certificate, key, ca)


def identity_error(dict identity, str trust_domain):
    """What a worker would have against the identity of a snapshot; None: nothing."""
    return check_identity(identity, trust_domain)


def certificate_times(str pem):
    """When the first certificate in `pem` is valid: Unix seconds, the second one is out of it. (-1, -1): there is
    none."""
    return certificate_validity(pem)


def set_title(str title):
    """Make ps and top show `title` for this process."""
    title_set(title)
