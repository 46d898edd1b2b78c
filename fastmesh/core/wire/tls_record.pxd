# The record protection of TLS 1.3 after the handshake (RFC 8446 5, 4.6.3, 7), on OpenSSL's AEADs.
#
# Why not OpenSSL's own record layer: an SSL object holds 11 KiB for as long as a connection is idle, takes
# two 16 KiB buffers from malloc for every record, copies every byte once more, and spends more time around
# a short record than in the cipher. Once the handshake is over, all that is needed of it is two secrets.
#
# Ownership: a TlsRecords is made by tls_context's callbacks during the handshake (the secrets arrive there),
# completed by records_start and freed by records_free. Nothing here knows a socket, a window or a sink:
# `record_seal` and `record_open` work on one record in memory of the caller. Nothing here decides who may
# speak; that was decided in the handshake.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset, strlen

from fastmesh.core.sys.openssl cimport *

cdef enum:
    TLS_RECORD = 16384          # bytes of plaintext in a full record
    TLS_RECORD_HEAD = 5
    TLS_RECORD_TAG = 16
    TLS_RECORD_OVERHEAD = 22    # head, content type, tag
    TLS_RECORD_INNER = 16385    # content, type and padding (5.4)
    TLS_RECORD_MAX = 16640      # bytes behind the head (5.2): more is record_overflow
    TLS_SECRET_MAX = 48
    TLS_KEY_RECORDS = 1 << 24   # records under one key; 5.5 allows 2^24.5 with AES-GCM
    TLS_QUIET_MAX = 32          # records without application data that may come in a row, while we send none either

cdef struct TlsSuite:
    EVP_CIPHER *cipher          # NULL: not available here
    EVP_MAC_CTX *hmac           # with the suite's hash
    uint16_t id
    uint8_t key_len
    uint8_t hash_len

cdef struct TlsKeys:            # one direction
    EVP_CIPHER_CTX *ctx
    uint64_t sequence
    uint8_t iv[12]
    bint known                  # the secret has arrived
    uint8_t secret[TLS_SECRET_MAX]

cdef struct TlsRecords:
    TlsKeys rx
    TlsKeys tx
    const TlsSuite *suite
    int64_t held                # bytes in received records that OpenSSL has not yet shown as whole handshake messages
    char *stash                 # what could not be taken whole: see `stashed`; or NULL
    uint32_t stash_len          # bytes in it
    uint32_t stash_pos          # bytes of it already given out (plaintext)
    uint32_t skip               # bytes of a handshake message that are yet to be skipped
    uint8_t stashed             # enum TlsStash
    uint8_t head_len
    uint8_t head[TLS_RECORD_HEAD]
    uint8_t message_len
    uint8_t message[5]          # the beginning of a handshake message
    uint8_t quiet               # what TLS_QUIET_MAX bounds
    bint answer                 # the peer wants our keys updated too, before our next data
    bint unfit                  # this connection stays with OpenSSL

cdef enum TlsStash:
    STASH_NONE = 0
    STASH_CIPHER                # a part of a record
    STASH_PLAIN                 # plaintext that found no room


# suites ------------------------------------------------------------------------------------------------

cdef inline void suites_init(TlsSuite *suites) noexcept nogil:
    """Fill suites[3]: the suites of TLS 1.3 that a context offers."""
    _suite(&suites[0], 0x1301, b"AES-128-GCM", 16, b"SHA256", 32)
    _suite(&suites[1], 0x1302, b"AES-256-GCM", 32, b"SHA384", 48)
    _suite(&suites[2], 0x1303, b"ChaCha20-Poly1305", 32, b"SHA256", 32)


cdef inline void _suite(
    TlsSuite *suite, int id, const char *cipher, int key_len, const char *hash, int hash_len
) noexcept nogil:
    cdef EVP_MAC *mac = EVP_MAC_fetch(NULL, b"HMAC", NULL)
    cdef OSSL_PARAM params[2]
    params[0] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>hash, 0)
    params[1] = OSSL_PARAM_construct_end()
    suite.id = <uint16_t>id
    suite.key_len = <uint8_t>key_len
    suite.hash_len = <uint8_t>hash_len
    suite.cipher = EVP_CIPHER_fetch(NULL, cipher, NULL)
    suite.hmac = EVP_MAC_CTX_new(mac) if mac != NULL else NULL
    EVP_MAC_free(mac)
    if suite.cipher == NULL or suite.hmac == NULL or not EVP_MAC_CTX_set_params(suite.hmac, params):
        suite_free(suite)
        ERR_clear_error()


cdef inline void suite_free(TlsSuite *suite) noexcept nogil:
    EVP_CIPHER_free(suite.cipher)
    EVP_MAC_CTX_free(suite.hmac)
    suite.cipher = NULL
    suite.hmac = NULL


# keys --------------------------------------------------------------------------------------------------

cdef inline bint _expand(
    const TlsSuite *suite, const uint8_t *secret, const char *label, uint8_t *out, size_t n
) noexcept nogil:
    """HKDF-Expand-Label with an empty context (7.1) for n <= hash_len: one HMAC."""
    cdef uint8_t info[32]
    cdef uint8_t full[64]
    cdef size_t label_len = strlen(label)
    cdef size_t full_len = 0
    cdef bint ok
    info[0] = 0
    info[1] = <uint8_t>n
    info[2] = <uint8_t>(6 + label_len)
    memcpy(&info[3], b"tls13 ", 6)
    memcpy(&info[9], label, label_len)
    info[9 + label_len] = 0
    info[10 + label_len] = 1
    ok = (
        EVP_MAC_init(suite.hmac, secret, suite.hash_len, NULL)
        and EVP_MAC_update(suite.hmac, info, 11 + label_len)
        and EVP_MAC_final(suite.hmac, full, &full_len, sizeof(full))
        and full_len >= n
    )
    if ok:
        memcpy(out, full, n)
    OPENSSL_cleanse(full, sizeof(full))
    return ok


cdef inline bint _keys_install(const TlsSuite *suite, TlsKeys *keys, bint seal) noexcept nogil:
    """Key and IV of the secret (7.3); the sequence number is the caller's."""
    cdef uint8_t key[32]
    cdef uint8_t nothing[TLS_SECRET_MAX]
    cdef bint ok = _expand(suite, keys.secret, b"key", key, suite.key_len)
    memset(nothing, 0, sizeof(nothing))
    ok = ok and _expand(suite, keys.secret, b"iv", keys.iv, sizeof(keys.iv))
    # the HMAC outlives the connection, which its key must not
    ok = ok and EVP_MAC_init(suite.hmac, nothing, suite.hash_len, NULL)
    if keys.ctx == NULL:
        keys.ctx = EVP_CIPHER_CTX_new()
    if ok and keys.ctx != NULL:
        if seal:
            ok = EVP_EncryptInit_ex(keys.ctx, suite.cipher, NULL, key, keys.iv) == 1
        else:
            ok = EVP_DecryptInit_ex(keys.ctx, suite.cipher, NULL, key, keys.iv) == 1
    OPENSSL_cleanse(key, sizeof(key))
    return ok and keys.ctx != NULL


cdef inline bint keys_update(const TlsSuite *suite, TlsKeys *keys, bint seal) noexcept nogil:
    """The next generation of a direction's keys (7.2)."""
    cdef uint8_t secret[TLS_SECRET_MAX]
    cdef bint ok = _expand(suite, keys.secret, b"traffic upd", secret, suite.hash_len)
    if ok:
        memcpy(keys.secret, secret, suite.hash_len)
    OPENSSL_cleanse(secret, sizeof(secret))
    # only new keys begin at 0 again: after a failure the old ones may still be in the cipher
    if not ok or not _keys_install(suite, keys, seal):
        return False
    keys.sequence = 0
    return True


cdef inline bint records_start(TlsRecords *r, const TlsSuite *suite) noexcept nogil:
    """From secrets to keys. False: no memory, or a cipher that is not there."""
    r.suite = suite
    return suite.cipher != NULL and _keys_install(suite, &r.rx, False) and _keys_install(suite, &r.tx, True)


cdef inline void records_free(TlsRecords *r) noexcept nogil:
    if r == NULL:
        return
    EVP_CIPHER_CTX_free(r.rx.ctx)
    EVP_CIPHER_CTX_free(r.tx.ctx)
    stash_drop(r)
    OPENSSL_cleanse(r, sizeof(TlsRecords))
    free(r)


cdef inline void stash_drop(TlsRecords *r) noexcept nogil:
    free(r.stash)
    r.stash = NULL
    r.stash_len = 0
    r.stash_pos = 0
    r.stashed = STASH_NONE


# one record --------------------------------------------------------------------------------------------

cdef inline void _nonce(TlsKeys *keys, uint8_t *nonce) noexcept nogil:
    """5.3: the IV, its last 8 bytes XORed with the sequence number; which moves on."""
    cdef uint64_t sequence = keys.sequence
    cdef int i
    memcpy(nonce, keys.iv, 12)
    for i in range(8):
        nonce[11 - i] ^= <uint8_t>(sequence >> (8 * i))
    keys.sequence = sequence + 1


cdef inline size_t record_seal(TlsKeys *keys, int type, const void *src, size_t n, char *out) noexcept nogil:
    """Write one record of n <= TLS_RECORD bytes to out[n + TLS_RECORD_OVERHEAD]. Its length, 0: the cipher failed."""
    cdef uint8_t *p = <uint8_t *>out
    cdef uint8_t nonce[12]
    cdef uint8_t kind = <uint8_t>type
    cdef size_t length = n + 1 + TLS_RECORD_TAG
    cdef int part = 0, last = 0
    p[0] = SSL3_RT_APPLICATION_DATA
    p[1] = 3
    p[2] = 3
    p[3] = <uint8_t>(length >> 8)
    p[4] = <uint8_t>length
    _nonce(keys, nonce)
    # the content type goes in by itself: that is cheaper than to have it behind the data in one piece
    if not (
        EVP_EncryptInit_ex(keys.ctx, NULL, NULL, NULL, nonce)
        and EVP_EncryptUpdate(keys.ctx, NULL, &part, p, TLS_RECORD_HEAD)
        and EVP_EncryptUpdate(keys.ctx, p + TLS_RECORD_HEAD, &part, <const unsigned char *>src, <int>n)
        and EVP_EncryptUpdate(keys.ctx, p + TLS_RECORD_HEAD + part, &last, &kind, 1)
        and EVP_EncryptFinal_ex(keys.ctx, p + TLS_RECORD_HEAD + part + last, &last)
        and EVP_CIPHER_CTX_ctrl(keys.ctx, EVP_CTRL_AEAD_GET_TAG, TLS_RECORD_TAG, p + TLS_RECORD_HEAD + n + 1)
    ):
        return 0
    return TLS_RECORD_HEAD + length


cdef inline int record_open(
    TlsKeys *keys, const uint8_t *head, const char *body, size_t n, char *out, int *type
) noexcept nogil:
    """Open one record: `head[5]`, `body[n]`, TLS_RECORD_TAG < n. Bytes of content in `out`, `*type`; or an alert < 0.

    out[n - TLS_RECORD_TAG] is written to, also when the record turns out to be forged.
    """
    cdef uint8_t nonce[12]
    cdef uint8_t *p = <uint8_t *>out
    cdef int length = <int>n - TLS_RECORD_TAG
    cdef int part = 0, last = 0
    _nonce(keys, nonce)
    if not (
        EVP_DecryptInit_ex(keys.ctx, NULL, NULL, NULL, nonce)
        and EVP_DecryptUpdate(keys.ctx, NULL, &part, head, TLS_RECORD_HEAD)
        and EVP_DecryptUpdate(keys.ctx, p, &part, <const unsigned char *>body, length)
        and EVP_CIPHER_CTX_ctrl(keys.ctx, EVP_CTRL_AEAD_SET_TAG, TLS_RECORD_TAG, <void *>(body + length))
        and EVP_DecryptFinal_ex(keys.ctx, p + part, &last) == 1
    ):
        return -SSL_AD_BAD_RECORD_MAC
    if length > TLS_RECORD_INNER:
        return -SSL_AD_RECORD_OVERFLOW
    # the content type is the last byte that is not padding (5.4)
    while length > 0 and p[length - 1] == 0:
        length -= 1
    if length == 0:
        return -SSL_AD_UNEXPECTED_MESSAGE
    length -= 1
    type[0] = p[length]
    return length if length <= TLS_RECORD else -SSL_AD_RECORD_OVERFLOW
