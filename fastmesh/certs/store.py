"""The pki directory, and the identity of a workload out of it.

    <pki>/                              0700
      .fastmesh-lock                    held by every command that writes
      ca/                               the authority: for `certs` commands, a sidecar does not need it
        authority.json                  format, trust domain, and what `init` was told of keys and lives
        bundle.pem                      the roots that this trust domain trusts
        sequence.json                   number of changes of the bundle
        federated/DOMAIN.pem            the roots of other trust domains
        revoked.json                    deny list
        issued.jsonl                    append-only: a line for each certificate, written before it is in use
        root/{certificate,key}.pem      an entry (see `files`); the key may be kept elsewhere
        issuer/{certificate,key}.pem    an entry; signs the workloads' certificates
        next-root/, cross.pem, rotation.json    while the root is being replaced
      workloads/
        NAME/{certificate,key,bundle}.pem    an entry; certificate.pem is the leaf, then its issuers
        NAME/federated.json             {"DOMAIN": "PEM", ...}, where other trust domains are trusted
        NAME/revoked.json               {"revoked": ["SERIAL", ...]}, where certificates are revoked

Another host needs `<pki>/workloads/NAME` alone. A plain directory with the files (a mounted secret) is as
good as an entry. A certificate for a key that is elsewhere has an entry without `key.pem`.

This module is imported by every sidecar: it stays small, and `cryptography` must not be reached from it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Final

from fastmesh.certs import files, spiffe
from fastmesh.certs.errors import PkiError, reason

__all__ = ["Identity", "Layout", "PkiError", "load_identity"]

CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
BUNDLE: Final = "bundle.pem"
FEDERATED: Final = "federated.json"
REVOKED: Final = "revoked.json"
FORMAT: Final = 1

# RFC 5280 section 4.1.2.2: above zero, at most 20 octets. Zeros in front are no part of it.
_SERIAL: Final = re.compile(r"0{0,63}([1-9a-f][0-9a-f]{0,39})")


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's key, certificate and trust bundle, which belong together and were proven to.

    The first three are PEM: `certificate` is the leaf followed by its issuers, `bundle` the roots. Times are
    Unix seconds: of the certificate, of the first issuer above it to end, and of the first root to end among
    those in the bundle that are valid. `federated` is the roots (PEM) of other trust domains by name,
    `revoked` the serials of certificates to be refused, hexadecimal in lower case, sorted. The key never
    shows in a `repr`.
    """

    certificate: str
    key: str = field(repr=False)
    bundle: str
    spiffe_id: str
    not_before: int
    not_after: int
    issuer_not_before: int
    issuer_not_after: int
    root_not_before: int
    root_not_after: int
    federated: Mapping[str, str] = field(default_factory=dict)
    revoked: tuple[str, ...] = ()


class Layout:
    """The paths inside a pki directory."""

    __slots__ = (
        "authority",
        "bundle",
        "ca",
        "cross",
        "federated",
        "issuer",
        "next_root",
        "pki",
        "record",
        "revoked",
        "root",
        "rotation",
        "sequence",
        "workloads",
    )

    def __init__(self, pki: Path) -> None:
        self.pki = pki
        self.ca = pki / "ca"
        self.authority = self.ca / "authority.json"
        self.bundle = self.ca / BUNDLE
        self.record = self.ca / "issued.jsonl"
        self.root = self.ca / "root"
        self.issuer = self.ca / "issuer"
        self.sequence = self.ca / "sequence.json"
        self.federated = self.ca / "federated"
        self.revoked = self.ca / REVOKED
        self.next_root = self.ca / "next-root"
        self.cross = self.ca / "cross.pem"
        self.rotation = self.ca / "rotation.json"
        self.workloads = pki / "workloads"

    def workload(self, name: str) -> Path:
        """The entry of a workload; `name` must be checked already."""
        return self.workloads / name


def load_identity(
    pki: Path,
    workload: str,
    *,
    trust_domain: str | None = None,
    spiffe_id: str | None = None,
    now: float | None = None,
) -> Identity:
    """The identity of `workload`, proven usable at this moment.

    Proven means: the key belongs to the certificate, the chain leads to the bundle, every certificate is
    within its times, the certificate is not on the deny list, and it is the X.509-SVID of `spiffe_id`, which
    without being told is `spiffe://TRUST_DOMAIN/WORKLOAD`. Without `trust_domain` it is that of the authority
    in the same directory, if there is one. Raises PkiError.

    Refused too is a key that others can read or that its group can write; group read is let pass.
    """
    try:
        name = spiffe.workload(workload)
        told = None if spiffe_id is None else spiffe.parse(spiffe_id)
    except spiffe.SpiffeError as error:
        raise PkiError(str(error)) from None
    layout = Layout(pki)
    entry = layout.workload(name)
    special = ("--spiffe", told.path) if told is not None and told.path != f"/{name}" else ()
    issue = f"run: {command('issue', name, pki, *special)}"
    try:
        found = files.read_entry(entry, (CERTIFICATE, KEY, BUNDLE), (FEDERATED, REVOKED))
    except FileNotFoundError as error:
        raise missing(layout, name, error) from None
    except OSError as error:
        raise PkiError(f"{error.filename or entry} cannot be read: {reason(error)}") from error
    except PkiError as error:
        raise PkiError(error.problem, error.remedy or issue) from None
    expected = trust_domain if trust_domain is not None else _domain_beside(layout)
    # Not at the top: `ssl` is not needed where a configuration has no identity.
    from fastmesh.certs import proof

    try:
        proven = proof.prove(
            found[CERTIFICATE],
            found[KEY],
            found[BUNDLE],
            time.time() if now is None else now,
            proof.Labels(f"{entry}/{CERTIFICATE}", f"{entry}/{KEY}", f"{entry}/{BUNDLE}"),
        )
        domain = proven.spiffe_id.trust_domain
        wanted = told or spiffe.SpiffeId(domain if expected is None else expected, f"/{name}")
        if proven.spiffe_id != wanted:
            raise PkiError(f"the certificate in {entry} is of {proven.spiffe_id}, not of {wanted}")
        federated = read_federated(found.get(FEDERATED), f"{entry}/{FEDERATED}", domain)
        for other, roots in federated.items():
            proof.check_roots(roots, f"{entry}/{FEDERATED} (for {other})")
        revoked = read_revoked(found.get(REVOKED), f"{entry}/{REVOKED}")
        if proven.serial in revoked:
            raise PkiError(f"the certificate in {entry} was revoked")
    except PkiError as error:
        raise PkiError(error.problem, error.remedy or issue) from None
    except OSError as error:
        at = f" ({error.filename})" if error.filename else ""
        raise PkiError(f"the identity in {entry} cannot be checked: {reason(error)}{at}") from error
    return Identity(
        certificate=found[CERTIFICATE],
        key=found[KEY],
        bundle=found[BUNDLE],
        spiffe_id=str(proven.spiffe_id),
        not_before=proven.not_before,
        not_after=proven.not_after,
        issuer_not_before=proven.issuer_not_before,
        issuer_not_after=proven.issuer_not_after,
        root_not_before=proven.root_not_before,
        root_not_after=proven.root_not_after,
        federated=MappingProxyType(federated),
        revoked=revoked,
    )


def read_federated(text: str | None, where: str, own: str) -> dict[str, str]:
    """What `federated.json` says, by trust domain. Raises PkiError when it is damaged, or claims to speak for
    `own`, the workload's trust domain."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
        result = {spiffe.trust_domain(domain): found[domain] for domain in sorted(found)}
        if type(found) is not dict or not all(type(roots) is str for roots in result.values()):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise PkiError(f"{where} is damaged") from None
    if own in result:
        raise PkiError(f"{where} has roots for {own}, the trust domain of the workload itself")
    return result


def read_revoked(text: str | None, where: str) -> tuple[str, ...]:
    """The serials in `revoked.json`, sorted, each of at least 32 digits. Raises PkiError when it is damaged:
    what cannot be read must not pass for an empty list."""
    if text is None:
        return ()
    try:
        serials = json.loads(text)["revoked"]
        if type(serials) is not list:
            raise TypeError
        found = [_SERIAL.fullmatch(serial) for serial in serials]
        if None in found:
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise PkiError(f"{where} is damaged") from None
    # As they are written everywhere else, or a certificate would not be found among them.
    return tuple(sorted({one[1].zfill(32) for one in found if one is not None}))


def read_trust_domain(layout: Layout) -> str:
    """The trust domain of the authority. Raises PkiError, or OSError as the system gave it."""
    text = files.read_text(layout.authority)
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise PkiError(
                f"{layout.authority} has format {facts['format']!r}; this fastmesh reads format {FORMAT}",
                "use the fastmesh that wrote it, or a newer one",
            )
        return spiffe.trust_domain(facts["trust_domain"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise PkiError(
            f"{layout.authority} is damaged", "restore it from a backup of the directory"
        ) from None


def command(name: str, argument: str, pki: Path, *options: str) -> str:
    """A command for a person to copy."""
    arguments = [*([argument] if argument else []), *options, "--pki", str(pki)]
    return " ".join(["fastmesh certs", name, *map(quote, arguments)])


def _domain_beside(layout: Layout) -> str | None:
    try:
        return read_trust_domain(layout)
    except (OSError, PkiError):
        return None  # a sidecar may not be allowed to read the authority, and does not depend on it


def missing(layout: Layout, name: str, error: FileNotFoundError) -> PkiError:
    """What to say when a file of a workload is not there: what is missing, and the commands that make it."""
    entry = layout.workload(name)
    if not layout.pki.is_dir():
        problem = f"there is no pki directory {layout.pki}"
    elif not entry.is_dir():
        problem = f"{layout.pki} has no identity for the workload {name}"
    else:
        problem = f"{error.filename or os.fspath(entry)} is missing"
    if layout.ca.is_dir():
        return PkiError(problem, f"run: {command('issue', name, layout.pki)}")
    return PkiError(
        problem, f"run: {command('init', '', layout.pki)} && {command('issue', name, layout.pki)}"
    )
