# What the core uses of OpenSSL 3 (floor: 3.0). Declarations only; ownership as OpenSSL's manual pages say:
# a get0 or an add0 moves or lends, a get1 or an up_ref counts.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.time cimport time_t, tm

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void *p, size_t n)
    struct CRYPTO_EX_DATA "crypto_ex_data_st":
        pass
    ctypedef void CRYPTO_EX_free(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp) noexcept

cdef extern from "<openssl/err.h>" nogil:
    enum: ERR_LIB_SSL
    unsigned long ERR_get_error()
    unsigned long ERR_peek_error()
    void ERR_clear_error()
    int ERR_GET_LIB(unsigned long code)
    int ERR_GET_REASON(unsigned long code)
    const char *ERR_reason_error_string(unsigned long code)

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char *out, int n)
    int RAND_priv_bytes(unsigned char *out, int n)

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    enum: BIO_TYPE_SOURCE_SINK, BIO_CTRL_FLUSH
    ctypedef int bio_write_fn(BIO *bio, const char *src, size_t n, size_t *written) noexcept
    ctypedef int bio_read_fn(BIO *bio, char *dst, size_t n, size_t *got) noexcept
    ctypedef long bio_ctrl_fn(BIO *bio, int command, long number, void *pointer) noexcept
    BIO_METHOD *BIO_meth_new(int type, const char *name)
    void BIO_meth_free(BIO_METHOD *method)
    int BIO_meth_set_write_ex(BIO_METHOD *method, bio_write_fn *fn)
    int BIO_meth_set_read_ex(BIO_METHOD *method, bio_read_fn *fn)
    int BIO_meth_set_ctrl(BIO_METHOD *method, bio_ctrl_fn *fn)
    BIO *BIO_new(const BIO_METHOD *method)
    BIO *BIO_new_mem_buf(const void *buf, int n)
    int BIO_free(BIO *bio)
    int BIO_up_ref(BIO *bio)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_set_init(BIO *bio, int init)
    void BIO_set_retry_read(BIO *bio)
    void BIO_set_retry_write(BIO *bio)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_MD:
        pass
    ctypedef struct EVP_MD_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    EVP_MD_CTX *EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX *ctx)
    const EVP_MD *EVP_sha256()
    const EVP_MD *EVP_sha1()
    int EVP_Digest(const void *data, size_t n, unsigned char *md, unsigned int *size, const EVP_MD *type, ENGINE *engine)
    int EVP_DigestInit_ex(EVP_MD_CTX *ctx, const EVP_MD *md, ENGINE *engine)
    int EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t n)
    int EVP_DigestFinal_ex(EVP_MD_CTX *ctx, unsigned char *digest, unsigned int *n)
    void EVP_PKEY_free(EVP_PKEY *key)
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct OSSL_LIB_CTX:
        pass
    enum: EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG
    const EVP_CIPHER *EVP_aes_256_cbc()
    EVP_CIPHER *EVP_CIPHER_fetch(OSSL_LIB_CTX *ctx, const char *algorithm, const char *properties)
    void EVP_CIPHER_free(EVP_CIPHER *cipher)
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *ctx)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *ctx, int command, int n, void *pointer)
    int EVP_EncryptInit_ex(
        EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key, const unsigned char *iv
    )
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_n, const unsigned char *src, int n)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_n)
    int EVP_DecryptInit_ex(
        EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key, const unsigned char *iv
    )
    int EVP_DecryptUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_n, const unsigned char *src, int n)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *ctx, unsigned char *out, int *out_n)

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *value, size_t n)
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *key, void *value, size_t n)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    EVP_MAC *EVP_MAC_fetch(OSSL_LIB_CTX *ctx, const char *algorithm, const char *properties)
    void EVP_MAC_free(EVP_MAC *mac)
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *mac)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *ctx)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX *ctx, const OSSL_PARAM *params)
    int EVP_MAC_init(EVP_MAC_CTX *ctx, const unsigned char *key, size_t n, const OSSL_PARAM *params)
    int EVP_MAC_update(EVP_MAC_CTX *ctx, const unsigned char *data, size_t n)
    int EVP_MAC_final(EVP_MAC_CTX *ctx, unsigned char *out, size_t *n, size_t cap)

cdef extern from "<openssl/asn1.h>" nogil:
    ctypedef struct ASN1_STRING:
        pass
    ctypedef struct ASN1_INTEGER:
        pass
    ctypedef struct ASN1_TIME:
        pass
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *string)
    int ASN1_STRING_length(const ASN1_STRING *string)
    int ASN1_TIME_to_tm(const ASN1_TIME *t, tm *out)

cdef extern from "<openssl/x509.h>" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_STACK "STACK_OF(X509)":
        pass
    void X509_free(X509 *cert)
    int X509_digest(const X509 *cert, const EVP_MD *md, unsigned char *digest, unsigned int *n)
    const ASN1_INTEGER *X509_get0_serialNumber(const X509 *cert)
    const ASN1_TIME *X509_get0_notBefore(const X509 *cert)
    const ASN1_TIME *X509_get0_notAfter(const X509 *cert)
    void *X509_get_ext_d2i(const X509 *cert, int nid, int *critical, int *index)
    X509_STACK *sk_X509_new_null()
    void sk_X509_free(X509_STACK *stack)
    int sk_X509_push(X509_STACK *stack, X509 *cert)
    int sk_X509_num(const X509_STACK *stack)
    X509 *sk_X509_value(const X509_STACK *stack, int i)
    X509 *sk_X509_pop(X509_STACK *stack)

cdef extern from "<openssl/pem.h>" nogil:
    enum: PEM_R_NO_START_LINE
    ctypedef int pem_password_cb(char *buf, int size, int rwflag, void *arg) noexcept
    X509 *PEM_read_bio_X509(BIO *bio, X509 **out, pem_password_cb *cb, void *arg)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *bio, EVP_PKEY **out, pem_password_cb *cb, void *arg)

cdef extern from "<openssl/x509_vfy.h>" nogil:
    enum: X509_V_OK, X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
    enum: X509_V_ERR_INVALID_PURPOSE, X509_V_ERR_APPLICATION_VERIFICATION, X509_V_ERR_OUT_OF_MEM
    enum: X509_V_ERR_CERT_REVOKED, X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
    enum: X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    enum: X509_V_FLAG_PARTIAL_CHAIN
    ctypedef struct X509_VERIFY_PARAM:
        pass
    int X509_verify_cert(X509_STORE_CTX *ctx)
    X509_VERIFY_PARAM *X509_STORE_CTX_get0_param(const X509_STORE_CTX *ctx)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM *param, const char *name, size_t n)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *param, const char *address)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM *param, unsigned int flags)
    void X509_VERIFY_PARAM_set_time(X509_VERIFY_PARAM *param, time_t t)
    void X509_STORE_CTX_set0_trusted_stack(X509_STORE_CTX *ctx, X509_STACK *roots)
    X509 *X509_STORE_CTX_get0_cert(const X509_STORE_CTX *ctx)
    X509_STACK *X509_STORE_CTX_get0_chain(const X509_STORE_CTX *ctx)
    X509_STACK *X509_STORE_CTX_get0_untrusted(const X509_STORE_CTX *ctx)
    void X509_STORE_CTX_set0_verified_chain(X509_STORE_CTX *ctx, X509_STACK *chain)
    int X509_STORE_CTX_get_error(const X509_STORE_CTX *ctx)
    void X509_STORE_CTX_set_error(X509_STORE_CTX *ctx, int error)
    int X509_STORE_CTX_get_error_depth(const X509_STORE_CTX *ctx)
    void *X509_STORE_CTX_get_ex_data(const X509_STORE_CTX *ctx, int index)
    int X509_STORE_add_cert(X509_STORE *store, X509 *cert)
    int X509_STORE_set_flags(X509_STORE *store, unsigned long flags)

cdef extern from "<openssl/x509v3.h>" nogil:
    ctypedef struct GENERAL_NAME:
        pass
    ctypedef struct GENERAL_NAMES:
        pass
    enum: GEN_URI, GEN_DNS, NID_subject_alt_name, EXFLAG_CA
    enum: KU_DIGITAL_SIGNATURE, KU_KEY_CERT_SIGN, KU_CRL_SIGN
    uint32_t X509_get_extension_flags(X509 *cert)
    uint32_t X509_get_key_usage(X509 *cert)       # UINT32_MAX: no such extension
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *names)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *names, int i)
    void *GENERAL_NAME_get0_value(const GENERAL_NAME *name, int *type)
    void GENERAL_NAMES_free(GENERAL_NAMES *names)

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_SESSION:
        pass
    enum: TLS1_2_VERSION, TLS1_3_VERSION
    enum: TLSEXT_NAMETYPE_host_name
    enum: SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    enum: SSL_MODE_RELEASE_BUFFERS, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_NO_AUTO_CHAIN
    enum: SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_NO_INTERNAL
    enum: SSL_SENT_SHUTDOWN, SSL_RECEIVED_SHUTDOWN
    enum: SSL_AD_REASON_OFFSET
    enum: SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_NOACK
    # option bits: 64 wide, so no enum
    uint64_t SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_NO_TICKET, SSL_OP_ENABLE_MIDDLEBOX_COMPAT, SSL_OP_CIPHER_SERVER_PREFERENCE
    enum: SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE
    enum: SSL_R_UNSUPPORTED_PROTOCOL, SSL_R_VERSION_TOO_LOW, SSL_R_NO_SHARED_CIPHER, SSL_R_NO_SHARED_GROUPS
    enum: SSL_R_NO_SUITABLE_KEY_SHARE, SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM, SSL_R_WRONG_SSL_VERSION
    enum: SSL_R_WRONG_VERSION_NUMBER, SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST
    enum: SSL_AD_BAD_CERTIFICATE, SSL_AD_CERTIFICATE_UNKNOWN, SSL_AD_UNKNOWN_CA, SSL_AD_ACCESS_DENIED
    enum: SSL_AD_HANDSHAKE_FAILURE, SSL_AD_CERTIFICATE_REQUIRED
    enum: SSL_AD_CLOSE_NOTIFY, SSL_AD_UNEXPECTED_MESSAGE
    enum: SSL_AD_BAD_RECORD_MAC, SSL_AD_RECORD_OVERFLOW, SSL_AD_DECODE_ERROR, SSL_AD_INTERNAL_ERROR
    enum: SSL_AD_USER_CANCELLED, SSL_AD_ILLEGAL_PARAMETER
    enum: SSL3_RT_HEADER, SSL3_RT_HANDSHAKE, SSL3_RT_ALERT, SSL3_RT_APPLICATION_DATA
    enum: SSL3_MT_FINISHED, SSL3_MT_NEWSESSION_TICKET, SSL3_MT_KEY_UPDATE
    ctypedef struct SSL_CIPHER:
        pass
    const SSL_CIPHER *SSL_get_current_cipher(const SSL *ssl)
    uint16_t SSL_CIPHER_get_protocol_id(const SSL_CIPHER *cipher)
    void SSL_CTX_set_keylog_callback(SSL_CTX *ctx, void (*cb)(const SSL *, const char *) noexcept nogil)
    void SSL_set_msg_callback(
        SSL *ssl, void (*cb)(int, int, int, const void *, size_t, SSL *, void *) noexcept nogil
    )
    int SSL_has_pending(const SSL *ssl)

    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *ctx)
    int SSL_CTX_set_ex_data(SSL_CTX *ctx, int index, void *data)
    void *SSL_CTX_get_ex_data(const SSL_CTX *ctx, int index)
    int SSL_CTX_set_min_proto_version(SSL_CTX *ctx, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *ctx, int version)
    int SSL_CTX_up_ref(SSL_CTX *ctx)
    int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *list)
    int SSL_CTX_set_default_verify_paths(SSL_CTX *ctx)
    int SSL_CTX_add_client_CA(SSL_CTX *ctx, X509 *cert)
    X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *ctx)
    X509 *SSL_CTX_get0_certificate(const SSL_CTX *ctx)
    long SSL_CTX_set_tlsext_servername_callback(SSL_CTX *ctx, int (*cb)(SSL *, int *, void *) noexcept nogil)
    long SSL_CTX_set_tlsext_servername_arg(SSL_CTX *ctx, void *arg)
    const char *SSL_get_servername(const SSL *ssl, int type)
    SSL_CTX *SSL_set_SSL_CTX(SSL *ssl, SSL_CTX *ctx)
    long SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *list)
    int SSL_CTX_set1_groups_list(SSL_CTX *ctx, const char *list)
    void SSL_CTX_set_security_level(SSL_CTX *ctx, int level)
    long SSL_CTX_set_mode(SSL_CTX *ctx, long mode)
    uint64_t SSL_CTX_set_options(SSL_CTX *ctx, uint64_t options)
    uint64_t SSL_CTX_clear_options(SSL_CTX *ctx, uint64_t options)
    void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, void *callback)
    void SSL_CTX_set_cert_verify_callback(SSL_CTX *ctx, int (*cb)(X509_STORE_CTX *, void *) noexcept nogil, void *arg)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *ctx)
    int SSL_CTX_use_certificate(SSL_CTX *ctx, X509 *cert)
    int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, EVP_PKEY *key)
    int SSL_CTX_check_private_key(const SSL_CTX *ctx)
    long SSL_CTX_add0_chain_cert(SSL_CTX *ctx, X509 *cert)
    int SSL_CTX_set_session_id_context(SSL_CTX *ctx, const unsigned char *context, unsigned int n)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *ctx, long mode)
    long SSL_CTX_set_timeout(SSL_CTX *ctx, long seconds)
    int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t n)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(
        SSL_CTX *ctx,
        int (*cb)(SSL *, unsigned char *, unsigned char *, EVP_CIPHER_CTX *, EVP_MAC_CTX *, int) noexcept nogil,
    )
    void SSL_CTX_sess_set_new_cb(SSL_CTX *ctx, int (*cb)(SSL *, SSL_SESSION *) noexcept nogil)
    ctypedef int SSL_TICKET_STATUS
    ctypedef int SSL_TICKET_RETURN
    enum: SSL_TICKET_SUCCESS, SSL_TICKET_SUCCESS_RENEW
    enum: SSL_TICKET_RETURN_IGNORE_RENEW, SSL_TICKET_RETURN_USE, SSL_TICKET_RETURN_USE_RENEW
    ctypedef int SSL_CTX_generate_session_ticket_fn(SSL *ssl, void *arg) noexcept
    ctypedef SSL_TICKET_RETURN SSL_CTX_decrypt_session_ticket_fn(
        SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t name_len, SSL_TICKET_STATUS status, void *arg
    ) noexcept
    int SSL_CTX_set_session_ticket_cb(
        SSL_CTX *ctx, SSL_CTX_generate_session_ticket_fn *generate, SSL_CTX_decrypt_session_ticket_fn *decrypt, void *arg
    )
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX *ctx,
        int (*cb)(
            SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *
        ) noexcept nogil,
        void *arg,
    )

    SSL *SSL_new(SSL_CTX *ctx)
    void SSL_free(SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *rbio, BIO *wbio)
    BIO *SSL_get_rbio(const SSL *ssl)
    SSL_CTX *SSL_get_SSL_CTX(const SSL *ssl)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    int SSL_set_alpn_protos(SSL *ssl, const unsigned char *protos, unsigned int n)     # 0: success
    int SSL_do_handshake(SSL *ssl)
    int SSL_read_ex(SSL *ssl, void *dst, size_t n, size_t *got)
    int SSL_write_ex(SSL *ssl, const void *src, size_t n, size_t *written)
    int SSL_pending(const SSL *ssl)
    int SSL_shutdown(SSL *ssl)
    int SSL_free_buffers(SSL *ssl)
    int SSL_get_shutdown(const SSL *ssl)
    void SSL_set_shutdown(SSL *ssl, int mode)
    int SSL_is_server(const SSL *ssl)
    int SSL_session_reused(const SSL *ssl)
    int SSL_set_session(SSL *ssl, SSL_SESSION *session)
    SSL_SESSION *SSL_get_session(const SSL *ssl)
    void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **protocol, unsigned int *n)

    void SSL_SESSION_free(SSL_SESSION *session)
    SSL_SESSION *SSL_SESSION_dup(const SSL_SESSION *session)
    int SSL_SESSION_is_resumable(const SSL_SESSION *session)
    X509 *SSL_SESSION_get0_peer(SSL_SESSION *session)
    int i2d_SSL_SESSION(const SSL_SESSION *session, unsigned char **out)
    SSL_SESSION *d2i_SSL_SESSION(SSL_SESSION **session, const unsigned char **der, long n)
    const unsigned char *SSL_SESSION_get0_id_context(const SSL_SESSION *session, unsigned int *n)
    long SSL_SESSION_get_time(const SSL_SESSION *session)
    int SSL_SESSION_set1_ticket_appdata(SSL_SESSION *session, const void *data, size_t n)
    int SSL_SESSION_get0_ticket_appdata(SSL_SESSION *session, void **data, size_t *n)
    unsigned long SSL_SESSION_get_ticket_lifetime_hint(const SSL_SESSION *session)
    long SSL_SESSION_set_timeout(SSL_SESSION *session, long seconds)
