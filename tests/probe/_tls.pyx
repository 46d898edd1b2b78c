"""The TLS codec for tests: connections in memory, driven by bytes."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastmesh.core.base.reason cimport *
from fastmesh.core.sys.openssl cimport *
from fastmesh.core.sys.posix cimport CLOCK_MONOTONIC, clock_gettime, timespec
from fastmesh.core.wire.sniff cimport SNIFF_NAME_MAX, sniff_hello
from fastmesh.core.wire.tls cimport *

EOF = TLS_EOF
TRUNCATED = TLS_TRUNCATED
SINK_FULL = TLS_SINK_FULL
ALPN_H1 = TLS_ALPN_H1
ALPN_H2 = TLS_ALPN_H2
ALPN_OPAQUE = TLS_ALPN_OPAQUE


def reasons() -> dict[int, str]:
    """Reason number -> public name."""
    cdef ReasonInfo table[R_COUNT]
    memset(table, 0, sizeof(table))
    reasons_init(table)
    names = {}
    cdef int i
    for i in range(<int>R_COUNT):
        names[i] = table[i].name.decode()
    return names


def errors_queued() -> bool:
    """Did something leave an error in OpenSSL's queue?"""
    return ERR_peek_error() != 0


cdef extern from "<openssl/ssl.h>" nogil:
    enum: SSL_KEY_UPDATE_REQUESTED, SSL_KEY_UPDATE_NOT_REQUESTED
    int SSL_key_update(SSL *ssl, int kind)

cdef extern from "<malloc.h>" nogil:
    struct mallinfo2_t "mallinfo2":
        size_t uordblks
    mallinfo2_t mallinfo2()
    int malloc_trim(size_t pad)


def heap() -> int:
    """Bytes that malloc has given out in this process (0 under a sanitizer's allocator)."""
    malloc_trim(0)
    return mallinfo2().uordblks


def overhead(size_t n) -> int:
    return tls_overhead(n)


def id_valid(bytes id, bytes domain) -> bool:
    return svid_id_valid(id, len(id), domain, len(domain))


cdef tuple _facts(const TlsFacts *facts):
    return (
        facts.id[:facts.id_len], facts.serial[:facts.serial_len], facts.hash[:32], facts.from_time, facts.until
    )


def read_facts(bytes data) -> tuple[bytes, bytes, bytes, int, int] | None:
    """id, serial, hash, from, until of what a session says, read from memory of just its size."""
    cdef TlsFacts view
    cdef char *copy = <char *>malloc(len(data) if len(data) else 1)
    memcpy(copy, <const char *>data, len(data))
    found = _facts(&view) if facts_read(copy, len(data), &view) else None
    free(copy)
    return found


def cut(bytes data, unsigned char tag) -> bytes | None:
    """der_cut, in memory of just the size. None: refused, and the memory is as it was."""
    cdef unsigned char *copy = <unsigned char *>malloc(len(data) if len(data) else 1)
    cdef unsigned char *out = NULL
    memcpy(copy, <const char *>data, len(data))
    n = der_cut(copy, len(data), tag, &out)
    left = None
    if n:
        left = <bytes>out[:n]
        assert <size_t>(out - copy) + n == len(data)
    else:
        assert <bytes>copy[:len(data)] == data
    free(copy)
    return left


def domain_valid(bytes domain) -> bool:
    return svid_domain_valid(domain, len(domain))


cdef class Tickets:
    """Keys of session tickets. `first`: bytes that the first one is made of."""
    cdef TlsTickets keys

    def __cinit__(self, bytes first=None):
        memset(&self.keys, 0, sizeof(TlsTickets))
        self.rotate()
        if first is not None:
            assert len(first) == 80
            memcpy(&self.keys.keys[1].name, <char *>first, 80)

    def rotate(self) -> None:
        assert tickets_rotate(&self.keys, now_seconds())

    @property
    def names(self) -> list[bytes]:
        """Of the keys that there are: current, previous."""
        cdef TlsTicketKey key
        return [key.name[:16] for age in range(4) if tickets_key(&self.keys, age, &key)]


cdef class Context:
    cdef SSL_CTX *ctx
    cdef Tickets tickets

    def __cinit__(
        self, bint server, bytes cert, bytes key, bytes bundle, bytes domain, ticket_keys=None,
        bytes alpn=None, bytes suites=None, bint old=False, dict federated=None, list revoked=None,
    ):
        cdef char err[256]
        cdef TlsTickets *keys = NULL
        cdef bytes pem, name
        cdef const unsigned char *protocols = NULL
        cdef size_t n = 0
        if ticket_keys is not None:
            self.tickets = ticket_keys if isinstance(ticket_keys, Tickets) else Tickets(ticket_keys)
            keys = &self.tickets.keys
        if alpn is not None:
            protocols = alpn
            n = len(alpn)
        err[0] = 0
        self.ctx = tls_context(server, cert, key, bundle, domain, keys, protocols, n, err, sizeof(err))
        if self.ctx == NULL:
            raise ValueError(err.decode())
        for name, pem in (federated or {}).items():
            if not tls_federate(self.ctx, name, pem, err, sizeof(err)):
                raise ValueError(err.decode())
        for name in revoked or ():
            if not tls_revoke(self.ctx, name, len(name)):
                raise ValueError("no serial number")
        if suites is not None:
            assert SSL_CTX_set_ciphersuites(self.ctx, suites)
        if old:
            assert SSL_CTX_set_min_proto_version(self.ctx, TLS1_2_VERSION)
            assert SSL_CTX_set_max_proto_version(self.ctx, TLS1_2_VERSION)

    def __dealloc__(self):
        SSL_CTX_free(self.ctx)


cdef class Slot:
    """Where a client keeps its newest session."""
    cdef SSL_SESSION *session

    def __bool__(self):
        return self.session != NULL

    @property
    def der(self) -> bytes:
        """The session as OpenSSL writes it."""
        cdef unsigned char *p = NULL
        n = i2d_SSL_SESSION(self.session, NULL)
        out = bytearray(n)
        p = out
        assert i2d_SSL_SESSION(self.session, &p) == n
        return bytes(out)

    @der.setter
    def der(self, bytes data) -> None:
        cdef const unsigned char *p = data
        SSL_SESSION_free(self.session)
        self.session = d2i_SSL_SESSION(NULL, &p, len(data))
        assert self.session != NULL

    def lifetime(self) -> int:
        """Seconds for which the server said the ticket would be good."""
        return SSL_SESSION_get_ticket_lifetime_hint(self.session)

    def __dealloc__(self):
        SSL_SESSION_free(self.session)


cdef class Engine:
    cdef TlsEngine e
    cdef char *memory

    def __cinit__(self, size_t cap=192 * 1024, bint own_records=True):
        self.memory = <char *>malloc(cap)
        assert self.memory != NULL
        assert tls_engine_init(&self.e, self.memory, cap) == 0
        self.e.own_records = own_records

    def __dealloc__(self):
        tls_engine_free(&self.e)
        free(self.memory)

    def forget_ciphers(self) -> None:
        """As with a provider that has none of the suites."""
        cdef int i
        for i in range(3):
            suite_free(&self.e.suites[i])

    def take(self, keep=0) -> bytes:
        """What is in the sink, which is empty then."""
        out = self.e.out[:self.e.out_len]
        self.e.out_len = 0
        return out

    def room(self, size_t n) -> None:
        """Leave n bytes of room in the (then empty) sink."""
        self.e.out_len = 0
        self.e.out_cap = n


cdef class Connection:
    cdef Tls t
    cdef Engine engine
    cdef object refs
    cdef bint server
    cdef public bytearray pending

    def __cinit__(self, Engine engine, Context context, bint server, bytes expect=None, Slot slot=None, int alpn=3):
        self.engine = engine
        self.refs = (context, expect, slot)
        self.server = server
        self.pending = bytearray()
        self.t.session_slot = &slot.session if slot is not None else NULL
        result = tls_open(
            &engine.e, &self.t, context.ctx, server, <const char *>expect if expect is not None else NULL,
            len(expect) if expect is not None else 0, slot.session if slot is not None else NULL,
            alpn,
        )
        assert result == 0, result

    def __dealloc__(self):
        tls_free(&self.t)

    cdef _window(self, bytes data, bint eof):
        self.pending += data
        self.engine.e.in_ptr = <const char *>self.pending
        self.engine.e.in_len = len(self.pending)
        self.engine.e.eof = eof

    cdef _taken(self):
        del self.pending[: len(self.pending) - self.engine.e.in_len]
        self.engine.e.in_ptr = NULL
        self.engine.e.in_len = 0

    def handshake(self, bytes data=b"", bint eof=False) -> tuple[int, bytes]:
        """(result, ciphertext to send)"""
        self._window(data, eof)
        result = tls_handshake(&self.engine.e, &self.t)
        self._taken()
        return result, self.engine.take()

    def read(self, bytes data=b"", size_t cap=65536, bint eof=False) -> tuple[int, bytes, bytes]:
        """(result, plaintext, ciphertext to send)"""
        cdef char *buf = <char *>malloc(cap)
        self._window(data, eof)
        result = tls_read(&self.engine.e, &self.t, buf, cap)
        self._taken()
        plain = buf[:result] if result > 0 else b""
        free(buf)
        return result, plain, self.engine.take()

    def write(self, bytes data) -> tuple[int, bytes]:
        result = tls_write(&self.engine.e, &self.t, data, len(data))
        return result, self.engine.take()

    def close_notify(self) -> bytes:
        tls_close_notify(&self.engine.e, &self.t)
        return self.engine.take()

    def free(self) -> None:
        tls_free(&self.t)

    def seal(self, int type, bytes content) -> bytes:
        """One record of any type and content, as our own records would protect it. Type 0: padding."""
        cdef char out[TLS_RECORD_MAX + 1024]
        assert self.own_records and len(content) < TLS_RECORD_MAX
        n = record_seal(&self.t.records.tx, type, <const char *>content, len(content), out)
        return out[:n]

    def set_sequences(self, uint64_t sent, uint64_t received) -> None:
        """As if that many records had gone by."""
        assert self.own_records
        self.t.records.tx.sequence = sent
        self.t.records.rx.sequence = received

    @property
    def sequences(self) -> tuple[int, int]:
        return self.t.records.tx.sequence, self.t.records.rx.sequence

    def key_update(self, bint request) -> bytes:
        """KeyUpdate as OpenSSL sends it."""
        assert not self.own_records
        assert SSL_key_update(self.t.ssl, SSL_KEY_UPDATE_REQUESTED if request else SSL_KEY_UPDATE_NOT_REQUESTED)
        assert SSL_do_handshake(self.t.ssl) == 1
        return self.engine.take()

    @property
    def peer(self) -> bytes:
        peer = tls_peer(&self.t)
        return <bytes>peer.id[:peer.id_len] if peer != NULL else b""

    @property
    def facts(self) -> tuple[bytes, bytes, bytes, int, int] | None:
        """As read_facts has them, of the peer."""
        peer = tls_peer(&self.t)
        return _facts(peer) if peer != NULL else None

    @property
    def noted(self) -> bytes:
        """The same as it is put into a session."""
        cdef size_t n = 0
        bytes_ = facts_bytes(self.t.peer, &n)
        return bytes_[:n]

    @property
    def alpn(self) -> int:
        return tls_alpn(&self.t)

    @property
    def resumed(self) -> bool:
        return tls_resumed(&self.t)

    @property
    def own_records(self) -> bool:
        """Has the connection left OpenSSL's record layer?"""
        return self.t.ssl == NULL and self.t.records != NULL


def sniff(bytes data) -> tuple[int, bytes]:
    """sniff_hello of bytes in memory of just their size."""
    cdef char name[SNIFF_NAME_MAX]
    cdef size_t n = 0
    cdef char *copy = <char *>malloc(len(data) if len(data) else 1)
    memcpy(copy, <const char *>data, len(data))
    result = sniff_hello(copy, len(data), name, &n)
    free(copy)
    return result, name[:n]


cdef uint64_t _nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


def bench_records(Connection writer, Connection reader, size_t size, size_t batch, size_t rounds) -> tuple[float, float]:
    """Nanoseconds for one tls_write and one tls_read of `size` bytes, one record each, each alone in its window."""
    cdef TlsEngine *e = &writer.engine.e
    cdef size_t cap = size + 1      # room for the content type: nothing needs to be copied
    cdef char *plain = <char *>malloc(cap)
    cdef char *wire = e.out
    cdef uint64_t spent_write = 0, spent_read = 0, t
    cdef size_t i, k, record
    cdef bint ok = True
    memset(plain, 120, size)
    with nogil:
        for i in range(rounds):
            e.out_len = 0
            t = _nanoseconds()
            for k in range(batch):
                ok = ok and tls_write(e, &writer.t, plain, size) == <int>size
            spent_write += _nanoseconds() - t
            record = e.out_len // batch
            t = _nanoseconds()
            for k in range(batch):
                e.in_ptr = wire + k * record
                e.in_len = record
                ok = ok and tls_read(e, &reader.t, plain, cap) == <int>size
            spent_read += _nanoseconds() - t
    free(plain)
    e.out_len = 0
    assert ok
    return spent_write / (rounds * batch), spent_read / (rounds * batch)
