# The Host of a request head that is still coming, found without parsing it: for those who only want to know whose it
# is. What it finds is a guess that nothing but a choice between addresses may rest on: the parser judges the head.

from libc.stddef cimport size_t


cdef inline bint _is_host(const char *p) noexcept nogil:
    return (p[0] | 0x20) == c"h" and (p[1] | 0x20) == c"o" and (p[2] | 0x20) == c"s" and (p[3] | 0x20) == c"t" and (
        p[4] == c":")


cdef inline bint first_host(const char *p, size_t n, const char **host, size_t *host_len) noexcept nogil:
    """True: here is the first Host field's value, or, of length 0, there is none in the whole head. False: more of the
    head is needed."""
    cdef size_t line = 0
    cdef size_t end
    host_len[0] = 0
    host[0] = p
    while True:
        end = line
        while end < n and p[end] != c"\n":
            end += 1
        if end == n:
            return False
        if end == line or end == line + 1 and p[line] == c"\r":
            return line > 0                      # an empty line before the request line says nothing
        if line > 0 and end - line > 5 and _is_host(p + line):
            line += 5
            while line < end and (p[line] == c" " or p[line] == c"\t"):
                line += 1
            while end > line and (p[end - 1] == c" " or p[end - 1] == c"\t" or p[end - 1] == c"\r"):
                end -= 1
            host[0] = p + line
            host_len[0] = end - line
            return True
        line = end + 1
