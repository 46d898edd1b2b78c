# What the parts of TLS share: the engine, a connection, a context's policy, and the words between them.
# Only structs and constants; who owns what is said in tls.pxd (engine, connection) and tls_context.pxd (policy).

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmesh.core.sys.openssl cimport BIO, BIO_METHOD, SSL, SSL_SESSION, X509_STACK
from fastmesh.core.wire.svid cimport SVID_DOMAIN_MAX
from fastmesh.core.wire.tls_facts cimport TLS_SERIAL_MAX, TlsFacts
from fastmesh.core.wire.tls_record cimport TlsRecords, TlsSuite
from fastmesh.core.wire.tls_tickets cimport TlsTickets

cdef enum:
    TLS_EOF = -1000             # the peer said close_notify: a proper end
    TLS_TRUNCATED = -1001       # input ended without it: what came may not be all
    TLS_SINK_FULL = -1002       # nothing lost: send what is in the sink, then call again with the same arguments

    TLS_SLACK = 256             # a key update and an alert may go along with records

cdef enum:                      # what tls_open is told of ALPN: the protocols of the context that may be agreed on
    TLS_ALPN_NONE = 0
    TLS_ALPN_H1 = 1
    TLS_ALPN_H2 = 2
    TLS_ALPN_OPAQUE = 4         # server: a client that offers none of them is let in without one

cdef enum:
    TLS_ALPN_MAX = 64
    TLS_TICKET_SECONDS = 7200
    TLS_PEER_SETS = 64
    TLS_PEER_WAYS = 4

cdef struct TlsEngine:
    # one per worker: the memory under OpenSSL. All connections share one BIO, as only one is driven at a time.
    # The engine must not move while a connection of it lives.
    BIO_METHOD *method
    BIO *bio
    const char *in_ptr          # ciphertext received: the caller sets it, calls consume it
    size_t in_len
    char *out                   # ciphertext to send: appended here; the caller sends it and resets out_len
    size_t out_len
    size_t out_cap
    bint eof                    # no more input will ever come for the connection that is driven
    bint own_records            # set by the caller: connections leave OpenSSL's record layer after the handshake
    bint starved                # the last call asked for more input than there was
    bint full                   # the last call had more output than there was room
    Tls *current                # the connection that OpenSSL is driving: what the callbacks look at
    TlsSuite suites[3]

cdef struct Tls:
    SSL *ssl                    # NULL before tls_open, and after the handshake if records has taken over
    TlsRecords *records         # secrets of the handshake, then the protection of records; or NULL
    TlsFacts *peer              # counted; who the peer is, once the handshake is over; or NULL
    SSL_SESSION **session_slot  # client, set by the caller before tls_open: the newest session is kept there; or NULL
    const char *expect          # the ID the peer must prove, lent until the handshake is over; or NULL
    uint16_t expect_len
    uint16_t flags              # enum TlsFlag
    uint8_t failed              # enum Reason: the connection is broken, every further call says so
    uint8_t alpn                # bits TLS_ALPN_*: what may be agreed on

cdef enum TlsFlag:
    TLS_F_SERVER = 1
    TLS_F_DONE = 2              # handshake over
    TLS_F_HEARD = 4             # some input came
    TLS_F_DATA = 8              # some application data came
    TLS_F_H1 = 16
    TLS_F_H2 = 32
    TLS_F_EOF = 64              # close_notify came
    TLS_F_BYE = 128             # close_notify sent
    TLS_F_RESUMED = 256
    TLS_F_TICKET = 512          # client: a ticket came
    TLS_F_MESH = 1024           # the peer proves itself to a trust domain, not by the names of servers

cdef struct TlsPeer:
    TlsFacts *facts             # counted; or NULL
    bint verified               # here: the leaf needs no other look while its chain is good
    uint32_t used               # clock of the set: the least recently used way is replaced

cdef struct TlsDomain:
    TlsDomain *next             # domains that are trusted beside the own one
    X509_STACK *roots
    size_t len
    char name[SVID_DOMAIN_MAX + 1]

cdef struct TlsSerial:
    unsigned char len
    unsigned char bytes[20]     # TLS_SERIAL_MAX: big-endian, no zeros in front

cdef struct TlsName:
    char *text                  # lower case; of a wildcard what follows the "*"
    size_t len
    bint wildcard
    void *ctx                   # an SSL_CTX, counted; NULL: the one that has the policy

cdef struct TlsPolicy:
    TlsDomain own
    TlsSerial *revoked          # in order
    size_t nrevoked
    size_t revoked_cap
    TlsTickets *tickets         # the caller's; NULL: none are made
    # outside the mesh (tls_public.pxd): `own` names the server, or our listener; roots are in OpenSSL's store
    bint public
    bint demands                # the peer must show a certificate
    bint sends_name             # client: `own` goes into SNI
    TlsName *names              # server: which context for which name
    size_t nnames
    unsigned char alpn[TLS_ALPN_MAX]     # protocols in wire form, the preferred one first
    size_t alpn_len
    unsigned char trust[32]     # digest of who we are, of all domains and their roots: sessions do not outlive it
    uint32_t clock
    TlsPeer peers[TLS_PEER_SETS * TLS_PEER_WAYS]
