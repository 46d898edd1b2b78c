# A second reader of HTTP/2 for the fuzz targets: frames and field blocks by the letter of RFC 9113, nothing by speed.
#
# It shares no code with the codec but HPACK's (nghttp2's inflater, on its own). It reads all of a connection
# beforehand: which field blocks there are, which DATA, and which blocks are malformed. What the codec delivers has
# to be among that, in that order. It may be laxer than the codec, which has limits; never stricter.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort
from libc.string cimport memchr, memcmp, memcpy

from fastmesh.core.wire.message cimport FIELD_HOP, Field, MSG_HAS_HOP, Message, Span

cdef extern from "nghttp2/nghttp2.h" nogil:
    ctypedef struct nghttp2_hd_inflater:
        pass
    ctypedef struct judge_nv "nghttp2_nv":
        uint8_t *name
        uint8_t *value
        size_t namelen
        size_t valuelen
    enum:
        NGHTTP2_HD_INFLATE_EMIT
        NGHTTP2_HD_INFLATE_FINAL
    int nghttp2_hd_inflate_new(nghttp2_hd_inflater **)
    void nghttp2_hd_inflate_del(nghttp2_hd_inflater *)
    ssize_t nghttp2_hd_inflate_hd2(nghttp2_hd_inflater *, judge_nv *, int *, const uint8_t *, size_t, int)
    int nghttp2_hd_inflate_end_headers(nghttp2_hd_inflater *)

cdef enum:
    JUDGE_TEXT = 1 << 19
    JUDGE_FIELDS = 8192
    JUDGE_BLOCKS = 512
    JUDGE_DATA = 1024

cdef struct JudgeField:
    const char *name
    size_t n
    const char *value
    size_t len

cdef struct JudgeBlock:
    int32_t id
    bint end                  # END_STREAM
    int first                 # its fields
    int count

cdef struct JudgeData:
    int32_t id
    const uint8_t *p
    size_t n

cdef struct Judge:
    bint full                 # it has seen more than it keeps
    size_t used
    int nfields
    int nblocks
    int ndata
    char text[524288]                   # JUDGE_TEXT
    JudgeField fields[8192]             # JUDGE_FIELDS
    JudgeBlock blocks[512]              # JUDGE_BLOCKS
    JudgeData data[1024]                # JUDGE_DATA


cdef inline void fail(const char *what) noexcept nogil:
    fprintf(stderr, b"fuzz: %s\n", what)
    abort()


cdef inline bint is_name(const JudgeField *f, const char *name, size_t n) noexcept nogil:
    return f.n == n and memcmp(f.name, name, n) == 0


# ---- frames --------------------------------------------------------------------------------------------

cdef inline bint _judge_inflate(Judge *j, nghttp2_hd_inflater *inflater, JudgeBlock *b, const uint8_t *p, size_t n,
                                bint final) noexcept nogil:
    """Decode a fragment of the block `b`; False: it cannot be decoded."""
    cdef judge_nv nv
    cdef JudgeField *f
    cdef ssize_t r
    cdef int flags
    while True:
        flags = 0
        r = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, p, n, final)
        if r < 0:
            return False
        p += r
        n -= <size_t>r
        if flags & NGHTTP2_HD_INFLATE_EMIT:
            if j.nfields == JUDGE_FIELDS or j.used + nv.namelen + nv.valuelen > JUDGE_TEXT:
                j.full = True
                return False
            f = &j.fields[j.nfields]
            f.name = j.text + j.used
            f.n = nv.namelen
            memcpy(j.text + j.used, nv.name, nv.namelen)
            j.used += nv.namelen
            f.value = j.text + j.used
            f.len = nv.valuelen
            memcpy(j.text + j.used, nv.value, nv.valuelen)
            j.used += nv.valuelen
            j.nfields += 1
            b.count += 1
        if flags & NGHTTP2_HD_INFLATE_FINAL:
            nghttp2_hd_inflate_end_headers(inflater)
            return True
        if n == 0 and not flags & NGHTTP2_HD_INFLATE_EMIT:
            return True


cdef inline void judge_read(Judge *j, const uint8_t *p, size_t size) noexcept nogil:
    """Read the frames in p[:size], up to what ends every connection."""
    cdef nghttp2_hd_inflater *inflater = NULL
    cdef const uint8_t *end = p + size
    cdef const uint8_t *q
    cdef JudgeBlock *b = NULL
    cdef size_t length, pad
    cdef uint8_t kind, flags
    cdef int32_t id
    j.full = False
    j.used = 0
    j.nfields = j.nblocks = j.ndata = 0
    if nghttp2_hd_inflate_new(&inflater) != 0:
        j.full = True
        return
    while end - p >= 9:
        length = <size_t>p[0] << 16 | <size_t>p[1] << 8 | p[2]
        kind = p[3]
        flags = p[4]
        id = <int32_t>((<uint32_t>p[5] & 0x7F) << 24 | <uint32_t>p[6] << 16 | <uint32_t>p[7] << 8 | p[8])
        q = p + 9
        if b != NULL and (kind != 9 or id != b.id):
            break                                   # RFC 9113 6.10: nothing comes between
        # DATA count as they come; all other frames when they are whole
        if kind != 0 and <size_t>(end - q) < length:
            break
        p = q + length if <size_t>(end - q) >= length else end
        if kind > 1 and kind != 9:
            continue
        pad = 0
        if kind != 9 and flags & 8:
            if length == 0 or q == end:
                break
            pad = q[0]
            q += 1
            length -= 1
        if kind == 1 and flags & 32:
            if length < 5:
                break
            q += 5
            length -= 5
        if kind == 0 and pad > length:
            continue                                # nghttp2 ends the connection, but looks at what follows first
        if pad > length or id == 0:
            break
        length -= pad
        if kind == 0:
            if j.ndata == JUDGE_DATA:
                j.full = True
                break
            if length > <size_t>(end - q):
                length = <size_t>(end - q)
            j.data[j.ndata].id = id
            j.data[j.ndata].p = q
            j.data[j.ndata].n = length
            j.ndata += 1
            continue
        if kind == 1:
            if j.nblocks == JUDGE_BLOCKS:
                j.full = True
                break
            b = &j.blocks[j.nblocks]
            b.id = id
            b.end = flags & 1
            b.first = j.nfields
            b.count = 0
        elif b == NULL:
            break
        if not _judge_inflate(j, inflater, b, q, length, flags & 4):
            break
        if flags & 4:
            j.nblocks += 1
            b = NULL
    nghttp2_hd_inflate_del(inflater)


cdef inline JudgeBlock *judge_block(Judge *j, int32_t id, int index) noexcept nogil:
    """The field block number `index` of a stream."""
    cdef int i
    for i in range(j.nblocks):
        if j.blocks[i].id == id:
            if index == 0:
                return &j.blocks[i]
            index -= 1
    return NULL


cdef inline void judge_data(Judge *j, int32_t id, uint64_t at, const char *p, size_t n) noexcept nogil:
    """p[:n] are what the DATA of a stream have at `at`."""
    cdef const JudgeData *d
    cdef size_t k
    cdef int i
    if j.full:
        return
    for i in range(j.ndata):
        d = &j.data[i]
        if d.id != id:
            continue
        if at >= d.n:
            at -= d.n
            continue
        k = d.n - <size_t>at
        if k > n:
            k = n
        if memcmp(d.p + at, p, k):
            fail(b"other content than the DATA have")
        p += k
        n -= k
        at = 0
        if n == 0:
            return
    if n:
        fail(b"more content than the DATA have")


# ---- rules ---------------------------------------------------------------------------------------------

cdef inline bint _judge_letter(uint8_t ch) noexcept nogil:
    return c"a" <= ch <= c"z" or c"0" <= ch <= c"9" or memchr(b"!#$%&'*+-.^_`|~", ch, 15) != NULL


cdef inline bint judge_field_wrong(const JudgeField *f, bint trailers) noexcept nogil:
    """Whether a field by itself makes a message malformed (RFC 9113 8.2); pseudo-fields are none."""
    cdef const char *trailers_word = b"trailers"
    cdef size_t i
    cdef uint8_t ch
    if f.n == 0:
        return True
    for i in range(f.len):
        ch = <uint8_t>f.value[i]
        if ch == 0 or ch == c"\r" or ch == c"\n":
            return True
    if f.name[0] == c":":
        return False
    for i in range(f.n):
        if not _judge_letter(<uint8_t>f.name[i]):
            return True
    if f.len and (f.value[0] == c" " or f.value[0] == c"\t" or f.value[f.len - 1] == c" "
                  or f.value[f.len - 1] == c"\t"):
        return True
    if (is_name(f, b"connection", 10) or is_name(f, b"proxy-connection", 16) or is_name(f, b"keep-alive", 10)
            or is_name(f, b"transfer-encoding", 17) or is_name(f, b"upgrade", 7)):
        return True
    if is_name(f, b"te", 2) and not trailers:
        # tokens are compared without regard to case
        if f.len != 8:
            return True
        for i in range(8):
            if (f.value[i] | 32) != trailers_word[i]:
                return True
    return False


cdef inline const JudgeField *judge_find(const Judge *j, const JudgeBlock *b, const char *name,
                                         size_t n) noexcept nogil:
    cdef int i
    for i in range(b.count):
        if is_name(&j.fields[b.first + i], name, n):
            return &j.fields[b.first + i]
    return NULL


cdef inline int _judge_count(const Judge *j, const JudgeBlock *b, const char *name, size_t n) noexcept nogil:
    cdef int i
    cdef int found = 0
    for i in range(b.count):
        if is_name(&j.fields[b.first + i], name, n):
            found += 1
    return found


cdef inline bint _judge_pseudo_wrong(const Judge *j, const JudgeBlock *b, bint request, bint extended) noexcept nogil:
    """RFC 9113 8.3.1, 8.5; RFC 8441 4."""
    cdef int method = _judge_count(j, b, b":method", 7)
    cdef int scheme = _judge_count(j, b, b":scheme", 7)
    cdef int path = _judge_count(j, b, b":path", 5)
    cdef int authority = _judge_count(j, b, b":authority", 10)
    cdef int protocol = _judge_count(j, b, b":protocol", 9)
    cdef int status = _judge_count(j, b, b":status", 7)
    cdef const JudgeField *f
    cdef size_t i
    cdef int total = 0
    cdef bint before = True
    for i in range(<size_t>b.count):
        f = &j.fields[b.first + <int>i]
        if f.n and f.name[0] == c":":
            total += 1
            if not before:
                return True
        else:
            before = False
    if not request:
        if status != 1 or total != 1:
            return True
        f = judge_find(j, b, b":status", 7)
        return f.len != 3 or not c"1" <= f.value[0] <= c"9" or not c"0" <= f.value[1] <= c"9" or (
            not c"0" <= f.value[2] <= c"9")
    if method != 1 or scheme > 1 or path > 1 or authority > 1 or protocol > 1 or (
            total != method + scheme + path + authority + protocol):
        return True
    f = judge_find(j, b, b":method", 7)
    if protocol:
        return not extended or not is_value(f, b"CONNECT", 7) or not (scheme and path and authority)
    if is_value(f, b"CONNECT", 7):
        return scheme or path or not authority
    if not scheme or not path:
        return True
    f = judge_find(j, b, b":path", 5)
    if f.len == 0 or f.value[0] != c"/" and not (
            is_value(f, b"*", 1) and is_value(judge_find(j, b, b":method", 7), b"OPTIONS", 7)):
        return True
    for i in range(f.len):
        if <uint8_t>f.value[i] <= 32 or f.value[i] == 127 or f.value[i] == c"#":
            return True
    f = judge_find(j, b, b":authority", 10)
    if f == NULL:
        f = judge_find(j, b, b"host", 4)
    if f == NULL or f.len == 0 or memchr(f.value, c"@", f.len) != NULL:
        return True
    for i in range(f.len):
        if <uint8_t>f.value[i] <= 32 or f.value[i] == 127 or f.value[i] == c"/":
            return True
    return False


cdef inline bint is_value(const JudgeField *f, const char *value, size_t n) noexcept nogil:
    return f != NULL and f.len == n and memcmp(f.value, value, n) == 0


cdef inline bint judge_malformed(const Judge *j, const JudgeBlock *b, bint request, bint extended,
                                 bint trailers) noexcept nogil:
    """Whether the block makes the message malformed (RFC 9113 8.1.1)."""
    cdef const JudgeField *f
    cdef size_t k
    cdef int i
    for i in range(b.count):
        f = &j.fields[b.first + i]
        if judge_field_wrong(f, trailers) or trailers and f.name[0] == c":":
            return True
    if trailers:
        return not b.end
    if _judge_pseudo_wrong(j, b, request, extended):
        return True
    if _judge_count(j, b, b"content-length", 14) > 1 or request and _judge_count(j, b, b"host", 4) > 1:
        return True
    f = judge_find(j, b, b"content-length", 14)
    if f != NULL:
        if f.len == 0:
            return True
        for k in range(f.len):
            if not c"0" <= f.value[k] <= c"9":
                return True
    return False


# ---- what was delivered ----------------------------------------------------------------------------------

cdef inline bint span_is(const Message *m, const Span *s, const JudgeField *f) noexcept nogil:
    if f == NULL:
        return s.len == 0
    return s.len == f.len and memcmp(m.base + s.at, f.value, f.len) == 0


cdef inline bint field_is(const Message *m, const Field *g, const char *name, size_t n, const char *value,
                          size_t len) noexcept nogil:
    return (g.name_len == n and g.value_len == len and memcmp(m.base + g.at, name, n) == 0
            and memcmp(m.base + g.value_at, value, len) == 0)


cdef inline void check_message(const Message *m) noexcept nogil:
    """Every position inside the head, lines without a gap and without a line's end inside, flags that agree."""
    cdef const Field *f
    cdef size_t at = 0
    cdef bint hop = False
    cdef int i
    if m.head_len < 2 or memcmp(m.base + m.head_len - 2, b"\r\n", 2):
        fail(b"end of the head")
    for i in range(m.nfields):
        f = &m.fields[i]
        if i and f.at != at:
            fail(b"gap between lines")
        at = <size_t>f.at + f.line_len
        if (at > m.head_len or f.name_len == 0 or f.value_at < f.at + f.name_len + 1
                or <size_t>f.value_at + f.value_len + 2 > at or m.base[f.at + f.name_len] != c":"
                or memcmp(m.base + at - 2, b"\r\n", 2)):
            fail(b"field outside its line")
        if (memchr(m.base + f.at, c"\r", f.line_len - 2) != NULL or memchr(m.base + f.at, c"\n", f.line_len - 2) != NULL
                or memchr(m.base + f.at, 0, f.line_len) != NULL):
            fail(b"a line within a line")
        if f.flags & FIELD_HOP:
            hop = True
    if m.nfields and at + 2 != m.head_len:
        fail(b"empty line")
    if hop and not m.flags & MSG_HAS_HOP:
        fail(b"MSG_HAS_HOP")


cdef inline int _judge_cookie(const Judge *j, const JudgeBlock *b, const Message *m, const Field *g) noexcept nogil:
    """All crumbs of the block, joined, are the value of `g` (RFC 9113 8.2.3)."""
    cdef const char *p = m.base + g.value_at
    cdef size_t left = g.value_len
    cdef const JudgeField *f
    cdef bint first = True
    cdef int i
    for i in range(b.count):
        f = &j.fields[b.first + i]
        if not is_name(f, b"cookie", 6):
            continue
        if not first:
            if left < 2 or memcmp(p, b"; ", 2):
                return 0
            p += 2
            left -= 2
        first = False
        if left < f.len or memcmp(p, f.value, f.len):
            return 0
        p += f.len
        left -= f.len
    return left == 0


cdef inline void judge_same(const Judge *j, const JudgeBlock *b, const Message *m, bint request,
                            bint trailers) noexcept nogil:
    """`m` says what the block says: a request's Host in front, crumbs together, all else in order."""
    cdef const JudgeField *f
    cdef const JudgeField *host = NULL
    cdef bint cookie = False
    cdef int i
    cdef int k = 0
    if request and not trailers:
        host = judge_find(j, b, b":authority", 10)
        if host == NULL:
            host = judge_find(j, b, b"host", 4)
        if not (span_is(m, &m.method_name, judge_find(j, b, b":method", 7))
                and span_is(m, &m.scheme, judge_find(j, b, b":scheme", 7))
                and span_is(m, &m.protocol, judge_find(j, b, b":protocol", 9))
                and span_is(m, &m.authority, host)):
            fail(b"other pseudo-fields")
        f = judge_find(j, b, b":path", 5)
        if f != NULL and not span_is(m, &m.path, f):
            fail(b"another path")
        if host != NULL:
            if m.nfields == 0 or not field_is(m, &m.fields[0], b"host", 4, host.value, host.len):
                fail(b"Host is not in front")
            k = 1
    for i in range(b.count):
        f = &j.fields[b.first + i]
        if f.name[0] == c":" or host != NULL and is_name(f, b"host", 4):
            continue
        if request and not trailers and is_name(f, b"cookie", 6):
            if cookie:
                continue
            cookie = True
            if k == m.nfields or m.fields[k].name_len != 6 or not _judge_cookie(j, b, m, &m.fields[k]):
                fail(b"another Cookie")
            k += 1
            continue
        if k == m.nfields or not field_is(m, &m.fields[k], f.name, f.n, f.value, f.len):
            fail(b"another field")
        k += 1
    if k != m.nfields:
        fail(b"a field too many")
