# Our own answers: a short text that names the service and the reason, or what gRPC and gRPC-Web have for it.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen
from libc.time cimport gmtime_r, strftime, time, time_t, tm

from fastmesh.core.io.state cimport End, Exchange, Worker, X_GRPC
from fastmesh.core.wire.grpc cimport grpc_error, grpc_of_reset, grpc_status_lines
from fastmesh.core.wire.grpc_web cimport GWEB_ERROR_MAX, grpc_web_content_type, grpc_web_error
from fastmesh.core.wire.http1 cimport http1_parse_response
from fastmesh.core.wire.http1_chunked cimport http1_parse_trailers
from fastmesh.core.wire.http1_write cimport http1_phrase
from fastmesh.core.wire.message cimport M_GET, M_HEAD

cdef enum:
    ANSWER_HEAD = 2560            # a date, a reason, and the longest grpc-message


cdef inline int answer_text(Worker *w, const Exchange *x, int reason, char *out, size_t room) noexcept nogil:
    """ "SERVICE: what is the matter (reason)": the bytes of it; 512 are room for all."""
    cdef int service = 0
    if x != NULL and x.service != NULL:
        service = <int>x.service.name.len if x.service.name.len < 255 else 255
    if service > 0:
        return snprintf(out, room, b"%.*s: %s (%s)", service, x.service.name.ptr, w.reasons[reason].text,
                        w.reasons[reason].name)
    return snprintf(out, room, b"%s (%s)", w.reasons[reason].text, w.reasons[reason].name)


cdef inline int answer_status(Worker *w, const Exchange *x, int reason) noexcept nogil:
    """The gRPC status of `reason`; a stream that was reset tells more."""
    return grpc_of_reset(x.reset) if x.reset else w.reasons[reason].grpc


cdef inline int answer(Worker *w, End *down, Exchange *x, int reason) noexcept nogil:
    """Send our own answer for `reason` to `down`; `x` is the exchange it ends, or NULL for what was no request. 0, or
    -1: it could not be queued whole.

    A gRPC call is answered as gRPC has it for errors (Trailers-Only): 200, and the status in a field; a gRPC-Web
    call with the frame that ends an answer.
    """
    cdef char head[ANSWER_HEAD]
    cdef char text[512]
    cdef char frame[GWEB_ERROR_MAX]
    cdef const char *body = text
    cdef char date[64]
    cdef time_t now = time(NULL)
    cdef tm parts
    cdef uint32_t scan = 0
    cdef bint web = x != NULL and x.web.flags != 0
    cdef bint grpc = x != NULL and x.flags & X_GRPC != 0 and not web
    cdef int method = x.method if x != NULL else M_GET
    cdef int status = 200 if grpc or web else w.reasons[reason].status
    cdef int n = answer_text(w, x, reason, text, sizeof(text) - 1)
    cdef int m
    gmtime_r(&now, &parts)
    strftime(date, sizeof(date), b"%a, %d %b %Y %H:%M:%S GMT", &parts)
    m = snprintf(head, sizeof(head), b"HTTP/1.1 %d %s\r\ndate: %s\r\nx-fastmesh-reason: %s\r\n",
                 status, http1_phrase(status), date, w.reasons[reason].name)
    if web:
        n = grpc_web_error(&x.web, answer_status(w, x, reason), text, n, frame)
        if n < 0:
            return -1
        body = frame
        m += <int>grpc_web_content_type(&x.web, head + m)
        m += snprintf(head + m, sizeof(head) - m, b"content-length: %d\r\n\r\n", n)
    elif grpc:
        m += <int>grpc_error(head + m, sizeof(head) - m - 32, w.reasons[reason].grpc, text, n, NULL, 0)
        if x.version != 20:
            memcpy(head + m, b"content-length: 0\r\n", 19)
            m += 19
        memcpy(head + m, b"\r\n", 2)
        m += 2
        n = 0
    else:
        text[n] = c"\n"
        n += 1
        # RFC 9110 15.5.6: a 405 names the methods that are allowed; every other one is.
        m += snprintf(head + m, sizeof(head) - m, b"%scontent-type: text/plain\r\ncontent-length: %d\r\n\r\n",
                      b"allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n" if status == 405 else b"", n)
    if http1_parse_response(head, m, &scan, method, &w.answer) <= 0:
        return -1
    w.answer.whole = <uint8_t>grpc
    if down.ops.head(w, down, &w.answer) < 0:
        return -1
    if n > 0 and method != M_HEAD and down.ops.data(w, down, body, n) < 0:
        return -1
    return -1 if down.ops.finish(w, down, NULL) < 0 else 0


cdef inline int answer_behind(Worker *w, End *down, int reason) noexcept nogil:
    """End a gRPC answer that has begun with our status behind it. 0 or -1, as above."""
    cdef char lines[ANSWER_HEAD]
    cdef const char *text = w.reasons[reason].text
    cdef uint32_t scan = 0
    cdef size_t n = grpc_status_lines(lines, sizeof(lines) - 2, w.reasons[reason].grpc, text, strlen(text))
    memcpy(lines + n, b"\r\n", 2)
    if http1_parse_trailers(lines, n + 2, &scan, &w.answer) <= 0:
        return -1
    return -1 if down.ops.finish(w, down, &w.answer) < 0 else 0
