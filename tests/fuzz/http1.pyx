# Fuzz target of the HTTP/1 codec, for libFuzzer. Only the C that Cython makes of it runs, never Python.
#
# Input: one byte of mode (bit 0: responses; bits 1-2: the request method they answer), one byte that seeds
# the cuts, and the bytes of one connection. What must hold:
#   - no byte outside the data is read: every parse sees a heap block of exactly its size, under ASan;
#   - every position of a Message lies inside its head, lines follow each other without a gap;
#   - however the bytes arrive, the reading is the same: whole, and cut at random;
#   - what is forwarded is accepted when read again, with the same fields, and forwarded the same;
#   - what is accepted is accepted by llhttp, with the same messages, fields, bodies and trailers.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memchr, memcpy, memset
from fastmesh.core.base.reason cimport (
    R_BAD_HOST, R_COUNT, R_HEAD_TOO_LARGE, R_LINE_TOO_LONG, R_UPSTREAM_HEAD_TOO_LARGE,
)
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, F_PROXY_CONNECTION, Field,
    MSG_HAS_HOP, MSG_HTTP10, MSG_KEEP_ALIVE, MSG_UPGRADE, M_CONNECT, M_GET, M_HEAD, Message, Span,
)
from fastmesh.core.wire.http1 cimport http1_parse_request, http1_parse_response
from fastmesh.core.wire.http1_chunked cimport (
    HTTP1_DATA, HTTP1_END, HTTP1_MORE, Http1Chunked, http1_chunked, http1_parse_trailers,
)
from fastmesh.core.wire.http1_write cimport (
    http1_copy_fields, http1_copy_fields_skip, http1_head_bound, http1_write_request_line,
    http1_write_status_line,
)

cdef extern from "llhttp.h" nogil:
    ctypedef struct llhttp_t:
        uint8_t method
        uint16_t status_code
    ctypedef struct llhttp_settings_t:
        int (*on_message_begin)(llhttp_t *) noexcept nogil
        int (*on_url)(llhttp_t *, const char *, size_t) noexcept nogil
        int (*on_status)(llhttp_t *, const char *, size_t) noexcept nogil
        int (*on_method)(llhttp_t *, const char *, size_t) noexcept nogil
        int (*on_header_field)(llhttp_t *, const char *, size_t) noexcept nogil
        int (*on_header_value)(llhttp_t *, const char *, size_t) noexcept nogil
        int (*on_header_value_complete)(llhttp_t *) noexcept nogil
        int (*on_headers_complete)(llhttp_t *) noexcept nogil
        int (*on_body)(llhttp_t *, const char *, size_t) noexcept nogil
    enum:
        HTTP_REQUEST
        HTTP_RESPONSE
        HPE_OK
        HPE_PAUSED_UPGRADE
        HPE_INVALID_METHOD
        HPE_CLOSED_CONNECTION
    void llhttp_settings_init(llhttp_settings_t *)
    void llhttp_init(llhttp_t *, int, const llhttp_settings_t *)
    int llhttp_execute(llhttp_t *, const char *, size_t)
    void llhttp_resume_after_upgrade(llhttp_t *)
    int llhttp_should_keep_alive(const llhttp_t *)
    const char *llhttp_get_error_pos(const llhttp_t *)
    const char *llhttp_get_error_reason(const llhttp_t *)

cdef extern from *:
    """
    #define BODY 0xCBF29CE484222325ull
    """
    const uint64_t BODY      # hash of a body before its first byte

cdef enum:
    MESSAGES = 32            # that are compared with llhttp; a connection stops there

cdef enum End:
    END_CLEAN = 0            # between messages
    END_HEAD                 # waits for more
    END_BODY
    END_TRAILERS
    END_CLOSED               # the last message closes the connection
    END_TUNNEL               # the rest is another protocol
    END_MANY

cdef struct Seen:
    # one message, as hashes of what both readers show
    uint64_t line
    uint64_t fields
    uint64_t body
    uint64_t trailers
    bint keep_alive

cdef struct Trace:
    Seen seen[MESSAGES]
    uint64_t all             # hash of everything the codec says, lengths and flags included
    int messages             # heads that are whole
    int end                  # enum End or a negative reason
    size_t good              # where the last message that was whole ended
    size_t at                # bytes consumed
    bint proxy_connection

cdef struct Judge:
    Seen seen[MESSAGES]
    int heads                # that are whole
    int index                # of the message in progress
    bint in_trailers
    int request_method
    size_t name_len
    size_t value_len
    char name[70000]
    char value[70000]

cdef Judge judge


cdef void fail(const char *what) noexcept nogil:
    fprintf(stderr, b"fuzz: %s\n", what)
    abort()


cdef uint64_t mix(uint64_t h, const void *p, size_t n) noexcept nogil:
    """FNV-1a, with a mark behind each item so that items do not run together."""
    cdef const uint8_t *b = <const uint8_t *>p
    cdef size_t i
    for i in range(n):
        h = (h ^ b[i]) * 0x100000001B3ULL
    return (h ^ 0x1FF) * 0x100000001B3ULL


cdef uint64_t mix_body(uint64_t h, const char *p, size_t n) noexcept nogil:
    """FNV-1a without a mark: how a body is cut into pieces does not matter."""
    cdef size_t i
    for i in range(n):
        h = (h ^ <uint8_t>p[i]) * 0x100000001B3ULL
    return h


cdef uint64_t mix_number(uint64_t h, uint64_t v) noexcept nogil:
    return mix(h, &v, sizeof(v))


cdef uint64_t mix_field(uint64_t h, const char *name, size_t name_len, const char *value,
                        size_t value_len) noexcept nogil:
    return mix(mix(h, name, name_len), value, value_len)


cdef char *block(const char *data, size_t n) noexcept nogil:
    """A copy in a heap block of exactly n bytes."""
    cdef char *p = <char *>malloc(n)
    if n:
        memcpy(p, data, n)
    return p


cdef void check(const Message *m, const char *buf, size_t len, int used, bint trailers) noexcept nogil:
    """Every position inside the head, lines without a gap, flags that agree."""
    cdef const Field *f
    cdef const Span *spans = &m.method_name
    cdef size_t at = 0
    cdef bint hop = False
    cdef int i
    if used <= 0 or <size_t>used > len or m.base < buf or m.base - buf + m.head_len != used:
        fail(b"length of the head")
    if m.base[m.head_len - 1] != c"\n" or m.base[m.head_len - 2] != c"\r":
        fail(b"end of the head")
    for i in range(m.nfields):
        f = &m.fields[i]
        if i and f.at != at:
            fail(b"gap between lines")
        at = f.at + f.line_len
        if (at > m.head_len or f.name_len == 0 or f.value_at < f.at + f.name_len + 1
                or f.value_at + f.value_len + 2 > at or m.base[f.at + f.name_len] != c":"):
            fail(b"field outside its line")
        if f.flags & FIELD_HOP:
            hop = True
    if m.nfields and at + 2 != m.head_len:
        fail(b"empty line")
    if hop and not m.flags & MSG_HAS_HOP:
        fail(b"MSG_HAS_HOP")
    if trailers:
        return
    for i in range(4 if m.status == 0 else 0):
        if spans[i].at + <size_t>spans[i].len > m.head_len:
            fail(b"span outside the head")
    if m.reason.at + <size_t>m.reason.len > m.head_len or m.upgrade.at + <size_t>m.upgrade.len > m.head_len:
        fail(b"span outside the head")


cdef int parse(const char *buf, size_t len, uint32_t *scan, int kind, int method, Message *m) noexcept nogil:
    return http1_parse_response(buf, len, scan, method, m) if kind else http1_parse_request(buf, len, scan, m)


cdef size_t forward(char *out, const Message *m) noexcept nogil:
    """The head for the next hop."""
    cdef size_t n = http1_write_status_line(out, m) if m.status else http1_write_request_line(out, m)
    n += http1_copy_fields(out + n, m)
    memcpy(out + n, b"\r\n", 2)
    return n + 2


cdef void round_trip(const Message *m, int kind, int method) noexcept nogil:
    """What is forwarded is read again as the same fields, and forwarded the same."""
    cdef size_t bound = http1_head_bound(m, 0)
    cdef char *first = <char *>malloc(bound)
    cdef char *second
    cdef char *head
    cdef size_t n = forward(first, m)
    cdef size_t again
    cdef uint32_t scan = 0
    cdef Message *copy = <Message *>malloc(sizeof(Message))
    cdef const Field *f
    cdef const Field *g
    cdef int i
    cdef int j = 0
    cdef int r
    if n > bound:
        fail(b"http1_head_bound")
    head = block(first, n)
    r = parse(head, n, &scan, kind, method, copy)
    if r < 0:
        # an HTTP/1.0 request need not have a Host; a missing space may have been added at the limit
        if not ((r == -R_BAD_HOST and m.flags & MSG_HTTP10) or r == -R_HEAD_TOO_LARGE
                or r == -R_LINE_TOO_LONG or r == -R_UPSTREAM_HEAD_TOO_LARGE):
            fail(b"what is forwarded is refused")
    elif <size_t>r != n:
        fail(b"what is forwarded has another length")
    else:
        for i in range(m.nfields):
            f = &m.fields[i]
            if f.flags & FIELD_HOP:
                continue
            if j >= copy.nfields:
                fail(b"a field is missing")
            g = &copy.fields[j]
            if (mix_field(0, m.base + f.at, f.name_len, m.base + f.value_at, f.value_len)
                    != mix_field(0, head + g.at, g.name_len, head + g.value_at, g.value_len) or f.id != g.id):
                fail(b"a field has changed")
            j += 1
        if j != copy.nfields:
            fail(b"a field too many")
        second = <char *>malloc(http1_head_bound(copy, 0))
        again = forward(second, copy)
        if again != n or mix(0, second, again) != mix(0, first, n):
            fail(b"forwarding twice differs")
        if http1_copy_fields_skip(second, copy, <uint64_t>-1) != 0:
            fail(b"skipping everything leaves something")
        free(second)
    free(copy)
    free(head)
    free(first)


cdef size_t arrive(size_t arrived, size_t size, uint64_t *seed) noexcept nogil:
    """How much has arrived next; all of it if the seed is 0."""
    cdef uint64_t s = seed[0]
    if s == 0:
        return size
    s ^= s << 13
    s ^= s >> 7
    s ^= s << 17
    seed[0] = s
    # mostly small steps, now and then a large one
    arrived += 1 + (s >> 8) % (4 if s & 3 else 97)
    return arrived if arrived < size else size


cdef void drive(const char *data, size_t size, int kind, int method, uint64_t seed, Trace *t) noexcept nogil:
    """Read a connection with the codec, in pieces if there is a seed."""
    cdef Message *m = <Message *>malloc(sizeof(Message))
    cdef Http1Chunked chunked
    cdef const char *piece
    cdef const char *target
    cdef const Field *f
    cdef Seen *seen
    cdef char *buf
    cdef size_t arrived = 0
    cdef size_t used, piece_len, n
    cdef uint32_t scan
    cdef int r, i
    memset(t, 0, sizeof(Trace))
    while t.at < size:
        if t.messages == MESSAGES:
            t.end = END_MANY
            break
        # head
        scan = 0
        r = 0
        while True:
            if arrived <= t.at:
                arrived = arrive(t.at, size, &seed)
            buf = block(data + t.at, arrived - t.at)
            memset(m, 0xA5, sizeof(Message))
            r = parse(buf, arrived - t.at, &scan, kind, method, m)
            if r != 0 or arrived == size:
                break
            free(buf)
            arrived = arrive(arrived, size, &seed)
        if r <= 0:
            free(buf)
            if r <= -R_COUNT:
                fail(b"no such reason")
            t.end = r if r < 0 else END_HEAD
            break
        check(m, buf, arrived - t.at, r, False)
        round_trip(m, kind, method)
        seen = &t.seen[t.messages]
        t.messages += 1
        t.all = mix_number(mix_number(mix_number(t.all, <uint64_t>r), m.flags), m.length)
        t.all = mix_number(mix_number(mix_number(t.all, m.framing), m.status), m.method)
        t.all = mix(t.all, m.base + m.authority.at, m.authority.len) if not kind else t.all
        t.all = mix(t.all, m.base + m.path.at, m.path.len) if not kind else t.all
        if kind:
            seen.line = mix(mix_number(0, m.status), m.base + m.reason.at, m.reason.len)
        else:
            target = m.base + m.method_name.at + m.method_name.len + 1
            n = <size_t>(<const char *>memchr(target, c" ", m.head_len) - target)
            seen.line = mix(mix(0, m.base + m.method_name.at, m.method_name.len), target, n)
        for i in range(m.nfields):
            f = &m.fields[i]
            t.all = mix_number(mix_number(t.all, f.id), f.flags)
            seen.fields = mix_field(seen.fields, m.base + f.at, f.name_len, m.base + f.value_at, f.value_len)
            if f.id == F_PROXY_CONNECTION:
                t.proxy_connection = True
        seen.keep_alive = (m.flags & MSG_KEEP_ALIVE) != 0
        t.at += <size_t>r
        free(buf)
        # body
        seen.body = BODY
        if m.framing == FRAMING_LENGTH:
            n = size - t.at if size - t.at < m.length else <size_t>m.length
            seen.body = mix_body(seen.body, data + t.at, n)
            t.at += n
            if n < m.length:
                t.end = END_BODY
                break
        elif m.framing == FRAMING_CLOSE:
            seen.body = mix_body(seen.body, data + t.at, size - t.at)
            t.at = size
        elif m.framing == FRAMING_CHUNKED:
            memset(&chunked, 0, sizeof(chunked))
            while True:
                if arrived < t.at:
                    arrived = t.at
                buf = block(data + t.at, arrived - t.at)
                r = http1_chunked(&chunked, buf, arrived - t.at, &used, &piece, &piece_len)
                if r >= 0 and used > arrived - t.at:
                    fail(b"consumed more than there is")
                if r == HTTP1_DATA:
                    if piece < buf or piece + piece_len != buf + used or piece_len == 0:
                        fail(b"a piece outside the buffer")
                    seen.body = mix_body(seen.body, piece, piece_len)
                free(buf)
                if r < 0:
                    t.end = r
                    break
                t.at += used
                if r == HTTP1_END:
                    break
                if r == HTTP1_MORE:
                    if t.at != arrived:
                        fail(b"MORE without consuming everything")
                    if arrived == size:
                        t.end = END_BODY
                        break
                    arrived = arrive(arrived, size, &seed)
            if t.end:
                break
            # trailers
            scan = 0
            while True:
                if arrived < t.at:
                    arrived = t.at
                buf = block(data + t.at, arrived - t.at)
                memset(m.fields, 0xA5, sizeof(m.fields))
                n = m.flags
                r = http1_parse_trailers(buf, arrived - t.at, &scan, m)
                if r > 0:
                    check(m, buf, arrived - t.at, r, True)
                    for i in range(m.nfields):
                        f = &m.fields[i]
                        t.all = mix_number(t.all, f.flags)
                        seen.trailers = mix_field(seen.trailers, m.base + f.at, f.name_len,
                                                  m.base + f.value_at, f.value_len)
                # what the head said is asked below
                m.flags = <uint8_t>n
                free(buf)
                if r != 0 or arrived == size:
                    break
                arrived = arrive(arrived, size, &seed)
            if r <= 0:
                t.end = r if r < 0 else END_TRAILERS
                break
            t.at += <size_t>r
        t.all = mix_number(t.all, t.at)
        t.good = t.at
        if m.flags & MSG_UPGRADE or (not kind and m.method == M_CONNECT) or (
                kind and method == M_CONNECT and m.status // 100 == 2):
            t.end = END_TUNNEL
            break
        if not m.flags & MSG_KEEP_ALIVE:
            t.end = END_CLOSED
            break
        memset(m, 0, sizeof(Message))
    for i in range(t.messages):
        t.all = mix(t.all, &t.seen[i], sizeof(Seen))
    free(m)


# ---- llhttp --------------------------------------------------------------------------------------------

cdef int on_message_begin(llhttp_t *p) noexcept nogil:
    if judge.heads == MESSAGES:
        return -1
    judge.index = judge.heads
    memset(&judge.seen[judge.index], 0, sizeof(Seen))
    judge.seen[judge.index].body = BODY
    judge.in_trailers = False
    judge.name_len = 0
    judge.value_len = 0
    return 0


cdef int on_method(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    judge.seen[judge.index].line = mix(judge.seen[judge.index].line, at, n)
    return 0


cdef int on_url(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    judge.seen[judge.index].line = mix(judge.seen[judge.index].line, at, n)
    return 0


cdef int on_status(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    # kept until the status code is certain
    memcpy(judge.value + judge.value_len, at, n)
    judge.value_len += n
    return 0


cdef int on_header_field(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    if judge.name_len == 0 and not judge.in_trailers and judge.seen[judge.index].fields == 0:
        take_status(p)
    memcpy(judge.name + judge.name_len, at, n)
    judge.name_len += n
    return 0


cdef void take_status(llhttp_t *p) noexcept nogil:
    cdef Seen *seen = &judge.seen[judge.index]
    if p.status_code and seen.line == 0:
        seen.line = mix(mix_number(0, p.status_code), judge.value, judge.value_len)
        judge.value_len = 0


cdef int on_header_value(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    memcpy(judge.value + judge.value_len, at, n)
    judge.value_len += n
    return 0


cdef int on_header_value_complete(llhttp_t *p) noexcept nogil:
    cdef Seen *seen = &judge.seen[judge.index]
    cdef size_t n = judge.value_len
    # llhttp leaves white space behind a value where it is
    while n and (judge.value[n - 1] == c" " or judge.value[n - 1] == c"\t"):
        n -= 1
    if judge.in_trailers:
        seen.trailers = mix_field(seen.trailers, judge.name, judge.name_len, judge.value, n)
    else:
        seen.fields = mix_field(seen.fields, judge.name, judge.name_len, judge.value, n)
    judge.name_len = 0
    judge.value_len = 0
    return 0


cdef int on_headers_complete(llhttp_t *p) noexcept nogil:
    cdef Seen *seen = &judge.seen[judge.index]
    take_status(p)
    judge.heads += 1
    judge.in_trailers = True
    seen.keep_alive = llhttp_should_keep_alive(p)
    if judge.request_method == M_HEAD:
        return 1
    if judge.request_method == M_CONNECT and p.status_code // 100 == 2:
        return 2
    return 0


cdef int on_body(llhttp_t *p, const char *at, size_t n) noexcept nogil:
    cdef Seen *seen = &judge.seen[judge.index]
    seen.body = mix_body(seen.body, at, n)
    return 0


cdef void compare(const char *data, size_t size, int kind, int method, const Trace *t) noexcept nogil:
    """llhttp accepts what the codec accepted, and reads the same messages."""
    cdef llhttp_settings_t settings
    cdef llhttp_t parser
    cdef char *buf
    cdef const char *p
    cdef const char *end
    cdef const Seen *ours
    cdef const Seen *theirs
    cdef int whole = t.messages
    cdef int e, i
    # Of a refused message, an unfinished head or trailer section only what comes before was accepted.
    if t.end < 0 or t.end == END_HEAD:
        size = t.good
    elif t.end == END_TRAILERS or t.end == END_CLOSED or t.end == END_TUNNEL or t.end == END_MANY:
        size = t.at
    buf = block(data, size)
    judge.heads = 0
    judge.index = 0
    judge.in_trailers = False
    judge.request_method = method if kind else 0
    memset(judge.seen, 0, sizeof(judge.seen))
    llhttp_settings_init(&settings)
    settings.on_message_begin = on_message_begin
    if not kind:
        settings.on_method = on_method
    settings.on_url = on_url
    settings.on_status = on_status
    settings.on_header_field = on_header_field
    settings.on_header_value = on_header_value
    settings.on_header_value_complete = on_header_value_complete
    settings.on_headers_complete = on_headers_complete
    settings.on_body = on_body
    llhttp_init(&parser, HTTP_RESPONSE if kind else HTTP_REQUEST, &settings)
    p = buf
    end = buf + size
    e = HPE_OK
    while p < end:
        e = llhttp_execute(&parser, p, <size_t>(end - p))
        if e != HPE_PAUSED_UPGRADE:
            break
        # it sees an upgrade that an HTTP/1.0 client cannot ask for, or the end of what is compared
        p = llhttp_get_error_pos(&parser)
        llhttp_resume_after_upgrade(&parser)
        e = HPE_OK
    free(buf)
    # A method is any token for a proxy; llhttp has a list (RFC 9110 16.1.1).
    if e == HPE_INVALID_METHOD:
        return
    # llhttp takes Proxy-Connection for Connection.
    if e == HPE_CLOSED_CONNECTION and t.proxy_connection:
        return
    if e != HPE_OK and e != HPE_PAUSED_UPGRADE:
        fprintf(stderr, b"llhttp: %d %s\n", e, llhttp_get_error_reason(&parser))
        fail(b"llhttp refuses what is accepted here")
    if t.end < 0 and t.good < t.at:
        whole -= 1
    if judge.heads != whole:
        fail(b"llhttp sees another number of messages")
    for i in range(whole):
        ours = &t.seen[i]
        theirs = &judge.seen[i]
        if ours.line != theirs.line:
            fail(b"llhttp reads another first line")
        if ours.fields != theirs.fields:
            fail(b"llhttp reads other fields")
        if ours.body != theirs.body:
            fail(b"llhttp reads another body")
        if not (t.end == END_TRAILERS and i == t.messages - 1) and ours.trailers != theirs.trailers:
            fail(b"llhttp reads other trailers")
        # of responses to HEAD and CONNECT it cannot tell at this point
        if (ours.keep_alive and not theirs.keep_alive and not t.proxy_connection
                and (not kind or method == M_GET)):
            fail(b"llhttp closes the connection")


cdef public int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) noexcept nogil:
    cdef const char *data = <const char *>input + 2
    cdef Trace whole
    cdef Trace cut
    cdef int kind, method
    cdef uint64_t seed
    cdef int round
    if size < 2:
        return 0
    size -= 2
    kind = input[0] & 1
    method = M_GET
    if (input[0] >> 1) & 3 == 1:
        method = M_HEAD
    elif (input[0] >> 1) & 3 == 2:
        method = M_CONNECT
    drive(data, size, kind, method, 0, &whole)
    for round in range(3):
        seed = (<uint64_t>input[1] + 1) * 0x9E3779B97F4A7C15ULL + <uint64_t>round
        drive(data, size, kind, method, seed, &cut)
        if (whole.all != cut.all or whole.end != cut.end or whole.good != cut.good
                or whole.messages != cut.messages or (whole.end >= 0 and whole.at != cut.at)):
            fprintf(stderr, b"whole: end %d at %zu; cut: end %d at %zu\n", whole.end, whole.at, cut.end,
                    cut.at)
            fail(b"cuts change the reading")
    compare(data, size, kind, method, &whole)
    return 0
