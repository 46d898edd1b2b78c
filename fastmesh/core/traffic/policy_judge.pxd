# The decision: the first rule that holds, deny before allow.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from fastmesh.core.base.reason cimport R_BAD_HOST, R_DENIED
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.traffic.counters cimport A_ALLOWED, A_AUDITED, A_DENIED, RuleRow
from fastmesh.core.traffic.policy cimport Conditions, Policy, PolicyList, PolicyRule
from fastmesh.core.traffic.policy_caller cimport PolicyView
from fastmesh.core.traffic.policy_headers cimport find_headers, header_met, policy_headers
from fastmesh.core.traffic.policy_request cimport PolicyRequest, policy_forms, policy_host
from fastmesh.core.traffic.policy_scratch cimport PolicyScratch, regex_met
from fastmesh.core.traffic.text_index cimport BITS_WORDS, Bits, bits_any, bits_has, index_find
from fastmesh.core.wire.message cimport M_OTHER, Message

cdef enum:  # Verdict
    NO_VERDICT = 0            # there are no rules
    ALLOWED
    DENIED

cdef struct Decision:
    const PolicyRule *rule    # NULL: no rule decided
    uint8_t verdict           # enum Verdict
    uint8_t audit             # DENIED, but let through
    uint8_t service           # the service's rules decided, not the listener's

cdef extern from * nogil:
    """
    #define fm_ctz64(x) __builtin_ctzll(x)
    """
    uint32_t policy_ctz "fm_ctz64"(uint64_t x) noexcept


cdef inline bint _method_named(const Conditions *c, const Message *m) noexcept nogil:
    cdef uint32_t i
    for i in range(c.nmethods):
        if c.methods[i].len == m.method_name.len and memcmp(
                c.methods[i].ptr, m.base + m.method_name.at, m.method_name.len) == 0:
            return True
    return False


cdef inline bint _path_regexes(PolicyScratch *s, const Conditions *c, PolicyRequest *q, bint strict) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t k
    for i in range(c.nregexes):
        if regex_met(s, c.regexes[i], q.path, q.path_len, strict):
            return True
        if strict:
            continue
        policy_forms(s, q)
        for k in range(q.nforms):
            if q.forms[k].text != q.path and regex_met(s, c.regexes[i], q.forms[k].text, q.forms[k].len, False):
                return True
    return False


cdef inline bint _rest_met(PolicyScratch *s, const Policy *p, const PolicyList *l, const PolicyRule *r,
                           PolicyRequest *q, bint path_found) noexcept nogil:
    """The conditions of a rule that are in no set and no index."""
    cdef bint strict = not l.deny
    cdef uint32_t i
    if l.deny and q.tunnel:
        return True
    if q.m.method == M_OTHER:
        if r.when.nmethods and not _method_named(&r.when, q.m) or r.unless.nmethods and _method_named(&r.unless, q.m):
            return False
    if r.when.nheaders or r.unless.nheaders:
        if q.names_of != p:
            policy_headers(p, q)
        for i in range(r.when.nheaders):
            if not header_met(s, &r.when.headers[i], q, strict):
                return False
        for i in range(r.unless.nheaders):
            if header_met(s, &r.unless.headers[i], q, not strict):
                return False
    if r.when.nregexes and not path_found and not _path_regexes(s, &r.when, q, strict):
        return False
    return not (r.unless.nregexes and _path_regexes(s, &r.unless, q, not strict))


cdef inline int _find(PolicyScratch *s, const Policy *p, const PolicyList *l, const Bits *settled,
                      PolicyRequest *q, const PolicyRule **rule) noexcept nogil:
    """The first rule of the list that holds, into `rule` (NULL: none); 0, or a negative reason."""
    cdef Bits left = settled[0]
    cdef Bits strict
    cdef Bits loose
    cdef const Bits *found = NULL
    cdef const Bits *out
    cdef uint64_t word
    cdef uint32_t i
    cdef int k
    rule[0] = NULL
    if not (l.deny and q.tunnel):
        for k in range(BITS_WORDS):
            left.w[k] &= l.method[q.m.method].w[k]
    if not bits_any(&left):
        return 0
    if l.headers and not (l.deny and q.tunnel):
        if q.names_of != p:
            policy_headers(p, q)
        memset(&strict, 0, sizeof(Bits))
        find_headers(&l.headers_in, p, q, l.deny, &strict)
        for k in range(BITS_WORDS):
            left.w[k] &= strict.w[k] | l.any_header.w[k]
        if not bits_any(&left):
            return 0
    if l.hosts:
        if fm_unlikely(policy_host(q) < 0):
            return -R_BAD_HOST
        memset(&strict, 0, sizeof(Bits))
        memset(&loose, 0, sizeof(Bits))
        if l.hosts_in.count:
            index_find(&l.hosts_in, q.host, q.host_len, 0, False, &strict)
        if l.hosts_out.count:
            index_find(&l.hosts_out, q.host, q.host_len, 0, False, &loose)
        for k in range(BITS_WORDS):
            left.w[k] &= (strict.w[k] | l.any_host.w[k]) & ~loose.w[k]
    if q.tunnel:
        if not l.deny:
            for k in range(BITS_WORDS):
                left.w[k] &= l.tunnel.w[k]
    elif l.paths:
        if bits_any(&left):
            memset(&strict, 0, sizeof(Bits))
            memset(&loose, 0, sizeof(Bits))
            if l.strict.count:
                index_find(&l.strict, q.path, q.path_len, c'/', False, &strict)
            if l.loose.count:
                policy_forms(s, q)
                for i in range(q.nforms):
                    index_find(&l.loose, q.forms[i].text, q.forms[i].len, c'/', True, &loose)
            found = &loose if l.deny else &strict
            out = &strict if l.deny else &loose
            for k in range(BITS_WORDS):
                left.w[k] &= (found.w[k] | l.any_path.w[k] | l.regex_path.w[k]) & ~out.w[k]
    for k in range(BITS_WORDS):
        word = left.w[k]
        while word:
            i = 64 * k + policy_ctz(word)
            word &= word - 1
            if not l.rules[i].rest or _rest_met(s, p, l, &l.rules[i], q, found != NULL and bits_has(found, i)):
                rule[0] = &l.rules[i]
                return 0
    return 0


cdef inline int _decide(const Policy *p, const PolicyRule *rule, bint refused, Decision *d) noexcept nogil:
    """Count the decision and note it; an earlier refusal that was only audited stays noted."""
    cdef RuleRow *row = rule.row if rule != NULL else p.row
    if not refused:
        row.counters[A_ALLOWED] += 1
        if d.verdict != DENIED:
            d.verdict = ALLOWED
            d.rule = rule
        return 0
    row.counters[A_AUDITED if p.audit else A_DENIED] += 1
    if d.verdict != DENIED or not p.audit:
        d.verdict = DENIED
        d.rule = rule
        d.audit = p.audit
    return 0 if p.audit else -R_DENIED


cdef inline int policy_judge(PolicyScratch *s, const Policy *p, const PolicyView *view, PolicyRequest *q,
                             Decision *d) noexcept nogil:
    """Does the policy let the request through? 0, or a negative reason."""
    cdef const PolicyRule *rule = NULL
    cdef int r
    s.spent = False
    if bits_any(&view.deny):
        r = _find(s, p, &p.deny, &view.deny, q, &rule)
        if r < 0:
            return r
        if rule != NULL:
            return _decide(p, rule, True, d)
    if not p.has_allow:
        return _decide(p, NULL, False, d)
    if bits_any(&view.allow):
        r = _find(s, p, &p.allow, &view.allow, q, &rule)
        if r < 0:
            return r
    return _decide(p, rule, rule == NULL, d)


cdef inline const PolicyRule *_opaque_rule(const Policy *p, const PolicyView *view, bint *refused) noexcept nogil:
    """What decides about opaque bytes, NULL: no rule. Conditions on requests cannot be looked at: an allow rule that
    has one allows none, a deny rule denies all that its other conditions fit."""
    cdef int k
    refused[0] = True
    for k in range(BITS_WORDS):
        if view.deny.w[k]:
            return &p.deny.rules[64 * k + policy_ctz(view.deny.w[k])]
    refused[0] = False
    if not p.has_allow:
        return NULL
    for k in range(BITS_WORDS):
        if view.allow.w[k] & p.allow.opaque.w[k]:
            return &p.allow.rules[64 * k + policy_ctz(view.allow.w[k] & p.allow.opaque.w[k])]
    refused[0] = True
    return NULL


cdef inline int policy_judge_opaque(const Policy *p, const PolicyView *view, Decision *d) noexcept nogil:
    """Does the policy let opaque bytes through? 0, or a negative reason."""
    cdef bint refused = False
    cdef const PolicyRule *rule = _opaque_rule(p, view, &refused)
    return _decide(p, rule, refused, d)


cdef inline bint policy_lets_opaque(const Policy *p, const PolicyView *view) noexcept nogil:
    """Would it? Asked beforehand: nothing is counted."""
    cdef bint refused = False
    _opaque_rule(p, view, &refused)
    return p.audit or not refused
