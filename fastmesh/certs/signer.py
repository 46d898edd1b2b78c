"""Opens the authority: its lock, what it was made with, and the keys that sign, checked before they do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from fastmesh.certs import files, keys, proof
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.store import CERTIFICATE, FORMAT, KEY, Layout, command, read_trust_domain
from fastmesh.certs.templates import Signer, end_of, start_of

# Seconds.
ROOT_LIFE: Final = 3652 * 86400
ISSUER_LIFE: Final = 365 * 86400
MIN_LEAF_LIFE: Final = 10
# How far another host's clock may be behind this one's.
CLOCK_SKEW: Final = 20
RESTORE: Final = "restore it from a backup of the directory"


@dataclass(frozen=True, slots=True)
class Facts:
    """What `init` was told. Lives are seconds."""

    trust_domain: str
    key: str = keys.DEFAULT
    root_life: int = ROOT_LIFE
    issuer_life: int = ISSUER_LIFE

    def text(self) -> str:
        """`authority.json`."""
        return (
            json.dumps(
                {
                    "format": FORMAT,
                    "trust_domain": self.trust_domain,
                    "key": self.key,
                    "root_life": self.root_life,
                    "issuer_life": self.issuer_life,
                }
            )
            + "\n"
        )


@dataclass(frozen=True, slots=True)
class Issuer:
    """The issuing CA. `chain` is what follows a workload's certificate: its own and, while the root is being
    replaced, the cross certificate."""

    facts: Facts
    signer: Signer
    chain: str


def read_facts(layout: Layout) -> Facts:
    """Raises PkiError; OSError as the system gave it."""
    domain = read_trust_domain(layout)
    found = json.loads(files.read_text(layout.authority))
    try:
        facts = Facts(
            domain, **{name: found[name] for name in ("key", "root_life", "issuer_life") if name in found}
        )
        sound = facts.key in keys.KINDS and all(
            type(life) is int and life > 0 for life in (facts.root_life, facts.issuer_life)
        )
    except TypeError:
        sound = False
    if not sound:
        raise PkiError(f"{layout.authority} is damaged", RESTORE)
    return facts


def read_issuer(layout: Layout, now: float) -> Issuer:
    """The issuing CA, which can sign at this moment. Raises PkiError."""
    with _missing():
        facts = read_facts(layout)
        found = files.read_entry(layout.issuer, (CERTIFICATE, KEY))
        files.read_text(layout.bundle)
    signer = _signer(layout.issuer, found[CERTIFICATE], found[KEY], None)
    _check_time("issuing CA", signer.certificate, now, f"run: {command('rotate-issuer', '', layout.pki)}")
    return Issuer(facts, signer, found[CERTIFICATE])


def read_root(entry: Path, now: float, passphrase: str | None, key_file: Path | None = None) -> Signer:
    """A root, which can sign at this moment; its key may stand elsewhere. Raises PkiError."""
    with _missing():
        text = files.read_entry(entry, (CERTIFICATE,))[CERTIFICATE]
    try:
        key = (
            files.read_entry(entry, (KEY,))[KEY]
            if key_file is None
            else files.read_text(key_file, private=True)
        )
    except FileNotFoundError as error:
        raise PkiError(
            f"the key of the root is needed, and {error.filename or key_file} is missing",
            "give the place where it is kept with --root-key FILE",
        ) from None
    where = None if key_file is None else str(key_file)
    signer = _signer(entry, text, key, passphrase, where)
    _check_time(
        "root",
        signer.certificate,
        now,
        "make a new authority in another directory with `fastmesh certs init --pki DIRECTORY`",
    )
    return signer


def wants_passphrase(entry: Path, key_file: Path | None = None) -> bool:
    """Whether the key of a root is encrypted; no when it cannot be read, which the command will tell."""
    try:
        return keys.is_encrypted(
            files.read_entry(entry, (KEY,))[KEY] if key_file is None else files.read_text(key_file)
        )
    except (OSError, PkiError):
        return False


def certificate(text: str, where: str, remedy: str | None = RESTORE) -> x509.Certificate:
    """The first certificate in a PEM file, of which everything can be asked. Raises PkiError."""
    first = proof.certificates(text, where)[0]
    try:
        found = x509.load_pem_x509_certificate(first.encode())
        start_of(found), end_of(found), found.public_key(), found.subject, list(found.extensions)
    except UNREADABLE:
        raise PkiError(f"{where} holds a certificate that cannot be read", remedy) from None
    return found


def present(layout: Layout) -> None:
    """Raises PkiError when the directory has no authority."""
    if not layout.ca.is_dir():
        raise PkiError(
            f"there is no certificate authority in {layout.pki}", f"run: {command('init', '', layout.pki)}"
        )


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """The lock of a directory that has an authority: without one there is not even a lock to be made."""
    present(layout)
    with files.lock(layout.pki):
        yield


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Turns what the system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        path = f" ({error.filename})" if error.filename else ""
        raise PkiError(f"{what}: {reason(error)}{path}") from error


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} is missing", RESTORE) from None


def _signer(entry: Path, text: str, key: str, passphrase: str | None, key_file: str | None = None) -> Signer:
    where, key_where = f"{entry}/{CERTIFICATE}", key_file or f"{entry}/{KEY}"
    found = certificate(text, where)
    private = keys.load(key, key_where, RESTORE, passphrase)
    if private.public_key() != found.public_key():
        raise PkiError(f"{key_where} is not the key of {where}", RESTORE)
    return Signer(found, private)


def _check_time(what: str, found: x509.Certificate, now: float, remedy: str) -> None:
    start, end = start_of(found), end_of(found)
    if now < start:
        raise PkiError(
            f"the {what} is valid from {proof.when(start)} only, and the clock says {proof.when(now)}",
            "set the clock",
        )
    if now + MIN_LEAF_LIFE > end:
        raise PkiError(f"the {what} ended at {proof.when(end)}, and the clock says {proof.when(now)}", remedy)
