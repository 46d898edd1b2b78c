# Fuzz target of what is told from the first bytes of a connection, for libFuzzer: HTTP or not (traffic/detect), the
# name in a ClientHello (wire/sniff), the first Host (wire/first_host). Only the C that Cython makes of it runs.
#
# Input: one byte of mode (bits 0-1, enum Mode; bit 2: the listener has HTTP/2), one byte that seeds the cuts, and the
# bytes, or the choices that they are made by. What must hold:
#   - no byte outside the data is read: every reading sees a heap block of exactly its size, under ASan;
#   - a reading rests on the bytes alone: not on what its results were written over;
#   - what is told once stays so whatever follows, and is what all bytes at once tell;
#   - detection waits for no more than DETECT_BYTES;
#   - what is called HTTP/1 begins with a method that the parser takes, and a request line that the parser takes is
#     never called something else (methods in capitals, of at most 32 letters, as detection has it);
#   - the first Host of a head that the parser takes is the one that the parser finds;
#   - hello_judge comes to the same answer and the same name; a hello made by the rules is read, with its name.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from fastmesh.core.base.reason cimport R_COUNT
from fastmesh.core.traffic.detect cimport DETECT_BYTES, detect, detect_last
from fastmesh.core.traffic.snapshot cimport ListenerConf
from fastmesh.core.wire.first_host cimport first_host
from fastmesh.core.wire.http1 cimport http1_parse_request
from fastmesh.core.wire.message cimport F_HOST, Message
from fastmesh.core.wire.preface cimport PREFACE_HERE, preface_here
from fastmesh.core.wire.sniff cimport (
    SNIFF_HELLO, SNIFF_MALFORMED, SNIFF_MAX, SNIFF_MORE, SNIFF_NAME_MAX, SNIFF_TOO_LARGE, sniff_hello,
)
from fuzz cimport Choices, block, chance, choice, choice16, fail
from hello_judge cimport Hello, hello_judge

cdef enum Mode:
    MODE_BYTES = 0
    MODE_HELLO = 1                # the bytes as a ClientHello
    MODE_MADE_HELLO = 2           # one made by the rules, and then perhaps spoilt
    MODE_MADE_REQUEST = 3

cdef enum Flaw:                   # of a hello that is made otherwise by the rules
    FLAW_LIST = 1                 # something behind the name in its list
    FLAW_EXTENSION                # something behind the list
    FLAW_KIND                     # no host name
    FLAW_LETTER                   # one that no name has
    FLAW_DOT                      # a name that begins with one
    FLAW_RECORD                   # a record too long

cdef enum Reading:
    READ_DETECT = 0
    READ_DETECT_H2
    READ_HELLO
    READ_HOST

cdef struct Told:
    int what                      # 0: more is needed
    size_t text_len
    char text[8192]

cdef struct Made:
    char data[70000]
    size_t n

cdef Hello judge
cdef Made made
cdef Made wrapped


# ---- readings ------------------------------------------------------------------------------------------

cdef void ask(int reading, const char *data, size_t n, int poison, Told *out) noexcept nogil:
    """One reading of just these bytes."""
    cdef char *p = block(data, n)
    cdef ListenerConf conf
    cdef char name[SNIFF_NAME_MAX]
    cdef const char *host = NULL
    memset(&conf, poison, sizeof(conf))
    memset(name, poison, sizeof(name))
    out.text_len = 0
    if reading == READ_HELLO:
        out.text_len = <size_t>poison
        out.what = sniff_hello(p, n, name, &out.text_len)
        if not SNIFF_TOO_LARGE <= out.what <= SNIFF_HELLO or out.text_len > SNIFF_NAME_MAX:
            fail(b"no such result")
        if out.what != SNIFF_HELLO:
            out.text_len = 0
        memcpy(out.text, name, out.text_len)
    elif reading == READ_HOST:
        out.text_len = <size_t>poison
        out.what = first_host(p, n, &host, &out.text_len)
        if host < p or host + out.text_len > p + n:
            fail(b"a Host outside the bytes")
        if not out.what:
            out.text_len = 0
        memcpy(out.text, host, out.text_len)
    else:
        conf.http2 = reading == READ_DETECT_H2
        out.what = detect(&conf, p, n)
        if not -1 <= out.what <= 1:
            fail(b"no such result")
        if out.what == 0 and n >= DETECT_BYTES:
            fail(b"detection waits for more than its bound")
        if detect_last(&conf, p, n) not in (-1, 1):
            fail(b"with no more bytes it is not told")
        if out.what and detect_last(&conf, p, n) != out.what:
            fail(b"with no more bytes it is something else")
    free(p)


cdef bint same(const Told *a, const Told *b) noexcept nogil:
    return a.what == b.what and a.text_len == b.text_len and memcmp(a.text, b.text, a.text_len) == 0


cdef void pieces(int reading, const char *data, size_t size, uint64_t seed, Told *whole) noexcept nogil:
    """The answer to all bytes, having asked on the way to them."""
    cdef Told *told = <Told *>malloc(sizeof(Told))
    cdef Told *now = <Told *>malloc(sizeof(Told))
    cdef size_t n = 0
    cdef size_t step = 2 + size // 40
    cdef int after = 0
    ask(reading, data, size, 0xA5, whole)
    ask(reading, data, size, 0x5A, now)
    if not same(whole, now):
        fail(b"twice the same bytes, and two answers")
    told.what = 0
    while True:
        ask(reading, data, n, 0x33, now)
        if told.what and not same(told, now):
            fprintf(stderr, b"reading %d: %d, with %zu bytes %d\n", reading, told.what, n, now.what)
            fail(b"more bytes change what was told")
        if now.what and not told.what:
            memcpy(told, now, sizeof(Told))
        if told.what:
            after += 1
        if n == size:
            break
        # every byte of what most is told by, then here and there
        n += 1 if n < 2 * DETECT_BYTES and after < 20 else 1 + chance(&seed) % step
        if n > size:
            n = size
    free(told)
    free(now)


# ---- HTTP ----------------------------------------------------------------------------------------------

cdef bint capitals(const char *p, size_t n) noexcept nogil:
    """A method as detection has it."""
    cdef size_t i
    for i in range(n):
        if not (c"A" <= p[i] <= c"Z" or p[i] == c"-" and i > 0):
            return False
    return 1 <= n <= 32 and not (n == 3 and memcmp(p, b"PRI", 3) == 0)


cdef size_t word(const char *p, size_t n) noexcept nogil:
    """Bytes up to the first space; n: there is none."""
    cdef size_t i = 0
    while i < n and p[i] != c" ":
        i += 1
    return i


cdef bint has_line(const char *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if p[i] == c"\n":
            return True
    return False


cdef int parse(const char *data, size_t n, Message *m) noexcept nogil:
    """What the parser says of a request head; the message shows into `data`."""
    cdef char *p = block(data, n)
    cdef uint32_t scan = 0
    cdef int r
    memset(m, 0xA5, sizeof(Message))
    r = http1_parse_request(p, n, &scan, m)
    if r <= -R_COUNT or (r > 0 and <size_t>r > n):
        fail(b"no such result of the parser")
    if r > 0:
        m.base = data + (m.base - p)
    free(p)
    return r


cdef void method_is_taken(const char *data, size_t n, Message *m) noexcept nogil:
    """The parser takes what detection took for a method."""
    cdef const char *rest = b" a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"
    cdef char head[100]
    if n > 32:
        fail(b"HTTP/1 with a long method")
    memcpy(head, data, n)
    if not (n == 7 and memcmp(data, b"CONNECT", 7) == 0):
        rest = b" /.. HTTP/1.1\r\nHost: a:1\r\n\r\n"
    memcpy(head + n, rest, 28)
    if parse(head, n + 28, m) != <int>n + 28:
        fail(b"HTTP/1 with a method that the parser does not take")


cdef void http(const char *data, size_t size, bint http2, uint64_t seed) noexcept nogil:
    cdef Told *told = <Told *>malloc(sizeof(Told))
    cdef Message *m = <Message *>malloc(sizeof(Message))
    cdef size_t method = word(data, size)
    cdef int found, r, i
    cdef bint has_host = False
    pieces(READ_DETECT_H2 if http2 else READ_DETECT, data, size, seed, told)
    found = told.what
    if found == 1 and not (http2 and preface_here(data, size) == PREFACE_HERE):
        method_is_taken(data, method, m)
    if http2 and preface_here(data, size) == PREFACE_HERE and found != 1:
        fail(b"the preface is not told")
    r = parse(data, size, m)
    if r >= 0 and capitals(data, method) and has_line(data, size) and found != 1:
        fprintf(stderr, b"detect: %d, the parser: %d\n", found, r)
        fail(b"a request that is not told")
    pieces(READ_HOST, data, size, seed, told)
    if r > 0 and m.base == data:
        if not told.what:
            fail(b"a whole head, and the Host is waited for")
        for i in range(m.nfields):
            if m.fields[i].id == F_HOST:
                has_host = True
                if m.fields[i].value_len != told.text_len or memcmp(
                        data + m.fields[i].value_at, told.text, told.text_len) != 0:
                    fail(b"another Host than the parser's")
                break
        if not has_host and told.text_len:
            fail(b"a Host that the parser does not see")
    free(told)
    free(m)


cdef void put(Made *out, const void *p, size_t n) noexcept nogil:
    memcpy(out.data + out.n, p, n)
    out.n += n


cdef void put_of(Made *out, Choices *c, const char *alphabet, size_t letters, size_t n) noexcept nogil:
    """n of these letters, chosen."""
    cdef size_t i
    for i in range(n):
        out.data[out.n] = alphabet[choice(c) % letters]
        out.n += 1


cdef void made_request(Choices *c, bint http2, uint64_t seed) noexcept nogil:
    """A request line by RFC 9112 3: never told to be anything but HTTP, and told with the line or with enough bytes."""
    cdef Told *told = <Told *>malloc(sizeof(Told))
    cdef Message *m = <Message *>malloc(sizeof(Message))
    cdef uint8_t form = choice(c)
    cdef size_t i, line
    cdef const char *path = b"abcXYZ019-._~/?=&;:@!$'()*+,%41%C3"
    made.n = 0
    if form & 3 == 0:
        put(&made, b"CONNECT ", 8)
        put_of(&made, c, b"abcXYZ019-._~", 13, 1 + choice(c) % 80)
        put(&made, b":443", 4)
    elif form & 3 == 1 and form & 4:
        put(&made, b"OPTIONS *", 9)
    else:
        put_of(&made, c, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 26, 1)
        put_of(&made, c, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-", 27, choice(c) % 32)
        if not capitals(made.data, made.n) or made.n == 7 and memcmp(made.data, b"CONNECT", 7) == 0:
            made.n = 0
            put(&made, b"GET", 3)
        put(&made, b" ", 1)
        if form & 3 == 1:
            put(&made, b"hTTps://" if form & 8 else b"HTtp://a", 8)
            put_of(&made, c, b"abcXYZ019-._~", 13, 1 + choice(c) % 40)
        put(&made, b"/", 1)
        put_of(&made, c, path, 28, choice(c))            # without the percent sign and what follows it
    put(&made, b" HTTP/1.1" if form & 16 else b" HTTP/1.0", 9)
    put(&made, b"\r\n", 2)
    line = made.n
    put(&made, b"Host: a\r\n\r\n", 11)
    # elsewhere Host has to be that of the target
    if form & 3 >= 2 and parse(made.data, made.n, m) != <int>made.n:
        fail(b"the parser does not take a request made by the rules")
    pieces(READ_DETECT_H2 if http2 else READ_DETECT, made.data, made.n, seed, told)
    if told.what != 1:
        fail(b"a request made by the rules is not told")
    for i in range(made.n if made.n < 2 * DETECT_BYTES else 2 * DETECT_BYTES):
        ask(READ_DETECT_H2 if http2 else READ_DETECT, made.data, i, 0, told)
        if told.what == -1 or told.what == 0 and (i >= line or i >= DETECT_BYTES):
            fprintf(stderr, b"%d at %zu\n", told.what, i)
            fail(b"a request made by the rules is told late, or to be something else")
    free(told)
    free(m)


# ---- ClientHello ---------------------------------------------------------------------------------------

cdef void hello(const char *data, size_t size, uint64_t seed, Told *told) noexcept nogil:
    """The reader and the judge, on all bytes and on some of them."""
    cdef size_t n = size
    cdef int i
    pieces(READ_HELLO, data, size, seed, told)
    if told.what == SNIFF_MORE and size >= SNIFF_MAX:
        fail(b"a hello is waited for beyond the bound")
    for i in range(6):
        if i:
            n = chance(&seed) % (size + 1)
            ask(READ_HELLO, data, n, 0, told)
        if hello_judge(&judge, data, n) != told.what:
            fprintf(stderr, b"judge: %d, here: %d (of %zu bytes)\n", judge.said, told.what, n)
            fail(b"the judge sees another hello")
        if told.what == SNIFF_HELLO and (
                judge.name_len != told.text_len or memcmp(judge.name, told.text, told.text_len) != 0):
            fail(b"the judge sees another name")
    ask(READ_HELLO, data, size, 0, told)


cdef void put_number(Made *out, int width, size_t v) noexcept nogil:
    while width > 0:
        width -= 1
        out.data[out.n] = <char>(v >> 8 * width & 0xFF)
        out.n += 1


cdef void set_length(Made *out, size_t at, int width) noexcept nogil:
    """The length that stands at `at` is that of all behind it."""
    cdef size_t end = out.n
    out.n = at
    put_number(out, width, end - at - width)
    out.n = end


cdef void made_hello(Choices *c, uint64_t seed) noexcept nogil:
    cdef Told *told = <Told *>malloc(sizeof(Told))
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t name_len = 0
    cdef uint8_t form = choice(c)
    cdef size_t extensions, at, n, i
    cdef size_t padding = 0
    cdef uint16_t kind = 0
    cdef uint16_t first = 0
    cdef bint wrong = False
    cdef int flaw = choice(c) % 16
    cdef size_t more
    cdef int place = choice(c) % 64          # of the name among the extensions
    cdef int count = choice(c) % 66
    made.n = 0
    put(&made, b"\x01\0\0\0\x03\x03", 6)
    for i in range(32):
        put_number(&made, 1, choice(c) if form & 1 else 7)
    n = choice(c) % 33
    put_number(&made, 1, n)
    put_of(&made, c, b"\x16\x03\x01\0", 4, n)
    n = 2 * (1 + choice(c) % 60)
    put_number(&made, 2, n)
    put_of(&made, c, b"\x13\x01\x0a\x1a", 4, n)
    n = 1 + choice(c) % 3
    put_number(&made, 1, n)
    put_of(&made, c, b"\0\1", 2, n)
    if not form & 2:
        extensions = made.n
        put_number(&made, 2, 0)
        for i in range(<size_t>count):
            if <int>i == place:
                n = 1 + choice(c) % 255
                more = 1 + choice(c) % 9 if flaw == FLAW_LIST or flaw == FLAW_EXTENSION else 0
                wrong = wrong or FLAW_LIST <= flaw <= FLAW_DOT
                put_number(&made, 2, 0)
                put_number(&made, 2, n + 5 + more)
                put_number(&made, 2, n + 3 + (more if flaw == FLAW_LIST else 0))
                put_number(&made, 1, flaw == FLAW_KIND)
                put_number(&made, 2, n)
                at = made.n
                put_of(&made, c, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", 65, n)
                if made.data[at] == c".":
                    made.data[at] = c"x"
                if flaw == FLAW_DOT:
                    made.data[at] = c"."
                if flaw == FLAW_LETTER:
                    made.data[at + choice(c) % n] = c"/"
                memset(made.data + made.n, 0, more)
                made.n += more
                name_len = n
                for n in range(name_len):
                    name[n] = made.data[at + n]
                    if c"A" <= name[n] <= c"Z":
                        name[n] = <char>(name[n] - c"A" + c"a")
                continue
            kind += 1 + choice(c) % 200
            if i == 0:
                first = kind
            if form & 64 and i > 0 and i + 1 == <size_t>count:
                kind = first                 # twice the same
                wrong = True
            n = choice(c)
            if n > 250:
                n *= 17
            if made.n + n > 20000:
                n = 0
            put_number(&made, 2, kind)
            put_number(&made, 2, n)
            memset(made.data + made.n, choice(c), n)
            made.n += n
        set_length(&made, extensions, 2)
        wrong = wrong or count > 64
    set_length(&made, 1, 3)
    # into records
    wrapped.n = 0
    at = 0
    while at < made.n:
        n = 16384 if form & 4 else 1 + chance(&seed) % (20 if form & 8 else 3000)
        if n > made.n - at:
            n = made.n - at
        if wrapped.n + 5 + n > sizeof(wrapped.data) - 100:
            break                            # in pieces so small that it is too large for certain
        put(&wrapped, b"\x16\x03\x01" if form & 16 else b"\x16\x03\x03", 3)
        put_number(&wrapped, 2, n)
        put(&wrapped, made.data + at, n)
        at += n
    n = wrapped.n
    if flaw == FLAW_RECORD:
        wrapped.data[3] = 0x40
        wrapped.data[4] = <char>(1 + choice(c) % 255)
        wrong = True
    if form & 32:
        put(&wrapped, b"\x17\x03\x03\0\x05early", 10)
    hello(wrapped.data, wrapped.n, seed, told)
    if wrong:
        if told.what != SNIFF_MALFORMED and (told.what != SNIFF_TOO_LARGE or n <= SNIFF_MAX):
            fail(b"a hello that is wrong")
    elif n > SNIFF_MAX:
        if told.what != SNIFF_TOO_LARGE:
            fail(b"a hello that is too large")
    elif told.what != SNIFF_HELLO:
        fail(b"a hello made by the rules is not read")
    elif told.text_len != name_len or memcmp(told.text, name, name_len) != 0:
        fail(b"another name than that of the hello")
    # spoilt
    for i in range(1 + choice(c) % 3):
        wrapped.data[choice16(c) % (wrapped.n if wrapped.n < 600 else 600)] = <char>choice(c)
    hello(wrapped.data, wrapped.n, seed, told)
    free(told)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) noexcept nogil:
    cdef const char *data = <const char *>input + 2
    cdef Choices choices
    cdef Told *told
    cdef uint64_t seed
    cdef bint http2
    if size < 2:
        return 0
    size -= 2
    http2 = input[0] & 4 != 0
    seed = (<uint64_t>input[1] + 1) * 0x9E3779B97F4A7C15ULL
    choices.p = input + 2
    choices.left = size
    if input[0] & 3 == MODE_BYTES:
        http(data, size, http2, seed)
    elif input[0] & 3 == MODE_HELLO:
        told = <Told *>malloc(sizeof(Told))
        hello(data, size, seed, told)
        free(told)
    elif input[0] & 3 == MODE_MADE_HELLO:
        made_hello(&choices, seed)
    else:
        made_request(&choices, http2, seed)
    return 0
