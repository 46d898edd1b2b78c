"""TLS in memory for the codec's tests: identities, good and bad, and ways to drive two ends."""

from __future__ import annotations

import contextlib
import datetime
import functools
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fastmesh import _tls as tls

DOMAIN = b"mesh.local"
A = "spiffe://mesh.local/svc-a"
B = "spiffe://mesh.local/svc-b"
H1 = b"\x08http/1.1"
H2_H1 = b"\x02h2" + H1
KEYS = bytes(range(80))
REASONS = tls.reasons()

Key = ec.EllipticCurvePrivateKey


def minutes(n: float) -> datetime.timedelta:
    return datetime.timedelta(minutes=n)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def certificate(
    subject: str,
    key: Key,
    issuer: tuple[str, Key],
    *,
    ca: bool = False,
    uris: tuple[str, ...] = (),
    signs_certificates: bool | None = None,
    usage: tuple[x509.ObjectIdentifier, ...] = (),
    start: datetime.timedelta = datetime.timedelta(minutes=-5),
    end: datetime.timedelta = datetime.timedelta(minutes=60),
) -> x509.Certificate:
    """Times are relative to now."""
    now = datetime.datetime.now(datetime.UTC)
    signer = ca if signs_certificates is None else signs_certificates
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer[0]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(not ca or bool(uris), False, False, False, False, signer, signer, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key()), critical=False
        )
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    if not ca:
        names.append(x509.DNSName("localhost"))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(issuer[1], hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Identity:
    """PEM of one workload: leaf and issuers, key, roots it trusts."""

    chain: bytes
    key: bytes
    bundle: bytes
    domain: bytes = DOMAIN

    def server(
        self,
        *,
        alpn: bytes | None = H2_H1,
        keys: bytes | tls.Tickets | None = KEYS,
        suites: bytes | None = None,
        old: bool = False,
        federated: dict[bytes, bytes] | None = None,
        revoked: list[bytes] | None = None,
    ) -> tls.Context:
        """`old`: TLS 1.2 and nothing else."""
        return tls.Context(
            True, self.chain, self.key, self.bundle, self.domain, keys, alpn, suites, old, federated, revoked
        )

    def client(
        self,
        *,
        alpn: bytes | None = H2_H1,
        old: bool = False,
        federated: dict[bytes, bytes] | None = None,
        revoked: list[bytes] | None = None,
    ) -> tls.Context:
        return tls.Context(
            False, self.chain, self.key, self.bundle, self.domain, None, alpn, None, old, federated, revoked
        )

    @property
    def serial(self) -> bytes:
        """Of the leaf, big-endian."""
        number = x509.load_pem_x509_certificate(self.chain).serial_number
        return number.to_bytes((number.bit_length() + 7) // 8)

    def python(self, side: ssl._SSLMethod, *, present: bool = True) -> ssl.SSLContext:
        """The same for Python's ssl: an end that nobody here wrote."""
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.bundle.decode())
        if present:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "identity"
                path.write_bytes(self.chain + self.key)
                context.load_cert_chain(path)
        return context


class Authority:
    """A root and an issuing CA below it."""

    def __init__(self) -> None:
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = certificate("root", self.root_key, ("root", self.root_key), ca=True)
        self.issuer = certificate("issuer", self.key, ("root", self.root_key), ca=True)
        self.bundle = pem(self.root)

    def leaf(self, *uris: str, **options: object) -> Identity:
        """An identity with these URI SANs; options as in `certificate`."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate("leaf", key, ("issuer", self.key), uris=uris, **options)  # type: ignore[arg-type]
        return Identity(pem(leaf, self.issuer), key_pem(key), self.bundle)


@functools.cache
def authority() -> Authority:
    return Authority()


@functools.cache
def svc_a() -> Identity:
    return authority().leaf(A)


@functools.cache
def svc_b() -> Identity:
    return authority().leaf(B)


def reason(result: int) -> str:
    """The public name of a result that is a reason."""
    assert -len(REASONS) < result < 0, result
    return REASONS[-result]


def open_pair(
    engine: tls.Engine,
    client: tls.Context,
    server: tls.Context,
    *,
    server_alpn: int = tls.ALPN_H1 | tls.ALPN_H2,
    **options: object,
) -> tuple[tls.Connection, tls.Connection]:
    """A client and a server; options are the client's (expect, slot, alpn)."""
    accepting = tls.Connection(engine, server, True, alpn=server_alpn)
    return tls.Connection(engine, client, False, **options), accepting


def shake(client: tls.Connection, server: tls.Connection) -> tuple[int, int, bytes]:
    """Drive both until each is done or has failed: their results, and what the client has yet to read."""
    to_server = to_client = b""
    c = s = 0
    while True:
        moved = False
        if c == 0:
            c, to_server = client.handshake(to_client)
            to_client = b""
            moved = bool(to_server) or c != 0
        if s == 0:
            s, to_client = server.handshake(to_server)
            moved = moved or bool(to_client) or s != 0
        if (c and s) or not moved:
            return c, s, to_client


def meet(
    engine: tls.Engine, client: tls.Context, server: tls.Context, **options: Any
) -> tuple[tls.Connection, tls.Connection]:
    """Two ends after their handshake; the client has taken its ticket."""
    c, s = open_pair(engine, client, server, **options)
    done = shake(c, s)
    assert done[:2] == (1, 1)
    assert c.read(done[2])[0] == 0
    return c, s


class PythonEnd:
    """Python's ssl over memory."""

    def __init__(
        self, context: ssl.SSLContext, *, server: bool, session: ssl.SSLSession | None = None
    ) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._in, self._out, server_side=server, session=session)
        self.error: ssl.SSLError | None = None
        self.done = False

    def handshake(self, data: bytes = b"") -> bytes:
        """Go on with `data`; what to send. `done` and `error` tell how far it came."""
        self._in.write(data)
        try:
            self.ssl.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        return self._out.read()

    def read(self, data: bytes, n: int = 65536) -> bytes:
        self._in.write(data)
        try:
            return self.ssl.read(n)
        except ssl.SSLWantReadError:
            return b""

    def write(self, data: bytes) -> bytes:
        self.ssl.write(data)
        return self._out.read()

    def close(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl.unwrap()
        return self._out.read()
