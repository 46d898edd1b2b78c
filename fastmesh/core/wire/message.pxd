# A message head as every codec shows it: wire-neutral, pointing into memory it does not own.
#
# `base` is the start of a contiguous block that holds the head as field lines ("name: value\r\n"); all
# positions are offsets from it, so the block may move as long as `base` is set anew. Whoever fills a
# Message keeps the block alive until the callback that received it returns; nothing here is ever freed.
# A head of HTTP/1 is shown where it was received; other codecs write their fields into a block of the
# same shape, so that runs of unchanged lines can be copied as they stand.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAX_FIELDS = 128
    MAX_HEAD = 65536          # bytes of a whole head
    MAX_LINE = 16384          # bytes of the first line
    LENGTH_UNKNOWN = 0xFFFFFFFFFFFFFFFF

cdef enum:  # Method
    M_OTHER = 0
    M_GET
    M_HEAD
    M_POST
    M_PUT
    M_DELETE
    M_OPTIONS
    M_PATCH
    M_TRACE
    M_CONNECT

cdef enum:  # Framing
    FRAMING_NONE = 0          # no body
    FRAMING_LENGTH            # exactly `length` bytes
    FRAMING_CHUNKED           # self-delimited, length unknown
    FRAMING_CLOSE             # until the connection closes (responses only)

cdef enum:  # FieldId
    # fields that some part of the proxy looks at; everything else is F_OTHER
    F_OTHER = 0
    F_HOST
    F_CONNECTION
    F_CONTENT_LENGTH
    F_TRANSFER_ENCODING
    F_TE
    F_TRAILER
    F_UPGRADE
    F_EXPECT
    F_KEEP_ALIVE
    F_PROXY_CONNECTION
    F_VIA
    F_FORWARDED
    F_X_FORWARDED_FOR
    F_X_FORWARDED_PROTO
    F_X_FORWARDED_HOST
    F_X_FASTMESH_REASON
    F_DATE
    F_SERVER
    F_PROXY_AUTHORIZATION
    F_PROXY_AUTHENTICATE
    F_CONTENT_TYPE
    F_X_FORWARDED_CLIENT_CERT
    F_COOKIE

cdef enum:  # FieldFlag
    FIELD_HOP = 1             # ends at this hop: hop-by-hop by definition or named by Connection

cdef enum:  # MessageFlag
    MSG_KEEP_ALIVE = 1        # the sender keeps the connection open after this message
    MSG_UPGRADE = 2           # "Connection: upgrade" and an Upgrade field (request), or status 101
    MSG_EXPECT_CONTINUE = 4   # "Expect: 100-continue"
    MSG_TE_TRAILERS = 8       # "TE: trailers"
    MSG_HTTP10 = 16           # the sender speaks HTTP/1.0
    MSG_INTERIM = 32          # a 1xx response other than 101
    MSG_HAS_HOP = 64          # at least one field carries FIELD_HOP
    MSG_HTTP2 = 128           # it came over HTTP/2

cdef struct Span:
    uint32_t at               # offset from Message.base
    uint32_t len

cdef struct Field:
    uint32_t at               # offset of the line's first byte (= of the name)
    uint32_t line_len         # the whole line, CRLF included
    uint32_t value_at         # value without surrounding white space
    uint32_t value_len
    uint16_t name_len
    uint8_t id                # enum FieldId
    uint8_t flags             # enum FieldFlag

cdef struct Message:
    const char *base
    uint32_t head_len         # bytes from base to the end of the head's empty line
    uint16_t status           # responses; 0 in requests
    uint8_t method            # enum Method
    uint8_t framing           # enum Framing
    uint8_t flags             # enum MessageFlag
    uint8_t whole             # nothing follows the head: HTTP/2's END_STREAM
    uint16_t nfields
    uint64_t length           # FRAMING_LENGTH: bytes of the body; else LENGTH_UNKNOWN (0 for FRAMING_NONE)
    Span method_name
    Span path                 # requests: origin-form ("/a?b"), or "*"; absolute-form is reduced to it ("?b": "/?b")
    Span authority            # requests: from the absolute-form or CONNECT target, else the Host field's value
    Span scheme               # requests: only from the absolute-form or HTTP/2's ":scheme", else length 0
    Span reason               # responses: the reason phrase
    Span upgrade              # the value of the Upgrade field, if MSG_UPGRADE or status 426
    Span protocol             # requests over HTTP/2: ":protocol" of an extended CONNECT (RFC 8441), else length 0
    Field fields[128]         # MAX_FIELDS
