# May this go on? The listener's rules, then the service's, on one request or opaque connection.
#
# The data plane and `fastmesh explain` both ask here, so that they cannot disagree. admit() also brings the
# path into its normal form, in the receive buffer: what the rules compare is what the endpoint gets.

from libc.stdint cimport uint32_t
from libc.string cimport memmove

from fastmesh.core.base.reason cimport R_BAD_TARGET, R_DENIED
from fastmesh.core.traffic.policy cimport Policy
from fastmesh.core.traffic.policy_caller cimport PolicyFacts, PolicyView, policy_settle
from fastmesh.core.traffic.policy_judge cimport Decision, policy_judge, policy_judge_opaque, policy_lets_opaque
from fastmesh.core.traffic.policy_request cimport PolicyRequest, policy_request
from fastmesh.core.traffic.policy_scratch cimport PolicyScratch
from fastmesh.core.traffic.snapshot cimport ListenerConf, NORMALIZE_OFF, NORMALIZE_ON, Service
from fastmesh.core.wire.message cimport Message
from fastmesh.core.wire.path cimport path_is_normal, path_length, path_normalise

cdef struct Caller:           # a connection's
    PolicyFacts facts
    PolicyView listener
    PolicyView service        # of the service asked for last


cdef inline const PolicyView *_view(const Policy *p, const PolicyFacts *f, uint32_t loads,
                                    PolicyView *view) noexcept nogil:
    if view.of != p or view.at != loads:
        policy_settle(p, f, loads, view)
    return view


cdef inline bint must_admit(const ListenerConf *conf, const Service *service) noexcept nogil:
    """Is there anything that admit() would do?"""
    return conf.policy != NULL or service.policy != NULL or conf.normalize == NORMALIZE_ON


cdef inline int normalise(const ListenerConf *conf, Message *m) noexcept nogil:
    """The path of `m` into normal form, where it stands; 0 or -R_BAD_TARGET."""
    cdef char *p = <char *>m.base + m.path.at  # in the receive buffer, which is ours to write
    cdef size_t n = path_length(p, m.path.len)
    cdef size_t before = n
    if n == 0 or p[0] != c'/':
        return 0                               # CONNECT, "*", or a query alone, which stands for "/"
    if conf.normalize == NORMALIZE_OFF:
        return 0 if path_is_normal(p, n) else -R_BAD_TARGET
    if path_normalise(p, &n, conf.keep_slashes) < 0:
        return -R_BAD_TARGET
    if n != before:
        memmove(p + n, p + before, m.path.len - before)
        m.path.len -= <uint32_t>(before - n)
    return 0


cdef inline int admit(PolicyScratch *s, const ListenerConf *conf, const Service *service, Caller *caller,
                      uint32_t loads, Message *m, Decision *d) noexcept nogil:
    """0: the request may go on; else a negative reason."""
    cdef PolicyRequest q
    cdef bint first
    cdef int r
    if (conf.normalize == NORMALIZE_ON or conf.policy != NULL and conf.policy.paths
            or service.policy != NULL and service.policy.paths):
        r = normalise(conf, m)
        if r < 0:
            return r
    policy_request(&q, m, &service.name)
    if conf.policy != NULL:
        r = policy_judge(s, conf.policy, _view(conf.policy, &caller.facts, loads, &caller.listener), &q, d)
        if r < 0:
            return r
    if service.policy != NULL:
        first = d.verdict <= 1                 # an audited refusal of the listener's stays noted
        r = policy_judge(s, service.policy, _view(service.policy, &caller.facts, loads, &caller.service), &q, d)
        d.service = r == -R_DENIED or (r == 0 and first)
        return r
    return 0


cdef inline bint may_be_opaque(const ListenerConf *conf, const Service *service, Caller *caller,
                               uint32_t loads) noexcept nogil:
    """Would admit_opaque() let them pass? Nothing is decided, and nothing counted."""
    if conf.policy != NULL and not policy_lets_opaque(
            conf.policy, _view(conf.policy, &caller.facts, loads, &caller.listener)):
        return False
    return service.policy == NULL or policy_lets_opaque(
        service.policy, _view(service.policy, &caller.facts, loads, &caller.service))


cdef inline int admit_opaque(const ListenerConf *conf, const Service *service, Caller *caller, uint32_t loads,
                             Decision *d) noexcept nogil:
    """0: opaque bytes may pass; else a negative reason."""
    cdef int r
    if conf.policy != NULL:
        r = policy_judge_opaque(conf.policy, _view(conf.policy, &caller.facts, loads, &caller.listener), d)
        if r < 0:
            return r
    if service.policy != NULL:
        d.service = d.verdict <= 1
        r = policy_judge_opaque(service.policy, _view(service.policy, &caller.facts, loads, &caller.service), d)
        if r < 0:
            d.service = True
            return r
    return 0
