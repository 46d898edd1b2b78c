"""Judges a certificate file for a person: every rule that counts, each with what was found.

Unlike `proof`, which tells a program the first thing that is wrong, this goes through all of them: the file,
SPIFFE rules (X.509-SVID standard, sections 2 to 5), key usage (RFC 5280 section 4.2.1), the chain, times,
the deny list, and the key if it is there. The path is built here, with `cryptography`; with the key at hand
OpenSSL judges too, by a handshake.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastmesh.certs import bundle, files, keys, proof, spiffe, trust
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.store import (
    BUNDLE,
    CERTIFICATE,
    FEDERATED,
    KEY,
    REVOKED,
    Layout,
    read_federated,
    read_revoked,
)
from fastmesh.certs.templates import common_name, end_of, serial_of, start_of

_WEAK_HASHES: Final = ("md5", "sha1")
_PURPOSES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "server",
    ExtendedKeyUsageOID.CLIENT_AUTH: "client",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one rule. `good` is None where it could not be looked at."""

    rule: str
    good: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class _Case:
    """What is judged, and by what."""

    chain: list[x509.Certificate]
    texts: dict[str, str]
    where: str
    now: float

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]


def verify(
    path: Path, pki: Path, *, bundle_path: Path | None = None, now: float | None = None
) -> list[Finding]:
    """All findings about the certificate in a file, or in the entry of a workload if `path` is a directory.

    Roots are those of `bundle_path`; else of the entry; else of the authority in `pki`, for the trust domain
    that the certificate names. Raises PkiError when there is nothing to judge.
    """
    texts = _texts(path, pki, bundle_path)
    where = str(path / CERTIFICATE if path.is_dir() else path)
    blocks = proof.certificates(texts[CERTIFICATE], where)
    try:
        chain = [x509.load_pem_x509_certificate(one.encode()) for one in blocks]
    except UNREADABLE:
        raise PkiError(f"{where} holds a certificate that cannot be read") from None
    case = _Case(chain, texts, where, time.time() if now is None else now)
    findings = []
    for rule in (_file, _identity, _not_a_ca, _usage, _purposes, _unknown, _strength, _serial):
        findings += _guarded(rule, case)
    roots, told = _roots(case, named=bundle_path is not None)
    if not roots:
        findings.append(Finding("chain", False, told))
    else:
        findings += _guarded(lambda case: _chain(case, roots, told), case)
    for rule in (_times, _denied, _key):
        findings += _guarded(rule, case)
    return findings


def _guarded(rule: object, case: _Case) -> list[Finding]:
    name = getattr(rule, "__name__", "chain").strip("_").replace("_", " ")
    try:
        return list(rule(case))  # type: ignore[operator]
    except UNREADABLE:
        return [Finding(name, False, "what the certificate says of it cannot be read")]


def _texts(path: Path, pki: Path, bundle_path: Path | None) -> dict[str, str]:
    """The files by the names that they have in an entry."""
    try:
        if path.is_dir():
            found = files.read_entry(path, (CERTIFICATE,), (KEY, BUNDLE, FEDERATED, REVOKED))
        else:
            found = {CERTIFICATE: files.read_text(path)}
        if bundle_path is not None:
            found[BUNDLE] = files.read_text(bundle_path)
    except OSError as error:
        raise PkiError(f"{error.filename or path} cannot be read: {reason(error)}") from None
    layout = Layout(pki)
    if BUNDLE in found and not path.is_dir() and layout.revoked.exists():
        # Revoked is revoked, whoever is trusted.
        found = {**trust.Trust("", {}, _revoked(layout)).files(), **found}
    if BUNDLE not in found and layout.ca.is_dir():
        try:
            found = {**trust.read(layout).files(), **found}
        except OSError as error:
            raise PkiError(f"{error.filename or layout.ca} cannot be read: {reason(error)}") from None
    return found


def _revoked(layout: Layout) -> tuple[str, ...]:
    try:
        return tuple(sorted(one.serial for one in trust.read_denied(layout)))
    except OSError as error:
        raise PkiError(f"{layout.revoked} cannot be read: {reason(error)}") from None


def _file(case: _Case) -> Iterator[Finding]:
    count = len(case.chain) - 1
    above = {0: "no issuer", 1: "one issuer"}.get(count, f"{count} issuers")
    yield Finding("file", True, f"the certificate {common_name(case.leaf)} and {above}, in PEM form")


def _identity(case: _Case) -> Iterator[Finding]:
    try:
        extension = case.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        yield Finding("SPIFFE id", False, "there are no alternative names, so no SPIFFE id")
        return
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        yield Finding("SPIFFE id", False, f"exactly one URI is needed, and there are {len(uris)}")
        return
    try:
        found = spiffe.parse(uris[0])
    except spiffe.SpiffeError as error:
        yield Finding("SPIFFE id", False, str(error))
        return
    if not found.path:
        yield Finding("SPIFFE id", False, f"{found} names a trust domain, no workload")
        return
    yield Finding("SPIFFE id", True, str(found))
    if not extension.critical and not list(case.leaf.subject):
        yield Finding(
            "names", False, "without a subject the alternative names must be critical (RFC 5280, 4.1.2.6)"
        )
    wild = [name for name in extension.value.get_values_for_type(x509.DNSName) if "*" in name]
    if wild:
        yield Finding("names", False, f"{', '.join(map(ascii, wild))}: a wildcard is not one workload's name")


def _not_a_ca(case: _Case) -> Iterator[Finding]:
    try:
        ca = case.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        ca = False  # RFC 5280, 4.2.1.9: without the extension it is none
    if ca:
        yield Finding("no CA", False, "it is a CA's certificate: those sign, and prove no workload")
    else:
        yield Finding("no CA", True, "it cannot sign other certificates")


def _usage(case: _Case) -> Iterator[Finding]:
    try:
        extension = case.leaf.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        yield Finding("key usage", False, "there is none, and an X.509-SVID must have it (section 4.3)")
        return
    usage = extension.value
    wrong = []
    if not usage.digital_signature:
        wrong.append("digital signature is missing")
    wrong += [
        f"{name} must not be set"
        for name, bit in (("certificate sign", usage.key_cert_sign), ("CRL sign", usage.crl_sign))
        if bit
    ]
    if not extension.critical:
        wrong.append("it must be critical")
    yield Finding("key usage", not wrong, "; ".join(wrong) or "digital signature, critical")


def _purposes(case: _Case) -> Iterator[Finding]:
    try:
        found = list(case.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        yield Finding("purposes", True, "not limited")
        return
    lacking = [name for oid, name in _PURPOSES.items() if oid not in found]
    text = f"authentication as {' and '.join(lacking)} is missing" if lacking else "server and client"
    yield Finding("purposes", not lacking, text)


def _unknown(case: _Case) -> Iterator[Finding]:
    # RFC 5280, 4.2: who does not know a critical extension must refuse the certificate.
    for one in case.chain:
        for extension in one.extensions:
            if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
                oid = extension.oid.dotted_string
                yield Finding(
                    "extensions", False, f"{common_name(one)} has {oid}, critical, which nobody knows"
                )


def _strength(case: _Case) -> Iterator[Finding]:
    for one in case.chain:
        weak = keys.weakness(one.public_key())
        if weak is None and one.signature_hash_algorithm is not None:
            name = one.signature_hash_algorithm.name
            weak = f"a signature with {name}" if name in _WEAK_HASHES else None
        if weak is not None:
            yield Finding("strength", False, f"{common_name(one)} has {weak}")
            return
    yield Finding("strength", True, keys.described(case.leaf.public_key()))


def _serial(case: _Case) -> Iterator[Finding]:
    number = case.leaf.serial_number
    if 0 < number < 1 << 159:
        yield Finding("serial", True, serial_of(case.leaf))
    else:
        yield Finding("serial", False, "it must be positive and of at most 20 bytes (RFC 5280, 4.1.2.2)")


def _roots(case: _Case, *, named: bool) -> tuple[list[x509.Certificate], str]:
    """The roots for the certificate's trust domain, and where they are from or why there are none."""
    if BUNDLE not in case.texts:
        return [], "there is no bundle to check it with; give one with --bundle FILE"
    own = bundle.parse(case.texts[BUNDLE], BUNDLE)
    domain = trust.domain_of(case.leaf)
    domains = {trust.domain_of(root) for root in own} - {None}
    if named or domain is None or not domains or domain in domains:
        return own, "the bundle"
    others = read_federated(case.texts.get(FEDERATED), FEDERATED, "")
    if domain in others:
        return bundle.parse(others[domain], FEDERATED), f"the bundle of {domain}"
    return [], f"its trust domain {domain} is neither {' nor '.join(sorted(map(str, domains)))} nor federated"


def _chain(case: _Case, roots: Sequence[x509.Certificate], source: str) -> Iterator[Finding]:
    # What is valid now comes first: beside an expired root or cross certificate the good way is found.
    pool = sorted(case.chain[1:], key=lambda one: not _in_time(one, case.now))
    anchors = sorted(roots, key=lambda one: not _in_time(one, case.now))
    path, why = _climb(case.leaf, pool, anchors, set())
    if path is None:
        yield Finding("chain", False, f"it does not lead to {source}: {why}")
        return
    shown = " < ".join(common_name(one) for one in (case.leaf, *path))
    wrong = [text for depth, one in enumerate(path) for text in _wrong_ca(one, depth)]
    yield Finding(
        "chain", not wrong, f"{shown}" + (f": {'; '.join(wrong)}" if wrong else ", which is trusted")
    )
    for one in path:
        if not _in_time(one, case.now):
            yield Finding("chain", False, _life(one, case.now))


def _climb(
    below: x509.Certificate,
    pool: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    seen: set[x509.Certificate],
) -> tuple[list[x509.Certificate] | None, str]:
    """The CAs from above `below` to a root; or None, and how far it went. None of `seen` is gone through
    again: a file of CAs that all sign each other would take for ever."""
    why = (
        f"who signed {common_name(below)} ({below.issuer.rfc4514_string() or 'nobody by name'}) is not there"
    )
    for root in roots:
        if _signed(below, root):
            return [root], ""
        if root.subject == below.issuer:
            why = f"the signature on {common_name(below)} is not by {common_name(root)}'s key"
    for one in pool:
        if one in seen:
            continue
        if _signed(below, one):
            seen.add(one)
            path, why = _climb(one, pool, roots, seen)
            if path is not None:
                return [one, *path], ""
        elif one.subject == below.issuer:
            why = f"the signature on {common_name(below)} is not by {common_name(one)}'s key"
    return None, why


def _signed(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _wrong_ca(one: x509.Certificate, below: int) -> Iterator[str]:
    """What keeps a CA from having `below` CAs between it and the workload's certificate."""
    name = common_name(one)
    try:
        constraints = one.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            yield f"{name} is no CA"
        elif constraints.path_length is not None and constraints.path_length < below:
            yield f"{name} allows {constraints.path_length} CAs below it, and there are {below}"
    except x509.ExtensionNotFound:
        yield f"{name} is no CA"
    try:
        if not one.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            yield f"{name} may not sign certificates"
    except x509.ExtensionNotFound:
        pass  # RFC 5280, 4.2.1.3: not limited


def _times(case: _Case) -> Iterator[Finding]:
    yield Finding("time", _in_time(case.leaf, case.now), _life(case.leaf, case.now))


def _in_time(one: x509.Certificate, now: float) -> bool:
    return start_of(one) <= now <= end_of(one)


def _life(one: x509.Certificate, now: float) -> str:
    name = common_name(one)
    if now < start_of(one):
        return f"{name} is valid from {proof.when(start_of(one))} only, and the clock says {proof.when(now)}"
    if now > end_of(one):
        return f"{name} expired at {proof.when(end_of(one))}, and the clock says {proof.when(now)}"
    return f"{name} is valid until {proof.when(end_of(one))}"


def _denied(case: _Case) -> Iterator[Finding]:
    serial = serial_of(case.leaf)
    if serial in read_revoked(case.texts.get(REVOKED), REVOKED):
        yield Finding("deny list", False, f"{serial} was revoked")
    else:
        yield Finding("deny list", True, "it is not on it" if REVOKED in case.texts else "there is none")


def _key(case: _Case) -> Iterator[Finding]:
    if KEY not in case.texts:
        yield Finding("key", None, "not looked at: it is not beside the certificate")
        return
    labels = proof.Labels(CERTIFICATE, KEY, BUNDLE)
    try:
        key = keys.load(case.texts[KEY], KEY)
        if key.public_key() != case.leaf.public_key():
            yield Finding("key", False, f"{KEY} is not the key of the certificate")
            return
        proof.prove(case.texts[CERTIFICATE], case.texts[KEY], case.texts.get(BUNDLE, ""), case.now, labels)
    except PkiError as error:
        yield Finding("key", False, f"OpenSSL does not shake hands with it: {error.problem}")
    else:
        yield Finding("key", True, "belongs to the certificate; OpenSSL shakes hands with itself")
