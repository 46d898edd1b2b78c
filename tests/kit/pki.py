"""The mesh's certificates for tests: made by `fastmesh certs`, and some that it would never make."""

from __future__ import annotations

import copy
import datetime
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kit.proxy import cli


@dataclass(frozen=True)
class Identity:
    """PEM files of one workload: certificate with its issuers, key, trust bundle."""

    certificate: Path
    key: Path
    bundle: Path


class Pki:
    """A certificate authority directory as `fastmesh certs init` writes it."""

    def __init__(self, directory: Path, trust_domain: str = "mesh.local") -> None:
        self.path = directory
        self.trust_domain = trust_domain
        cli("certs", "init", "--trust-domain", trust_domain, "--pki", directory)

    def copy(self, directory: Path) -> Pki:
        """The same authority once more, in a directory of its own: a copy takes less than a command."""
        shutil.copytree(self.path, directory, symlinks=True)
        copied = copy.copy(self)
        copied.path = directory
        return copied

    def issue(self, name: str) -> Identity:
        """`fastmesh certs issue NAME`."""
        cli("certs", "issue", name, "--pki", self.path)
        return self.identity(name)

    def identity(self, name: str) -> Identity:
        home = self.path / "workloads" / name
        return Identity(home / "certificate.pem", home / "key.pem", home / "bundle.pem")

    @property
    def bundle(self) -> Path:
        return self.path / "ca" / "bundle.pem"

    def issuer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The certificate and key of the CA that signs leaves."""
        home = self.path / "ca" / "issuer"
        certificate = x509.load_pem_x509_certificate((home / "certificate.pem").read_bytes())
        key = serialization.load_pem_private_key((home / "key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return certificate, key

    def forge(
        self,
        directory: Path,
        uris: list[str],
        not_before: datetime.timedelta = datetime.timedelta(hours=-1),
        not_after: datetime.timedelta = datetime.timedelta(hours=1),
        ca: bool = False,
    ) -> Identity:
        """A leaf of this CA with any URIs and any validity (both relative to now)."""
        issuer, issuer_key = self.issuer()
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + not_before)
            .not_valid_after(now + not_after)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, ca, ca, False, False),
                critical=True,
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        if not names:
            names = [x509.DNSName("forged")]
        leaf = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
            issuer_key, hashes.SHA256()
        )
        directory.mkdir(parents=True, exist_ok=True)
        pem = serialization.Encoding.PEM
        (directory / "forged.pem").write_bytes(leaf.public_bytes(pem) + issuer.public_bytes(pem))
        (directory / "forged.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Identity(directory / "forged.pem", directory / "forged.key", self.bundle)


def client_context(identity: Identity | None, trust: Path | None = None) -> ssl.SSLContext:
    """A TLS 1.3 client that presents `identity` (None: no certificate) and trusts `trust` or its bundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    roots = trust or (identity.bundle if identity else None)
    if roots is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(roots)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


def server_context(identity: Identity, require_client: bool = True) -> ssl.SSLContext:
    """A TLS 1.3 server, to play the other sidecar."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate, identity.key)
    if require_client:
        context.load_verify_locations(identity.bundle)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def self_signed(directory: Path, uri: str) -> Identity:
    """An identity that no CA of the mesh has signed: its own root and leaf."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "stranger.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "stranger.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Identity(directory / "stranger.pem", directory / "stranger.key", directory / "stranger.pem")
