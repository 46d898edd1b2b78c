# Chunked bodies (RFC 9112 7.1): a decoder that points into what was received, and the trailer section.
#
# Contract: a zeroed Http1Chunked is the start of a body; the caller feeds what arrives, in pieces of any
# size, and gets slices of it back. Nothing is copied or kept apart from the state. Extensions are checked
# and dropped: no peer of a proxy may rely on them, and unchecked ones are a way to smuggle a line end.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmesh.core.base.reason cimport R_BAD_CHUNK, R_BAD_TRAILER
from fastmesh.core.wire.http1_fields cimport Http1Seen, http1_clear, http1_fields, http1_look, http1_waiting
from fastmesh.core.wire.http1_scan cimport FM_DIGIT, FM_HEX, FM_QDTEXT, FM_TCHAR, fm_class, http1_equal
from fastmesh.core.wire.message cimport (
    FIELD_HOP, FRAMING_NONE, F_CONTENT_LENGTH, F_DATE, F_OTHER, F_SERVER, F_TRANSFER_ENCODING, MSG_HAS_HOP,
    Message,
)

cdef enum:
    HTTP1_MORE = 0                 # everything consumed, nothing to give
    HTTP1_DATA = 1                 # data[:data_len] is a piece of the body
    HTTP1_END = 2                  # the body is complete; the trailer section follows
    HTTP1_MAX_CHUNK_LINE = 4096    # bytes of a chunk-size line, CRLF included
    HTTP1_MAX_CHUNK_EXCESS = 16384 # bytes of extensions beyond what the data of their chunks pays for
    HTTP1_MAX_TRAILER = 16384      # bytes of a trailer section
    HTTP1_MAX_TRAILER_FIELDS = 64

cdef enum Http1ChunkState:
    CHUNK_SIZE = 0                 # at the size, or in it
    CHUNK_EXT_NAME
    CHUNK_EXT_EQUALS               # behind "=": a token or a quoted string starts
    CHUNK_EXT_TOKEN
    CHUNK_EXT_QUOTED
    CHUNK_EXT_ESCAPE               # behind a backslash in a quoted string
    CHUNK_EXT_DONE                 # behind a closing quote
    CHUNK_LINE_LF                  # behind the CR of a size line
    CHUNK_IN_DATA
    CHUNK_DATA_CR
    CHUNK_DATA_LF
    CHUNK_ENDED

cdef struct Http1Chunked:
    uint64_t remaining             # bytes of the current chunk that have not been given out
    uint32_t excess                # extension bytes not paid for by data
    uint32_t line                  # bytes of the current size line so far
    uint8_t digits                 # digits of its size
    uint8_t state                  # enum Http1ChunkState
    uint8_t mark                   # the element in progress (extension name, token) has a byte


cdef inline int http1_chunked(Http1Chunked *st, const char *buf, size_t len, size_t *used, const char **data,
                              size_t *data_len) noexcept nogil:
    """One step: HTTP1_DATA, HTTP1_MORE, HTTP1_END, or -R_BAD_CHUNK. *used bytes of buf are consumed.

    Called again with the rest until it says MORE (get more bytes) or END (the trailer section follows,
    not consumed: http1_parse_trailers). `data` points into buf. chunk-size has at most 16 digits and a
    value below 2**63. White space is allowed nowhere outside quoted strings: the grammar's BWS around
    ";" and "=" has been read differently by different parsers.
    """
    cdef const char *p = buf
    cdef const char *end = buf + len
    cdef uint8_t state = st.state
    cdef uint8_t ch, kind
    data[0] = NULL
    data_len[0] = 0
    while p < end:
        ch = <uint8_t>p[0]
        if state == CHUNK_IN_DATA:
            data[0] = p
            data_len[0] = <size_t>(end - p)
            if data_len[0] >= st.remaining:
                data_len[0] = <size_t>st.remaining
                state = CHUNK_DATA_CR
            st.remaining -= data_len[0]
            st.state = state
            used[0] = <size_t>(p - buf) + data_len[0]
            return HTTP1_DATA
        p += 1
        if state == CHUNK_DATA_CR:
            if ch != c"\r":
                return -R_BAD_CHUNK
            state = CHUNK_DATA_LF
            continue
        if state == CHUNK_DATA_LF:
            if ch != c"\n":
                return -R_BAD_CHUNK
            state = CHUNK_SIZE
            st.line = 0
            st.digits = 0
            continue
        st.line += 1
        if st.line > HTTP1_MAX_CHUNK_LINE:
            return -R_BAD_CHUNK
        kind = fm_class[ch]
        if state == CHUNK_SIZE:
            if kind & FM_HEX:
                if st.digits == 16 or st.remaining >> 59:
                    return -R_BAD_CHUNK
                st.digits += 1
                st.remaining = st.remaining << 4 | (ch & 15 if kind & FM_DIGIT else (ch & 7) + 9)
                continue
            if st.digits == 0:
                return -R_BAD_CHUNK
        elif state == CHUNK_LINE_LF:
            if ch != c"\n":
                return -R_BAD_CHUNK
            # What the line has beyond a size and CRLF must be in proportion to its data.
            if st.line > <uint32_t>st.digits + 2:
                st.excess += st.line - st.digits - 2
                if st.remaining >= st.excess:
                    st.excess = 0
                else:
                    st.excess -= <uint32_t>st.remaining
                if st.excess > HTTP1_MAX_CHUNK_EXCESS:
                    return -R_BAD_CHUNK
            if st.remaining == 0:
                st.state = CHUNK_ENDED
                used[0] = <size_t>(p - buf)
                return HTTP1_END
            state = CHUNK_IN_DATA
            continue
        elif state == CHUNK_EXT_QUOTED:
            if ch == c'"':
                state = CHUNK_EXT_DONE
            elif ch == c"\\":
                state = CHUNK_EXT_ESCAPE
            elif not kind & FM_QDTEXT:
                return -R_BAD_CHUNK
            continue
        elif state == CHUNK_EXT_ESCAPE:
            # quoted-pair = "\" ( HTAB / SP / VCHAR / obs-text )
            if not kind & FM_QDTEXT and ch != c'"' and ch != c"\\":
                return -R_BAD_CHUNK
            state = CHUNK_EXT_QUOTED
            continue
        elif state == CHUNK_EXT_EQUALS:
            if ch == c'"':
                state = CHUNK_EXT_QUOTED
            elif kind & FM_TCHAR:
                state = CHUNK_EXT_TOKEN
            else:
                return -R_BAD_CHUNK
            continue
        elif state == CHUNK_EXT_NAME:
            if kind & FM_TCHAR:
                st.mark = 1
                continue
            if not st.mark:
                return -R_BAD_CHUNK
            if ch == c"=":
                state = CHUNK_EXT_EQUALS
                continue
        elif state == CHUNK_EXT_TOKEN:
            if kind & FM_TCHAR:
                continue
        elif state != CHUNK_EXT_DONE:
            return -R_BAD_CHUNK
        # here an element has ended: the next extension or the end of the line
        if ch == c"\r":
            state = CHUNK_LINE_LF
        elif ch == c";":
            state = CHUNK_EXT_NAME
            st.mark = 0
        else:
            return -R_BAD_CHUNK
    st.state = state
    used[0] = len
    return HTTP1_MORE


cdef inline bint _belongs_in_head(const char *p, size_t n) noexcept nogil:
    """Whether p[:n], none of the FieldIds, names a field that only the head may carry. `*`: and all that begin so.

    What authenticates, conditions or describes a message (RFC 9110 6.5.1), and what a proxy is trusted to
    have set: a reader that merges trailers into the head would take it for what was checked there.
    """
    cdef const char *word = (
        b"authorization cookie set-cookie www-authenticate x-forwarded-* x-real-ip if-* range max-forwards "
        b"content-encoding content-range ")
    cdef size_t k
    while word[0] != 0:
        k = 0
        while word[k] != c" ":
            k += 1
        if (n == k or n >= k and word[k - 1] == c"*") and http1_equal(p, word, k - (word[k - 1] == c"*")):
            return True
        word += k + 1
    return False


cdef inline void http1_trailer_fields(Message *out) noexcept nogil:
    """Mark the fields of a trailer section that only a head may carry, to stay behind."""
    cdef uint8_t known
    cdef int i
    for i in range(out.nfields):
        known = out.fields[i].id
        if (known != F_DATE and known != F_SERVER if known != F_OTHER
                else _belongs_in_head(out.base + out.fields[i].at, out.fields[i].name_len)):
            out.fields[i].flags = FIELD_HOP
            out.flags |= MSG_HAS_HOP


cdef inline int http1_parse_trailers(const char *buf, size_t len, uint32_t *scan,
                                     Message *out) noexcept nogil:
    """The trailer section at buf: its length with the empty line (2 = none); 0 if not whole; -R_BAD_TRAILER.

    Only out.base, head_len, nfields and fields mean something. A field that the head has to carry,
    because it routes, authenticates or describes the message (RFC 9110 6.5.1), gets FIELD_HOP, so that it
    is dropped; one that frames the message is refused: somebody tries something. *scan as for heads.
    """
    cdef const char *end = buf + len
    cdef const char *p = buf
    cdef const char *stop
    cdef Http1Seen seen
    cdef int r
    if len == 0 or (scan[0] and len < HTTP1_MAX_TRAILER
                    and not http1_look(buf, end, scan, HTTP1_MAX_TRAILER_FIELDS)):
        return 0
    http1_clear(out, buf)
    stop = buf + HTTP1_MAX_TRAILER if len > HTTP1_MAX_TRAILER else end
    r = http1_fields(buf, &p, stop, HTTP1_MAX_TRAILER_FIELDS, out, &seen)
    if r < 0:
        return -R_BAD_TRAILER
    if r == 0:
        if stop - buf == HTTP1_MAX_TRAILER:
            return -R_BAD_TRAILER
        # one line more than there are: http1_look counts a first line, which a trailer section has not
        http1_waiting(buf, p, 1 + out.nfields, scan)
        return 0
    if seen.once & (1 << F_CONTENT_LENGTH | 1 << F_TRANSFER_ENCODING):
        return -R_BAD_TRAILER
    out.head_len = <uint32_t>(p - buf)
    out.framing = FRAMING_NONE
    out.length = 0
    http1_trailer_fields(out)
    scan[0] = 0
    return <int>(p - buf)
