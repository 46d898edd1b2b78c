# Conditions on headers: where the fields are that rules look at, and whether a rule's are met.
#
# Names that differ in "-" and "_" only are one. A field that holds a list counts, loosely, as one for each member.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from fastmesh.core.traffic.policy cimport (
    HEADER_ABSENT, HEADER_EXACT, HEADER_PREFIX, HEADER_PRESENT, HEADER_REGEX, HeaderRule, Policy,
)
from fastmesh.core.traffic.policy_request cimport PolicyRequest, same_name, text_has
from fastmesh.core.traffic.policy_scratch cimport PolicyScratch, regex_met
from fastmesh.core.traffic.text_index cimport Bits, INDEX_TEXT, Text, TextIndex, index_find, index_slot, index_step
from fastmesh.core.wire.message cimport FIELD_HOP, Field

cdef enum:
    HEADER_MEMBERS = 128      # most members of a list in one header that are looked at


cdef inline char _folded(unsigned char c) noexcept nogil:
    return <char>(c | 0x20 if 65 <= c <= 90 else c'-' if c == c'_' else c)


cdef inline bint _alike(const char *folded, const char *name, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if folded[i] != _folded(<unsigned char>name[i]):
            return False
    return True


cdef inline void policy_headers(const Policy *p, PolicyRequest *q) noexcept nogil:
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


cdef inline void _find_header(const TextIndex *t, char *text, const char *value, uint32_t n,
                              Bits *found) noexcept nogil:
    memcpy(text + 1, value, n if n < t.longest else t.longest)
    index_find(t, text, n + 1, 0, False, found)


cdef inline void find_headers(const TextIndex *t, const Policy *p, const PolicyRequest *q, bint deny,
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
            if not deny or not text_has(value, f.value_len, c','):
                continue
            k = 0
            members = 0
            while _member(value, f.value_len, &k, &start, &n):
                members += 1
                if members > HEADER_MEMBERS:
                    memset(found, 0xFF, sizeof(Bits))
                    return
                _find_header(t, text, value + start, n, found)


cdef inline bint _value_met(PolicyScratch *s, const HeaderRule *h, const char *value, uint32_t n,
                            bint strict) noexcept nogil:
    if h.kind == HEADER_EXACT:
        return n == h.value.len and memcmp(value, h.value.ptr, n) == 0
    if h.kind == HEADER_PREFIX:
        return n >= h.value.len and memcmp(value, h.value.ptr, h.value.len) == 0
    return h.kind == HEADER_REGEX and regex_met(s, h.regex, value, n, strict)


cdef inline bint _some_member(PolicyScratch *s, const HeaderRule *h, const char *value, uint32_t n) noexcept nogil:
    """A list in one field is the same as a field for each of its members (RFC 9110 5.3): one is enough."""
    cdef uint32_t at = 0
    cdef uint32_t start
    cdef uint32_t length
    cdef uint32_t members = 0
    if h.kind < HEADER_EXACT or not text_has(value, n, c','):
        return False
    while _member(value, n, &at, &start, &length):
        members += 1
        if members > HEADER_MEMBERS or _value_met(s, h, value + start, length, False):
            return True
    return False


cdef inline bint header_met(PolicyScratch *s, const HeaderRule *h, const PolicyRequest *q, bint strict) noexcept nogil:
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
        if f.flags & FIELD_HOP or (q.underscores and not same_name(h.spelled.ptr, q.m.base + f.at, f.name_len)):
            gone += 1
        if _value_met(s, h, value, f.value_len, strict) or (
                not strict and _some_member(s, h, value, f.value_len)):
            met += 1
    if h.kind == HEADER_ABSENT:
        return all == 0 if strict else all == gone
    if h.kind == HEADER_PRESENT:
        return all > gone if strict else all > 0
    return met == all and all > gone if strict else met > 0
