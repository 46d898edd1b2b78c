"""The pki directory, and the identity of a workload out of it.

    <pki>/                              0700
      .fastmesh-lock                    held by every command that writes
      ca/                               the authority: for `certs` commands, a sidecar does not need it
        authority.json                  format and trust domain
        bundle.pem                      the roots that this trust domain trusts
        issued.jsonl                    append-only: a line for each certificate, written before it is in use
        root/{certificate,key}.pem      an entry (see `files`); the key may be kept elsewhere
        issuer/{certificate,key}.pem    an entry; signs the workloads' certificates
      workloads/
        NAME/{certificate,key,bundle}.pem    an entry; certificate.pem is the leaf, then its issuers

Another host needs `<pki>/workloads/NAME` alone. A plain directory with the three files (a mounted secret) is
as good as an entry.

This module is imported by every sidecar: it stays small, and `cryptography` must not be reached from it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Final

from fastmesh.certs import files, spiffe
from fastmesh.certs.errors import PkiError, reason

__all__ = ["Identity", "Layout", "PkiError", "load_identity"]

CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
BUNDLE: Final = "bundle.pem"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's key, certificate and trust bundle, which belong together and were proven to.

    The first three are PEM: `certificate` is the leaf followed by its issuers, `bundle` the roots. Times are
    Unix seconds. The key never shows in a `repr`.
    """

    certificate: str
    key: str = field(repr=False)
    bundle: str
    spiffe_id: str
    not_before: int
    not_after: int


class Layout:
    """The paths inside a pki directory."""

    __slots__ = ("authority", "bundle", "ca", "issuer", "pki", "record", "root", "workloads")

    def __init__(self, pki: Path) -> None:
        self.pki = pki
        self.ca = pki / "ca"
        self.authority = self.ca / "authority.json"
        self.bundle = self.ca / BUNDLE
        self.record = self.ca / "issued.jsonl"
        self.root = self.ca / "root"
        self.issuer = self.ca / "issuer"
        self.workloads = pki / "workloads"

    def workload(self, name: str) -> Path:
        """The entry of a workload; `name` must be checked already."""
        return self.workloads / name


def load_identity(
    pki: Path, workload: str, *, trust_domain: str | None = None, now: float | None = None
) -> Identity:
    """The identity of `workload`, proven usable at this moment.

    Proven means: the key belongs to the certificate, the chain leads to the bundle, every certificate is
    within its times, and the certificate is the X.509-SVID of `spiffe://TRUST_DOMAIN/WORKLOAD`. Without
    `trust_domain` it is that of the authority in the same directory, if there is one. Raises PkiError.

    Refused too is a key that others can read or that its group can write; group read is let pass.
    """
    try:
        name = spiffe.workload(workload)
    except spiffe.SpiffeError as error:
        raise PkiError(str(error)) from None
    layout = Layout(pki)
    entry = layout.workload(name)
    issue = f"run: {command('issue', name, pki)}"
    try:
        found = files.read_entry(entry, (CERTIFICATE, KEY, BUNDLE))
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
        wanted = spiffe.SpiffeId(
            expected if expected is not None else proven.spiffe_id.trust_domain, f"/{name}"
        )
        if proven.spiffe_id != wanted:
            raise PkiError(f"the certificate in {entry} is of {proven.spiffe_id}, not of {wanted}")
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
    )


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


def command(name: str, argument: str, pki: Path) -> str:
    """A command for a person to copy."""
    return " ".join(
        ["fastmesh certs", name, *([quote(argument)] if argument else []), "--pki", quote(str(pki))]
    )


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
