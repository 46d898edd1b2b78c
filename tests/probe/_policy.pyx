# Rules and paths for tests: the engine of the data plane without a socket. Every request lies in a heap block
# of exactly its size, so that a sanitizer build sees any byte touched beyond it.

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo, reasons_init
from fastmesh.core.base.shared cimport Shared, SharedTexts, shared_free, shared_get, shared_put
from fastmesh.core.face.load_policy cimport load_policy
from fastmesh.core.io.state cimport Worker
from fastmesh.core.sys.posix cimport AF_INET, AF_INET6, inet_pton
from fastmesh.core.traffic.admit cimport Caller, admit, admit_opaque, must_admit
from fastmesh.core.traffic.counters cimport AreaHeader, K_REGEX_LIMITS, area_plan, area_rule, area_worker
from fastmesh.core.traffic.policy cimport Policy, policy_list_free
from fastmesh.core.traffic.policy_judge cimport Decision
from fastmesh.core.traffic.policy_scratch cimport policy_scratch_free
from fastmesh.core.traffic.snapshot cimport (
    Block, ListenerConf, NORMALIZE_AUTO, NORMALIZE_OFF, NORMALIZE_ON, Service, Snapshot,
)
from fastmesh.core.wire.http1 cimport http1_parse_request
from fastmesh.core.wire.message cimport Message
from fastmesh.core.wire.path cimport path_bare, path_decoded, path_is_normal, path_normalise

cdef enum:
    ROWS = 2048

cdef ReasonInfo reasons[R_COUNT]
reasons_init(reasons)


cdef str reason(int r):
    return (<bytes>reasons[-r].name).decode() if r < 0 else None


def normalise(bytes path, bint keep_slashes=False):
    """A path in normal form, or None: it is refused. Also: was it in it already?"""
    cdef size_t n = len(path)
    cdef char *block = <char *>malloc(n)
    cdef bint normal
    memcpy(block, <char *>path, n)
    normal = path_is_normal(block, n)
    try:
        if path_normalise(block, &n, keep_slashes) < 0:
            assert not normal
            return None, False
        return block[:n], normal
    finally:
        free(block)


def forms(bytes path):
    """A path decoded, and without parameters too."""
    cdef char *out = <char *>malloc(len(path) + 1)
    cdef char *bare = <char *>malloc(len(path) + 1)
    cdef size_t n = path_decoded(<char *>path, len(path), True, out)
    cdef size_t m = path_bare(out, n, bare)
    try:
        return out[:n], bare[:m]
    finally:
        free(out)
        free(bare)


cdef class Engine:
    """The rules of a listener and of a service, each as in a snapshot; rows of counters are given here."""
    cdef Worker *w
    cdef Snapshot *s
    cdef ListenerConf conf
    cdef Service service
    cdef list rows
    cdef Shared *who              # the last caller's identity

    def __cinit__(self, dict listener=None, dict service=None):
        self.w = <Worker *>calloc(1, sizeof(Worker))
        self.s = <Snapshot *>calloc(1, sizeof(Snapshot))
        cdef AreaHeader plan = area_plan(1, 1, ROWS, 0, 0)
        self.w.area = <AreaHeader *>calloc(1, plan.size)
        self.w.area[0] = plan
        self.w.row = area_worker(self.w.area, 0)
        self.w.loads = 1
        self.rows = []
        memset(&self.conf, 0, sizeof(ListenerConf))
        memset(&self.service, 0, sizeof(Service))
        self.service.name.ptr = b"app"
        self.service.name.len = 3
        listener = listener or {}
        self.conf.policy = load_policy(self.w, self.s, self._numbered(listener))
        self.service.policy = load_policy(self.w, self.s, self._numbered(service or {}))
        self.conf.normalize = {"auto": NORMALIZE_AUTO, "on": NORMALIZE_ON, "off": NORMALIZE_OFF}[
            listener.get("normalize_paths", "auto")]
        self.conf.keep_slashes = listener.get("encoded_slashes") == "keep"

    cdef dict _numbered(self, dict owner):
        cdef dict out = dict(owner)
        out["rule_slot"] = self._slot("default")
        for kind in ("allow", "deny"):
            if owner.get(kind) is not None:
                out[kind] = []
                for i, rule in enumerate(owner[kind]):
                    name = rule.get("name", f"{kind}-{i + 1}")
                    out[kind].append({**rule, "name": name, "slot": self._slot(name)})
        return out

    cdef int _slot(self, str name):
        self.rows.append(name)
        return len(self.rows) - 1

    def __dealloc__(self):
        cdef Policy *p = self.s.policies
        cdef Block *b
        while p != NULL:
            policy_list_free(&p.allow)
            policy_list_free(&p.deny)
            p = p.next
        while self.s.blocks != NULL:
            b = <Block *>self.s.blocks
            self.s.blocks = b.next
            free(b)
        policy_scratch_free(&self.w.policy)
        shared_put(&self.w.identities, self.who)
        shared_free(&self.w.identities)
        free(self.w.area)
        free(self.w)
        free(self.s)

    cdef int _caller(self, Caller *caller, str identity, str source, int port) except -1:
        cdef bytes raw
        memset(caller, 0, sizeof(Caller))
        if identity is not None:
            raw = identity.encode()
            shared_put(&self.w.identities, self.who)
            self.who = shared_get(&self.w.identities, raw, <uint32_t>len(raw))
            caller.facts.identity = self.who
        if source is not None:
            raw = source.encode()
            caller.facts.family = 6 if ":" in source else 4
            assert inet_pton(AF_INET6 if ":" in source else AF_INET, raw, caller.facts.address) == 1
        caller.facts.port = <uint16_t>port
        return 0

    cdef dict _decided(self, int r, Decision *d):
        return {
            "reason": reason(r),
            "decision": ("none", "allow", "deny")[<int>d.verdict],
            "rule": d.rule.name.ptr[:d.rule.name.len].decode() if d.rule != NULL else "default",
            "audit": bool(d.audit),
            "service": bool(d.service),
        }

    def ask(self, bytes head, str identity=None, str source="192.0.2.1", int port=8080):
        """What becomes of a request: reason (None: it goes on), decision, rule, and the target that is left."""
        cdef Caller caller
        cdef Decision d
        cdef Message m
        cdef uint32_t scan = 0
        cdef char *block = <char *>malloc(len(head))
        cdef int r
        try:
            self._caller(&caller, identity, source, port)
            memset(&d, 0, sizeof(Decision))
            memset(&m, 0, sizeof(Message))
            memcpy(block, <char *>head, len(head))
            r = http1_parse_request(block, len(head), &scan, &m)
            if r <= 0:
                return {"reason": reason(r) or "incomplete", "decision": "none", "rule": "", "target": None}
            r = 0
            if must_admit(&self.conf, &self.service):
                r = admit(&self.w.policy, &self.conf, &self.service, &caller, self.w.loads, &m, &d)
            return {**self._decided(r, &d), "target": m.base[m.path.at:m.path.at + m.path.len]}
        finally:
            free(block)

    def opaque(self, str identity=None, str source="192.0.2.1", int port=8080):
        """What becomes of a connection of opaque bytes."""
        cdef Caller caller
        cdef Decision d
        self._caller(&caller, identity, source, port)
        memset(&d, 0, sizeof(Decision))
        return self._decided(admit_opaque(&self.conf, &self.service, &caller, self.w.loads, &d), &d)

    def counters(self):
        """(rule, [allowed, denied, audited]) in the order in which rows were given; the service's last."""
        return [(name, [area_rule(self.w.area, 0, <uint32_t>i).counters[k] for k in range(3)])
                for i, name in enumerate(self.rows)]

    @property
    def regex_limits(self):
        return self.w.row.counters[<int>K_REGEX_LIMITS]

    def nanoseconds(self, bytes head, int rounds, str identity=None, str source="192.0.2.1"):
        """One decision, parsing left out, and whether it let the request pass. The connection's part has been
        settled before, as it is in a worker. The path must be in normal form: it is decided again and again."""
        cdef Caller caller
        cdef Decision d
        cdef Message m
        cdef uint32_t scan = 0
        cdef timespec start
        cdef timespec stop
        cdef int i
        cdef int r = 0
        cdef bytes work = bytes(bytearray(head))
        self._caller(&caller, identity, source, 8080)
        assert http1_parse_request(work, len(work), &scan, &m) > 0
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &start)
            for i in range(rounds):
                memset(&d, 0, sizeof(Decision))
                if must_admit(&self.conf, &self.service):
                    r |= admit(&self.w.policy, &self.conf, &self.service, &caller, self.w.loads, &m, &d)
            clock_gettime(CLOCK_MONOTONIC, &stop)
        return ((stop.tv_sec - start.tv_sec) * 1e9 + (stop.tv_nsec - start.tv_nsec)) / rounds, r == 0


def share(list texts):
    """Takes a reference to each text, in order, and gives them back in another: how many there were at most, and
    how many are left. Equal texts are one, and what is kept reads as what was put in."""
    cdef SharedTexts table
    cdef list held = []
    cdef Shared *e
    cdef uint32_t most
    memset(&table, 0, sizeof(SharedTexts))
    for text in texts:
        e = shared_get(&table, <char *>(<bytes>text), <uint32_t>len(text))
        assert e != NULL and e.text[:e.len] == text
        held.append((text, <size_t>e))
    assert len({at for _, at in held}) == len(set(texts)) == table.count
    most = table.count
    for text, at in sorted(held):
        e = <Shared *><size_t>at
        assert e.text[:e.len] == text
        shared_put(&table, e)
    left = table.count
    shared_free(&table)
    return most, left
