# Who may do what: the `allow` and `deny` rules of a listener or a service.
#
# Deny wins; once there are allow rules, what none of them allows is refused. What depends on the connection
# (identity, address, local port) is settled once a connection into a set of rules (PolicyView); a request only
# looks at the rest of those: methods are sets of rules too, paths and hosts are found in an index, and only
# what remains (regexes, headers, methods without a number) is looked at rule by rule.
#
# Nothing here errs on the wrong side. Each condition is asked strictly (it surely holds) where holding lets the
# request through, and loosely (it may hold) where holding refuses it: the conditions of an allow rule and the
# not_ forms of a deny rule are strict, the others loose. Strict and loose differ for paths (wire/path.pxd: a
# loose one is also compared as a reader would see it that decodes everything, drops ";parameters" or takes an
# escaped "?" for one), for regexes that hit their limit, for headers that are repeated, lists, or spelled with
# other dashes, and for what a tunnel (CONNECT, opaque bytes) does not show.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastmesh.core.base.intern cimport Interned
from fastmesh.core.base.reason cimport R_BAD_HOST, R_DENIED
from fastmesh.core.sys.atomic cimport fm_unlikely
from fastmesh.core.sys.pcre2 cimport *
from fastmesh.core.sys.posix cimport AF_INET6, inet_ntop, inet_pton
from fastmesh.core.traffic.counters cimport A_ALLOWED, A_AUDITED, A_DENIED, RuleRow
from fastmesh.core.traffic.text_index cimport (
    BITS_WORDS, Bits, INDEX_TEXT, Text, TextIndex, bits_any, bits_has, index_find, index_slot, index_step,
)
from fastmesh.core.wire.message cimport FIELD_HOP, Field, MAX_LINE, M_CONNECT, M_OTHER, Message
from fastmesh.core.wire.path cimport path_bare, path_decoded, path_length

cdef enum:
    POLICY_RULES = 256        # most rules of one list
    POLICY_NAMES = 64         # most header names that the rules of one listener or service look at
    POLICY_HOST = 256         # bytes of a host, from its end, that are compared
    REGEX_MATCH_LIMIT = 10000 # steps of one regex; a text of 16 KiB needs about one a byte
    REGEX_DEPTH_LIMIT = 250
    REGEX_HEAP_KIB = 256
    PATH_FORMS = 8            # ways of reading one path
    HEADER_MEMBERS = 128      # most members of a list in one header that are looked at

cdef enum:  # Verdict
    NO_VERDICT = 0            # there are no rules
    ALLOWED
    DENIED

cdef enum:  # HeaderKind
    HEADER_PRESENT = 0
    HEADER_ABSENT
    HEADER_EXACT
    HEADER_PREFIX
    HEADER_REGEX

cdef struct Cidr:
    uint8_t family            # 4 or 6
    uint8_t bits
    uint8_t address[16]

cdef struct HeaderRule:
    uint32_t name             # index into Policy.names
    Text spelled              # the name as the rule has it, in lower case
    uint8_t kind              # enum HeaderKind
    Text value
    pcre2_code *regex

cdef struct Conditions:       # of a rule, plain or with not_; 0 of a kind: no such condition
    uint32_t nfrom
    Text *ids           # SPIFFE ids; a trailing "*" makes a prefix, "*" alone anyone with an identity
    uint8_t unauthenticated   # also, or only, those without
    uint32_t nsources
    Cidr *sources
    uint32_t nports
    uint16_t *ports
    uint32_t nmethods         # those without a number in enum Method
    Text *methods
    uint32_t nregexes         # of paths
    pcre2_code **regexes
    uint32_t nheaders
    HeaderRule *headers

cdef struct PolicyRule:
    Text name
    RuleRow *row
    uint8_t http              # has conditions that only a request can meet
    uint8_t rest              # something of it is in no set and no index
    Conditions when
    Conditions unless

cdef struct PolicyList:
    uint32_t n
    uint8_t deny
    uint8_t paths             # some rule has conditions on paths
    uint8_t hosts
    PolicyRule *rules
    Bits method[10]           # enum Method: rules that may hold for it
    Bits opaque               # rules without http
    Bits tunnel               # rules that hold for whatever goes through a tunnel
    Bits any_path             # rules that have no pattern the path must match ...
    Bits regex_path           # ... that have regexes it may match instead
    Bits any_host
    Bits any_header
    uint8_t headers
    TextIndex strict          # path patterns in normal form
    TextIndex loose           # path patterns decoded
    TextIndex hosts_in        # host patterns backwards, in lower case
    TextIndex hosts_out
    TextIndex headers_in      # one header of a rule that has some: its name's number and its value, or that alone

cdef struct Policy:
    uint8_t audit
    uint8_t has_allow
    uint8_t paths
    PolicyList allow
    PolicyList deny
    RuleRow *row              # what no rule decided
    uint32_t nnames
    Text names[64]            # POLICY_NAMES, in lower case, with "-" for "_"
    uint8_t underscores       # a rule has a name with one
    uint8_t name_slots[256]   # open addressing: name + 1
    uint64_t name_lengths     # bit n: a name has n bytes (63: or more)
    Policy *next              # of the same snapshot

cdef struct PolicyFacts:      # what a connection says of its caller
    Interned *identity        # NULL: none proven
    uint8_t family            # 4, 6 or 0: a Unix socket
    uint8_t address[16]
    uint16_t port             # the local one; 0: none

cdef struct PolicyView:       # the rules of a policy that a connection can meet
    const Policy *of
    uint32_t at               # found when this many snapshots had been loaded: memory comes back
    Bits allow
    Bits deny

cdef struct PolicyScratch:    # a worker's: what deciding needs room for
    pcre2_match_data *data
    pcre2_match_context *context
    char *forms               # 4 * MAX_LINE bytes
    uint64_t *limits          # counts regexes that hit their limit
    bint spent                # one did: this request's others are not tried

cdef struct Decision:
    const PolicyRule *rule    # NULL: no rule decided
    uint8_t verdict           # enum Verdict
    uint8_t audit             # DENIED, but let through
    uint8_t service           # the service's rules decided, not the listener's

cdef struct PathForm:
    const char *text
    size_t len

cdef struct PolicyRequest:    # a request as rules look at it, worked out when first asked for
    const Message *m
    const char *authority     # of the Host that is forwarded
    size_t authority_len
    const char *path          # normal form, without the query
    size_t path_len
    PathForm forms[8]         # PATH_FORMS: the path as others may read it
    uint8_t nforms            # 0: not worked out yet
    uint8_t tunnel            # CONNECT: what will come is not seen
    uint8_t underscores       # a field that rules look at has one in its name
    uint8_t host_known
    uint8_t headers_known
    uint32_t host_len
    char host[256]            # POLICY_HOST, backwards
    const Policy *names_of    # `first` and `next` are of its names
    uint8_t first[64]         # by name: its first field + 1
    uint8_t following[128]    # by field: the next of that name + 1


# ---------------------------------------------------------------- a worker's part

cdef inline int policy_scratch_init(PolicyScratch *s, uint64_t *limits) noexcept nogil:
    """0, or -1 without memory. Done already: 0."""
    if s.data != NULL:
        return 0
    s.limits = limits
    s.forms = <char *>malloc(4 * MAX_LINE)
    s.context = pcre2_match_context_create(NULL)
    s.data = pcre2_match_data_create(1, NULL)
    if s.forms == NULL or s.context == NULL or s.data == NULL:
        policy_scratch_free(s)
        return -1
    pcre2_set_match_limit(s.context, REGEX_MATCH_LIMIT)
    pcre2_set_depth_limit(s.context, REGEX_DEPTH_LIMIT)
    pcre2_set_heap_limit(s.context, REGEX_HEAP_KIB)
    return 0


cdef inline void policy_scratch_free(PolicyScratch *s) noexcept nogil:
    pcre2_match_data_free(s.data)
    pcre2_match_context_free(s.context)
    free(s.forms)
    memset(s, 0, sizeof(PolicyScratch))


cdef inline void policy_list_free(PolicyList *l) noexcept nogil:
    cdef uint32_t i
    for i in range(l.n):
        _free_regexes(&l.rules[i].when)
        _free_regexes(&l.rules[i].unless)


cdef inline void _free_regexes(Conditions *c) noexcept nogil:
    cdef uint32_t i
    for i in range(c.nregexes):
        pcre2_code_free(c.regexes[i])
    for i in range(c.nheaders):
        pcre2_code_free(c.headers[i].regex)


cdef inline pcre2_code *policy_compile(const char *pattern, size_t n, int *error, size_t *offset) noexcept nogil:
    """A regex that a whole text has to match, bytes as they are; NULL: `error` and where it lies."""
    cdef pcre2_code *code = pcre2_compile(
        <const unsigned char *>pattern, n, PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_DOTALL | PCRE2_DOLLAR_ENDONLY
        | PCRE2_NEVER_BACKSLASH_C | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, error, offset, NULL)
    if code != NULL:
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE)        # where it cannot, matching interprets
    return code


# ---------------------------------------------------------------- a connection

cdef inline bint id_matches(const Text *pattern, const Interned *id) noexcept nogil:
    """`id` is the pattern, or begins with it where the pattern ends in `*`."""
    if pattern.len > 0 and pattern.ptr[pattern.len - 1] == c'*':
        return id.len >= pattern.len - 1 and memcmp(pattern.ptr, id.text, pattern.len - 1) == 0
    return id.len == pattern.len and memcmp(pattern.ptr, id.text, pattern.len) == 0


cdef inline bint _from(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    if f.identity == NULL:
        return c.unauthenticated
    for i in range(c.nfrom):
        if id_matches(&c.ids[i], f.identity):
            return True
    return False


cdef inline bint _source(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    cdef const Cidr *net
    cdef int whole
    cdef int mask
    for i in range(c.nsources):
        net = &c.sources[i]
        if net.family != f.family:
            continue
        whole = net.bits >> 3
        mask = (0xFF00 >> (net.bits & 7)) & 0xFF
        if memcmp(net.address, f.address, whole) == 0 and (
                mask == 0 or (net.address[whole] ^ f.address[whole]) & mask == 0):
            return True
    return False


cdef inline bint _port(const Conditions *c, const PolicyFacts *f) noexcept nogil:
    cdef uint32_t i
    for i in range(c.nports):
        if c.ports[i] == f.port:
            return f.port != 0
    return False


cdef inline bint _met_by_connection(const PolicyRule *r, const PolicyFacts *f) noexcept nogil:
    if (r.when.nfrom or r.when.unauthenticated) and not _from(&r.when, f):
        return False
    if (r.unless.nfrom or r.unless.unauthenticated) and _from(&r.unless, f):
        return False
    if r.when.nsources and not _source(&r.when, f) or r.unless.nsources and _source(&r.unless, f):
        return False
    return not (r.when.nports and not _port(&r.when, f) or r.unless.nports and _port(&r.unless, f))


cdef inline void _settle(const PolicyList *l, const PolicyFacts *f, Bits *out) noexcept nogil:
    cdef uint32_t i
    memset(out, 0, sizeof(Bits))
    for i in range(l.n):
        if _met_by_connection(&l.rules[i], f):
            out.w[i >> 6] |= <uint64_t>1 << (i & 63)


cdef inline void policy_settle(const Policy *p, const PolicyFacts *f, uint32_t at, PolicyView *view) noexcept nogil:
    """The rules of `p` that a connection with these facts can meet."""
    view.of = p
    view.at = at
    _settle(&p.allow, f, &view.allow)
    _settle(&p.deny, f, &view.deny)


# ---------------------------------------------------------------- a request

cdef inline void policy_request(PolicyRequest *q, const Message *m, const Text *service) noexcept nogil:
    """`service`: its name, which is what the endpoint gets as Host where the request has none (HTTP/1.0)."""
    q.m = m
    q.authority = m.base + m.authority.at
    q.authority_len = m.authority.len
    if m.authority.len == 0:
        q.authority = service.ptr
        q.authority_len = service.len
    q.path = m.base + m.path.at
    q.path_len = path_length(q.path, m.path.len)
    q.tunnel = m.method == M_CONNECT
    q.nforms = 0
    q.host_known = 0
    q.names_of = NULL
    if q.path_len == 0 and not q.tunnel:       # what http1_write_request_line makes of it:
        q.path = b"/" if m.path.len > 0 else b"*"     # RFC 9110 4.2.3: a query alone; RFC 9112 3.2.4: OPTIONS
        q.path_len = 1


cdef inline void _form(PolicyRequest *q, const char *text, size_t n) noexcept nogil:
    """One more reading; and as who decodes before looking for the query reads it."""
    cdef size_t i = 0
    q.forms[q.nforms].text = text
    q.forms[q.nforms].len = n
    q.nforms += 1
    while i < n and text[i] != c'?' and text[i] != c'#':
        i += 1
    if i < n:
        q.forms[q.nforms].text = text
        q.forms[q.nforms].len = i
        q.nforms += 1


cdef inline bint _has(const char *text, size_t n, char c) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if text[i] == c:
            return True
    return False


cdef inline void _forms(PolicyScratch *s, PolicyRequest *q) noexcept nogil:
    """The path as other readers may see it: decoded, without parameters, or both in either order."""
    cdef const char *text = q.path
    cdef char *out = s.forms
    cdef size_t n = q.path_len
    cdef bint escaped
    cdef bint parameters
    if q.nforms:
        return
    escaped = _has(text, n, c'%')
    parameters = _has(text, n, c';')
    if escaped:
        n = path_decoded(text, n, out)
        text = out
        out += MAX_LINE
    _form(q, text, n)
    if _has(text, n, c';'):
        _form(q, out, path_bare(text, n, out))
        out += MAX_LINE
    if escaped and parameters:                 # an escaped slash or ";" within parameters makes a difference
        n = path_bare(q.path, q.path_len, out)
        n = path_decoded(out, n, out)
        _form(q, out, n)
        if _has(out, n, c';'):
            _form(q, out + MAX_LINE, path_bare(out, n, out + MAX_LINE))


cdef inline bint host_v6_plain(const char *p, size_t n) noexcept nogil:
    """Is "[v6]" in the one form that patterns have? An IPv4 address within IPv6 has none."""
    cdef char text[48]
    cdef unsigned char address[16]
    cdef size_t i
    if n < 4 or n - 2 >= sizeof(text):
        return False
    memcpy(text, p + 1, n - 2)
    text[n - 2] = 0
    if inet_pton(AF_INET6, text, address) != 1 or inet_ntop(AF_INET6, address, text, sizeof(text)) == NULL:
        return False
    i = 0
    while text[i] != 0:
        if text[i] == c'.':
            return False
        i += 1
    return i == n - 2 and _same_name(text, p + 1, n - 2)


cdef inline int _host(PolicyRequest *q) noexcept nogil:
    """The host backwards and in lower case, without port and trailing dot; a long one without its beginning.

    0, or -R_BAD_HOST: part of it is percent-encoded, or it is an IPv6 address that is not written as RFC 5952
    has it, so that readers differ about it.
    """
    cdef const char *p = q.authority
    cdef size_t n = q.authority_len
    cdef size_t i
    cdef unsigned char c
    if q.host_known:
        return 0
    q.host_known = 1
    if n > 0 and p[0] == c'[':
        i = 0
        while i < n and p[i] != c']':
            i += 1
        n = i + 1 if i < n else n
        if not host_v6_plain(p, n):
            return -R_BAD_HOST
    else:
        i = 0
        while i < n and p[i] != c':':
            i += 1
        n = i
        if n > 0 and p[n - 1] == c'.':
            n -= 1
    for i in range(n):
        if p[i] == c'%':
            return -R_BAD_HOST
    q.host_len = <uint32_t>(n if n < POLICY_HOST else POLICY_HOST)
    for i in range(q.host_len):
        c = <unsigned char>p[n - 1 - i]
        q.host[i] = <char>(c | 0x20 if 65 <= c <= 90 else c)
    return 0


cdef inline void _headers(const Policy *p, PolicyRequest *q) noexcept nogil:
    """Where the fields are that the rules look at. Names that differ in "-" and "_" only are one here: to readers
    that make variables of them (CGI, RFC 3875 4.1.18) they are."""
    cdef const Field *f
    cdef const char *name
    cdef uint32_t i = q.m.nfields
    cdef uint32_t k
    cdef uint32_t at
    cdef uint32_t h
    cdef unsigned char c
    cdef uint8_t underscores
    cdef const Text *known
    q.names_of = p
    q.underscores = p.underscores
    memset(q.first, 0, p.nnames)
    while i > 0:
        i -= 1
        f = &q.m.fields[i]
        if not (p.name_lengths >> (f.name_len if f.name_len < 63 else 63)) & 1:
            continue
        name = q.m.base + f.at
        h = 2166136261
        underscores = 0
        for k in range(f.name_len):
            c = <unsigned char>name[k]
            underscores |= c == c'_'
            h = index_step(h, _folded(c))
        at = index_slot(h, 255)
        while p.name_slots[at] != 0:
            known = &p.names[p.name_slots[at] - 1]
            if known.len == f.name_len and _alike(known.ptr, name, f.name_len):
                q.underscores |= underscores
                q.following[i] = q.first[p.name_slots[at] - 1]
                q.first[p.name_slots[at] - 1] = <uint8_t>(i + 1)
                break
            at = (at + 1) & 255


cdef inline bint _member(const char *value, uint32_t n, uint32_t *at, uint32_t *start, uint32_t *length) noexcept nogil:
    """The next member of a list, from `at` on (RFC 9110 5.6.1); False: there is none."""
    cdef uint32_t i = at[0]
    cdef uint32_t end
    while i < n and (value[i] == c' ' or value[i] == c'\t' or value[i] == c','):
        i += 1
    end = i
    while end < n and value[end] != c',':
        end += 1
    at[0] = end
    start[0] = i
    while end > i and (value[end - 1] == c' ' or value[end - 1] == c'\t'):
        end -= 1
    length[0] = end - i
    return end > i


cdef inline void _find_header(const TextIndex *t, char *text, const char *value, uint32_t n, Bits *found) noexcept nogil:
    memcpy(text + 1, value, n if n < t.longest else t.longest)
    index_find(t, text, n + 1, 0, False, found)


cdef inline void _find_headers(const TextIndex *t, const Policy *p, const PolicyRequest *q, bint deny,
                               Bits *found) noexcept nogil:
    """The rules that one header at least speaks for: few are left to be looked at one by one."""
    cdef char text[INDEX_TEXT + 2]
    cdef const Field *f
    cdef const char *value
    cdef uint32_t i
    cdef uint32_t at
    cdef uint32_t k
    cdef uint32_t start
    cdef uint32_t n
    cdef uint32_t members
    for i in range(p.nnames):
        at = q.first[i]
        text[0] = <char>i
        while at != 0:
            f = &q.m.fields[at - 1]
            at = q.following[at - 1]
            value = q.m.base + f.value_at
            _find_header(t, text, value, f.value_len, found)
            if not deny or not _has(value, f.value_len, c','):
                continue
            k = 0
            members = 0
            while _member(value, f.value_len, &k, &start, &n):
                members += 1
                if members > HEADER_MEMBERS:
                    memset(found, 0xFF, sizeof(Bits))
                    return
                _find_header(t, text, value + start, n, found)


cdef inline char _folded(unsigned char c) noexcept nogil:
    return <char>(c | 0x20 if 65 <= c <= 90 else c'-' if c == c'_' else c)


cdef inline bint _alike(const char *folded, const char *name, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if folded[i] != _folded(<unsigned char>name[i]):
            return False
    return True


cdef inline bint _same_name(const char *lower, const char *name, size_t n) noexcept nogil:
    cdef size_t i
    cdef unsigned char c
    for i in range(n):
        c = <unsigned char>name[i]
        if <unsigned char>lower[i] != (c | 0x20 if 65 <= c <= 90 else c):
            return False
    return True


cdef inline bint _regex(PolicyScratch *s, const pcre2_code *code, const char *text, size_t n,
                        bint strict) noexcept nogil:
    """Does the whole text match? At the limit: not strictly, but loosely."""
    cdef int r
    if not s.spent:
        r = pcre2_match(code, <const unsigned char *>text, n, 0, 0, s.data, s.context)
        if r >= 0:
            return True
        if r == PCRE2_ERROR_NOMATCH:
            return False
        s.spent = True
        s.limits[0] += 1
    return not strict


cdef inline bint _path_regexes(PolicyScratch *s, const Conditions *c, PolicyRequest *q, bint strict) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t k
    for i in range(c.nregexes):
        if _regex(s, c.regexes[i], q.path, q.path_len, strict):
            return True
        if strict:
            continue
        _forms(s, q)
        for k in range(q.nforms):
            if q.forms[k].text != q.path and _regex(s, c.regexes[i], q.forms[k].text, q.forms[k].len, False):
                return True
    return False


cdef inline bint _method_named(const Conditions *c, const Message *m) noexcept nogil:
    cdef uint32_t i
    for i in range(c.nmethods):
        if c.methods[i].len == m.method_name.len and memcmp(
                c.methods[i].ptr, m.base + m.method_name.at, m.method_name.len) == 0:
            return True
    return False


cdef inline bint _value_met(PolicyScratch *s, const HeaderRule *h, const char *value, uint32_t n,
                            bint strict) noexcept nogil:
    if h.kind == HEADER_EXACT:
        return n == h.value.len and memcmp(value, h.value.ptr, n) == 0
    if h.kind == HEADER_PREFIX:
        return n >= h.value.len and memcmp(value, h.value.ptr, h.value.len) == 0
    return h.kind == HEADER_REGEX and _regex(s, h.regex, value, n, strict)


cdef inline bint _some_member(PolicyScratch *s, const HeaderRule *h, const char *value, uint32_t n) noexcept nogil:
    """A list in one field is the same as a field for each of its members (RFC 9110 5.3): one is enough."""
    cdef uint32_t at = 0
    cdef uint32_t start
    cdef uint32_t length
    cdef uint32_t members = 0
    if h.kind < HEADER_EXACT or not _has(value, n, c','):
        return False
    while _member(value, n, &at, &start, &length):
        members += 1
        if members > HEADER_MEMBERS or _value_met(s, h, value + start, length, False):
            return True
    return False


cdef inline bint _header(PolicyScratch *s, const HeaderRule *h, const PolicyRequest *q, bint strict) noexcept nogil:
    """Strictly: every field of that name that goes on has such a value, and there is one. Loosely: one has."""
    cdef uint32_t at = q.first[h.name]
    cdef uint32_t all = 0
    cdef uint32_t gone = 0                     # that may be none: named by Connection, or with another dash
    cdef uint32_t met = 0
    cdef const Field *f
    cdef const char *value
    while at != 0:
        f = &q.m.fields[at - 1]
        at = q.following[at - 1]
        value = q.m.base + f.value_at
        all += 1
        if f.flags & FIELD_HOP or (q.underscores and not _same_name(h.spelled.ptr, q.m.base + f.at, f.name_len)):
            gone += 1
        if _value_met(s, h, value, f.value_len, strict) or (
                not strict and _some_member(s, h, value, f.value_len)):
            met += 1
    if h.kind == HEADER_ABSENT:
        return all == 0 if strict else all == gone
    if h.kind == HEADER_PRESENT:
        return all > gone if strict else all > 0
    return met == all and all > gone if strict else met > 0


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
            _headers(p, q)
        for i in range(r.when.nheaders):
            if not _header(s, &r.when.headers[i], q, strict):
                return False
        for i in range(r.unless.nheaders):
            if _header(s, &r.unless.headers[i], q, not strict):
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
            _headers(p, q)
        memset(&strict, 0, sizeof(Bits))
        _find_headers(&l.headers_in, p, q, l.deny, &strict)
        for k in range(BITS_WORDS):
            left.w[k] &= strict.w[k] | l.any_header.w[k]
        if not bits_any(&left):
            return 0
    if l.hosts:
        if fm_unlikely(_host(q) < 0):
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
                _forms(s, q)
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


cdef extern from * nogil:
    """
    #define fm_ctz64(x) __builtin_ctzll(x)
    """
    uint32_t policy_ctz "fm_ctz64"(uint64_t x) noexcept


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


cdef inline int policy_judge_opaque(const Policy *p, const PolicyView *view, Decision *d) noexcept nogil:
    """Does the policy let opaque bytes through? Conditions on requests cannot be looked at: an allow rule
    that has one allows none, a deny rule denies all that its other conditions fit."""
    cdef int k
    for k in range(BITS_WORDS):
        if view.deny.w[k]:
            return _decide(p, &p.deny.rules[64 * k + policy_ctz(view.deny.w[k])], True, d)
    if not p.has_allow:
        return _decide(p, NULL, False, d)
    for k in range(BITS_WORDS):
        if view.allow.w[k] & p.allow.opaque.w[k]:
            return _decide(p, &p.allow.rules[64 * k + policy_ctz(view.allow.w[k] & p.allow.opaque.w[k])], False, d)
    return _decide(p, NULL, True, d)
