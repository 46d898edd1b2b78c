# TLS on one connection, without a socket: ciphertext in from a window, ciphertext out to a sink, both the
# caller's memory. Contexts and who may speak: tls_context.pxd. Records after the handshake: tls_record.pxd.
#
# How it is driven: point the engine at what was received (in_ptr, in_len, eof), make sure the sink has room,
# call one of the functions, send out[0:out_len] and set out_len to 0 - after a failure too: the alert is
# there. What was not taken stays in the window: call again, or keep it for later. tls_read takes everything
# but what would not fit into `dst`; a part of a record is kept inside.
#
# Who holds what: OpenSSL's SSL object lives for the handshake. With engine.own_records it goes as soon as
# the connection does not need it any more (a server: at once; a client: with its ticket or the first data),
# and 3 KiB of our own remain of 14. Ask tls_is_open, tls_resumed, tls_peer, tls_alpn: `ssl` may be NULL.
#
# The caller owns the engine, the Tls structs (neither moves while in use), the sink and the session slots.
# A Tls owns its SSL object, its records and a reference to the facts of its peer until tls_free. A failed connection stays failed: every call gives
# its reason again. OpenSSL's error queue is empty before and after each call; it is touched only when
# something went wrong.
#
# Return values besides reasons: TLS_EOF, TLS_TRUNCATED, TLS_SINK_FULL, all below every reason.

from fastmesh.core.wire.tls_alpn cimport alpn_offer
from fastmesh.core.wire.tls_context cimport *
from fastmesh.core.wire.tls_errors cimport *
from fastmesh.core.wire.tls_facts cimport *
from fastmesh.core.wire.tls_record cimport *
from fastmesh.core.wire.tls_sessions cimport *
from fastmesh.core.wire.tls_state cimport *
from fastmesh.core.wire.tls_stream cimport *

# the memory under OpenSSL ------------------------------------------------------------------------------

cdef inline int _bio_read(BIO *bio, char *dst, size_t n, size_t *got) noexcept nogil:
    cdef TlsEngine *e = <TlsEngine *>BIO_get_data(bio)
    if e.in_len == 0:
        e.starved = True
        BIO_set_retry_read(bio)
        return 0
    if n > e.in_len:
        n = e.in_len
    memcpy(dst, e.in_ptr, n)
    e.in_ptr += n
    e.in_len -= n
    got[0] = n
    return 1


cdef inline int _bio_write(BIO *bio, const char *src, size_t n, size_t *written) noexcept nogil:
    cdef TlsEngine *e = <TlsEngine *>BIO_get_data(bio)
    if n > e.out_cap - e.out_len:
        e.full = True
        BIO_set_retry_write(bio)
        return 0
    memcpy(e.out + e.out_len, src, n)
    e.out_len += n
    written[0] = n
    return 1


cdef inline long _bio_ctrl(BIO *bio, int command, long number, void *pointer) noexcept nogil:
    return 1 if command == BIO_CTRL_FLUSH else 0


cdef inline int tls_engine_init(TlsEngine *e, char *out, size_t cap) noexcept nogil:
    """0, or -R_NO_MEMORY. `out[cap]` is the first sink; the caller may change it between calls."""
    memset(e, 0, sizeof(TlsEngine))
    e.out = out
    e.out_cap = cap
    e.method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, b"fastmesh window")
    if e.method == NULL:
        return -R_NO_MEMORY
    BIO_meth_set_read_ex(e.method, _bio_read)
    BIO_meth_set_write_ex(e.method, _bio_write)
    BIO_meth_set_ctrl(e.method, _bio_ctrl)
    e.bio = BIO_new(e.method)
    if e.bio == NULL:
        BIO_meth_free(e.method)
        e.method = NULL
        return -R_NO_MEMORY
    BIO_set_data(e.bio, e)
    BIO_set_init(e.bio, 1)
    suites_init(e.suites)
    return 0


cdef inline void tls_engine_free(TlsEngine *e) noexcept nogil:
    """After the last connection of the engine was freed."""
    cdef int i
    BIO_free(e.bio)
    BIO_meth_free(e.method)
    for i in range(3):
        suite_free(&e.suites[i])
    e.bio = NULL
    e.method = NULL


# a connection --------------------------------------------------------------------------------------------

cdef inline int tls_open(
    TlsEngine *e, Tls *t, SSL_CTX *ctx, bint server, const char *expect_id, size_t expect_len, SSL_SESSION *resume,
    uint8_t alpn
) noexcept nogil:
    """Begin a connection: 0 or a reason, after which nothing is held. All fields of `t` but session_slot are set here.

    `expect_id` (what the peer must prove; NULL: any ID of a trusted domain) is lent until the handshake is over.
    `resume` may be NULL or any session that was ever put into a slot: one that may not be used any more is ignored.
    `alpn` (bits TLS_ALPN_*): which of the context's protocols a client offers, a server agrees on. What was agreed on is
    no part of a session: each connection settles it anew (RFC 7301 3.1).
    """
    cdef TlsPolicy *policy = tls_policy(ctx)
    t.flags = (TLS_F_SERVER if server else 0) | (0 if policy.public else TLS_F_MESH)
    t.failed = 0
    t.alpn = alpn
    t.expect = expect_id
    t.expect_len = <uint16_t>expect_len
    t.ssl = NULL
    t.records = NULL
    t.peer = NULL
    if expect_len > SVID_ID_MAX:
        return tls_fail(t, R_INTERNAL)
    t.ssl = SSL_new(ctx)
    if t.ssl == NULL:
        ERR_clear_error()
        return tls_fail(t, R_NO_MEMORY)
    BIO_up_ref(e.bio)
    SSL_set_bio(t.ssl, e.bio, e.bio)
    if e.own_records:
        SSL_set_msg_callback(t.ssl, _message_seen)
    if server:
        t.session_slot = NULL
        SSL_set_accept_state(t.ssl)
        return 0
    SSL_set_connect_state(t.ssl)
    if (policy.sends_name and SSL_set_tlsext_host_name(t.ssl, policy.own.name) != 1) or not alpn_offer(
            t.ssl, policy, alpn):
        ERR_clear_error()
        _ssl_free(t)
        return tls_fail(t, R_NO_MEMORY)
    if resume != NULL and SSL_SESSION_is_resumable(resume) and tls_session_usable(
            policy, resume, t.expect, t.expect_len):
        # OpenSSL bars a session from further use once it was resumed; ours may be used again until replaced
        resume = SSL_SESSION_dup(resume)
        if resume != NULL:
            SSL_set_session(t.ssl, resume)
            SSL_SESSION_free(resume)
        else:
            ERR_clear_error()
    return 0


cdef inline int tls_handshake(TlsEngine *e, Tls *t) noexcept nogil:
    """1: done; 0: wants input; TLS_SINK_FULL; or a reason. Send what is in the sink in every case."""
    cdef const unsigned char *protocol = NULL
    cdef unsigned int n = 0
    cdef int result
    if t.failed:
        return -<int>t.failed
    if t.flags & TLS_F_DONE:
        return 1
    if not t.flags & TLS_F_HEARD and e.in_len > 0:
        t.flags |= TLS_F_HEARD
        # whoever speaks another protocol on this port gets no TLS alert for an answer
        if t.flags & TLS_F_SERVER and e.in_ptr[0] != 0x16:
            return tls_fail(t, R_TLS_NOT_TLS)
    e.starved = False
    e.full = False
    e.current = t
    result = SSL_do_handshake(t.ssl)
    e.current = NULL
    if result == 1:
        t.flags |= TLS_F_DONE
        t.expect = NULL
        if not _peer_known(t):
            return tls_fail(t, R_NO_MEMORY)
        SSL_get0_alpn_selected(t.ssl, &protocol, &n)
        if n == 2 and memcmp(protocol, b"h2", 2) == 0:
            t.flags |= TLS_F_H2
        elif n == 8 and memcmp(protocol, b"http/1.1", 8) == 0:
            t.flags |= TLS_F_H1
        # only OpenSSL can make a session of a client's ticket to come
        if t.session_slot != NULL or not _take_over(e, t):
            SSL_free_buffers(t.ssl)      # those of the handshake would stay until the first write
        return 1
    if e.full:
        return TLS_SINK_FULL
    if not e.starved:
        return tls_fail(t, tls_error_reason(t))
    if not e.eof:
        return 0
    if not t.flags & TLS_F_SERVER:
        return tls_fail(t, R_UPSTREAM_TLS_HANDSHAKE)
    # a connection that never said a word is a probe of the port, no failed handshake
    return tls_fail(t, R_TLS_HANDSHAKE if t.flags & TLS_F_HEARD else R_DOWNSTREAM_CLOSED)


cdef inline bint _peer_known(Tls *t) noexcept nogil:
    """At the end of a handshake: who is there? One who showed a certificate is known from its verification, one who
    resumed from the session - that one which OpenSSL took in the end. False: nobody, where somebody must be."""
    cdef TlsPolicy *policy = tls_policy(SSL_get_SSL_CTX(t.ssl))
    if SSL_session_reused(t.ssl):
        t.flags |= TLS_F_RESUMED
        facts_put(t.peer)
        t.peer = session_peer(policy, SSL_get_session(t.ssl))
    return t.peer != NULL or (policy.public and not policy.demands)


cdef inline bint _take_over(TlsEngine *e, Tls *t) noexcept nogil:
    """From here on the records are ours, if they can be; then OpenSSL's object is gone."""
    cdef TlsRecords *r = t.records
    cdef TlsSuite *suite = NULL
    cdef const SSL_CIPHER *cipher = SSL_get_current_cipher(t.ssl)
    cdef int i
    if r == NULL:
        return False
    if cipher != NULL and r.rx.known and r.tx.known and not r.unfit:
        for i in range(3):
            if e.suites[i].id == SSL_CIPHER_get_protocol_id(cipher):
                suite = &e.suites[i]
    if suite == NULL or not records_start(r, suite):
        records_free(r)
        t.records = NULL
        ERR_clear_error()
        return False
    _ssl_free(t)
    return True


cdef inline int tls_read(TlsEngine *e, Tls *t, char *dst, size_t cap) noexcept nogil:
    """>0: bytes of plaintext, as many as there are and fit; 0: wants input; TLS_EOF, TLS_TRUNCATED or a reason.

    An end or a failure behind the bytes is told by the next call. TLS 1.3: a server refuses a client's certificate
    after the client's own handshake is done, so that R_UPSTREAM_TLS_REFUSED comes from here.
    """
    cdef size_t total = 0
    if t.failed:
        return -<int>t.failed
    if t.flags & TLS_F_EOF:
        return TLS_EOF
    if t.ssl != NULL:
        total = _ssl_read(e, t, dst, cap)
    if t.ssl == NULL:
        total += records_read(e, t, dst + total, cap - total)
    if total > 0:
        t.flags |= TLS_F_DATA
        return <int>total
    if t.failed:
        return -<int>t.failed
    if t.flags & TLS_F_EOF:
        return TLS_EOF
    if e.full:
        return TLS_SINK_FULL
    return TLS_TRUNCATED if e.eof and e.in_len == 0 else 0


cdef inline size_t _ssl_read(TlsEngine *e, Tls *t, char *dst, size_t cap) noexcept nogil:
    """Plaintext by way of OpenSSL. What went wrong or ended is in t and e."""
    cdef size_t got = 0, total = 0
    e.full = False
    e.current = t
    while total < cap:
        # without input OpenSSL has nothing but what is left of a record that did not fit the last time
        if e.in_len == 0 and SSL_pending(t.ssl) == 0:
            break
        e.starved = False
        if SSL_read_ex(t.ssl, dst + total, cap - total, &got):
            total += got
            if t.records != NULL:
                break
            continue
        if e.starved:
            break
        if SSL_get_shutdown(t.ssl) & SSL_RECEIVED_SHUTDOWN and ERR_peek_error() == 0:
            t.flags |= TLS_F_EOF
        elif not e.full:
            tls_fail(t, tls_error_reason(t))
        break
    e.current = NULL
    if t.failed or t.flags & TLS_F_EOF:
        return total
    # A client waits for its ticket; with the first data it is there or will not be missed. Nothing may be left
    # inside OpenSSL. Of a record it tells all but a head that is there alone, of a message nothing: behind data
    # there is neither (5.1), behind a ticket `held` knows.
    if t.records != NULL and not SSL_has_pending(t.ssl):
        if total > 0 or (t.flags & TLS_F_TICKET and t.records.held == 0):
            if _take_over(e, t):
                return total
    # what a message behind the handshake, a ticket say, has left; nothing happens with a part of a record inside
    if e.in_len == 0:
        SSL_free_buffers(t.ssl)
    return total


cdef inline size_t tls_overhead(size_t n) noexcept nogil:
    """Sink bytes that n bytes of plaintext may need beyond themselves."""
    return (n / TLS_RECORD + 1) * TLS_RECORD_OVERHEAD + TLS_SLACK


cdef inline int tls_write(TlsEngine *e, Tls *t, const char *src, size_t n) noexcept nogil:
    """n: all of it is in the sink as records; TLS_SINK_FULL: no room for all, nothing was written; or a reason.

    Behind close_notify nothing may follow (RFC 8446 6.1): to write then is R_INTERNAL.
    """
    cdef size_t written = 0
    cdef bint ok
    if t.failed:
        return -<int>t.failed
    if n == 0:
        return 0
    if t.flags & TLS_F_BYE:
        return tls_fail(t, R_INTERNAL)
    if n > 0x40000000 or e.out_cap - e.out_len < n + tls_overhead(n):
        return TLS_SINK_FULL
    if t.ssl == NULL:
        return <int>n if records_write(e, t.records, src, n) else tls_fail(t, R_INTERNAL)
    e.current = t
    ok = SSL_write_ex(t.ssl, src, n, &written)
    e.current = NULL
    return <int>written if ok else tls_fail(t, tls_error_reason(t))


cdef inline void tls_close_notify(TlsEngine *e, Tls *t) noexcept nogil:
    """Put close_notify into the sink, once, if the connection is in a state for it. Reading may go on."""
    if t.failed or not t.flags & TLS_F_DONE or t.flags & TLS_F_BYE or e.out_cap - e.out_len < TLS_SLACK:
        return
    t.flags |= TLS_F_BYE
    if t.ssl == NULL:
        records_alert(e, t.records, 1, SSL_AD_CLOSE_NOTIFY)
        return
    e.current = t
    if SSL_shutdown(t.ssl) < 0:
        ERR_clear_error()
    e.current = NULL


cdef inline void _ssl_free(Tls *t) noexcept nogil:
    # OpenSSL takes an SSL that goes without close_notify for a broken one and bars its session from resumption
    SSL_set_shutdown(t.ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
    SSL_free(t.ssl)
    t.ssl = NULL


cdef inline void tls_free(Tls *t) noexcept nogil:
    """Free what the connection holds; nothing is written. A second call does nothing."""
    if t.ssl != NULL:
        _ssl_free(t)
    records_free(t.records)
    t.records = NULL
    facts_put(t.peer)
    t.peer = NULL
    t.flags &= ~<uint16_t>TLS_F_DONE


cdef inline bint tls_is_open(Tls *t) noexcept nogil:
    """Between tls_open and tls_free?"""
    return t.ssl != NULL or t.records != NULL


cdef inline const TlsFacts *tls_peer(const Tls *t) noexcept nogil:
    """Who the peer has proved to be, lent; NULL before the handshake's end, or if it showed no certificate. Only in the
    mesh there is an id."""
    return t.peer if t.flags & TLS_F_DONE else NULL


cdef inline bint tls_of_mesh(const Tls *t) noexcept nogil:
    """Is the peer one that a trust domain vouches for?"""
    return t.flags & TLS_F_MESH != 0


cdef inline bint tls_resumed(Tls *t) noexcept nogil:
    """After the handshake: did it resume a session?"""
    return t.flags & TLS_F_RESUMED != 0


cdef inline int tls_alpn(Tls *t) noexcept nogil:
    """After the handshake, the protocol agreed on: TLS_ALPN_H1, TLS_ALPN_H2 or TLS_ALPN_NONE."""
    return TLS_ALPN_H2 if t.flags & TLS_F_H2 else (TLS_ALPN_H1 if t.flags & TLS_F_H1 else TLS_ALPN_NONE)
