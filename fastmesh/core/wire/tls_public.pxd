# TLS contexts for the world outside the mesh: a client that knows a server by its name, a server that shows one
# of several certificates by the name it is asked for (SNI). Contexts of the mesh: tls_context.pxd, whose policy,
# tickets and records these share.
#
# As a client: the chain must end at the given roots (or the system's), and the certificate must be for the name
# or IP address that was configured (RFC 6125 by subject alternative names alone: common names are no proof, and `*`
# stands for one whole label). As a server: without roots for clients none is asked for a certificate; with them
# every client must show one. Nobody here gets a SPIFFE identity.
#
# Sessions belong to the listener that began them and to its roots for clients: one that comes with the ticket of
# another would be taken for that one's, whose certificate it has seen.
#
# TLS 1.2 where it is asked for: forward secrecy and AEADs only, no renegotiation, OpenSSL's record layer.

from libc.stdint cimport uint8_t
from libc.stdlib cimport malloc, realloc
from libc.string cimport strlen
from libc.time cimport time_t

from fastmesh.core.base.reason cimport *
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.wire.tls_alpn cimport alpn_set
from fastmesh.core.wire.tls_context cimport *
from fastmesh.core.wire.tls_facts cimport *
from fastmesh.core.wire.tls_state cimport *
from fastmesh.core.wire.tls_tickets cimport TlsTickets


cdef inline int _verify_public(X509_STORE_CTX *store_ctx, void *arg) noexcept nogil:
    """OpenSSL's question whether the peer's chain is good and, for a client, is the server's. 1: yes."""
    cdef SSL *ssl = <SSL *>X509_STORE_CTX_get_ex_data(store_ctx, SSL_get_ex_data_X509_STORE_CTX_idx())
    cdef TlsEngine *engine = <TlsEngine *>BIO_get_data(SSL_get_rbio(ssl))
    cdef Tls *t = engine.current
    cdef X509 *leaf = X509_STORE_CTX_get0_cert(store_ctx)
    cdef bint server = SSL_is_server(ssl)
    cdef unsigned char hash[32]
    cdef int error
    X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(store_ctx), <time_t>now_seconds())
    if X509_verify_cert(store_ctx) <= 0:
        error = X509_STORE_CTX_get_error(store_ctx)
        if error == X509_V_ERR_HOSTNAME_MISMATCH or error == X509_V_ERR_IP_ADDRESS_MISMATCH:
            t.failed = R_TLS_IDENTITY if server else R_UPSTREAM_TLS_IDENTITY
        else:
            t.failed = <uint8_t>_verify_reason(store_ctx, server)
        return 0
    facts_put(t.peer)
    t.peer = NULL
    if leaf_hash(leaf, hash):
        t.peer = facts_of(leaf, hash, X509_STORE_CTX_get0_chain(store_ctx), NULL, 0)
    if t.peer == NULL:
        t.failed = R_NO_MEMORY
        X509_STORE_CTX_set_error(store_ctx, X509_V_ERR_OUT_OF_MEM)
        return 0
    X509_STORE_CTX_set0_verified_chain(store_ctx, NULL)          # need not be kept
    return 1


cdef inline bint _set_public(SSL_CTX *ctx, int min_version) noexcept nogil:
    cdef bint ok = _set_any(ctx, min_version, b"X25519:P-256:P-384")
    ok = ok and SSL_CTX_set_cipher_list(ctx, b"ECDHE+AESGCM:ECDHE+CHACHA20") == 1
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION)
    SSL_CTX_set_cert_verify_callback(ctx, _verify_public, NULL)
    return ok


cdef inline bint _trust_public(SSL_CTX *ctx, const char *ca, bint name_them, char *err, size_t cap) noexcept nogil:
    """Trust the roots in `ca`; a server names them to its clients."""
    cdef X509_STACK *roots = _load_roots(ca, err, cap)
    cdef X509_STORE *store = SSL_CTX_get_cert_store(ctx)
    cdef bint ok = roots != NULL
    cdef int i
    if not ok:
        return False
    for i in range(sk_X509_num(roots)):
        ok = ok and X509_STORE_add_cert(store, sk_X509_value(roots, i)) == 1
        if ok and name_them:
            ok = SSL_CTX_add_client_CA(ctx, sk_X509_value(roots, i)) == 1
    _roots_free(roots)
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN)
    return ok or _fail(err, cap, b"the trusted certificates cannot be used")


cdef inline SSL_CTX *_public_new(
    bint server, const char *name, const char *ca, TlsTickets *tickets, const unsigned char *alpn, size_t alpn_len,
    int min_version, char *err, size_t cap
) noexcept nogil:
    cdef SSL_CTX *ctx
    cdef TlsPolicy *policy
    ERR_clear_error()
    if strlen(name) > SVID_DOMAIN_MAX:
        _fail(err, cap, b"the name is too long")
        return NULL
    ctx = SSL_CTX_new(TLS_server_method() if server else TLS_client_method())
    policy = _policy_new(ctx, name) if ctx != NULL else NULL
    if policy != NULL:
        policy.public = True
        policy.trust[0] = 1                                      # another beginning: no digest is also a mesh's
    if policy == NULL or not (
        _bind_sessions(ctx, policy, policy.own.name, policy.own.len, ca)
        and _set_public(ctx, min_version)
        and _set_resumption(ctx, policy, server, tickets)
        and alpn_set(ctx, policy, server, alpn, alpn_len)
    ):
        _fail(err, cap, b"OpenSSL refuses to make a TLS context")
        ERR_clear_error()
        SSL_CTX_free(ctx)
        return NULL
    return ctx


cdef inline SSL_CTX *tls_public_client(
    const char *server_name, const char *ca, const char *certificate, const char *key, const unsigned char *alpn,
    size_t alpn_len, int min_version, char *err, size_t cap
) noexcept nogil:
    """A client of the server of that name (or IP address). NULL and a sentence in `err` if the material is bad.

    `ca`: PEM of the roots; NULL: the system's. `certificate` (leaf, then issuers) and `key`: what we show if we are
    asked; NULL: nothing.
    """
    cdef SSL_CTX *ctx = _public_new(False, server_name, ca, NULL, alpn, alpn_len, min_version, err, cap)
    cdef X509_VERIFY_PARAM *param
    cdef bint ok
    if ctx == NULL:
        return NULL
    param = SSL_CTX_get0_param(ctx)
    tls_policy(ctx).demands = True
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL)
    X509_VERIFY_PARAM_set_hostflags(
        param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT)
    if X509_VERIFY_PARAM_set1_ip_asc(param, server_name) != 1:
        ERR_clear_error()
        tls_policy(ctx).sends_name = True                        # RFC 6066 3: a host name, never an address
        if X509_VERIFY_PARAM_set1_host(param, server_name, 0) != 1:
            _fail(err, cap, b"the server's name cannot be used")
            SSL_CTX_free(ctx)
            return NULL
    if ca != NULL:
        ok = _trust_public(ctx, ca, False, err, cap)
    else:
        ok = SSL_CTX_set_default_verify_paths(ctx) == 1 or _fail(err, cap, b"the system's roots cannot be read")
    if ok and certificate != NULL:
        ok = _load_chain(ctx, certificate, err, cap) and _load_key(ctx, key, err, cap)
    ERR_clear_error()
    if ok:
        return ctx
    SSL_CTX_free(ctx)
    return NULL


cdef inline SSL_CTX *tls_public_server(
    const char *listener, const char *certificate, const char *key, const char *client_ca, TlsTickets *tickets,
    const unsigned char *alpn, size_t alpn_len, int min_version, char *err, size_t cap
) noexcept nogil:
    """A server with one certificate. NULL and a sentence in `err` if the material is bad.

    `listener`: whose sessions it resumes (SVID_DOMAIN_MAX bytes at most). `client_ca`: PEM of the roots of clients,
    each of which must then show a certificate; NULL: none is asked for.
    """
    cdef SSL_CTX *ctx = _public_new(True, listener, client_ca, tickets, alpn, alpn_len, min_version, err, cap)
    cdef bint ok
    if ctx == NULL:
        return NULL
    ok = _load_chain(ctx, certificate, err, cap) and _load_key(ctx, key, err, cap)
    if ok and client_ca != NULL:
        tls_policy(ctx).demands = True
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)
        ok = _trust_public(ctx, client_ca, True, err, cap)
    ERR_clear_error()
    if ok:
        return ctx
    SSL_CTX_free(ctx)
    return NULL


# several certificates ----------------------------------------------------------------------------------

cdef inline char _small(char c) noexcept nogil:
    return <char>(c | 32) if c'A' <= c <= c'Z' else c


cdef inline TlsName *_name_find(TlsPolicy *policy, const char *name, size_t n, bint wildcard) noexcept nogil:
    cdef size_t i, k
    for i in range(policy.nnames):
        if policy.names[i].len != n or policy.names[i].wildcard != wildcard:
            continue
        k = 0
        while k < n and policy.names[i].text[k] == _small(name[k]):
            k += 1
        if k == n:
            return &policy.names[i]
    return NULL


cdef inline int _name_chosen(SSL *ssl, int *alert, void *arg) noexcept nogil:
    """Server: the client asks for a name. The certificate for just that name, one for `*.` above it, or the first."""
    cdef TlsPolicy *policy = <TlsPolicy *>arg
    cdef const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)
    cdef TlsName *found
    cdef size_t n, dot = 0
    if name == NULL:
        return SSL_TLSEXT_ERR_NOACK
    n = strlen(name)
    found = _name_find(policy, name, n, False)
    if found == NULL:
        while dot < n and name[dot] != c'.':
            dot += 1
        if 0 < dot < n:
            found = _name_find(policy, name + dot, n - dot, True)
    if found == NULL:
        return SSL_TLSEXT_ERR_NOACK
    if found.ctx != NULL:
        SSL_set_SSL_CTX(ssl, <SSL_CTX *>found.ctx)
    return SSL_TLSEXT_ERR_OK


cdef inline bint _name_add(TlsPolicy *policy, const char *text, size_t n, SSL_CTX *ctx) noexcept nogil:
    """The first certificate of a name has it. False: no memory."""
    cdef bint wildcard = n > 2 and text[0] == c'*' and text[1] == c'.'
    cdef void *more
    cdef TlsName *name
    cdef size_t i
    if wildcard:
        text += 1
        n -= 1
    if n == 0 or n > 253 or _name_find(policy, text, n, wildcard) != NULL:
        return True
    more = realloc(policy.names, (policy.nnames + 1) * sizeof(TlsName))
    if more == NULL:
        return False
    policy.names = <TlsName *>more
    name = &policy.names[policy.nnames]
    name.text = <char *>malloc(n)
    if name.text == NULL:
        return False
    for i in range(n):
        name.text[i] = _small(text[i])
    name.len = n
    name.wildcard = wildcard
    name.ctx = ctx
    if ctx != NULL:
        SSL_CTX_up_ref(ctx)
    policy.nnames += 1
    return True


cdef inline bint tls_public_choice(SSL_CTX *first, SSL_CTX *other) noexcept nogil:
    """Have `first`, a listener's context, give way to `other` for the DNS names in that one's certificate. With the
    same context twice its own names are put in: they come before those of others. False: no memory."""
    cdef TlsPolicy *policy = tls_policy(first)
    cdef X509 *leaf = SSL_CTX_get0_certificate(other)
    cdef GENERAL_NAMES *names
    cdef const ASN1_STRING *text
    cdef void *value
    cdef int i, kind = 0, critical = 0
    cdef bint ok = True
    SSL_CTX_set_tlsext_servername_callback(first, _name_chosen)
    SSL_CTX_set_tlsext_servername_arg(first, policy)
    names = <GENERAL_NAMES *>X509_get_ext_d2i(leaf, NID_subject_alt_name, &critical, NULL)
    if names == NULL:
        return True
    for i in range(sk_GENERAL_NAME_num(names)):
        value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &kind)
        if kind == GEN_DNS:
            text = <const ASN1_STRING *>value
            ok = ok and _name_add(
                policy, <const char *>ASN1_STRING_get0_data(text), <size_t>ASN1_STRING_length(text),
                other if other != first else NULL)
    GENERAL_NAMES_free(names)
    return ok
