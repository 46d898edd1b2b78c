"""What is in a pki directory, for people: nothing here decides, nothing here writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fastmesh.certs import files, keys, proof, record, trust
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.store import CERTIFICATE, Layout, command, missing


def listing(pki: Path, now: float, *, everything: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """The workloads' certificates on record, as dictionaries with a `state`, and the damaged lines of the
    record.

    Without `everything` it is the one row a workload that matters: the certificate in use, else the newest.
    States: `valid`, `expired`, `revoked`, `replaced` (another one is in use), `missing` (none is, in this
    directory).
    """
    layout = Layout(pki)
    try:
        entries, damaged = record.read(layout.record)
    except FileNotFoundError:
        if layout.ca.is_dir():
            raise PkiError(f"{layout.record} is missing", "restore it from a backup") from None
        raise PkiError(
            f"there is no certificate authority in {pki}", f"run: {command('init', '', pki)}"
        ) from None
    denied = {one.serial for one in trust.read_denied(layout)}
    by_name: dict[str, list[record.Entry]] = {}
    for entry in entries:
        if entry.workload is not None:
            by_name.setdefault(entry.workload, []).append(entry)
    rows: list[dict[str, Any]] = []
    for name, own in by_name.items():
        in_use = _serial_in_use(layout.workload(name))
        chosen = own if everything else [next((e for e in own if e.serial == in_use), own[-1])]
        rows += [{**asdict(entry), "state": _state(entry, in_use, denied, now)} for entry in chosen]
    return rows, damaged


def spiffe_id(pki: Path, name: str) -> str | None:
    """The SPIFFE id in a workload's certificate, if it has exactly one URI. Raises PkiError."""
    leaf, _ = _read(pki, name, Layout(pki).workload(name))
    try:
        uris, _, _ = _names(leaf)
    except UNREADABLE:
        return None
    return uris[0] if len(uris) == 1 else None


def describe(pki: Path, name: str) -> list[tuple[str, str]]:
    """The certificate of a workload as pairs of label and text, from what stands in its file. Raises
    PkiError."""
    entry = Layout(pki).workload(name)
    try:
        return _facts(name, entry, *_read(pki, name, entry))
    except UNREADABLE:
        raise PkiError(
            f"{entry}/{CERTIFICATE} holds a certificate that cannot be read",
            f"run: {command('issue', name, pki)}",
        ) from None


def _facts(
    name: str, entry: Path, leaf: x509.Certificate, issuers: list[x509.Certificate]
) -> list[tuple[str, str]]:
    uris, dns, addresses = _names(leaf)
    return [
        ("workload", name),
        ("SPIFFE id", ", ".join(uris) or "none"),
        ("DNS name", ", ".join(dns) or "none"),
        *([("address", ", ".join(addresses))] if addresses else []),
        ("serial", f"{leaf.serial_number:032x}"),
        ("valid from", proof.when(leaf.not_valid_before_utc.timestamp())),
        ("valid until", proof.when(leaf.not_valid_after_utc.timestamp())),
        ("key", keys.described(leaf.public_key())),
        ("SHA-256", leaf.fingerprint(hashes.SHA256()).hex()),
        *(("issuer", _shown(issuer)) for issuer in issuers),
        ("files", str(entry)),
    ]


def _read(pki: Path, name: str, entry: Path) -> tuple[x509.Certificate, list[x509.Certificate]]:
    where = f"{entry}/{CERTIFICATE}"
    remedy = f"run: {command('issue', name, pki)}"
    try:
        text = files.read_entry(entry, (CERTIFICATE,))[CERTIFICATE]
    except FileNotFoundError as error:
        raise missing(Layout(pki), name, error) from None
    except OSError as error:
        raise PkiError(f"{error.filename or entry} cannot be read: {reason(error)}") from error
    try:
        chain = [x509.load_pem_x509_certificate(one.encode()) for one in proof.certificates(text, where)]
    except PkiError as error:
        raise PkiError(error.problem, remedy) from None
    return chain[0], chain[1:]


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], [], []
    return (
        names.get_values_for_type(x509.UniformResourceIdentifier),
        names.get_values_for_type(x509.DNSName),
        [str(address) for address in names.get_values_for_type(x509.IPAddress)],
    )


def _shown(issuer: x509.Certificate) -> str:
    return f"{issuer.subject.rfc4514_string()}, until {proof.when(issuer.not_valid_after_utc.timestamp())}"


def _serial_in_use(entry: Path) -> str | None:
    try:
        text = files.read_entry(entry, (CERTIFICATE,))[CERTIFICATE]
        leaf = proof.certificates(text, str(entry))[0]
        return f"{x509.load_pem_x509_certificate(leaf.encode()).serial_number:032x}"
    except (OSError, PkiError, *UNREADABLE):
        return None


def _state(entry: record.Entry, in_use: str | None, denied: set[str], now: float) -> str:
    if entry.serial in denied:
        return "revoked"
    if in_use is None:
        return "missing"
    if entry.serial != in_use:
        return "replaced"
    return "valid" if now <= entry.not_after else "expired"
