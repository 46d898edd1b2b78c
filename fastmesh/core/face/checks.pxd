# What the data plane would have against something, asked before it is given to it; what it would make of it.

from fastmesh.core.face.load_tls cimport mesh_context
from fastmesh.core.sys.openssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, ERR_clear_error, PEM_read_bio_X509, SSL_CTX, SSL_CTX_free, TLS1_2_VERSION, X509,
    X509_free, X509_get0_notAfter, X509_get0_notBefore,
)
from fastmesh.core.sys.pcre2 cimport pcre2_code, pcre2_code_free, pcre2_get_error_message
from fastmesh.core.traffic.policy_scratch cimport policy_compile
from fastmesh.core.wire.path cimport path_normalise
from fastmesh.core.wire.tls_facts cimport asn1_seconds
from fastmesh.core.wire.tls_public cimport tls_public_client, tls_public_server


cdef inline tuple check_regex(str pattern):
    """The error and at which byte it is; None: there is none."""
    cdef bytes raw = pattern.encode()
    cdef int error = 0
    cdef size_t offset = 0
    cdef unsigned char text[256]
    cdef pcre2_code *code = policy_compile(raw, len(raw), &error, &offset)
    if code != NULL:
        pcre2_code_free(code)
        return None
    pcre2_get_error_message(error, text, sizeof(text))
    return (<bytes><char *>text).decode(), offset


cdef inline str check_path(str path, bint keep_slashes):
    """The path as rules and endpoints get it; None: it is refused."""
    cdef bytearray work = bytearray(path.encode())
    cdef size_t n = len(work)
    if path_normalise(<char *>work, &n, keep_slashes) < 0:
        return None
    return bytes(work[:n]).decode()


cdef inline str check_tls(str certificate, str key, str ca):
    """The error in a certificate and its key (PEM), or, without one, in the roots to trust; None: there is none."""
    cdef char err[512]
    cdef bytes a = (certificate or "").encode()
    cdef bytes b = (key or "").encode()
    cdef bytes c = (ca or "").encode()
    cdef SSL_CTX *ctx
    if certificate is not None:
        ctx = tls_public_server(b"", a, b, NULL, NULL, NULL, 0, TLS1_2_VERSION, err, sizeof(err))
    else:
        ctx = tls_public_client(b"localhost", c, NULL, NULL, NULL, 0, TLS1_2_VERSION, err, sizeof(err))
    if ctx == NULL:
        return (<bytes>err).decode("utf-8", "replace")
    SSL_CTX_free(ctx)
    return None


cdef inline str check_identity(dict identity, str trust_domain):
    """The error in the identity of a snapshot; None: there is none."""
    try:
        for server in (True, False):
            SSL_CTX_free(mesh_context(server, identity, trust_domain, NULL))
    except ValueError as error:
        return str(error)
    return None


cdef inline tuple certificate_validity(str pem):
    """From when the first certificate in `pem` is valid, and when no more, in Unix seconds; (-1, -1): there is none."""
    cdef bytes raw = pem.encode()
    cdef BIO *bio = BIO_new_mem_buf(<const char *>raw, <int>len(raw))
    cdef X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL) if bio != NULL else NULL
    BIO_free(bio)
    ERR_clear_error()
    if cert == NULL:
        return -1, -1
    times = asn1_seconds(X509_get0_notBefore(cert)), asn1_seconds(X509_get0_notAfter(cert))
    X509_free(cert)
    return times
