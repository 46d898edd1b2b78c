# What is known of a peer that has proved a certificate: its facts, read from the certificate once.
#
# They are made when a leaf was verified (facts_of), never change, and outlive the X509, which nobody keeps. Each
# TlsFacts on the heap belongs to who holds a reference: the table of a policy's peers, and connections. All of them
# live in one thread. A session carries the same facts as bytes (tls_sessions.pxd); read back they are a view, whose
# `id` is lent by those bytes.
#
# Facts say who a peer is and how long its chain is good. Whether it is let in is decided elsewhere, each time.

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from libc.time cimport time_t, tm

from fastmesh.core.sys.openssl cimport *
from fastmesh.core.sys.posix cimport CLOCK_REALTIME, clock_gettime, timespec
from fastmesh.core.wire.svid cimport SVID_ID_MAX

cdef extern from "<time.h>" nogil:
    time_t timegm(tm *t)

cdef enum:
    TLS_SERIAL_MAX = 20         # bytes of a certificate's serial number (RFC 5280 4.1.2.2)
    TLS_FACTS_VERSION = 1       # of the bytes in a session
    TLS_FACTS_HEAD = 72         # bytes from `version` on, without the id

cdef struct TlsFacts:
    uint32_t refs
    const char *id              # the SPIFFE ID, id_len bytes; on the heap they follow the head
    # from here on as in a session: no gaps
    uint8_t version
    uint8_t serial_len
    uint16_t id_len             # 0: outside the mesh
    unsigned char serial[20]    # TLS_SERIAL_MAX: big-endian, no zeros in front; none if it is longer
    unsigned char hash[32]      # SHA-256 of the leaf's DER form
    int64_t from_time           # seconds since 1970 between which the whole chain is valid, as it was verified;
    int64_t until               # the second `until` is out of time already


cdef inline int64_t asn1_seconds(const ASN1_TIME *t) noexcept nogil:
    """Seconds since 1970, -1 if the time is malformed."""
    cdef tm parts
    if t == NULL or not ASN1_TIME_to_tm(t, &parts):
        return -1
    return <int64_t>timegm(&parts)


cdef inline int64_t now_seconds() noexcept nogil:
    """Seconds since 1970. time(2) reads a clock that may be a tick behind: a certificate would live that much longer."""
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return t.tv_sec


cdef inline bint leaf_hash(X509 *leaf, unsigned char *hash) noexcept nogil:
    """SHA-256 of the certificate, 32 bytes. False: no memory."""
    cdef unsigned int n = 0
    return X509_digest(leaf, EVP_sha256(), hash, &n) == 1 and n == 32


cdef inline TlsFacts *facts_copy(const TlsFacts *view) noexcept nogil:
    """On the heap, with one reference; NULL: no memory."""
    cdef size_t head = <size_t>(<const char *>&view.version - <const char *>view) + TLS_FACTS_HEAD
    cdef char *p = <char *>malloc(head + view.id_len)
    cdef TlsFacts *facts = <TlsFacts *>p
    if p == NULL:
        return NULL
    memcpy(p, view, head)
    if view.id_len:
        memcpy(p + head, view.id, view.id_len)
    facts.id = p + head
    facts.refs = 1
    return facts


cdef inline TlsFacts *facts_of(
    X509 *leaf, const unsigned char *hash, const X509_STACK *chain, const char *id, size_t n
) noexcept nogil:
    """The facts of a leaf that was verified with that chain just now. `id`: its URI, at most SVID_ID_MAX bytes."""
    cdef const ASN1_STRING *serial = <const ASN1_STRING *>X509_get0_serialNumber(leaf)
    cdef const unsigned char *p = ASN1_STRING_get0_data(serial)
    cdef size_t serial_len = <size_t>ASN1_STRING_length(serial)
    cdef int64_t t
    cdef TlsFacts view
    cdef int i
    memset(&view, 0, sizeof(view))
    view.version = TLS_FACTS_VERSION
    view.id = id
    view.id_len = <uint16_t>n
    while serial_len > 0 and p[0] == 0:
        p += 1
        serial_len -= 1
    if serial_len <= TLS_SERIAL_MAX:
        view.serial_len = <uint8_t>serial_len
        memcpy(view.serial, p, serial_len)
    memcpy(view.hash, hash, 32)
    view.until = 0x7FFFFFFFFFFFFFFF
    for i in range(sk_X509_num(chain)):
        t = asn1_seconds(X509_get0_notBefore(sk_X509_value(chain, i)))
        view.from_time = t if t > view.from_time else view.from_time
        t = asn1_seconds(X509_get0_notAfter(sk_X509_value(chain, i)))     # -1 if unreadable: good at no time
        view.until = t if t < view.until else view.until
    return facts_copy(&view)


cdef inline TlsFacts *facts_hold(TlsFacts *facts) noexcept nogil:
    facts.refs += 1
    return facts


cdef inline void facts_put(TlsFacts *facts) noexcept nogil:
    """Give a reference back; NULL is nothing."""
    if facts == NULL:
        return
    facts.refs -= 1
    if facts.refs == 0:
        free(facts)


cdef inline const unsigned char *facts_bytes(const TlsFacts *facts, size_t *n) noexcept nogil:
    """Facts on the heap as they are put into a session, lent."""
    n[0] = <size_t>TLS_FACTS_HEAD + facts.id_len
    return &facts.version


cdef inline bint facts_read(const void *bytes, size_t n, TlsFacts *view) noexcept nogil:
    """Bytes of a session as facts, which lend the id from there. False: they are not just what facts_bytes makes."""
    if bytes == NULL or n < TLS_FACTS_HEAD:
        return False
    memcpy(&view.version, bytes, TLS_FACTS_HEAD)
    view.refs = 0
    view.id = <const char *>bytes + TLS_FACTS_HEAD
    return (
        view.version == TLS_FACTS_VERSION
        and view.id_len <= SVID_ID_MAX
        and n == <size_t>TLS_FACTS_HEAD + view.id_len
        and view.serial_len <= TLS_SERIAL_MAX
        and (view.serial_len == 0 or view.serial[0] != 0)
    )


cdef inline bint facts_current(const TlsFacts *facts, int64_t now) noexcept nogil:
    """Is the chain valid at that second?"""
    return facts.from_time <= now < facts.until
