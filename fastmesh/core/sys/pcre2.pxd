# What the core uses of PCRE2 (floor: 10.34), 8 bits a code unit. Declarations only.

from libc.stdint cimport uint32_t

cdef extern from * nogil:
    """
    #define PCRE2_CODE_UNIT_WIDTH 8
    #include <pcre2.h>
    """
    ctypedef struct pcre2_code:
        pass
    ctypedef struct pcre2_match_data:
        pass
    ctypedef struct pcre2_match_context:
        pass
    ctypedef struct pcre2_compile_context:
        pass
    ctypedef struct pcre2_general_context:
        pass
    enum:
        PCRE2_ANCHORED
        PCRE2_ENDANCHORED
        PCRE2_DOTALL
        PCRE2_DOLLAR_ENDONLY
        PCRE2_NEVER_BACKSLASH_C
        PCRE2_NEVER_UTF
        PCRE2_NEVER_UCP
        PCRE2_JIT_COMPLETE
        PCRE2_ERROR_NOMATCH
    pcre2_code *pcre2_compile(const unsigned char *pattern, size_t n, uint32_t options, int *error, size_t *offset,
                              pcre2_compile_context *context) noexcept
    void pcre2_code_free(pcre2_code *code) noexcept
    int pcre2_jit_compile(pcre2_code *code, uint32_t options) noexcept
    int pcre2_get_error_message(int error, unsigned char *text, size_t n) noexcept
    int pcre2_match(const pcre2_code *code, const unsigned char *text, size_t n, size_t start, uint32_t options,
                    pcre2_match_data *data, pcre2_match_context *context) noexcept
    pcre2_match_data *pcre2_match_data_create(uint32_t pairs, pcre2_general_context *context) noexcept
    void pcre2_match_data_free(pcre2_match_data *data) noexcept
    pcre2_match_context *pcre2_match_context_create(pcre2_general_context *context) noexcept
    void pcre2_match_context_free(pcre2_match_context *context) noexcept
    int pcre2_set_match_limit(pcre2_match_context *context, uint32_t limit) noexcept
    int pcre2_set_depth_limit(pcre2_match_context *context, uint32_t limit) noexcept
    int pcre2_set_heap_limit(pcre2_match_context *context, uint32_t kib) noexcept
