# What would become of a connection, asked of what the data plane asks. Nothing is sent anywhere, and nothing counted.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmesh.core.base.reason cimport (
    R_BAD_REQUEST_LINE, R_BAD_TARGET, R_CONNECT_NOT_ALLOWED, R_NO_ENDPOINT, R_NO_SERVICE, R_TLS_HANDSHAKE,
)
from fastmesh.core.base.shared cimport shared_get, shared_put
from fastmesh.core.face.names cimport verdict_name
from fastmesh.core.io.listener cimport pass_on
from fastmesh.core.io.state cimport Worker
from fastmesh.core.sys.posix cimport AF_INET, AF_INET6, inet_pton
from fastmesh.core.traffic.admit cimport Caller, admit, admit_opaque
from fastmesh.core.traffic.destination cimport Destination
from fastmesh.core.traffic.detect cimport detect_last
from fastmesh.core.traffic.policy_judge cimport Decision, NO_VERDICT
from fastmesh.core.traffic.route cimport route
from fastmesh.core.traffic.snapshot cimport (
    ListenerConf, PROTO_AUTO, PROTO_HTTP, Service, Snapshot, TLS_PASSTHROUGH, listener_named,
)
from fastmesh.core.traffic.text_index cimport Text
from fastmesh.core.traffic.transparent cimport Choice, choose, choose_unknown, route_original, sharer_by_name
from fastmesh.core.wire.http1 cimport http1_parse_request
from fastmesh.core.wire.message cimport M_CONNECT, Message
from fastmesh.core.wire.sniff cimport SNIFF_HELLO, SNIFF_NAME_MAX, sniff_hello

cdef struct Course:
    ListenerConf *conf
    Caller caller
    Destination wanted            # transparent: where the client wanted to go ...
    bint own                      # ... or: to the listener itself
    Choice choice                 # transparent
    bint http
    int32_t to                    # opaque: index of the service; -1: none
    Service *service              # NULL: none
    Decision decision


# ---------------------------------------------------------------- what is asked

cdef inline int _address(str text, uint8_t *out) except -1:
    """Its family, 4 or 6."""
    cdef bytes raw = text.encode()
    cdef int family = 6 if ":" in text else 4
    if inet_pton(AF_INET6 if family == 6 else AF_INET, raw, out) != 1:
        raise ValueError(f"{text!r} is no IP address")
    return family


cdef inline int _ask(Worker *w, Course *c, str listener, identity, source, int port, destination) except -1:
    """Who connects, to whom; afterwards `c` holds a reference on the identity."""
    cdef bytes raw = listener.encode()
    memset(c, 0, sizeof(Course))
    c.to = -1
    c.conf = listener_named(w.snapshot, raw, len(raw))
    if c.conf == NULL:
        raise ValueError(f"the snapshot has no listener {listener!r}")
    if source is not None:
        c.caller.facts.family = _address(source, c.caller.facts.address)
    c.caller.facts.port = c.wanted.port = <uint16_t>port
    c.own = destination is None
    if not c.own and c.conf.transparent:
        c.wanted.family = _address(destination[0], c.wanted.address)
        c.wanted.port = <uint16_t>destination[1]
    if identity is not None:
        raw = identity.encode()
        c.caller.facts.identity = shared_get(&w.identities, raw, <uint32_t>len(raw))
        if c.caller.facts.identity == NULL:
            raise MemoryError()
    return 0


# ---------------------------------------------------------------- what becomes of it: 0, or a negative reason

cdef inline int _choose(Snapshot *s, Course *c, const char *p, size_t n, bint *opaque) noexcept nogil:
    """Where a connection that was taken over goes, and whether its requests have no say in that."""
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t name_len = 0
    choose(s, c.conf, &c.wanted, c.own, &c.choice)
    c.caller.facts.port = c.choice.port
    c.to = c.choice.service
    opaque[0] = c.choice.protocol != PROTO_HTTP and (c.choice.protocol != PROTO_AUTO or detect_last(c.conf, p, n) != 1)
    if c.choice.reason == 0 and opaque[0] and c.choice.shared != NULL:
        if sniff_hello(p, n, name, &name_len) == SNIFF_HELLO:
            c.to = sharer_by_name(s, c.choice.shared, name, name_len)
        if c.to < 0:
            choose_unknown(s, c.conf, &c.choice)
            c.to = c.choice.service
    return -c.choice.reason


cdef inline int _begin(Snapshot *s, Course *c, char *p, size_t n, Message *m) noexcept nogil:
    """What it speaks: a request's head is parsed into `m`, otherwise `to` is known."""
    cdef uint32_t scan = 0
    cdef bint opaque = False
    cdef int r = 0
    if c.conf.transparent:
        r = _choose(s, c, p, n, &opaque)
        if r < 0 or opaque:
            return r
    if c.conf.tls == TLS_PASSTHROUGH:
        r = pass_on(c.conf, p, n, &c.to)
        return r if r < 0 else 0 if r else -R_TLS_HANDSHAKE
    if c.conf.transparent or c.conf.protocol == PROTO_HTTP or (
            c.conf.protocol == PROTO_AUTO and detect_last(c.conf, p, n) == 1):
        c.http = True
        r = http1_parse_request(p, n, &scan, m)
        return r if r < 0 else 0 if <size_t>r == n else -R_BAD_REQUEST_LINE
    c.to = c.conf.service
    return 0


cdef inline int _route(Snapshot *s, Course *c, const Message *m) noexcept nogil:
    """Whose it is."""
    cdef const char *authority = m.base + m.authority.at
    if not c.http:
        c.service = &s.services[c.to] if c.to >= 0 else NULL
    elif not c.conf.transparent:
        c.service = route(s, c.conf, authority, m.authority.len)
    else:
        c.service = route_original(s, c.conf, &c.wanted, c.own, authority, m.authority.len, &c.caller.facts.port)
        if c.choice.shared != NULL and (c.service == NULL or c.service.original):
            choose_unknown(s, c.conf, &c.choice)     # as the first request of a connection
            c.http = False
            if c.choice.reason:
                return -c.choice.reason
            c.service = &s.services[s.passthrough]
    return 0 if c.service != NULL else -R_NO_SERVICE


cdef inline int _admit(Worker *w, Course *c, Message *m) noexcept nogil:
    """Whether rules let it through, and there is anybody to go to."""
    cdef int r
    if c.http:
        r = admit(&w.policy, c.conf, c.service, &c.caller, w.loads, m, &c.decision)
    else:
        r = admit_opaque(c.conf, c.service, &c.caller, w.loads, &c.decision)
    if r == 0 and c.http and m.method == M_CONNECT and not c.conf.outbound:
        return -R_CONNECT_NOT_ALLOWED
    if r == 0 and c.service.nendpoints == 0 and not c.service.original:
        return -R_NO_ENDPOINT
    return r


# ---------------------------------------------------------------- in words

cdef inline str _words(const Text *text):
    return text.ptr[:text.len].decode()


cdef inline dict explain(Worker *w, str listener, bytes data, identity, source, int port, destination):
    """See `Worker.explain` in `_core.pyi`."""
    cdef bytearray work = bytearray(data)
    cdef Message *m = &w.msg
    cdef Course c
    cdef uint32_t i
    cdef int r
    _ask(w, &c, listener, identity, source, port, destination)
    r = _begin(w.snapshot, &c, work, len(work), m)
    if r == 0:
        r = _route(w.snapshot, &c, m)
    if r == 0:
        r = _admit(w, &c, m)
    shared_put(&w.identities, c.caller.facts.identity)
    path = None
    endpoints = []
    if c.service != NULL:
        if not c.service.original:
            endpoints = [_words(&c.service.endpoints[i].text) for i in range(c.service.nendpoints)]
        if c.http and r != -R_BAD_TARGET and m.path.len > 0:
            path = m.base[m.path.at:m.path.at + m.path.len].decode("utf-8", "backslashreplace")
    judged = c.decision.verdict != NO_VERDICT
    return {
        "reason": (<bytes>w.reasons[-r].name).decode() if r < 0 else None,
        "protocol": "http" if c.http else "opaque",
        "service": _words(&c.service.name) if c.service != NULL else None,
        "endpoints": endpoints,
        "path": path,
        "decision": verdict_name(c.decision.verdict),
        "rule": None if not judged else "default" if c.decision.rule == NULL else _words(&c.decision.rule.name),
        "rules_of": None if not judged else "service" if c.decision.service else "listener",
        "audit": bool(c.decision.audit),
    }
