"""Certificates of the world outside the mesh: for names and addresses, by an authority of their own."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Shop:
    """A certificate authority of the world outside, its certificates as files in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root: x509.Certificate | None = None
        self.root = self._make("root", self.key, ca=True)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.root.public_bytes(serialization.Encoding.PEM))
        self.behind_leaves = b""

    def authority(self, name: str, life: datetime.timedelta) -> Shop:
        """Another one, signed by this one: it sends its certificate along with its leaves."""
        other = Shop(self.directory / name)
        other.root = self._make(name, other.key, ca=True, days=life / datetime.timedelta(days=1))
        other.behind_leaves = other.root.public_bytes(serialization.Encoding.PEM)
        return other

    def _make(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        names: tuple[str, ...] = (),
        ca: bool = False,
        days: float = 1,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.root.subject if self.root else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        sans: list[x509.GeneralName] = []
        for one in names:
            try:
                sans.append(x509.IPAddress(ipaddress.ip_address(one)))
            except ValueError:
                sans.append(x509.DNSName(one))
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, file: str, *names: str, days: float = 1) -> dict[str, str]:
        """A leaf for these names as `{certificate, key}`."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._make(file, key, names, days=days)
        pem = serialization.Encoding.PEM
        (self.directory / f"{file}.pem").write_bytes(leaf.public_bytes(pem) + self.behind_leaves)
        (self.directory / f"{file}.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return {
            "certificate": str(self.directory / f"{file}.pem"),
            "key": str(self.directory / f"{file}.key"),
        }

    def client(self, pair: dict[str, str] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if pair:
            context.load_cert_chain(pair["certificate"], pair["key"])
        return context

    def server(self, pair: dict[str, str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair["certificate"], pair["key"])
        return context


def authorities(count: int) -> list[bytes]:
    """Certificates of authorities with long names, in PEM; one key is enough for all."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = []
    for number in range(count):
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{number:03}".ljust(64, "o")),
                x509.NameAttribute(NameOID.COMMON_NAME, "an authority among many"),
            ]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(number + 1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(True, None), critical=True)
        )
        made.append(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return made
