"""The certificate authority: a root, an issuing CA under it, and the workloads' certificates.

Every function that writes holds the directory's lock from its first read to its last write, so that commands
may run at the same time; the order of the writes is such that a kill between any two leaves the directory
usable:

- `create` builds the whole `ca` directory aside and renames it into place: it is there completely or not at
  all, and a rename cannot replace an authority that exists.
- `issue` and `renew` prove the new identity, put the certificate on record, and only then publish key,
  certificate and trust in one step. So nothing is in use that is not on record; what is on record need not
  have come into use.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fastmesh.certs import files, keys, proof, record, spiffe, templates, trust
from fastmesh.certs.errors import PkiError
from fastmesh.certs.keys import UNREADABLE, PublicKey
from fastmesh.certs.signer import (
    CLOCK_SKEW,
    ISSUER_LIFE,
    MIN_LEAF_LIFE,
    RESTORE,
    ROOT_LIFE,
    Facts,
    Issuer,
    certificate,
    failures,
    locked,
    read_issuer,
)
from fastmesh.certs.store import CERTIFICATE, KEY, Layout, command, missing
from fastmesh.certs.templates import Names, Signer, end_of, serial_of, start_of

LEAF_LIFE: Final = 86400  # seconds


@dataclass(frozen=True, slots=True)
class Created:
    """A new authority. Times are Unix seconds."""

    trust_domain: str
    root_not_after: int
    issuer_not_after: int


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is in place. `serial` is hexadecimal; `capped`: it ends with its issuer, before its
    ttl (seconds, as asked for); `keyless`: its key is not in the directory."""

    workload: str
    spiffe_id: str
    serial: str
    not_before: int
    not_after: int
    ttl: int
    capped: bool
    keyless: bool = False


class NotRenewable(PkiError):
    """The certificate is not one that is renewed: revoked, not on record, or its key is elsewhere."""


def create(
    pki: Path,
    trust_domain: str,
    *,
    key: str = keys.DEFAULT,
    root_life: int = ROOT_LIFE,
    issuer_life: int = ISSUER_LIFE,
    passphrase: str | None = None,
    now: float | None = None,
) -> Created:
    """Makes a root and an issuing CA in `pki`, of a kind of `keys.KINDS` and valid for that many seconds; the
    root's key is encrypted with the passphrase. Raises PkiError, always if there is an authority already."""
    facts = Facts(spiffe.trust_domain(trust_domain), key, root_life, issuer_life)
    start = int(time.time() if now is None else now) - CLOCK_SKEW
    layout = Layout(pki)
    with failures(f"the authority in {pki} cannot be made"):
        files.make_directory(pki)
        with files.lock(pki), files.stage(pki) as stage:
            _refuse_existing(layout)
            root_key, issuer_key = keys.new(key), keys.new(key)
            domain = facts.trust_domain
            root = templates.root(root_key, domain, start, start + root_life)
            issuer = templates.issuer(
                issuer_key.public_key(), Signer(root, root_key), domain, start, start + issuer_life
            )
            made = Layout(stage)
            made.ca.mkdir(mode=files.DIRECTORY_MODE)
            made.ca.chmod(files.DIRECTORY_MODE)
            for entry, one, key_text, by in (
                (made.root, root, keys.pem(root_key, passphrase), ""),
                (made.issuer, issuer, keys.pem(issuer_key), serial_of(root)),
            ):
                files.write_entry(entry, {CERTIFICATE: templates.pem(one), KEY: key_text}, serial_of(one))
                record.append(made.record, templates.entry(entry.name, None, one, by))
            files.write_new(made.bundle, templates.pem(root), files.PUBLIC_MODE)
            files.write_new(made.authority, facts.text(), files.PUBLIC_MODE)
            files.sync_directory(made.ca)
            try:
                made.ca.rename(layout.ca)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    _refuse_existing(layout)
                raise
            files.sync_directory(pki)
    return Created(domain, end_of(root), end_of(issuer))


def issue(
    pki: Path,
    workload: str,
    ttl: int = LEAF_LIFE,
    *,
    dns: Sequence[str] = (),
    addresses: Sequence[IPv4Address | IPv6Address] = (),
    path: str | None = None,
    public: PublicKey | None = None,
    now: float | None = None,
) -> Issued:
    """Makes a key and certificate for `workload`, valid `ttl` seconds from now, and puts them into `pki`.

    The certificate names `path` of the trust domain (`/WORKLOAD` without being told), the workload as DNS
    name, and what `dns` and `addresses` add. With `public` no key is made: the certificate is for that one,
    whose owner was proven to have the other half (see `requests`).

    A certificate never outlives its issuer: a longer `ttl` is cut short and `capped` says so. Raises
    PkiError; the workload then has what it had before or, if only the very last step failed, the new files:
    whole in any case.
    """
    name = spiffe.workload(workload)
    extra = [spiffe.dns_name(one) for one in dns]
    if ttl < MIN_LEAF_LIFE:
        raise ValueError(f"a certificate's life is at least {MIN_LEAF_LIFE} seconds, not {ttl}")
    layout = Layout(pki)
    with failures(f"no certificate for {name} can be issued in {pki}"), locked(layout):
        # Taken under the lock: a command that waited for it must not issue for a time that has passed.
        moment = time.time() if now is None else now
        issuer = read_issuer(layout, moment)
        subject = spiffe.SpiffeId(issuer.facts.trust_domain, f"/{name}" if path is None else path)
        try:
            checked = spiffe.parse(str(subject))
        except spiffe.SpiffeError as error:
            raise PkiError(str(error)) from None
        names = Names(
            name,
            checked,
            list(dict.fromkeys([name, *extra])),
            list(dict.fromkeys(addresses)),
        )
        return _put(layout, issuer, names, ttl=ttl, moment=moment, public=public)


def renew(pki: Path, workload: str, *, now: float | None = None) -> Issued:
    """Gives `workload` a new key, and a certificate with the names and the life of the one that it has.

    Raises PkiError; in particular when that one is not on record as this workload's (the names in a file are
    taken for what the authority once decided, so it must have), when it was revoked, or when its key is
    elsewhere.
    """
    name = spiffe.workload(workload)
    layout = Layout(pki)
    entry = layout.workload(name)
    where = f"{entry}/{CERTIFICATE}"
    remedy = f"run: {command('issue', name, pki)}"
    with failures(f"no certificate for {name} can be issued in {pki}"), locked(layout):
        moment = time.time() if now is None else now
        issuer = read_issuer(layout, moment)
        try:
            found = files.read_entry(entry, (CERTIFICATE,), (KEY,))
        except FileNotFoundError as error:
            raise missing(layout, name, error) from None
        leaf = certificate(found[CERTIFICATE], where, remedy)
        serial = serial_of(leaf)
        known = record.find(layout.record, serial)
        if known is None or known.workload != name or known.sha256 != leaf.fingerprint(hashes.SHA256()).hex():
            raise NotRenewable(f"{where} is not on record as a certificate of {name}", remedy)
        if any(one.serial == serial for one in trust.read_denied(layout)):
            raise NotRenewable(f"the certificate of {name} was revoked", remedy)
        if KEY not in found:
            raise NotRenewable(
                f"the key of {name} is not in {pki}",
                f"make a request where the key is, and run: {command('issue', name, pki, '--csr', 'FILE')}",
            )
        life = known.ttl or known.not_after - known.not_before - CLOCK_SKEW
        names = _names(leaf, name, where)
        return _put(layout, issuer, names, ttl=max(life, MIN_LEAF_LIFE), moment=moment, public=None)


def _put(
    layout: Layout,
    issuer: Issuer,
    names: Names,
    *,
    ttl: int,
    moment: float,
    public: PublicKey | None,
) -> Issued:
    """Signs, proves, records and publishes. The lock is held."""
    name = names.common
    trusted = trust.read(layout, moment)
    start = int(moment)
    own = None if public is not None else keys.new(issuer.facts.key)
    leaf = templates.leaf(
        own.public_key() if public is None else public,  # type: ignore[union-attr]
        issuer.signer,
        names,
        start - CLOCK_SKEW,
        start + ttl,
    )
    identity = {CERTIFICATE: templates.pem(leaf) + issuer.chain}
    if own is not None:
        identity[KEY] = keys.pem(own)
    elif key := _key_here(layout.workload(name), leaf):
        identity[KEY] = key
    try:
        _prove(layout, issuer, identity, trusted.bundle, names=names, moment=moment)
    except PkiError as error:
        raise PkiError(f"the authority in {layout.ca} is damaged: {error.problem}", RESTORE) from None
    by = serial_of(issuer.signer.certificate)
    record.append(layout.record, templates.entry("workload", name, leaf, by, ttl))
    trust.publish(layout, name, identity, trusted, serial_of(leaf))
    end = end_of(leaf)
    return Issued(
        name,
        str(names.spiffe_id),
        serial_of(leaf),
        start_of(leaf),
        end,
        ttl,
        capped=end < start + ttl,
        keyless=KEY not in identity,
    )


def _prove(
    layout: Layout, issuer: Issuer, identity: dict[str, str], bundle: str, *, names: Names, moment: float
) -> None:
    # What a new certificate fails for is the fault of the issuer above it.
    labels = proof.Labels(f"{layout.issuer}/{CERTIFICATE}", f"{layout.issuer}/{KEY}", str(layout.bundle))
    certified, key = identity[CERTIFICATE], identity.get(KEY)
    if key is None:
        # The key that could shake hands is elsewhere. The same names for a key that is here take its place.
        own = keys.new()
        start = int(moment)
        stand_in = templates.leaf(
            own.public_key(), issuer.signer, names, start - CLOCK_SKEW, start + CLOCK_SKEW
        )
        certified, key = templates.pem(stand_in) + issuer.chain, keys.pem(own)
    proof.prove(certified, key, bundle, moment, labels)


def _key_here(entry: Path, leaf: x509.Certificate) -> str | None:
    """The key that a workload has in the directory, if the certificate is for that one."""
    try:
        text = files.read_entry(entry, (KEY,))[KEY]
        return text if keys.load(text, KEY).public_key() == leaf.public_key() else None
    except (OSError, PkiError):
        return None


def _names(leaf: x509.Certificate, name: str, where: str) -> Names:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = found.get_values_for_type(x509.UniformResourceIdentifier)
        return Names(
            name,
            spiffe.parse(uri),
            found.get_values_for_type(x509.DNSName),
            [
                one
                for one in found.get_values_for_type(x509.IPAddress)
                if isinstance(one, IPv4Address | IPv6Address)
            ],
        )
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise PkiError(f"{where} is no X.509-SVID: its names cannot be read") from None


def _refuse_existing(layout: Layout) -> None:
    # An empty directory is no authority; everything else is left alone, whole or not.
    if os.path.lexists(layout.ca) and not (layout.ca.is_dir() and not any(layout.ca.iterdir())):
        raise PkiError(
            f"{layout.ca} exists already; nothing was changed",
            "give another directory with --pki, or move that one away",
        )
