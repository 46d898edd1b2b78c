# A worker's room for deciding, and the regexes that are matched in it, within limits.
#
# A regex that hits its limit is met loosely and not met strictly, and so are, untried, the others of that decision.

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmesh.core.sys.pcre2 cimport *
from fastmesh.core.wire.message cimport MAX_LINE

cdef enum:
    REGEX_MATCH_LIMIT = 10000 # steps of one regex; a text of 16 KiB needs about one a byte
    REGEX_DEPTH_LIMIT = 250
    REGEX_HEAP_KIB = 256

cdef struct PolicyScratch:    # a worker's: what deciding needs room for
    pcre2_match_data *data
    pcre2_match_context *context
    char *forms               # 6 * MAX_LINE bytes
    uint64_t *limits          # counts regexes that hit their limit
    bint spent                # one did: this request's others are not tried


cdef inline int policy_scratch_init(PolicyScratch *s, uint64_t *limits) noexcept nogil:
    """0, or -1 without memory. Done already: 0."""
    if s.data != NULL:
        return 0
    s.limits = limits
    s.forms = <char *>malloc(6 * MAX_LINE)
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


cdef inline pcre2_code *policy_compile(const char *pattern, size_t n, int *error, size_t *offset) noexcept nogil:
    """A regex that a whole text has to match, bytes as they are; NULL: `error` and where it lies."""
    cdef pcre2_code *code = pcre2_compile(
        <const unsigned char *>pattern, n, PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_DOTALL | PCRE2_DOLLAR_ENDONLY
        | PCRE2_NEVER_BACKSLASH_C | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, error, offset, NULL)
    if code != NULL:
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE)        # where it cannot, matching interprets
    return code


cdef inline bint regex_met(PolicyScratch *s, const pcre2_code *code, const char *text, size_t n,
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
