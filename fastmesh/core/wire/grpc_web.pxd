# gRPC-Web: the bridge between a browser's calls and gRPC services (PROTOCOL-WEB.md), as a filter without I/O.
#
# A GrpcWeb is the state of one exchange, zeroed at first. What the caller of the core has to do with it, in order:
# grpc_web_begin and _request_head for the request's head, _request_data and _request_end for its body;
# _response_head, _response_data with _encode, and _trailers for the answer; _error where fastmesh answers itself.
# Nothing is held back but at most three characters of base64. Functions write to memory of the caller's, whose
# size a bound tells; none of it may overlap what is read.
#
# - A call is a POST with Content-Type application/grpc-web or -web-text. Everything else passes as it is, the
#   OPTIONS of a CORS preflight too: CORS is the application's matter (or the edge's).
# - Text is for browsers that cannot read bytes as they come: base64 of the same. What the answer is, Accept says,
#   and if it does not, the request's Content-Type. Every piece of it is encoded at once and padded on its own, as
#   the protocol allows, so that a stream flows.
# - The status comes in a last frame behind the messages (0x80, length, field lines in lower case), also that of a
#   Trailers-Only answer: a page of another origin sees a head only where CORS exposes it. Other fields of such a
#   head stay there.
# - An answer that is not gRPC passes as it is: it has an HTTP status, which gRPC-Web clients know how to read.
# - Message boundaries of the answer are watched. Only behind a whole message a reader takes a frame for one.
# - Binary metadata stay base64 in text mode too: raw they would break the lines. All implementations have it so.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastmesh.core.base.reason cimport (
    R_BAD_GRPC_WEB, R_UPSTREAM_BAD_RESPONSE, R_UPSTREAM_HEAD_TOO_LARGE, R_UPSTREAM_TRUNCATED,
)
from fastmesh.core.wire.base64 cimport (
    Base64, base64_decode, base64_encode, base64_size, base64_whole,
)
from fastmesh.core.wire.grpc cimport (
    GRPC_MESSAGE_MAX, GRPC_STATUS_LINES, grpc_has_status, grpc_is_status, grpc_of_http, grpc_status_lines,
)
from fastmesh.core.wire.message cimport FIELD_HOP, Field, Message

cdef enum:  # GrpcWebFlag
    GWEB_CALL = 1                  # the request is a gRPC-Web call
    GWEB_TEXT_IN = 2               # its body is base64
    GWEB_TEXT_OUT = 4              # the answer's is to be
    GWEB_ANSWER = 8                # the answer is gRPC and being translated
    GWEB_PASS = 16                 # the answer is not gRPC and passes
    GWEB_TRAILERS_ONLY = 32        # the head of the answer has the status, and there is no body
    GWEB_TOLD = 64                 # the head had it and there is a body
    GWEB_DONE = 128                # the last frame has been written

cdef enum:
    GWEB_TRAILERS_MAX = 16384      # bytes of field lines in the last frame
    GWEB_MISSING_MAX = 80          # of the status that is made up where the endpoint told none
    GWEB_ERROR_MAX = 1416          # of a frame of our own, as text: base64_size(5 + the lines of a status)
    GWEB_CONTENT_TYPE_MAX = 48

cdef struct GrpcWeb:
    Base64 text                    # the request's body
    uint32_t left                  # bytes still to come of the answer's message under way
    uint32_t size                  # its length, as far as `prefix` goes
    uint16_t http                  # the HTTP status of the answer
    uint8_t prefix                 # bytes of its prefix that have come: 0 to 4
    uint8_t flags                  # enum GrpcWebFlag


# ---------------------------------------------------------------- bodies

cdef inline int grpc_web_request_data(GrpcWeb *g, const char *p, size_t n, char *out, size_t *written) noexcept nogil:
    """Body bytes of a request with GWEB_TEXT_IN (others pass as they are): 0, or -R_BAD_GRPC_WEB. `out` has room for
    base64_decoded_bound(n)."""
    return -R_BAD_GRPC_WEB if base64_decode(&g.text, p, n, out, written) < 0 else 0


cdef inline int grpc_web_request_end(const GrpcWeb *g) noexcept nogil:
    """The request's body is complete: 0, or -R_BAD_GRPC_WEB if its text ends within a quantum."""
    return 0 if base64_whole(&g.text) else -R_BAD_GRPC_WEB


cdef inline int grpc_web_response_data(GrpcWeb *g, const char *p, size_t n) noexcept nogil:
    """Body bytes of the answer, with GWEB_ANSWER, before they go on: 0, or -R_UPSTREAM_BAD_RESPONSE.

    Length-Prefixed-Message = Compressed-Flag (0 or 1) Message-Length (4 bytes) Message. A flag of an endpoint's
    own would be read as what only the bridge may say.
    """
    cdef uint8_t ch
    while n > 0:
        if g.left > 0:
            if n <= g.left:
                g.left -= <uint32_t>n
                return 0
            p += g.left
            n -= g.left
            g.left = 0
        ch = <uint8_t>p[0]
        p += 1
        n -= 1
        if g.prefix == 0:
            if ch > 1:
                return -R_UPSTREAM_BAD_RESPONSE
            g.size = 0
        else:
            g.size = g.size << 8 | ch
        g.prefix += 1
        if g.prefix == 5:
            g.prefix = 0
            g.left = g.size
    return 0


cdef inline size_t grpc_web_encode(char *out, const char *p, size_t n) noexcept nogil:
    """Body bytes of an answer with GWEB_TEXT_OUT (others pass as they are) as text; characters written.

    `out` has room for base64_size(n), which is exactly what they become. Pieces of a multiple of three bytes need no
    padding, but none has to be one.
    """
    return base64_encode(out, p, n)


# ---------------------------------------------------------------- the last frame

cdef inline size_t _frame(GrpcWeb *g, char *out, char *lines, size_t n) noexcept nogil:
    """Put the prefix in front of the lines, which start at `lines`, five bytes behind the start of a frame; as text,
    begin at `out`. Bytes from `out` on."""
    cdef char *frame = lines - 5
    frame[0] = <char>0x80
    frame[1] = <char>(n >> 24 & 0xFF)
    frame[2] = <char>(n >> 16 & 0xFF)
    frame[3] = <char>(n >> 8 & 0xFF)
    frame[4] = <char>(n & 0xFF)
    g.flags |= GWEB_DONE
    if g.flags & GWEB_TEXT_OUT:
        return base64_encode(out, frame, n + 5)
    return n + 5


cdef inline char *_lines_at(const GrpcWeb *g, char *out, size_t n) noexcept nogil:
    """Where n bytes of lines belong, so that their frame ends up at `out`: as text they start at the end of it."""
    if g.flags & GWEB_TEXT_OUT:
        return out + base64_size(n + 5) - n
    return out + 5


cdef inline size_t _line(char *out, const Message *m, const Field *f) noexcept nogil:
    """A field as a line of the frame; with out NULL only its length."""
    cdef const char *name = m.base + f.at
    cdef size_t n = f.name_len
    cdef size_t i
    if out != NULL:
        for i in range(n):
            out[i] = <char>(name[i] | 0x20) if c"A" <= name[i] <= c"Z" else name[i]
        memcpy(out + n, b": ", 2)
        memcpy(out + n + 2, m.base + f.value_at, f.value_len)
        memcpy(out + n + 2 + f.value_len, b"\r\n", 2)
    return n + f.value_len + 4


cdef inline bint _goes_behind(const Message *m, const Field *f, bint head) noexcept nogil:
    """Does the field of a head, or else of trailers, belong in the last frame?"""
    return grpc_is_status(m, f) if head else not f.flags & FIELD_HOP


cdef inline int _trailers(GrpcWeb *g, const Message *m, bint head, char *out) noexcept nogil:
    cdef char missing[GWEB_MISSING_MAX]
    cdef char *p
    cdef size_t made = 0
    cdef size_t n = 0
    cdef size_t k
    cdef int i
    if not g.flags & GWEB_TOLD and not (m != NULL and grpc_has_status(m)):
        made = grpc_status_lines(missing, sizeof(missing), grpc_of_http(g.http),
                                 b"the endpoint sent no grpc-status", 32)
    n = made
    if m != NULL:
        for i in range(m.nfields):
            if _goes_behind(m, &m.fields[i], head):
                n += _line(NULL, m, &m.fields[i])
    if n > GWEB_TRAILERS_MAX:
        return -R_UPSTREAM_HEAD_TOO_LARGE
    if n == 0:
        g.flags |= GWEB_DONE
        return 0
    p = _lines_at(g, out, n)
    memcpy(p, missing, made)
    k = made
    if m != NULL:
        for i in range(m.nfields):
            if _goes_behind(m, &m.fields[i], head):
                k += _line(p + k, m, &m.fields[i])
    return <int>_frame(g, out, p, n)


cdef inline size_t grpc_web_trailers_bound(const Message *m) noexcept nogil:
    """Room for the last frame with the trailers (or the head) m, or NULL."""
    cdef size_t n = GWEB_MISSING_MAX
    if m != NULL:
        n += <size_t>m.head_len + m.nfields            # a line may have come without a space behind its colon
    return base64_size(5 + (n if n < GWEB_TRAILERS_MAX else GWEB_TRAILERS_MAX))


cdef inline int grpc_web_trailers(GrpcWeb *g, const Message *trailers, char *out) noexcept nogil:
    """The answer is complete, with these trailers or NULL: bytes of its last frame in `out`, which end the body.

    0: there is none, since it has been written or the answer passes. Negative: a reason, nothing is written; the
    caller tells it (grpc_web_error) or, within a message (R_UPSTREAM_TRUNCATED), cuts. The answer of an endpoint
    that told no status must not look like one that went well: it gets the status of its HTTP status.
    """
    if not g.flags & GWEB_ANSWER or g.flags & GWEB_DONE:
        return 0
    if g.left or g.prefix:
        return -R_UPSTREAM_TRUNCATED
    return _trailers(g, trailers, False, out)


cdef inline int grpc_web_trailers_only(GrpcWeb *g, const Message *m, char *out) noexcept nogil:
    """The frame with the status of the head m, as it came from the endpoint (GWEB_TRAILERS_ONLY). Bytes, or a
    negative reason. grpc_web_trailers says 0 afterwards."""
    return _trailers(g, m, True, out)


cdef inline bint grpc_web_may_tell(const GrpcWeb *g) noexcept nogil:
    """Is the client between two messages, and has had no status: can an error still be told?"""
    return not g.flags & (GWEB_PASS | GWEB_DONE | GWEB_TOLD) and g.left == 0 and g.prefix == 0


cdef inline int grpc_web_error(GrpcWeb *g, int status, const char *text, size_t n, char *out) noexcept nogil:
    """A frame of our own, at most GWEB_ERROR_MAX bytes: the gRPC status of a reason, and what is the matter.

    Before any head has gone to the client: the body of a head with status 200 and grpc_web_content_type. Behind
    one: ends the answer, if the client is between two messages of it and has not had its status; else it must be
    cut: -R_UPSTREAM_TRUNCATED, and nothing is written.
    """
    cdef char lines[GRPC_STATUS_LINES + GRPC_MESSAGE_MAX]
    cdef char *p
    cdef size_t k
    if not grpc_web_may_tell(g):
        return -R_UPSTREAM_TRUNCATED
    k = grpc_status_lines(lines, sizeof(lines), status, text, n)
    p = _lines_at(g, out, k)
    memcpy(p, lines, k)
    return <int>_frame(g, out, p, k)


cdef inline size_t grpc_web_content_type(const GrpcWeb *g, char *out) noexcept nogil:
    """The Content-Type line of an answer of our own; at most GWEB_CONTENT_TYPE_MAX bytes."""
    if g.flags & GWEB_TEXT_OUT:
        memcpy(out, b"content-type: application/grpc-web-text\r\n", 41)
        return 41
    memcpy(out, b"content-type: application/grpc-web\r\n", 36)
    return 36
