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
#
# Here are the rules themselves, as face/load_policy.pxd makes them of a snapshot; they belong to it and are read only.
# policy_caller settles what a connection says, policy_request reads a request as rules look at it, policy_headers
# compares its headers, policy_scratch its regexes, and policy_judge decides.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmesh.core.sys.pcre2 cimport pcre2_code, pcre2_code_free
from fastmesh.core.traffic.counters cimport RuleRow
from fastmesh.core.traffic.text_index cimport Bits, Text, TextIndex

cdef enum:
    POLICY_RULES = 256        # most rules of one list
    POLICY_NAMES = 64         # most header names that the rules of one listener or service look at

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
