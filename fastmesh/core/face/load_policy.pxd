# The rules of a listener or a service, from the snapshot's JSON into the sets and indexes of traffic/policy.pxd.
# With the GIL, never on the request path. Whatever is wrong raises ValueError.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmesh.core.face.load_block cimport load_block, load_text
from fastmesh.core.io.state cimport Worker
from fastmesh.core.sys.pcre2 cimport pcre2_code, pcre2_code_free, pcre2_get_error_message
from fastmesh.core.sys.posix cimport AF_INET, AF_INET6, inet_pton
from fastmesh.core.traffic.counters cimport K_REGEX_LIMITS, RuleRow, area_rule
from fastmesh.core.traffic.policy cimport (
    Cidr, Conditions, HEADER_ABSENT, HEADER_EXACT, HEADER_PREFIX, HEADER_PRESENT, HEADER_REGEX, HeaderRule,
    POLICY_NAMES, POLICY_RULES, Policy, PolicyList, PolicyRule,
)
from fastmesh.core.traffic.policy_scratch cimport policy_compile, policy_scratch_init
from fastmesh.core.traffic.snapshot cimport Snapshot
from fastmesh.core.traffic.text_index cimport (
    Bits, INDEX_TEXT, IndexEntry, Text, TextIndex, bits_set, index_hash, index_slot,
)
from fastmesh.core.wire.message cimport M_OTHER
from fastmesh.core.wire.path cimport path_decoded, path_normalise


cdef inline RuleRow *_row(Worker *w, int slot) except NULL:
    if not 0 <= slot < <int>w.area.rules:
        raise ValueError(f"there is room for {w.area.rules} rules only")
    return area_rule(w.area, w.slot, slot)


cdef inline pcre2_code *_compiled(str pattern) except NULL:
    cdef bytes raw = pattern.encode()
    cdef int error = 0
    cdef size_t offset = 0
    cdef unsigned char text[256]
    cdef pcre2_code *code = policy_compile(raw, len(raw), &error, &offset)
    if code == NULL:
        pcre2_get_error_message(error, text, sizeof(text))
        raise ValueError(f"regex {pattern!r}: {(<bytes><char *>text).decode()}")
    return code


cdef inline int _cidr(Cidr *out, str text) except -1:
    cdef bytes raw
    address, _, bits = text.partition("/")
    raw = address.encode()
    out.family = 6 if ":" in address else 4
    if inet_pton(AF_INET6 if out.family == 6 else AF_INET, raw, out.address) != 1:
        raise ValueError(f"{text!r} is no network")
    out.bits = int(bits or (128 if out.family == 6 else 32))
    if out.bits > (128 if out.family == 6 else 32):
        raise ValueError(f"{text!r} is no network")
    return 0


cdef inline int _header(Snapshot *s, Policy *p, HeaderRule *out, dict d) except -1:
    cdef dict kinds = {"exact": HEADER_EXACT, "prefix": HEADER_PREFIX, "regex": HEADER_REGEX}
    cdef bytes spelled = d["name"].lower().encode()
    cdef bytes name = spelled.replace(b"_", b"-")
    cdef uint32_t at
    cdef uint32_t i
    for i in range(p.nnames):
        if p.names[i].ptr[:p.names[i].len] == name:
            break
    else:
        if p.nnames == POLICY_NAMES:
            raise ValueError(f"rules look at more than {POLICY_NAMES} headers")
        i = p.nnames
        load_text(s, &p.names[i], name.decode())
        p.nnames += 1
        p.name_lengths |= <uint64_t>1 << min(63, len(name))
        at = index_slot(index_hash(name, len(name)), 255)
        while p.name_slots[at] != 0:
            at = (at + 1) & 255
        p.name_slots[at] = <uint8_t>(i + 1)
    out.name = i
    load_text(s, &out.spelled, spelled.decode())
    p.underscores |= b"_" in spelled
    if d.get("present") is not None:
        out.kind = HEADER_PRESENT if d["present"] else HEADER_ABSENT
        return 0
    (kind,) = [one for one in kinds if d.get(one) is not None]
    if kind == "regex":
        out.regex = _compiled(d[kind])
    else:
        load_text(s, &out.value, d[kind])
    out.kind = kinds[kind]
    return 0


cdef inline bytes _normal(str pattern, bint decoded, bint partial):
    """A path pattern as it is compared: in normal form, or decoded. `partial`: it may end within a segment."""
    cdef bytes raw = pattern.encode()
    cdef bytearray work = bytearray(raw)
    cdef bytearray out = bytearray(len(raw) + 1)
    cdef size_t n = len(raw)
    if partial:
        work += b"x"                           # "/." as the beginning of "/.git" is no dot segment
        n += 1
    if path_normalise(<char *>work, &n, True) < 0 or bytes(work[:n]) != (raw + b"x" if partial else raw):
        raise ValueError(f"path {pattern!r} is not in normal form")
    if not decoded:
        return raw
    return bytes(out[:path_decoded(<char *>raw, len(raw), True, <char *>out)])


cdef inline int _index(Snapshot *s, TextIndex *t, dict patterns) except -1:
    """`patterns`: (text, kind) -> rules; kind 0: exact, 1: below, 2: begins."""
    cdef list texts = sorted({text for text, _ in patterns})
    cdef uint32_t slots = 4
    cdef uint32_t at
    cdef uint32_t i
    cdef IndexEntry *e
    cdef Bits *sets[3]
    cdef bytes text
    t.count = <uint32_t>len(texts)
    while slots < 2 * t.count:
        slots *= 2
    t.mask = slots - 1
    t.slots = <uint32_t *>load_block(s, slots * sizeof(uint32_t))
    t.entries = <IndexEntry *>load_block(s, (t.count + 1) * sizeof(IndexEntry))
    for i in range(t.count):
        text = texts[i]
        if len(text) > INDEX_TEXT:
            raise ValueError(f"a pattern is longer than {INDEX_TEXT} bytes")
        e = &t.entries[i]
        e.len = <uint32_t>len(text)
        e.text = <char *>load_block(s, e.len + 1)
        memcpy(<char *>e.text, <char *>text, e.len)
        e.hash = index_hash(e.text, e.len)
        t.lengths[e.len >> 6] |= <uint64_t>1 << (e.len & 63)
        t.longest = max(t.longest, e.len)
        sets[0] = &e.exact
        sets[1] = &e.below
        sets[2] = &e.begins
        for kind in range(3):
            for rule in patterns.get((text, kind), ()):
                bits_set(sets[<int>kind], rule)
        at = index_slot(e.hash, t.mask)
        while t.slots[at] != 0:
            at = (at + 1) & t.mask
        t.slots[at] = i + 1
    return 0


cdef inline int _conditions(Snapshot *s, Policy *p, Conditions *c, dict d, str form) except -1:
    """What depends on the connection, and what is looked at rule by rule."""
    cdef list ids = [one for one in d.get(form + "from") or () if one != "unauthenticated"]
    cdef list sources = d.get(form + "sources") or []
    cdef list ports = d.get(form + "ports") or []
    cdef list methods = [one for one in d.get(form + "methods") or () if one not in KNOWN_METHODS()]
    cdef list regexes = [one["regex"] for one in d.get(form + "paths") or () if one.get("regex") is not None]
    cdef list headers = d.get(form + "headers") or []
    cdef uint32_t i
    c.unauthenticated = "unauthenticated" in (d.get(form + "from") or ())
    c.ids = <Text *>load_block(s, (len(ids) + 1) * sizeof(Text))
    for i in range(<uint32_t>len(ids)):
        load_text(s, &c.ids[i], ids[i])
    c.nfrom = <uint32_t>len(ids)
    c.sources = <Cidr *>load_block(s, (len(sources) + 1) * sizeof(Cidr))
    for i in range(<uint32_t>len(sources)):
        _cidr(&c.sources[i], sources[i])
    c.nsources = <uint32_t>len(sources)
    c.ports = <uint16_t *>load_block(s, (len(ports) + 1) * sizeof(uint16_t))
    for i in range(<uint32_t>len(ports)):
        c.ports[i] = ports[i]
    c.nports = <uint32_t>len(ports)
    c.methods = <Text *>load_block(s, (len(methods) + 1) * sizeof(Text))
    for i in range(<uint32_t>len(methods)):
        load_text(s, &c.methods[i], methods[i])
    c.nmethods = <uint32_t>len(methods)
    c.regexes = <pcre2_code **>load_block(s, (len(regexes) + 1) * sizeof(void *))
    for i in range(<uint32_t>len(regexes)):
        c.regexes[i] = _compiled(regexes[i])
        c.nregexes += 1
    c.headers = <HeaderRule *>load_block(s, (len(headers) + 1) * sizeof(HeaderRule))
    for i in range(<uint32_t>len(headers)):
        c.nheaders += 1
        _header(s, p, &c.headers[i], headers[i])
    return 0


cdef inline list KNOWN_METHODS():
    """In the order of enum Method, without M_OTHER."""
    return ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"]


cdef inline int _methods(PolicyList *l, uint32_t i, dict d) except -1:
    cdef list known = KNOWN_METHODS()
    cdef object when = d.get("methods")
    cdef object unless = d.get("not_methods") or ()
    cdef uint32_t k
    for k in range(<uint32_t>len(known)):
        if (when is None or known[k] in when) and known[k] not in unless:
            bits_set(&l.method[k + 1], i)
    if when is None or any([one not in known for one in when]):
        bits_set(&l.method[<int>M_OTHER], i)
    return 0


cdef inline int _path_pattern(dict index, dict pattern, uint32_t rule, bint decoded) except -1:
    """Exact, "/a/" as a prefix (the segment a and what is below it), or "/a" as one (what begins so)."""
    cdef bytes text
    if pattern.get("regex") is not None:
        return 0
    if pattern.get("exact") is not None:
        text = _normal(pattern["exact"], decoded, False)
        index.setdefault((text, 0), []).append(rule)
    elif pattern["prefix"].endswith("/"):
        text = _normal(pattern["prefix"], decoded, False)
        index.setdefault((text[:len(text) - 1], 1), []).append(rule)
    else:
        text = _normal(pattern["prefix"], decoded, True)
        index.setdefault((text, 2), []).append(rule)
    return 0


cdef inline int _host_pattern(dict index, str pattern, uint32_t rule) except -1:
    """Backwards: "*.example.org" is the beginning "gro.elpmaxe."."""
    cdef bytes text = pattern.lower().rstrip(".").encode()[::-1]
    if pattern.startswith("*."):
        index.setdefault((text[:len(text) - 1], 2), []).append(rule)
    else:
        index.setdefault((text, 0), []).append(rule)
    return 0


cdef inline bint _header_pattern(dict index, Conditions *c, uint32_t rule) except -1:
    """One header that a rule needs, preferably with its value. False: it needs none."""
    cdef uint32_t i
    cdef bytes text = None
    for i in range(c.nheaders):
        if c.headers[i].kind == HEADER_EXACT:
            text = bytes([c.headers[i].name]) + c.headers[i].value.ptr[:c.headers[i].value.len]
            index.setdefault((text, 0), []).append(rule)
            return True
        if c.headers[i].kind != HEADER_ABSENT:
            text = bytes([c.headers[i].name])
    if text is not None:
        index.setdefault((text, 2), []).append(rule)
    return text is not None


cdef inline int _list(Worker *w, Snapshot *s, Policy *p, PolicyList *l, list rules, bint deny) except -1:
    cdef dict when_paths = {}
    cdef dict unless_paths = {}
    cdef dict when_hosts = {}
    cdef dict unless_hosts = {}
    cdef dict when_headers = {}
    cdef PolicyRule *r
    cdef uint32_t i
    cdef dict d
    if len(rules) > POLICY_RULES:
        raise ValueError(f"more than {POLICY_RULES} rules")
    l.deny = deny
    l.rules = <PolicyRule *>load_block(s, (len(rules) + 1) * sizeof(PolicyRule))
    for i in range(<uint32_t>len(rules)):
        d = rules[i]
        r = &l.rules[i]
        l.n += 1                               # what has been compiled of it is freed with the snapshot
        load_text(s, &r.name, d["name"])
        r.row = _row(w, d["slot"])
        _conditions(s, p, &r.when, d, "")
        _conditions(s, p, &r.unless, d, "not_")
        _methods(l, i, d)
        paths = d.get("paths") or []
        every = any([one.get("prefix") == "/" for one in paths])
        if every:
            _drop_regexes(&r.when)
        for one in [] if every else paths:
            _path_pattern(when_paths, one, i, deny)
        for one in d.get("not_paths") or ():
            _path_pattern(unless_paths, one, i, not deny)
        for one in d.get("hosts") or ():
            _host_pattern(when_hosts, one, i)
        for one in d.get("not_hosts") or ():
            _host_pattern(unless_hosts, one, i)
        if not paths or every:
            bits_set(&l.any_path, i)
            # With CONNECT among its methods a rule speaks of that alone; else of what will come through the tunnel.
            if not d.get("not_paths") and ("CONNECT" in (d.get("methods") or ()) or not any(
                    [d.get(key) for key in ("headers", "not_headers", "not_methods")])):
                bits_set(&l.tunnel, i)
        if r.when.nregexes:
            bits_set(&l.regex_path, i)
        if not _header_pattern(when_headers, &r.when, i):
            bits_set(&l.any_header, i)
        if not d.get("hosts"):
            bits_set(&l.any_host, i)
        l.paths |= bool((paths and not every) or d.get("not_paths"))
        l.hosts |= bool(d.get("hosts") or d.get("not_hosts"))
        r.http = any([d.get(form + key) for form in ("", "not_") for key in ("methods", "paths", "hosts", "headers")])
        if not r.http:
            bits_set(&l.opaque, i)
        r.rest = bool(r.when.nmethods or r.when.nregexes or r.when.nheaders or r.unless.nmethods or r.unless.nregexes
                      or r.unless.nheaders)
    _index(s, &l.loose if deny else &l.strict, when_paths)
    _index(s, &l.strict if deny else &l.loose, unless_paths)
    _index(s, &l.hosts_in, when_hosts)
    _index(s, &l.hosts_out, unless_hosts)
    _index(s, &l.headers_in, when_headers)
    l.headers = l.headers_in.count > 0
    return 0


cdef inline int _drop_regexes(Conditions *c) except -1:
    """Beside a pattern for every path the others do not matter."""
    while c.nregexes > 0:
        c.nregexes -= 1
        pcre2_code_free(c.regexes[c.nregexes])
    return 0


cdef inline Policy *load_policy(Worker *w, Snapshot *s, dict d) except? NULL:
    """The policy of a listener or service; NULL if it has no rules."""
    cdef Policy *p
    if d.get("allow") is None and d.get("deny") is None:
        return NULL
    if policy_scratch_init(&w.policy, &w.row.counters[<int>K_REGEX_LIMITS]) != 0:
        raise MemoryError()
    p = <Policy *>load_block(s, sizeof(Policy))
    p.next = s.policies
    s.policies = p
    p.audit = d.get("mode", "enforce") == "audit"
    p.has_allow = d.get("allow") is not None
    p.row = _row(w, d["rule_slot"])
    _list(w, s, p, &p.allow, d.get("allow") or [], False)
    _list(w, s, p, &p.deny, d.get("deny") or [], True)
    p.paths = p.allow.paths or p.deny.paths
    return p
