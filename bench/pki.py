"""Certificates for all proxies but fastmesh, which makes its own, of the same kind.

ECDSA P-256; a root, an issuing CA, leaves with a SPIFFE id and a DNS name: as `fastmesh certs` writes them.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN: Final = "mesh.local"
WORKLOADS: Final = ("svc-a", "svc-b")


@dataclass(frozen=True)
class Identity:
    """Files of one workload, PEM."""

    certificate: Path  # the leaf, then the issuing CA
    key: Path
    both: Path  # certificate and key in one file, as HAProxy wants it
    bundle: Path  # the root


def make(directory: Path) -> dict[str, Identity]:
    """A fresh PKI in `directory`: one identity a workload."""
    directory.mkdir(mode=0o700)
    root_key, issuing_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _authority("bench root", root_key.public_key(), "bench root", root_key, path_length=1)
    issuing = _authority("bench issuing", issuing_key.public_key(), "bench root", root_key, path_length=0)
    bundle = directory / "bundle.pem"
    bundle.write_bytes(_pem(root))
    identities = {}
    for name in WORKLOADS:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _leaf(name, key.public_key(), "bench issuing", issuing_key)
        identity = Identity(
            directory / f"{name}.crt", directory / f"{name}.key", directory / f"{name}.pem", bundle
        )
        chain = _pem(leaf) + _pem(issuing)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        identity.certificate.write_bytes(chain)
        identity.key.write_bytes(secret)
        identity.both.write_bytes(chain + secret)
        identities[name] = identity
    return identities


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: str, public: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(
    subject: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    path_length: int,
) -> x509.Certificate:
    return (
        _builder(subject, public, issuer, signer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(signer, hashes.SHA256())
    )


def _leaf(
    name: str, public: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = [x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{name}"), x509.DNSName(name)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(name, public, issuer, signer)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
