# gRPC and gRPC-Web for tests: every input lies in a heap block of exactly its size, every output goes to one of
# exactly the bound that the core names, so that a sanitizer build sees any byte beyond them.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastmesh.core.base.reason cimport R_COUNT, ReasonInfo, reasons_init
from fastmesh.core.wire.base64 cimport (
    Base64, base64_decode, base64_decoded_bound, base64_encode, base64_size, base64_whole,
)
from fastmesh.core.wire.grpc cimport (
    GRPC_CALL, GRPC_ERROR_LINES, GRPC_MESSAGE_MAX, GRPC_NOT, GRPC_STATUS_LINES, GRPC_WEB, GRPC_WEB_TEXT,
    grpc_content_type, grpc_deadline, grpc_error, grpc_kind, grpc_of_http, grpc_of_reset, grpc_percent,
    grpc_status_lines, grpc_timeout,
)
from fastmesh.core.wire.grpc_web cimport (
    GWEB_ANSWER, GWEB_CONTENT_TYPE_MAX, GWEB_DONE, GWEB_ERROR_MAX, GWEB_PASS, GWEB_TEXT_IN, GWEB_TEXT_OUT, GWEB_TOLD,
    GWEB_TRAILERS_MAX, GWEB_TRAILERS_ONLY, GrpcWeb, grpc_web_content_type, grpc_web_encode,
    grpc_web_error, grpc_web_request_data, grpc_web_request_end, grpc_web_response_data,
    grpc_web_trailers, grpc_web_trailers_bound, grpc_web_trailers_only,
)
from fastmesh.core.wire.grpc_web_head cimport (
    grpc_web_begin, grpc_web_head_bound, grpc_web_request_head, grpc_web_response_head,
)
from fastmesh.core.wire.http1 cimport http1_method, http1_parse_request, http1_parse_response
from fastmesh.core.wire.http1_chunked cimport http1_parse_trailers
from fastmesh.core.wire.http1_scan cimport http1_field_id
from fastmesh.core.wire.http1_write cimport http1_copy_fields
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_LENGTH, FRAMING_NONE, Field, LENGTH_UNKNOWN, MAX_FIELDS,
    MSG_HAS_HOP, MSG_TE_TRAILERS, Message, Span,
)

cdef ReasonInfo reasons[R_COUNT]
reasons_init(reasons)

KINDS = {GRPC_NOT: None, GRPC_CALL: "grpc", GRPC_WEB: "web", GRPC_WEB_TEXT: "text"}
FRAMINGS = {
    FRAMING_NONE: "none", FRAMING_LENGTH: "length", FRAMING_CHUNKED: "chunked", FRAMING_CLOSE: "close",
}
MESSAGE_MAX = GRPC_MESSAGE_MAX
STATUS_LINES = GRPC_STATUS_LINES
ERROR_LINES = GRPC_ERROR_LINES
TRAILERS_MAX = GWEB_TRAILERS_MAX
ERROR_MAX = GWEB_ERROR_MAX
STATE_SIZE = sizeof(GrpcWeb)


class Refused(Exception):
    """The core refused the input; args[0] is the name of the reason."""


cdef refuse(int r):
    return Refused((<bytes>reasons[-r].name).decode())


cdef class Block:
    """Memory of exactly a size, filled with bytes or with rubbish."""
    cdef char *at
    cdef size_t len

    def __cinit__(self, bytes data, size_t room=0):
        self.len = len(data) if data is not None else room
        self.at = <char *>malloc(self.len)
        if self.at == NULL and self.len:
            raise MemoryError()
        if data is None:
            memset(self.at, 0xA5, self.len)
        elif self.len:
            memcpy(self.at, <char *>data, self.len)

    def __dealloc__(self):
        free(self.at)

    cdef bytes taken(self, size_t n):
        assert n <= self.len, "more was written than the bound says"
        return self.at[:n]


# ---------------------------------------------------------------- gRPC

def kind(bytes value):
    """(kind, "+subtype") of a Content-Type."""
    cdef Block b = Block(value)
    cdef size_t at, n
    cdef int r = grpc_kind(b.at, b.len, &at, &n)
    assert at + n <= b.len
    return KINDS[r], value[at:at + n] if r else b""


def kind_of(bytes head):
    """The kind of a whole request head."""
    cdef Message m
    cdef uint32_t scan = 0
    cdef size_t at, n
    cdef int field
    cdef Block b = Block(head)
    assert http1_parse_request(b.at, b.len, &scan, &m) == <int>b.len
    return KINDS[grpc_content_type(&m, &field, &at, &n)]


def timeout(bytes value):
    """Microseconds of a grpc-timeout, or None."""
    cdef Block b = Block(value)
    cdef uint64_t us
    return us if grpc_timeout(b.at, b.len, &us) else None


def deadline(bytes head):
    """Microseconds that the caller of a whole request head waits; None: it does not say; False: malformed."""
    cdef Message m
    cdef uint32_t scan = 0
    cdef uint64_t us = 0
    cdef int r
    cdef Block b = Block(head)
    assert http1_parse_request(b.at, b.len, &scan, &m) == <int>b.len
    r = grpc_deadline(&m, &us)
    return us if r > 0 else None if r == 0 else False


def of_http(int status):
    return grpc_of_http(status)


def of_reset(unsigned int code):
    return grpc_of_reset(code)


def percent(bytes text, size_t room):
    cdef Block b = Block(text)
    cdef Block out = Block(None, room)
    return out.taken(grpc_percent(out.at, room, b.at, b.len))


def status_lines(int status, bytes text, size_t room):
    cdef Block b = Block(text)
    cdef Block out = Block(None, room)
    return out.taken(grpc_status_lines(out.at, room, status, b.at, b.len))


def error(int status, bytes text, bytes lines, room=None):
    """The field lines of a Trailers-Only answer."""
    cdef Block b = Block(text)
    cdef Block extra = Block(lines)
    cdef Block out = Block(None, GRPC_ERROR_LINES + GRPC_MESSAGE_MAX + extra.len if room is None else room)
    return out.taken(grpc_error(out.at, out.len, status, b.at, b.len, extra.at, extra.len))


def reason_table():
    """(name, HTTP status, gRPC status, retry_safe) of every reason."""
    return [((<bytes>reasons[i].name).decode(), reasons[i].status, reasons[i].grpc, bool(reasons[i].retry_safe))
            for i in range(R_COUNT)]


# ---------------------------------------------------------------- base64

def encode(bytes data):
    cdef Block b = Block(data)
    cdef Block out = Block(None, base64_size(b.len))
    return out.taken(base64_encode(out.at, b.at, b.len))


def encode_in_place(bytes data):
    """As encode, from the end of the room for the result."""
    cdef Block out = Block(None, base64_size(len(data)))
    cdef char *at = out.at + out.len - len(data)
    memcpy(at, <char *>data, len(data))
    return out.taken(base64_encode(out.at, at, len(data)))


def decode(pieces):
    """(what the pieces of a stream decode to, whether it ends well there), or None if it is not base64."""
    cdef Base64 st
    cdef Block b, out
    cdef size_t n
    memset(&st, 0, sizeof(st))
    result = b""
    for piece in pieces:
        b = Block(piece)
        out = Block(None, base64_decoded_bound(b.len))
        if base64_decode(&st, b.at, b.len, out.at, &n) < 0:
            assert n == 0
            return None
        assert st.count < 4 and st.pads <= st.count
        result += out.taken(n)
    return result, bool(base64_whole(&st))


# ---------------------------------------------------------------- gRPC-Web

cdef Block copy(const Message *m):
    """A Message that is only as long as it has fields, as copies of one are."""
    cdef Block b = Block(None, sizeof(Message) - (MAX_FIELDS - m.nfields) * sizeof(Field))
    memcpy(b.at, m, b.len)
    return b


cdef bytes span(const Message *m, Span s):
    assert <size_t>s.at + s.len <= m.head_len
    return m.base[s.at:s.at + s.len]


cdef dict show(const Message *m):
    cdef int i
    fields = []
    gone = []
    for i in range(m.nfields):
        name = m.base[m.fields[i].at:m.fields[i].at + m.fields[i].name_len]
        value = m.base[m.fields[i].value_at:m.fields[i].value_at + m.fields[i].value_len]
        assert m.fields[i].id == http1_field_id(m.base + m.fields[i].at, m.fields[i].name_len)
        assert i == 0 or m.fields[i].at == m.fields[i - 1].at + m.fields[i - 1].line_len
        assert m.base[m.fields[i].at + m.fields[i].line_len - 1] == c"\n"
        if m.fields[i].flags & FIELD_HOP:
            assert m.flags & MSG_HAS_HOP
            gone.append((name, value))
        else:
            fields.append((name, value))
    return {
        "block": m.base[:m.head_len], "fields": fields, "gone": gone, "status": m.status,
        "framing": FRAMINGS[m.framing], "length": None if m.length == LENGTH_UNKNOWN else m.length,
        "te": bool(m.flags & MSG_TE_TRAILERS), "method": span(m, m.method_name), "path": span(m, m.path),
        "authority": span(m, m.authority), "scheme": span(m, m.scheme), "reason": span(m, m.reason),
    }


cdef class Web:
    """One exchange through the bridge."""
    cdef GrpcWeb g
    cdef Message *request
    cdef Block head, kept

    def __init__(self, bytes head):
        """`head`: the client's request head, whole."""
        cdef Message m
        cdef uint32_t scan = 0
        memset(&self.g, 0xA5, sizeof(self.g))
        self.head = Block(head)
        assert http1_parse_request(self.head.at, self.head.len, &scan, &m) == <int>self.head.len
        self.kept = copy(&m)
        self.request = <Message *>self.kept.at
        self.is_call = bool(grpc_web_begin(&self.g, self.request))

    cdef public bint is_call

    @property
    def text_in(self):
        return bool(self.g.flags & GWEB_TEXT_IN)

    @property
    def text_out(self):
        return bool(self.g.flags & GWEB_TEXT_OUT)

    @property
    def answers(self):
        return bool(self.g.flags & GWEB_ANSWER)

    @property
    def passes(self):
        return bool(self.g.flags & GWEB_PASS)

    @property
    def trailers_only(self):
        return bool(self.g.flags & GWEB_TRAILERS_ONLY)

    @property
    def told(self):
        return bool(self.g.flags & GWEB_TOLD)

    @property
    def done(self):
        return bool(self.g.flags & GWEB_DONE)

    def request_head(self):
        """The head that the service gets, as a dict."""
        cdef Message to
        cdef Block out = Block(None, grpc_web_head_bound(self.request))
        cdef size_t n = grpc_web_request_head(&self.g, self.request, &to, out.at)
        assert n == to.head_len and to.base == out.at
        out.taken(n)
        return show(&to)

    def request_data(self, bytes data):
        cdef Block b = Block(data)
        cdef Block out = Block(None, base64_decoded_bound(b.len))
        cdef size_t n
        cdef int r = grpc_web_request_data(&self.g, b.at, b.len, out.at, &n)
        if r < 0:
            raise refuse(r)
        return out.taken(n)

    def request_end(self):
        cdef int r = grpc_web_request_end(&self.g)
        if r < 0:
            raise refuse(r)

    def response_head(self, bytes head, bint ends=False):
        """(the head that the client gets as a dict, or None if it passes; the frame of a Trailers-Only answer).

        `ends`: the head is the whole answer, as END_STREAM says.
        """
        cdef Message m, to
        cdef uint32_t scan = 0
        cdef Block b = Block(head)
        cdef Block out, written, kept
        cdef size_t n
        assert http1_parse_response(b.at, b.len, &scan, http1_method(b"POST", 4), &m) == <int>b.len
        if ends:
            m.framing = FRAMING_NONE
            m.length = 0
        out = Block(None, grpc_web_head_bound(&m))
        kept = copy(&m)
        n = grpc_web_response_head(&self.g, <Message *>kept.at, &to, out.at)
        if n == 0:
            return None, b""
        assert n == to.head_len and to.base == out.at
        out.taken(n)
        shown = show(&to)
        written = Block(None, to.head_len)
        shown["written"] = written.taken(http1_copy_fields(written.at, &to))
        frame = b""
        if self.trailers_only:
            out = Block(None, grpc_web_trailers_bound(<Message *>kept.at))
            frame = self.frame(out, grpc_web_trailers_only(&self.g, <Message *>kept.at, out.at))
        return shown, frame

    cdef bytes frame(self, Block out, int r):
        if r < 0:
            raise refuse(r)
        return out.taken(r)

    def response_data(self, bytes data):
        """What the client gets of body bytes of the answer."""
        cdef Block b = Block(data)
        cdef Block out
        cdef int r = grpc_web_response_data(&self.g, b.at, b.len)
        if r < 0:
            raise refuse(r)
        if not self.text_out:
            return data
        out = Block(None, base64_size(b.len))
        return out.taken(grpc_web_encode(out.at, b.at, b.len))

    def trailers(self, bytes section):
        """The last frame for a trailer section (with its empty line), or for none (None)."""
        cdef Message m
        cdef uint32_t scan = 0
        cdef Block b, out
        if section is None:
            out = Block(None, grpc_web_trailers_bound(NULL))
            return self.frame(out, grpc_web_trailers(&self.g, NULL, out.at))
        b = Block(section)
        assert http1_parse_trailers(b.at, b.len, &scan, &m) == <int>b.len
        out = Block(None, grpc_web_trailers_bound(&m))
        return self.frame(out, grpc_web_trailers(&self.g, &m, out.at))

    def many_trailers(self, bytes section):
        """As trailers, for a section that HTTP/1 would not take: only lines "name: value", as other codecs hand them."""
        cdef Message m
        cdef Block b = Block(section)
        cdef Block out
        cdef size_t at = 0
        memset(&m, 0, sizeof(m))
        m.base = b.at
        m.head_len = <uint32_t>b.len
        for line in section.removesuffix(b"\r\n\r\n").split(b"\r\n"):
            name, value = line.split(b": ", 1)
            m.fields[m.nfields].at = <uint32_t>at
            m.fields[m.nfields].line_len = <uint32_t>len(line) + 2
            m.fields[m.nfields].name_len = <uint16_t>len(name)
            m.fields[m.nfields].value_at = <uint32_t>(at + len(name) + 2)
            m.fields[m.nfields].value_len = <uint32_t>len(value)
            m.nfields += 1
            at += len(line) + 2
        out = Block(None, grpc_web_trailers_bound(&m))
        return self.frame(out, grpc_web_trailers(&self.g, &m, out.at))

    def error(self, int status, bytes text):
        """A frame of our own."""
        cdef Block b = Block(text)
        cdef Block out = Block(None, GWEB_ERROR_MAX)
        return self.frame(out, grpc_web_error(&self.g, status, b.at, b.len, out.at))

    def content_type(self):
        cdef Block out = Block(None, GWEB_CONTENT_TYPE_MAX)
        return out.taken(grpc_web_content_type(&self.g, out.at))
