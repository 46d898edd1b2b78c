# Our own records between window and sink: what tls_read and tls_write do once OpenSSL's object is gone.
#
# One record is tls_record's business; here is the order of records: their heads and cuts, what may come in
# them after the handshake (RFC 8446 4.6, 5, 6), and what is kept when a record or its room is not whole.
# Only close_notify, KeyUpdate and, for a client, late tickets may come besides data.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastmesh.core.base.reason cimport R_NO_MEMORY
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.tls_errors cimport *
from fastmesh.core.wire.tls_record cimport *
from fastmesh.core.wire.tls_state cimport *


cdef inline void records_alert(TlsEngine *e, TlsRecords *r, int level, int alert) noexcept nogil:
    """An alert into the sink, if there is room."""
    cdef uint8_t body[2]
    body[0] = <uint8_t>level
    body[1] = <uint8_t>alert
    if e.out_cap - e.out_len >= sizeof(body) + TLS_RECORD_OVERHEAD:
        e.out_len += record_seal(&r.tx, SSL3_RT_ALERT, body, sizeof(body), e.out + e.out_len)


cdef inline bint records_write(TlsEngine *e, TlsRecords *r, const char *src, size_t n) noexcept nogil:
    """All of it into the sink, which has room. False: the cipher failed."""
    cdef uint8_t update[5]
    cdef size_t piece, made
    r.quiet = 0         # who only receives has nothing but key updates to send, and those in proportion
    if r.answer or r.tx.sequence >= TLS_KEY_RECORDS:
        memset(update, 0, sizeof(update))       # length 1, update_not_requested
        update[0] = SSL3_MT_KEY_UPDATE
        update[3] = 1
        made = record_seal(&r.tx, SSL3_RT_HANDSHAKE, update, sizeof(update), e.out + e.out_len)
        if made == 0 or not keys_update(r.suite, &r.tx, True):
            ERR_clear_error()
            return False
        e.out_len += made
        r.answer = False
    while n > 0:
        piece = n if n < TLS_RECORD else TLS_RECORD
        made = record_seal(&r.tx, SSL3_RT_APPLICATION_DATA, src, piece, e.out + e.out_len)
        if made == 0:
            ERR_clear_error()
            return False
        e.out_len += made
        src += piece
        n -= piece
    return True


cdef inline const char *_records_whole(TlsEngine *e, TlsRecords *r, size_t *n, int *alert) noexcept nogil:
    """The body of the next record, its length in n; NULL: wants input, or the alert to fail with.

    The head is in r.head; a body that the window holds whole is shown there, already consumed.
    """
    cdef const char *body
    cdef size_t k, length
    if r.head_len < TLS_RECORD_HEAD:
        k = <size_t>TLS_RECORD_HEAD - r.head_len
        if k > e.in_len:
            k = e.in_len
        memcpy(&r.head[r.head_len], e.in_ptr, k)
        r.head_len += <uint8_t>k
        e.in_ptr += k
        e.in_len -= k
        if r.head_len < TLS_RECORD_HEAD:
            return NULL
        length = <size_t>r.head[3] << 8 | r.head[4]
        # after the handshake every record is protected (5), and has a content type and a tag at least
        if r.head[0] != SSL3_RT_APPLICATION_DATA:
            alert[0] = SSL_AD_UNEXPECTED_MESSAGE
            return NULL
        if length > TLS_RECORD_MAX:
            alert[0] = SSL_AD_RECORD_OVERFLOW
            return NULL
        if length <= TLS_RECORD_TAG:
            alert[0] = SSL_AD_BAD_RECORD_MAC
            return NULL
    length = <size_t>r.head[3] << 8 | r.head[4]
    n[0] = length
    if r.stash == NULL:
        if e.in_len >= length:
            body = e.in_ptr
            e.in_ptr += length
            e.in_len -= length
            r.head_len = 0
            return body
        if e.in_len == 0:
            return NULL
        r.stash = <char *>malloc(length)
        if r.stash == NULL:
            alert[0] = SSL_AD_INTERNAL_ERROR
            return NULL
        r.stashed = STASH_CIPHER
    k = length - r.stash_len
    if k > e.in_len:
        k = e.in_len
    memcpy(r.stash + r.stash_len, e.in_ptr, k)
    r.stash_len += <uint32_t>k
    e.in_ptr += k
    e.in_len -= k
    if r.stash_len < length:
        return NULL
    r.head_len = 0
    return r.stash


cdef inline size_t records_read(TlsEngine *e, Tls *t, char *dst, size_t cap) noexcept nogil:
    """Plaintext of the records in the window. What went wrong or ended is in t."""
    cdef TlsRecords *r = t.records
    cdef size_t total = 0, n = 0, k
    cdef const char *body
    cdef char *spill
    cdef char *out
    cdef int alert = 0, type = 0, length
    e.full = False
    while total < cap:
        if r.stashed == STASH_PLAIN:
            k = r.stash_len - r.stash_pos
            if k > cap - total:
                k = cap - total
            memcpy(dst + total, r.stash + r.stash_pos, k)
            r.stash_pos += <uint32_t>k
            total += k
            if r.stash_pos == r.stash_len:
                stash_drop(r)
            continue
        if e.in_len == 0:
            break
        body = _records_whole(e, r, &n, &alert)
        if body == NULL:
            if alert == 0:
                break
            _records_fail(e, t, alert)
            break
        spill = NULL
        out = dst + total
        if n - TLS_RECORD_TAG > cap - total:
            spill = <char *>malloc(n)
            out = spill
        length = record_open(&r.rx, r.head, body, n, out, &type) if out != NULL else -SSL_AD_INTERNAL_ERROR
        if r.stashed == STASH_CIPHER:
            stash_drop(r)
        if length >= 0 and type == SSL3_RT_APPLICATION_DATA and r.message_len == 0 and r.skip == 0:
            k = <size_t>length
            if k > 0:
                r.quiet = 0
            else:
                r.quiet += 1
            if spill != NULL:
                if k > cap - total:
                    k = cap - total
                memcpy(dst + total, spill, k)
                if <size_t>length > k:
                    r.stash = spill
                    r.stash_len = <uint32_t>length
                    r.stash_pos = <uint32_t>k
                    r.stashed = STASH_PLAIN
                    spill = NULL
            total += k
            alert = 0 if r.quiet <= TLS_QUIET_MAX else SSL_AD_UNEXPECTED_MESSAGE
        elif length >= 0:
            r.quiet += 1
            alert = _records_control(t, type, <uint8_t *>out, length)
        else:
            alert = -length
        free(spill)
        if alert > 0:
            _records_fail(e, t, alert)
        if t.failed or t.flags & TLS_F_EOF:
            break
    return total


cdef inline void _records_fail(TlsEngine *e, Tls *t, int alert) noexcept nogil:
    """Break the connection on account of what the peer sent, and tell it."""
    ERR_clear_error()
    records_alert(e, t.records, 2, alert)
    tls_fail(t, R_NO_MEMORY if alert == SSL_AD_INTERNAL_ERROR else tls_broken(t))


cdef inline int _records_control(Tls *t, int type, const uint8_t *p, int n) noexcept nogil:
    """A record that is not application data: 0, or the alert it deserves. A failure or an end is noted in t."""
    cdef TlsRecords *r = t.records
    if r.quiet > TLS_QUIET_MAX:
        return SSL_AD_UNEXPECTED_MESSAGE
    if type == SSL3_RT_HANDSHAKE:
        return _records_message(t, p, n)
    if type != SSL3_RT_ALERT or r.message_len > 0 or r.skip > 0:     # 5.1: nothing between the parts of a message
        return SSL_AD_UNEXPECTED_MESSAGE
    if n != 2:
        return SSL_AD_DECODE_ERROR
    if p[1] == SSL_AD_CLOSE_NOTIFY:
        t.flags |= TLS_F_EOF
    elif p[1] != SSL_AD_USER_CANCELLED:      # 6.1: close_notify follows that one
        tls_fail(t, tls_alerted(t, p[1]))
    return 0


cdef inline int _records_message(Tls *t, const uint8_t *p, int n) noexcept nogil:
    """A part of a handshake message: a ticket that nobody waits for, or KeyUpdate. 0, or the alert it deserves."""
    cdef TlsRecords *r = t.records
    cdef uint32_t k
    if n == 0:
        return SSL_AD_UNEXPECTED_MESSAGE
    while n > 0:
        if r.skip > 0:
            k = r.skip if r.skip < <uint32_t>n else <uint32_t>n
            r.skip -= k
            p += k
            n -= <int>k
            continue
        r.message[r.message_len] = p[0]
        r.message_len += 1
        p += 1
        n -= 1
        if r.message_len < 4:
            continue
        k = <uint32_t>r.message[1] << 16 | <uint32_t>r.message[2] << 8 | r.message[3]
        if r.message[0] == SSL3_MT_NEWSESSION_TICKET and not t.flags & TLS_F_SERVER:
            r.skip = k
            r.message_len = 0
        elif r.message[0] != SSL3_MT_KEY_UPDATE:
            return SSL_AD_UNEXPECTED_MESSAGE
        elif k != 1:
            return SSL_AD_DECODE_ERROR
        elif r.message_len == 5:
            r.message_len = 0
            if r.message[4] > 1:
                return SSL_AD_ILLEGAL_PARAMETER
            if n > 0:                        # 5.1: no message goes over a change of keys
                return SSL_AD_UNEXPECTED_MESSAGE
            if not keys_update(r.suite, &r.rx, False):
                return SSL_AD_INTERNAL_ERROR
            if r.message[4] == 1:
                r.answer = True
    return 0
