"""The certificates that the authority makes: what stands in them, by RFC 5280 and the X.509-SVID standard.

A root (path length 2) signs issuing CAs (path length 0) and, while it is replaced, the next root's name and
key as a **cross certificate** (path length 1). An issuing CA signs workloads' certificates.

There are no name constraints: OpenSSL enforces them on SPIFFE ids, but verifiers that do not know URI
constraints must refuse the whole chain (X.509-SVID standard, section 4.2).

Only texts and numbers go in, only certificates come out: no files here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastmesh.certs import keys, record, spiffe
from fastmesh.certs.keys import UNREADABLE, PrivateKey, PublicKey

# Room below a root for a cross-signed root and its issuing CA.
ROOT_PATH: Final = 2
CROSS_PATH: Final = 1
ISSUER_PATH: Final = 0
# RFC 5280, upper bound ub-common-name.
_MAX_COMMON_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Names:
    """Whom a workload's certificate names: a common name, the SPIFFE id, DNS names, addresses."""

    common: str
    spiffe_id: spiffe.SpiffeId
    dns: Sequence[str] = ()
    addresses: Sequence[IPv4Address | IPv6Address] = field(default=())


@dataclass(frozen=True, slots=True)
class Signer:
    """A CA's certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)


def root(key: PrivateKey, domain: str, start: int, end: int) -> x509.Certificate:
    """A root, signed by itself. Times are Unix seconds here and below."""
    name = _ca_name(domain, "root", key.public_key())
    return _ca(key.public_key(), name, None, key, domain, span=(start, end), path=ROOT_PATH)


def issuer(key: PublicKey, parent: Signer, domain: str, start: int, end: int) -> x509.Certificate:
    """An issuing CA under a root; it never outlives it."""
    span = (max(start, start_of(parent.certificate)), min(end, end_of(parent.certificate)))
    name = _ca_name(domain, "issuer", key)
    return _ca(key, name, parent.certificate, parent.key, domain, span=span, path=ISSUER_PATH)


def cross(new: x509.Certificate, old: Signer, domain: str) -> x509.Certificate:
    """The new root's name and key, signed by the old root: who trusts the old root alone accepts what is
    under the new one. It ends with the first of the two."""
    key = new.public_key()
    assert isinstance(key, PublicKey)
    span = (
        max(start_of(new), start_of(old.certificate)),
        min(end_of(new), end_of(old.certificate)),
    )
    return _ca(key, new.subject, old.certificate, old.key, domain, span=span, path=CROSS_PATH)


def leaf(key: PublicKey, parent: Signer, names: Names, start: int, end: int) -> x509.Certificate:
    """A workload's X.509-SVID; its times are cut to those of its issuer."""
    # RFC 5280 section 4.1.2.6: without a subject, the alternative name is critical.
    named = len(names.common) <= _MAX_COMMON_NAME
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, names.common)] if named else []
    alternatives: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(str(names.spiffe_id)),
        *(x509.DNSName(name) for name in names.dns),
        *(x509.IPAddress(address) for address in names.addresses),
    ]
    above = parent.certificate
    span = (max(start, start_of(above)), min(end, end_of(above)))
    return (
        _builder(x509.Name(attributes), above.subject, key, span)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority(identifier(above)), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=not named)
        .sign(parent.key, keys.digest(parent.key))
    )


def entry(
    kind: str, workload: str | None, made: x509.Certificate, by: str = "", ttl: int = 0
) -> record.Entry:
    """What the record says of a certificate; `by` is the serial of the CA's that signed it."""
    uris: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return record.Entry(
        kind=kind,
        workload=workload,
        spiffe_id=uris[0] if uris else "",
        serial=serial_of(made),
        not_before=start_of(made),
        not_after=end_of(made),
        sha256=made.fingerprint(hashes.SHA256()).hex(),
        issuer=by,
        ttl=ttl,
    )


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def serial_of(certificate: x509.Certificate) -> str:
    """Hexadecimal, 32 digits for those made here."""
    return f"{certificate.serial_number:032x}"


def start_of(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_before_utc.timestamp())


def end_of(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp())


def common_name(certificate: x509.Certificate) -> str:
    """What a certificate is called, for people."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else serial_of(certificate)


def identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    """The key identifier, computed where there is none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _ca_name(domain: str, role: str, key: PublicKey) -> x509.Name:
    # The name tells keys apart: after a change of the root, a verifier must not try the wrong one of two
    # that are called the same.
    mark = x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()[:8]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{domain[:40]} {role} {mark}")])


def _ca(
    key: PublicKey,
    name: x509.Name,
    parent: x509.Certificate | None,
    signer: PrivateKey,
    domain: str,
    *,
    span: tuple[int, int],
    path: int,
) -> x509.Certificate:
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    above = own if parent is None else identifier(parent)
    return (
        _builder(name, name if parent is None else parent.subject, key, span)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(_authority(above), critical=False)
        # X.509-SVID section 3.2: a signing certificate has a SPIFFE id too, without a path.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{spiffe.SCHEME}{domain}")]),
            critical=False,
        )
        .sign(signer, keys.digest(signer))
    )


def _builder(
    subject: x509.Name, issuer_name: x509.Name, key: PublicKey, span: tuple[int, int]
) -> x509.CertificateBuilder:
    start, end = (datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in span)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key)
        .serial_number(_serial())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _serial() -> int:
    """A positive random number of 128 bits (RFC 5280 section 4.1.2.2 allows 20 octets, and zero never)."""
    while True:
        if serial := int.from_bytes(os.urandom(16), "big"):
            return serial


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(above: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above)
