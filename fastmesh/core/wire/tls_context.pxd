# TLS contexts of the mesh: what a worker makes once per identity (server and client) and the callbacks
# through which OpenSSL asks during handshakes. The per-connection functions are in tls.pxd.
#
# Ownership: a context belongs to whoever called `tls_context` until SSL_CTX_free; each connection made
# from it holds it alive too. The policy hangs on the context and goes with it.
#
# Who may speak: the peer's leaf must be an X.509-SVID (svid.pxd) of the own trust domain or of a federated one,
# its chain must end at a root of just that domain, every certificate of it must be valid now, and it must not
# be on the deny list (tls_trust.pxd). That is decided inside the handshake, so that a refused peer gets an alert
# and never sees our own certificate as a client.
#
# A peer's certificate is verified and read once: mesh peers are few, their connections many. The policy keeps
# the facts of leaves whose chain was good (tls_peers.pxd), with the time span in which all of it is valid.
# Possession of the key is proved in every handshake all the same. New trust means a new context, hence an empty
# table.
#
# Resumption: tickets only, no server-side cache; keys: tls_tickets.pxd. A ticket carries the facts of its peer and
# no certificate; one is resumed only while the peer would be let in again (tls_sessions.pxd), and only by the identity
# and under the trust it was made with: the session id context is a digest of our SPIFFE ID and of all domains and
# their roots.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, strlen, strncmp, strrchr
from libc.time cimport time_t

from fastmesh.core.base.reason cimport *
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.svid cimport *
from fastmesh.core.wire.tls_alpn cimport *
from fastmesh.core.wire.tls_facts cimport *
from fastmesh.core.wire.tls_peers cimport *
from fastmesh.core.wire.tls_record cimport *
from fastmesh.core.wire.tls_sessions cimport *
from fastmesh.core.wire.tls_state cimport *
from fastmesh.core.wire.tls_tickets cimport *
from fastmesh.core.wire.tls_trust cimport *

cdef extern from * nogil:
    """
    #include <openssl/ssl.h>
    /* OpenSSL gives out the number of a slot for extra data once a process: the one thing here that cannot
       hang off a structure of the caller. */
    static int fm_tls_policy_slot(CRYPTO_EX_free *release) {
        static int slot = -1;
        if (slot < 0) slot = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, release);
        return slot;
    }
    """
    int fm_tls_policy_slot(CRYPTO_EX_free *release)     # -1: no memory


cdef inline void _policy_free(
    void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp
) noexcept nogil:
    """The context goes."""
    cdef TlsPolicy *policy = <TlsPolicy *>ptr
    cdef int i
    if policy == NULL:
        return
    peers_free(policy)
    trust_free(policy)
    for i in range(<int>policy.nnames):
        free(policy.names[i].text)
        SSL_CTX_free(<SSL_CTX *>policy.names[i].ctx)
    free(policy.names)
    free(policy)


cdef inline TlsPolicy *tls_policy(SSL_CTX *ctx) noexcept nogil:
    return <TlsPolicy *>SSL_CTX_get_ex_data(ctx, fm_tls_policy_slot(_policy_free))


# verification of the peer's certificate --------------------------------------------------------------

cdef inline int _verify_reason(X509_STORE_CTX *store_ctx, bint server) noexcept nogil:
    """The reason behind a failed X509_verify_cert."""
    cdef int error = X509_STORE_CTX_get_error(store_ctx)
    if error == X509_V_ERR_CERT_HAS_EXPIRED or error == X509_V_ERR_CERT_NOT_YET_VALID:
        return R_TLS_EXPIRED if server else R_UPSTREAM_TLS_EXPIRED
    # a leaf of a trusted issuer that was not made for this use proves nothing here, but its issuer is no stranger
    if error == X509_V_ERR_INVALID_PURPOSE and X509_STORE_CTX_get_error_depth(store_ctx) == 0:
        return R_TLS_IDENTITY if server else R_UPSTREAM_TLS_IDENTITY
    if error == X509_V_ERR_OUT_OF_MEM:
        return R_NO_MEMORY
    return R_TLS_UNTRUSTED if server else R_UPSTREAM_TLS_UNTRUSTED


cdef inline int _verify_anew(
    X509_STORE_CTX *store_ctx, TlsPolicy *policy, const unsigned char *hash, bint server, TlsFacts **peer
) noexcept nogil:
    """0 and a reference to the facts of a peer with a good chain that is an SVID of a trusted domain; or a reason."""
    cdef X509 *leaf = X509_STORE_CTX_get0_cert(store_ctx)
    cdef char id[SVID_ID_MAX]
    cdef size_t n = svid_uri(leaf, id, sizeof(id))
    cdef TlsDomain *domain = trust_domain(policy, id, n)
    # a leaf of nobody's domain is refused in any case; the own roots tell whether it is a stranger's
    X509_STORE_CTX_set0_trusted_stack(store_ctx, domain.roots if domain != NULL else policy.own.roots)
    X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(store_ctx), <time_t>now_seconds())
    if X509_verify_cert(store_ctx) <= 0:
        return _verify_reason(store_ctx, server)
    if domain == NULL or not svid_is_leaf(leaf):
        return R_TLS_IDENTITY if server else R_UPSTREAM_TLS_IDENTITY
    peer[0] = facts_of(leaf, hash, X509_STORE_CTX_get0_chain(store_ctx), id, n)
    if peer[0] == NULL:
        return R_NO_MEMORY
    peer_keep(policy, peer[0], True)
    return 0


cdef inline int _verify(X509_STORE_CTX *store_ctx, void *arg) noexcept nogil:
    """OpenSSL's question whether the peer's chain is good. 1: yes."""
    cdef SSL *ssl = <SSL *>X509_STORE_CTX_get_ex_data(store_ctx, SSL_get_ex_data_X509_STORE_CTX_idx())
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef TlsPolicy *policy = tls_policy(SSL_get_SSL_CTX(ssl))
    cdef Tls *t = engine.current
    cdef bint server = SSL_is_server(ssl)
    cdef X509 *leaf = X509_STORE_CTX_get0_cert(store_ctx)
    cdef unsigned char hash[32]
    cdef TlsFacts *known
    cdef X509_STACK *sent
    cdef int reason = R_NO_MEMORY
    facts_put(t.peer)
    t.peer = NULL
    X509_STORE_CTX_set_error(store_ctx, X509_V_OK)
    if leaf_hash(leaf, hash):
        known = peer_verified(policy, hash, now_seconds())
        if known != NULL:
            t.peer = facts_hold(known)
            reason = 0
        else:
            reason = _verify_anew(store_ctx, policy, hash, server, &t.peer)
    reason = reason or trust_refuses(policy, t.peer, t.expect, t.expect_len, server)
    if reason:
        t.failed = <uint8_t>reason
        # what the verification has not refused: the alert is certificate_revoked, or handshake_failure
        if X509_STORE_CTX_get_error(store_ctx) == X509_V_OK:
            X509_STORE_CTX_set_error(
                store_ctx, X509_V_ERR_CERT_REVOKED if reason == R_TLS_REVOKED or reason == R_UPSTREAM_TLS_REVOKED
                else X509_V_ERR_APPLICATION_VERIFICATION)
        return 0
    # What was verified need not be kept: neither the verified chain nor the issuers the peer sent. OpenSSL
    # takes the leaf from this stack after we return.
    X509_STORE_CTX_set0_verified_chain(store_ctx, NULL)
    sent = X509_STORE_CTX_get0_untrusted(store_ctx)
    if sent != NULL and sk_X509_num(sent) > 0 and sk_X509_value(sent, 0) == leaf:
        while sk_X509_num(sent) > 1:
            X509_free(sk_X509_pop(sent))
    return 1


# tickets -----------------------------------------------------------------------------------------------

cdef inline int _ticket_made(SSL *ssl, void *arg) noexcept nogil:
    """Server: a ticket names its peer, and is worth no longer than the chain that it vouches for. 0: no memory."""
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef SSL_SESSION *session = SSL_get_session(ssl)
    cdef TlsFacts *peer = engine.current.peer
    cdef TlsFacts noted
    cdef int64_t left
    # those who resume show no chain: what their session says goes on
    if not SSL_session_reused(ssl) and peer != NULL and not (
            session_note(session, peer) and session_without_certificate(session)):
        return 0
    if session_facts(session, &noted):
        left = noted.until - now_seconds()
        if left < TLS_TICKET_SECONDS:
            SSL_SESSION_set_timeout(session, <long>left if left > 1 else 1)
    return 1


cdef inline int _ticket_key(
    SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac, int seal
) noexcept nogil:
    """Server: the key to seal or to open a ticket with."""
    cdef TlsTickets *tickets = tls_policy(SSL_get_SSL_CTX(ssl)).tickets
    return ticket_seal(tickets, name, iv, cipher, mac) if seal else ticket_open(tickets, name, iv, cipher, mac)


cdef inline SSL_TICKET_RETURN _ticket_read(
    SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t name_len, SSL_TICKET_STATUS status, void *arg
) noexcept nogil:
    """Server: a ticket of ours is used only if its peer would still be let in; else a full handshake follows."""
    cdef TlsPolicy *policy = tls_policy(SSL_get_SSL_CTX(ssl))
    if status != SSL_TICKET_SUCCESS and status != SSL_TICKET_SUCCESS_RENEW:
        return SSL_TICKET_RETURN_IGNORE_RENEW
    if not tls_session_usable(policy, session, NULL, 0):
        return SSL_TICKET_RETURN_IGNORE_RENEW
    # To make a ticket costs as much as most of the handshake it saves. Nothing is hidden by using one only once
    # between peers that prove who they are, so a young one is used again - unless its key goes next. The public uses
    # tickets once (RFC 8446 C.4): it gets a new one each time.
    if not policy.public and status == SSL_TICKET_SUCCESS and (
            now_seconds() - SSL_SESSION_get_time(session) < TLS_TICKET_SECONDS // 2):
        return SSL_TICKET_RETURN_USE
    return SSL_TICKET_RETURN_USE_RENEW


cdef inline int _session_new(SSL *ssl, SSL_SESSION *session) noexcept nogil:
    """Client: keep the newest session. 1: the reference is ours now."""
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef SSL_SESSION **slot = engine.current.session_slot
    engine.current.flags |= TLS_F_TICKET
    if slot == NULL:
        return 0
    # one that was resumed says it already
    if engine.current.peer != NULL and not session_note(session, engine.current.peer):
        ERR_clear_error()
        return 0
    if slot[0] != NULL:
        SSL_SESSION_free(slot[0])
    slot[0] = session
    return 1


# what the records will need -----------------------------------------------------------------------------

cdef inline int _hex(char c) noexcept nogil:
    return c - c'0' if c <= c'9' else (c | 32) - c'a' + 10


# OpenSSL writes its key log digit by digit: the five lines of a handshake cost 8 % of one that resumes. So it is
# on, for the context, only from each Finished to the secret that comes with it (RFC 8446 7.1).

cdef inline void _secret_made(const SSL *ssl, const char *line) noexcept nogil:
    """OpenSSL's key log: "LABEL client_random secret", both in hexadecimal. Take the traffic secrets."""
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef Tls *t = engine.current
    cdef TlsKeys *keys
    cdef const char *p
    cdef bint of_client = strncmp(line, b"CLIENT_TRAFFIC_SECRET_", 22) == 0
    cdef size_t i, n
    if t == NULL or not engine.own_records:
        return
    if not of_client and strncmp(line, b"SERVER_TRAFFIC_SECRET_", 22) != 0:
        return
    if t.records == NULL:
        t.records = <TlsRecords *>calloc(1, sizeof(TlsRecords))
        if t.records == NULL:
            return
    keys = &t.records.tx if of_client != SSL_is_server(ssl) else &t.records.rx
    p = strrchr(line, c' ') + 1
    n = strlen(p) // 2
    # not 0 but N: a later generation, whose count of records we do not have
    if line[22] != c'0' or n > TLS_SECRET_MAX or keys.known:
        t.records.unfit = True
        return
    keys.known = True
    SSL_CTX_set_keylog_callback(SSL_get_SSL_CTX(ssl), NULL)
    for i in range(n):
        keys.secret[i] = <uint8_t>(_hex(p[2 * i]) << 4 | _hex(p[2 * i + 1]))


cdef inline void _message_seen(
    int sent, int version, int type, const void *data, size_t n, SSL *ssl, void *arg
) noexcept nogil:
    """OpenSSL's trace of messages: count the records under the keys of now. Finished was the last under others."""
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef const uint8_t *p = <const uint8_t *>data
    cdef TlsRecords *r
    cdef TlsKeys *keys
    if type == SSL3_RT_HANDSHAKE and p[0] == SSL3_MT_FINISHED:
        SSL_CTX_set_keylog_callback(SSL_get_SSL_CTX(ssl), _secret_made)
    if engine.current == NULL or engine.current.records == NULL:
        return      # no secret of the application's yet, so no record either
    r = engine.current.records
    keys = &r.tx if sent else &r.rx
    if type == SSL3_RT_HEADER:
        keys.sequence += 1
        if not keys.known:
            return
        if p[0] != SSL3_RT_APPLICATION_DATA:
            r.unfit = True                      # not protected, so without a number
        if not sent:
            r.held += <int64_t>((<uint32_t>p[3] << 8 | p[4])) - TLS_RECORD_TAG - 1
    elif type == SSL3_RT_HANDSHAKE:
        if p[0] == SSL3_MT_FINISHED:
            keys.sequence = 0
        elif p[0] == SSL3_MT_KEY_UPDATE:
            r.unfit = True
        if not sent and keys.known:
            r.held -= <int64_t>n


# making a context --------------------------------------------------------------------------------------

cdef inline int _no_password(char *buf, int size, int rwflag, void *arg) noexcept nogil:
    """An encrypted key is an error here, never a prompt on the terminal."""
    return -1


cdef inline bint _fail(char *err, size_t cap, const char *what) noexcept nogil:
    """Say what is wrong, with OpenSSL's own word for it if there is one. Always False."""
    cdef unsigned long code = ERR_peek_error()
    cdef const char *detail = ERR_reason_error_string(code) if code else NULL
    if detail != NULL:
        snprintf(err, cap, b"%s (%s)", what, detail)
    else:
        snprintf(err, cap, b"%s", what)
    return False


cdef inline bint _load_chain(SSL_CTX *ctx, const char *pem, char *err, size_t cap) noexcept nogil:
    """The leaf, then its issuers in the order they are sent."""
    cdef BIO *bio = BIO_new_mem_buf(pem, -1)
    cdef X509 *cert = NULL
    cdef int n = 0
    cdef bint ok = bio != NULL
    while ok:
        cert = PEM_read_bio_X509(bio, NULL, _no_password, NULL)
        if cert == NULL:
            break
        if n == 0:
            ok = SSL_CTX_use_certificate(ctx, cert) == 1
            X509_free(cert)
        elif SSL_CTX_add0_chain_cert(ctx, cert) != 1:
            X509_free(cert)
            ok = False
        n += 1
    BIO_free(bio)
    # the end of the text looks like one more certificate that does not start
    if not ok or n == 0 or ERR_GET_REASON(ERR_peek_error()) != PEM_R_NO_START_LINE:
        return _fail(err, cap, b"the certificate is not readable as PEM")
    ERR_clear_error()
    return True


cdef inline bint _load_key(SSL_CTX *ctx, const char *pem, char *err, size_t cap) noexcept nogil:
    cdef BIO *bio = BIO_new_mem_buf(pem, -1)
    cdef EVP_PKEY *key = NULL
    cdef bint ok
    if bio != NULL:
        key = PEM_read_bio_PrivateKey(bio, NULL, _no_password, NULL)
    BIO_free(bio)
    if key == NULL:
        return _fail(err, cap, b"the private key is not readable as unencrypted PEM")
    ok = SSL_CTX_use_PrivateKey(ctx, key) == 1 and SSL_CTX_check_private_key(ctx) == 1
    EVP_PKEY_free(key)
    return True if ok else _fail(err, cap, b"the private key does not belong to the certificate")


cdef inline X509_STACK *_load_roots(const char *pem, char *err, size_t cap) noexcept nogil:
    """The certificates of a trust bundle, at least one; NULL and a sentence."""
    cdef X509_STACK *roots = sk_X509_new_null()
    cdef BIO *bio = BIO_new_mem_buf(pem, -1)
    cdef X509 *cert = NULL
    cdef bint ok = bio != NULL and roots != NULL
    while ok:
        cert = PEM_read_bio_X509(bio, NULL, _no_password, NULL)
        if cert == NULL:
            break
        if sk_X509_push(roots, cert) <= 0:
            X509_free(cert)
            ok = False
    BIO_free(bio)
    # the end of the text looks like one more certificate that does not start
    if not ok or sk_X509_num(roots) == 0 or ERR_GET_REASON(ERR_peek_error()) != PEM_R_NO_START_LINE:
        _fail(err, cap, b"the trust bundle is not readable as PEM")
        _roots_free(roots)
        return NULL
    ERR_clear_error()
    return roots


cdef inline bint _bind_sessions(
    SSL_CTX *ctx, TlsPolicy *policy, const char *name, size_t length, const char *bundle
) noexcept nogil:
    """Sessions hold for this too: a domain that is trusted with its roots, or (NULL) who they are made as. Those of
    before do not count any more."""
    cdef EVP_MD_CTX *md = EVP_MD_CTX_new()
    cdef unsigned int n = 0
    cdef bint ok = md != NULL and EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1
    ok = ok and EVP_DigestUpdate(md, policy.trust, sizeof(policy.trust)) == 1
    # the name with a NUL: no two pairs run together to the same bytes
    ok = ok and EVP_DigestUpdate(md, name, length) == 1 and EVP_DigestUpdate(md, b"\0", 1) == 1
    if bundle != NULL:
        ok = ok and EVP_DigestUpdate(md, bundle, strlen(bundle)) == 1
    ok = ok and EVP_DigestFinal_ex(md, policy.trust, &n) == 1
    EVP_MD_CTX_free(md)
    return ok and SSL_CTX_set_session_id_context(ctx, policy.trust, sizeof(policy.trust)) == 1


cdef inline bint _set_any(SSL_CTX *ctx, int min_version, const char *groups) noexcept nogil:
    """Protocol, algorithms, modes, of every context: nothing here depends on the system's openssl.cnf."""
    cdef bint ok = SSL_CTX_set_min_proto_version(ctx, min_version) == 1
    ok = ok and SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) == 1
    SSL_CTX_set_security_level(ctx, 2)
    ok = ok and SSL_CTX_set_ciphersuites(
        ctx, b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
    ) == 1
    ok = ok and SSL_CTX_set1_groups_list(ctx, groups) == 1
    # An idle connection keeps no record buffers. The chain is sent as it was loaded: searching for issuers in
    # every handshake would cost a chain verification.
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN)
    SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE)
    return ok


cdef inline bint _set_mesh(SSL_CTX *ctx) noexcept nogil:
    cdef bint ok = _set_any(ctx, TLS1_3_VERSION, b"X25519:P-256")
    # both ends are ours: no records that only disguise TLS 1.3 as 1.2
    SSL_CTX_clear_options(ctx, SSL_OP_ENABLE_MIDDLEBOX_COMPAT)
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)
    # an issuing authority in a bundle is trusted as it stands
    X509_STORE_set_flags(SSL_CTX_get_cert_store(ctx), X509_V_FLAG_PARTIAL_CHAIN)
    SSL_CTX_set_cert_verify_callback(ctx, _verify, NULL)
    return ok


cdef inline bint _set_resumption(
    SSL_CTX *ctx, TlsPolicy *policy, bint server, TlsTickets *tickets
) noexcept nogil:
    cdef bint ok = True
    policy.tickets = tickets
    SSL_CTX_set_timeout(ctx, TLS_TICKET_SECONDS)
    if not server:
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL)
        SSL_CTX_sess_set_new_cb(ctx, _session_new)
        return ok
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF)
    if tickets == NULL:
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET)
        return ok and SSL_CTX_set_num_tickets(ctx, 0) == 1
    ok = ok and SSL_CTX_set_num_tickets(ctx, 1) == 1
    ok = ok and SSL_CTX_set_session_ticket_cb(ctx, _ticket_made, _ticket_read, NULL) == 1
    return ok and SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, _ticket_key) == 1


cdef inline TlsPolicy *_policy_new(SSL_CTX *ctx, const char *trust_domain) noexcept nogil:
    """A policy that hangs on the context and goes with it."""
    cdef TlsPolicy *policy
    policy = <TlsPolicy *>calloc(1, sizeof(TlsPolicy))
    if policy == NULL:
        return NULL
    if SSL_CTX_set_ex_data(ctx, fm_tls_policy_slot(_policy_free), policy) != 1:
        free(policy)
        return NULL
    policy.own.len = strlen(trust_domain)
    memcpy(policy.own.name, trust_domain, policy.own.len)
    return policy


cdef inline SSL_CTX *tls_context(
    bint server,
    const char *cert_pem,
    const char *key_pem,
    const char *bundle_pem,
    const char *trust_domain,
    TlsTickets *tickets,
    const unsigned char *alpn,
    size_t alpn_len,
    char *err,
    size_t err_cap,
) noexcept nogil:
    """A context for mutual TLS 1.3 in a trust domain; NULL and a sentence in `err` if the material is bad.

    `cert_pem`: leaf, then issuers. `tickets`: keys that outlive the context, the same in all workers (server; NULL:
    no resumption). `alpn`: protocols in wire form, in the order of preference, of which each connection may be
    narrowed to some (tls_open); NULL: none is negotiated. Before its first use tls_federate and tls_revoke may add to
    it.
    """
    cdef SSL_CTX *ctx = NULL
    cdef TlsPolicy *policy
    cdef char id[SVID_ID_MAX]
    cdef bint ok
    if not svid_domain_valid(trust_domain, strlen(trust_domain)):
        _fail(err, err_cap, b"the trust domain is not a valid name")
        return NULL
    ERR_clear_error()
    ctx = SSL_CTX_new(TLS_server_method() if server else TLS_client_method())
    policy = _policy_new(ctx, trust_domain) if ctx != NULL else NULL
    if policy == NULL or not (
        _bind_sessions(ctx, policy, policy.own.name, policy.own.len, bundle_pem)
        and _set_mesh(ctx)
        and _set_resumption(ctx, policy, server, tickets)
        and alpn_set(ctx, policy, server, alpn, alpn_len)
    ):
        ok = _fail(err, err_cap, b"OpenSSL refuses to make a TLS context")
    else:
        ok = (
            _load_chain(ctx, cert_pem, err, err_cap)
            and _load_key(ctx, key_pem, err, err_cap)
            and _bind_sessions(ctx, policy, id, svid_uri(SSL_CTX_get0_certificate(ctx), id, sizeof(id)), NULL)
        )
        policy.own.roots = _load_roots(bundle_pem, err, err_cap) if ok else NULL
        ok = policy.own.roots != NULL
    ERR_clear_error()
    if ok:
        return ctx
    SSL_CTX_free(ctx)
    return NULL


cdef inline bint tls_federate(SSL_CTX *ctx, const char *domain, const char *bundle, char *err, size_t cap) noexcept nogil:
    """Trust another domain's workloads, by its own roots. False and a sentence in `err`: the context is of no use.

    The order counts for resumption: all workers add the same domains in the same order.
    """
    cdef TlsPolicy *policy = tls_policy(ctx)
    cdef TlsDomain *d = &policy.own
    cdef size_t n = strlen(domain)
    if not svid_domain_valid(domain, n):
        return _fail(err, cap, b"a federated trust domain is not a valid name")
    while True:
        if d.len == n and memcmp(d.name, domain, n) == 0:
            return _fail(err, cap, b"a trust domain is federated twice, or with itself")
        if d.next == NULL:
            break
        d = d.next
    d.next = <TlsDomain *>calloc(1, sizeof(TlsDomain))
    if d.next == NULL:
        return _fail(err, cap, b"no memory")
    d = d.next
    d.len = n
    memcpy(d.name, domain, n)
    ERR_clear_error()
    d.roots = _load_roots(bundle, err, cap)
    if d.roots != NULL and not _bind_sessions(ctx, policy, d.name, d.len, bundle):
        return _fail(err, cap, b"OpenSSL refuses to make a TLS context")
    ERR_clear_error()
    return d.roots != NULL


cdef inline bint tls_revoke(SSL_CTX *ctx, const unsigned char *serial, size_t n) noexcept nogil:
    """Refuse the own domain's leaf with this serial number (big-endian). False: it is none, or no memory."""
    return trust_revoke(tls_policy(ctx), serial, n)
