# The rules of the SPIFFE texts on one X.509 certificate: what makes a leaf an identity, what a SPIFFE ID is.
#
# Nothing here trusts anything: whether the certificate is signed by a trusted authority and valid at this
# time is decided in tls_context. Everything works on memory of the caller and keeps none.

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from fastmesh.core.sys.openssl cimport *

cdef enum:
    SVID_ID_MAX = 2048          # bytes of a SPIFFE ID (SPIFFE-ID 2.3)
    SVID_DOMAIN_MAX = 255       # bytes of a trust domain name (SPIFFE-ID 2.1)
    SVID_SCHEME = 9             # bytes of "spiffe://"


cdef inline bint svid_domain_valid(const char *domain, size_t n) noexcept nogil:
    """SPIFFE-ID 2.1: lower-case letters, digits, dots, dashes, underscores; at least one."""
    cdef size_t i
    cdef char c
    if n == 0 or n > SVID_DOMAIN_MAX:
        return False
    for i in range(n):
        c = domain[i]
        if not (c'a' <= c <= c'z' or c'0' <= c <= c'9' or c == c'.' or c == c'-' or c == c'_'):
            return False
    return True


cdef inline bint svid_path_valid(const char *path, size_t n) noexcept nogil:
    """SPIFFE-ID 2.2: "/" and a segment, one or more times; no empty, "." or ".." segment, no escape."""
    cdef size_t i = 0, start
    cdef char c
    if n == 0:
        return False
    while i < n:
        if path[i] != c'/':
            return False
        i += 1
        start = i
        while i < n and path[i] != c'/':
            c = path[i]
            if not (c'a' <= c <= c'z' or c'A' <= c <= c'Z' or c'0' <= c <= c'9' or c == c'.' or c == c'-' or c == c'_'):
                return False
            i += 1
        if i == start or (i - start == 1 and path[start] == c'.'):
            return False
        if i - start == 2 and path[start] == c'.' and path[start + 1] == c'.':
            return False
    return True


cdef inline bint svid_id_valid(const char *id, size_t n, const char *domain, size_t domain_len) noexcept nogil:
    """Is this the ID of a workload of that trust domain? One byte sequence per identity: no case folding."""
    cdef size_t head = SVID_SCHEME + domain_len
    if n > SVID_ID_MAX or n <= head or memcmp(id, b"spiffe://", SVID_SCHEME) != 0:
        return False
    return memcmp(id + SVID_SCHEME, domain, domain_len) == 0 and svid_path_valid(id + head, n - head)


cdef inline size_t svid_uri(X509 *leaf, char *out, size_t cap) noexcept nogil:
    """The URI SAN of a certificate that has exactly one (X.509-SVID 2). Bytes written; 0: none, or more than one."""
    cdef GENERAL_NAMES *names
    cdef const ASN1_STRING *text
    cdef void *value
    cdef int i, kind = 0, critical = 0
    cdef size_t n = 0, found = 0
    names = <GENERAL_NAMES *>X509_get_ext_d2i(leaf, NID_subject_alt_name, &critical, NULL)
    if names == NULL:      # none, unreadable, or the extension twice
        return 0
    for i in range(sk_GENERAL_NAME_num(names)):
        value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &kind)
        if kind != GEN_URI:
            continue
        found += 1
        text = <const ASN1_STRING *>value
        n = <size_t>ASN1_STRING_length(text)
        if found == 1 and n <= cap:
            memcpy(out, ASN1_STRING_get0_data(text), n)
    GENERAL_NAMES_free(names)
    return n if found == 1 and n <= cap else 0


cdef inline bint svid_is_leaf(X509 *leaf) noexcept nogil:
    """X.509-SVID 5.2: a leaf is no CA and may sign neither certificates nor revocation lists."""
    cdef uint32_t usage
    if X509_get_extension_flags(leaf) & EXFLAG_CA:
        return False
    usage = X509_get_key_usage(leaf)
    if usage != <uint32_t>0xFFFFFFFF:     # that: the certificate has no such extension
        if usage & <uint32_t>KU_KEY_CERT_SIGN or usage & <uint32_t>KU_CRL_SIGN:
            return False
        if not usage & <uint32_t>KU_DIGITAL_SIGNATURE:
            return False
    return True
