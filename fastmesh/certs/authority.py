"""The certificate authority: a root, an issuing CA under it, and the workloads' certificates.

Extensions follow RFC 5280 section 4.2.1 and the X.509-SVID standard section 4. All keys are ECDSA P-256.
Every function that writes holds the directory's lock from its first read to its last write, so that commands
may run at the same time; the order of the writes is such that a kill between any two leaves the directory
usable:

- `create` builds the whole `ca` directory aside and renames it into place: it is there completely or not at
  all, and a rename cannot replace an authority that exists.
- `issue` proves the new identity, puts the certificate on record, and only then publishes key, certificate
  and bundle in one step. So nothing is in use that is not on record; what is on record need not have come
  into use.

There are no name constraints: OpenSSL enforces them on SPIFFE ids, but verifiers that do not know URI
constraints must refuse the whole chain (X.509-SVID standard, section 4.2).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastmesh.certs import files, proof, record, spiffe
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.store import BUNDLE, CERTIFICATE, FORMAT, KEY, Layout, command, read_trust_domain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# What `cryptography` raises about certificates and keys that it cannot read, some of it only when a part is
# asked for.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
# Seconds.
ROOT_LIFE: Final = 3652 * 86400
ISSUER_LIFE: Final = 365 * 86400
LEAF_LIFE: Final = 86400
MIN_LEAF_LIFE: Final = 10
# How far another host's clock may be behind this one's.
CLOCK_SKEW: Final = 20
# RFC 5280, upper bound ub-common-name.
_MAX_COMMON_NAME: Final = 64
_RESTORE: Final = "restore it from a backup of the directory"


@dataclass(frozen=True, slots=True)
class Created:
    """A new authority. Times are Unix seconds."""

    trust_domain: str
    root_not_after: int
    issuer_not_after: int


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is in place. `serial` is hexadecimal; `capped`: it ends with its issuer, before its
    ttl."""

    workload: str
    spiffe_id: str
    serial: str
    not_before: int
    not_after: int
    capped: bool


@dataclass(frozen=True, slots=True)
class _Issuer:
    trust_domain: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: str
    bundle: str


def create(pki: Path, trust_domain: str, *, now: float | None = None) -> Created:
    """Makes a root and an issuing CA in `pki`. Raises PkiError, always if there is an authority already."""
    domain = spiffe.trust_domain(trust_domain)
    start = int(time.time() if now is None else now) - CLOCK_SKEW
    layout = Layout(pki)
    with _failures(f"the authority in {pki} cannot be made"):
        files.make_directory(pki)
        with files.lock(pki), files.stage(pki) as stage:
            _refuse_existing(layout)
            root_key, issuer_key = _new_key(), _new_key()
            root = _make_ca(root_key, None, domain, start, start + ROOT_LIFE)
            issuer = _make_ca(issuer_key, (root, root_key), domain, start, start + ISSUER_LIFE)
            made = Layout(stage)
            made.ca.mkdir(mode=files.DIRECTORY_MODE)
            made.ca.chmod(files.DIRECTORY_MODE)
            for entry, certificate, key in (
                (made.root, root, root_key),
                (made.issuer, issuer, issuer_key),
            ):
                serial = f"{certificate.serial_number:032x}"
                files.write_entry(entry, {CERTIFICATE: _pem(certificate), KEY: _key_pem(key)}, serial)
                record.append(made.record, _entry(entry.name, None, certificate))
            files.write_new(made.bundle, _pem(root), files.PUBLIC_MODE)
            facts = json.dumps({"format": FORMAT, "trust_domain": domain})
            files.write_new(made.authority, facts + "\n", files.PUBLIC_MODE)
            files.sync_directory(made.ca)
            try:
                made.ca.rename(layout.ca)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    _refuse_existing(layout)
                raise
            files.sync_directory(pki)
    return Created(domain, _end(root), _end(issuer))


def issue(pki: Path, workload: str, ttl: int = LEAF_LIFE, *, now: float | None = None) -> Issued:
    """Makes a key and certificate for `workload`, valid `ttl` seconds from now, and puts them into `pki`.

    A certificate never outlives its issuer: a longer `ttl` is cut short and `capped` says so. Raises
    PkiError; the workload then has what it had before or, if only the very last step failed, the new files:
    whole in any case.
    """
    name = spiffe.workload(workload)
    if ttl < MIN_LEAF_LIFE:
        raise ValueError(f"a certificate's life is at least {MIN_LEAF_LIFE} seconds, not {ttl}")
    layout = Layout(pki)
    entry = layout.workload(name)
    with _failures(f"no certificate for {name} can be issued in {pki}"), _locked(layout):
        # Taken under the lock: a command that waited for it must not issue for a time that has passed.
        moment = time.time() if now is None else now
        issuer = _read_issuer(layout, moment)
        subject = spiffe.workload_id(issuer.trust_domain, name)
        key = _new_key()
        leaf = _make_leaf(key, issuer, subject, int(moment), ttl)
        certificate = _pem(leaf) + issuer.chain
        key_text = _key_pem(key)
        try:
            proof.prove(certificate, key_text, issuer.bundle, moment, _labels(layout))
        except PkiError as error:
            raise PkiError(f"the authority in {layout.ca} is damaged: {error.problem}", _RESTORE) from None
        record.append(layout.record, _entry("workload", name, leaf))
        files.make_directory(layout.workloads)
        files.write_entry(
            entry,
            {CERTIFICATE: certificate, KEY: key_text, BUNDLE: issuer.bundle},
            f"{leaf.serial_number:032x}",
        )
    end = _end(leaf)
    return Issued(
        name, str(subject), f"{leaf.serial_number:032x}", _start(leaf), end, end < int(moment) + ttl
    )


def _read_issuer(layout: Layout, now: float) -> _Issuer:
    try:
        domain = read_trust_domain(layout)
        found = files.read_entry(layout.issuer, (CERTIFICATE, KEY))
        bundle = files.read_text(layout.bundle)
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} is missing", _RESTORE) from None
    where = f"{layout.issuer}/{CERTIFICATE}"
    chain = proof.certificates(found[CERTIFICATE], where)
    try:
        certificate = x509.load_pem_x509_certificate(chain[0].encode())
        start, end = _start(certificate), _end(certificate)
        public = certificate.public_key()
    except UNREADABLE:
        raise PkiError(f"{where} holds a certificate that cannot be read", _RESTORE) from None
    try:
        key = serialization.load_pem_private_key(found[KEY].encode(), None)
    except UNREADABLE:
        raise PkiError(f"{layout.issuer}/{KEY} holds no private key that can be read", _RESTORE) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != public:
        raise PkiError(f"{layout.issuer}/{KEY} is not the key of {where}", _RESTORE)
    if now < start:
        raise PkiError(
            f"the issuing CA is valid from {proof.when(start)} only, and the clock says {proof.when(now)}",
            "set the clock",
        )
    if now + MIN_LEAF_LIFE > end:
        raise PkiError(
            f"the issuing CA ended at {proof.when(end)}, and the clock says {proof.when(now)}",
            "make a new authority in another directory with `fastmesh certs init --pki DIRECTORY`",
        )
    return _Issuer(domain, certificate, key, found[CERTIFICATE], bundle)


def _make_ca(
    key: ec.EllipticCurvePrivateKey,
    parent: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    domain: str,
    start: int,
    end: int,
) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The name tells keys apart: after a change of the root, a verifier must not try the wrong one of two
    # that are called the same.
    role = "root" if parent is None else "issuer"
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"{domain[:40]} {role} {identifier.digest.hex()[:8]}")]
    )
    issuer, signer = (name, key) if parent is None else (parent[0].subject, parent[1])
    above = identifier if parent is None else _identifier(parent[0])
    return (
        _builder(name, issuer, key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if parent is None else 0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
        # X.509-SVID section 3.2: a signing certificate has a SPIFFE id too, without a path.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{spiffe.SCHEME}{domain}")]),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )


def _make_leaf(
    key: ec.EllipticCurvePrivateKey, issuer: _Issuer, subject: spiffe.SpiffeId, now: int, ttl: int
) -> x509.Certificate:
    name = subject.path[1:]
    start = max(now - CLOCK_SKEW, _start(issuer.certificate))
    end = min(now + ttl, _end(issuer.certificate))
    # RFC 5280 section 4.1.2.6: without a subject, the alternative name is critical.
    named = len(name) <= _MAX_COMMON_NAME
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if named else []
    return (
        _builder(x509.Name(attributes), issuer.certificate.subject, key, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_identifier(issuer.certificate)),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(subject)), x509.DNSName(name)]),
            critical=not named,
        )
        .sign(issuer.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: int, end: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(_serial())
        .not_valid_before(datetime.datetime.fromtimestamp(start, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(end, datetime.UTC))
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


def _identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _start(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_before_utc.timestamp())


def _end(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp())


def _entry(kind: str, workload: str | None, certificate: x509.Certificate) -> record.Entry:
    uris: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return record.Entry(
        kind=kind,
        workload=workload,
        spiffe_id=uris[0] if uris else "",
        serial=f"{certificate.serial_number:032x}",
        not_before=_start(certificate),
        not_after=_end(certificate),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _refuse_existing(layout: Layout) -> None:
    # An empty directory is no authority; everything else is left alone, whole or not.
    if os.path.lexists(layout.ca) and not (layout.ca.is_dir() and not any(layout.ca.iterdir())):
        raise PkiError(
            f"{layout.ca} exists already; nothing was changed",
            "give another directory with --pki, or move that one away",
        )


def _labels(layout: Layout) -> proof.Labels:
    # What a new certificate fails for is the fault of the issuer above it.
    return proof.Labels(f"{layout.issuer}/{CERTIFICATE}", f"{layout.issuer}/{KEY}", str(layout.bundle))


@contextlib.contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """The lock of a directory that has an authority: without one there is not even a lock to be made."""
    if not layout.ca.is_dir():
        raise PkiError(
            f"there is no certificate authority in {layout.pki}", f"run: {command('init', '', layout.pki)}"
        )
    with files.lock(layout.pki):
        yield


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turns what the system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        path = f" ({error.filename})" if error.filename else ""
        raise PkiError(f"{what}: {reason(error)}{path}") from error
