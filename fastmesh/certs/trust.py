"""What workloads trust: the roots, other trust domains' roots, the deny list; and how it reaches them.

The authority's own files say what is to be trusted (`bundle.pem`, `federated/`, `revoked.json`). Entries of
workloads carry a copy. A command that changes the former writes it first, and then **republishes**: every
entry gets a new version with the same key and certificate and the new trust. A kill in between leaves entries
with the trust of before, each whole; the same command again, or any other that republishes, goes on from
there, because what an entry holds is compared, not remembered.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from cryptography import x509

from fastmesh.certs import files, proof, spiffe
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.signer import CLOCK_SKEW, RESTORE, certificate
from fastmesh.certs.store import (
    BUNDLE,
    CERTIFICATE,
    FEDERATED,
    KEY,
    REVOKED,
    Layout,
    read_revoked,
    read_trust_domain,
)
from fastmesh.certs.store import read_federated as store_federated
from fastmesh.certs.templates import serial_of

_TRUST_FILES: Final = (BUNDLE, FEDERATED, REVOKED)


@dataclass(frozen=True, slots=True)
class Denied:
    """A line of the deny list. Times are Unix seconds; `serial` is hexadecimal."""

    serial: str
    workload: str
    not_after: int
    time: int


@dataclass(frozen=True, slots=True)
class Trust:
    """What is to be trusted now: PEM, PEM by trust domain, serials."""

    bundle: str
    federated: Mapping[str, str] = field(default_factory=dict)
    revoked: tuple[str, ...] = ()

    def files(self) -> dict[str, str]:
        """The files of an entry that carry it, those with content only."""
        found = {BUNDLE: self.bundle}
        if self.federated:
            found[FEDERATED] = json.dumps(dict(sorted(self.federated.items())), indent=1) + "\n"
        if self.revoked:
            found[REVOKED] = json.dumps({"revoked": list(self.revoked)}, indent=1) + "\n"
        return found


def read(layout: Layout, now: float | None = None) -> Trust:
    """What the authority's files say. Raises PkiError, in particular when one is damaged, as it would break
    every workload; OSError as the system gave it."""
    moment = time.time() if now is None else now
    serials = sorted(one.serial for one in read_denied(layout) if not _is_over(one, moment))
    bundle, others = files.read_text(layout.bundle), read_federated(layout)
    try:
        proof.check_roots(bundle, str(layout.bundle))
        for domain, roots in others.items():
            proof.check_roots(roots, str(layout.federated / f"{domain}.pem"))
    except PkiError as error:
        raise PkiError(error.problem, RESTORE) from None
    return Trust(bundle, others, tuple(serials))


def read_federated(layout: Layout) -> dict[str, str]:
    """The roots of other trust domains, by name. Raises PkiError for a file that is called after none."""
    try:
        paths = sorted(path for path in layout.federated.iterdir() if path.name.endswith(".pem"))
    except FileNotFoundError:
        return {}
    found = {}
    for path in paths:
        domain = path.name.removesuffix(".pem")
        try:
            if spiffe.trust_domain(domain) == read_trust_domain(layout):
                raise PkiError(f"{path} is called after this authority's own trust domain", "remove it")
        except spiffe.SpiffeError:
            raise PkiError(f"{path} is not called after a trust domain", "remove it") from None
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found[domain] = files.read_text(path)
    return found


def read_denied(layout: Layout) -> list[Denied]:
    """The deny list. Raises PkiError when it is damaged: it must not pass for an empty one."""
    try:
        text = files.read_text(layout.revoked)
    except FileNotFoundError:
        return []
    try:
        found = [Denied(**one) for one in json.loads(text)["revoked"]]
        read_revoked(json.dumps({"revoked": [one.serial for one in found]}), str(layout.revoked))
        if not all(type(value) is int for one in found for value in (one.not_after, one.time)):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError, PkiError):
        raise PkiError(f"{layout.revoked} is damaged", RESTORE) from None
    return found


def write_denied(layout: Layout, denied: Iterable[Denied], now: float) -> None:
    """Replaces the deny list. What is over is left out, unless it is what the workload still has: a
    certificate that was revoked must not be renewed after its end either. The caller holds the lock."""
    kept: list[dict[str, Any]] = [
        asdict(one) for one in denied if not _is_over(one, now) or _may_have(layout, one)
    ]
    files.replace(
        layout.revoked, json.dumps({"revoked": kept}, indent=1) + "\n", files.PUBLIC_MODE, layout.pki
    )


def write_bundle(layout: Layout, bundle: str) -> None:
    """Replaces the roots of the own trust domain, and counts the change. The caller holds the lock."""
    before = files.read_text(layout.bundle)
    if before == bundle:
        return
    number = sequence(layout, before)
    if not layout.sequence.exists():
        # Counted before the first change: after a kill between the two below, it must not pass for none.
        _count(layout, number, before)
    files.replace(layout.bundle, bundle, files.PUBLIC_MODE, layout.pki)
    _count(layout, number + 1, bundle)


def sequence(layout: Layout, bundle: str) -> int:
    """The number of this bundle: it grows with every change (Trust Domain and Bundle standard, 4.1.1)."""
    try:
        found = json.loads(files.read_text(layout.sequence))
        number = int(found["sequence"])
        # Another bundle than was counted: a kill before the count, or an editor.
        return number if found["bundle"] == _digest(bundle) else number + 1
    except FileNotFoundError:
        return 1
    except (ValueError, LookupError, TypeError, RecursionError):
        raise PkiError(f"{layout.sequence} is damaged", RESTORE) from None


def workloads(layout: Layout) -> list[str]:
    """The workloads that have an entry."""
    try:
        found = [path.name for path in layout.workloads.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if _is_workload(name))


def publish(layout: Layout, name: str, identity: Mapping[str, str], trust: Trust, version: str) -> None:
    """Makes a key and certificate, with what is trusted now, the entry of a workload. The caller holds the
    lock."""
    files.make_directory(layout.workloads)
    files.write_entry(layout.workload(name), {**identity, **trust.files()}, version)


def republish(layout: Layout, trust: Trust, *, without: str | None = None) -> list[str]:
    """Gives every entry what is trusted now, and takes the certificate `without` (PEM) out of the chains.

    Returns a remark for each entry that was left alone: unreadable, of another trust domain, not to be
    changed by this user, or mounted from elsewhere. What the system refuses otherwise (disk full) is raised
    once all the others have it: one entry must not keep a revocation from the rest. The caller holds the
    lock.
    """
    domain = read_trust_domain(layout)
    remarks = []
    refused: OSError | None = None
    for name in workloads(layout):
        try:
            _republish(layout, name, trust, domain, without)
        except PkiError as error:
            remarks.append(f"{layout.workload(name)} was left as it is: {error.problem}")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                remarks.append(f"{layout.workload(name)} was left as it is: {reason(error)}")
            else:
                refused = refused or error
    if refused is not None:
        raise refused
    return remarks


def published_domains(layout: Layout) -> set[str]:
    """The other trust domains that some entry trusts, whatever the authority's files say by now."""
    found: set[str] = set()
    for name in workloads(layout):
        with contextlib.suppress(OSError, PkiError):
            text = files.read_entry(layout.workload(name), (FEDERATED,))[FEDERATED]
            found |= store_federated(text, FEDERATED, "").keys()
    return found


def new_version(serial: str) -> str:
    """The name of another version of an entry that keeps its certificate."""
    return f"{serial}-{os.urandom(4).hex()}"


def _republish(layout: Layout, name: str, trust: Trust, domain: str, without: str | None) -> None:
    entry = layout.workload(name)
    where = f"{entry}/{CERTIFICATE}"
    if os.path.lexists(entry / "..data"):
        raise PkiError("it is mounted from elsewhere")
    try:
        found = files.read_entry(entry, (CERTIFICATE,), (KEY, *_TRUST_FILES))
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} is missing") from None
    except PermissionError as error:
        raise PkiError(f"{error.filename}: {reason(error)}") from None
    leaf = certificate(found[CERTIFICATE], where)
    if domain_of(leaf) != domain:
        raise PkiError(f"its certificate is not of the trust domain {domain}")
    wanted = {CERTIFICATE: _chain(found[CERTIFICATE], where, without)}
    if KEY in found:
        wanted[KEY] = found[KEY]
    wanted |= trust.files()
    if wanted != found:
        files.write_entry(entry, wanted, new_version(serial_of(leaf)))


def _chain(text: str, where: str, without: str | None) -> str:
    if without is None:
        return text
    unwanted = without.split()
    kept = [one for one in proof.certificates(text, where) if one.split() != unwanted]
    return text if len(kept) == len(proof.certificates(text, where)) else "".join(f"{one}\n" for one in kept)


def domain_of(leaf: x509.Certificate) -> str | None:
    """The trust domain of a certificate that names exactly one."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return spiffe.parse(uri).trust_domain
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None


def _is_over(one: Denied, now: float) -> bool:
    return now > one.not_after + CLOCK_SKEW


def _may_have(layout: Layout, one: Denied) -> bool:
    """Whether a certificate is the one in the entry of its workload; yes if that cannot be read."""
    if not _is_workload(one.workload):
        return False
    entry = layout.workload(one.workload)
    try:
        text = files.read_entry(entry, (CERTIFICATE,))[CERTIFICATE]
        return serial_of(certificate(text, str(entry))) == one.serial
    except FileNotFoundError:
        return False
    except (OSError, PkiError):
        return True


def _count(layout: Layout, number: int, bundle: str) -> None:
    facts = {"sequence": number, "bundle": _digest(bundle)}
    files.replace(layout.sequence, json.dumps(facts) + "\n", files.PUBLIC_MODE, layout.pki)


def _is_workload(name: str) -> bool:
    try:
        return spiffe.workload(name) == name
    except spiffe.SpiffeError:
        return False


def _digest(bundle: str) -> str:
    return hashlib.sha256(bundle.encode()).hexdigest()
