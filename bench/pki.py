"""The mesh's certificates, the same for all proxies: made once a run by the authority of `fastmesh certs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastmesh.certs import authority
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Layout

TRUST_DOMAIN: Final = "mesh.local"
WORKLOADS: Final = ("svc-a", "svc-b")


@dataclass(frozen=True)
class Identity:
    """Files of one workload, PEM."""

    certificate: Path  # the leaf, then the issuing CA
    key: Path
    both: Path  # certificate and key in one file, as HAProxy wants it
    bundle: Path  # the root


@dataclass(frozen=True)
class Pki:
    """The authority's directory, and what each workload has there."""

    path: Path
    identities: dict[str, Identity]


def make(directory: Path) -> Pki:
    """A fresh PKI in `directory`: one identity a workload."""
    authority.create(directory, TRUST_DOMAIN)
    return Pki(directory, {name: _issue(directory, name) for name in WORKLOADS})


def _issue(directory: Path, name: str) -> Identity:
    authority.issue(directory, name)
    home = Layout(directory).workload(name)
    identity = Identity(home / CERTIFICATE, home / KEY, directory / f"{name}.pem", home / BUNDLE)
    identity.both.touch(mode=0o600)
    identity.both.write_text(identity.certificate.read_text() + identity.key.read_text())
    return identity
