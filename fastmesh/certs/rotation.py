"""Replaces the CAs while the mesh runs: the issuing CA in one step, the root in three.

    introduce  makes the next root, and a **cross certificate**: the next root's key, signed by the root. From
               now on everybody is told to trust both roots; nothing is signed by the next one yet.
    switch     makes an issuing CA under the next root. What is issued from now on carries the cross
               certificate, so that it proves itself to those who know the old root alone, too.
    retire     takes the old root out of the bundle, and forgets its key. It refuses while a certificate that
               needs it has not expired.

`rotation.json` tells the step that was begun last, and whether it was done. Each step may be repeated, and
goes on where a kill stopped it: it looks at what is there, and does what is not. The order of its writes is
such that workloads' identities stay proven in between: what verifies is published before what needs it, and
taken away after.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from fastmesh.certs import files, keys, proof, record, templates, trust
from fastmesh.certs.errors import PkiError
from fastmesh.certs.keys import UNREADABLE
from fastmesh.certs.signer import (
    CLOCK_SKEW,
    RESTORE,
    Facts,
    certificate,
    failures,
    locked,
    present,
    read_facts,
    read_root,
)
from fastmesh.certs.store import CERTIFICATE, KEY, Layout, command
from fastmesh.certs.templates import common_name, end_of, serial_of

STEPS: Final = ("introduce", "switch", "retire")


@dataclass(frozen=True, slots=True)
class State:
    """How far the replacement of the root is: the serials of the two roots, the step begun last, whether it
    was done."""

    step: str
    done: bool
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class NewCa:
    """A CA that is in place. `not_after` is Unix seconds."""

    name: str
    not_after: int


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a step left: the CA that it made or kept, and remarks about entries left alone."""

    ca: NewCa
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Opening:
    """How to open the key of a root: its passphrase, and where it is kept if not in its entry."""

    passphrase: str | None = field(default=None, repr=False)
    key_file: Path | None = None


def state(pki: Path) -> State | None:
    """How far the replacement of the root is; None when there is none. Raises PkiError."""
    layout = Layout(pki)
    with failures(f"the authority in {pki} cannot be read"):
        present(layout)
        return _state(layout)


def signing_root(pki: Path, step: str = "rotate-issuer") -> Path:
    """The entry of the root whose key a step needs, for asking whether that is encrypted."""
    layout = Layout(pki)
    if step == "switch" or (step == "rotate-issuer" and layout.next_root.is_dir() and _switched(layout)):
        return layout.next_root
    return layout.root


def rotate_issuer(
    pki: Path,
    opening: Opening = Opening(),
    *,
    key: str | None = None,
    life: int | None = None,
    now: float | None = None,
) -> NewCa:
    """Makes a new issuing CA. What the old one signed stays valid to its end. Raises PkiError."""
    with _opened(pki, f"no issuing CA can be made in {pki}", now) as (layout, at, moment):
        facts = _with(read_facts(layout), key, "issuer_life", life)
        if at is not None and at.step == "retire":
            raise PkiError("the root is being retired", f"finish that first: {_rotate('retire', pki)}")
        under_next = at is not None and at.step == "switch"
        return _new_issuer(layout, facts, opening, moment, under_next=under_next)


def introduce(
    pki: Path,
    opening: Opening = Opening(),
    *,
    key: str | None = None,
    life: int | None = None,
    now: float | None = None,
) -> Rotated:
    """Makes the next root, its key encrypted with the same passphrase, and tells everybody to trust it.
    Raises PkiError."""
    with _opened(pki, f"the root in {pki} cannot be replaced", now) as (layout, begun, moment):
        if begun is not None and begun.step != "introduce":
            raise PkiError(
                f"the next root is introduced already, and the step {begun.step} begun",
                f"go on with: {_rotate(begun.step if not begun.done else 'retire', pki)}",
            )
        at = begun or _next_root(layout, _with(read_facts(layout), key, "root_life", life), opening, moment)
        new = _certificate(layout.next_root)
        trust.write_bundle(layout, _roots_with(layout, new))
        return _done(layout, replace(at, done=True), moment, new)


def switch(
    pki: Path,
    opening: Opening = Opening(),
    *,
    key: str | None = None,
    life: int | None = None,
    now: float | None = None,
) -> Rotated:
    """Issues under the next root from now on. Nothing that was issued changes. Raises PkiError."""
    with _opened(pki, f"the root in {pki} cannot be replaced", now) as (layout, at, moment):
        if at is None or (at.step == "introduce" and not at.done):
            raise PkiError("the next root is not introduced yet", f"run: {_rotate('introduce', pki)}")
        if at.step == "retire":
            raise PkiError("the old root is being retired", f"go on with: {_rotate('retire', pki)}")
        if not _is_under(_certificate(layout.issuer), _certificate(layout.next_root)):
            facts = _with(read_facts(layout), key, "issuer_life", life)
            _new_issuer(layout, facts, opening, moment, under_next=True)
        files.tidy_entry(layout.issuer)
        return _done(layout, replace(at, step="switch", done=True), moment, _certificate(layout.issuer))


def retire(pki: Path, *, force: bool = False, now: float | None = None) -> Rotated:
    """Trusts the old root no longer, and forgets its key. Without a replacement under way nothing is done.

    Raises PkiError; unless `force`, when a workload's certificate that needs the old root is neither expired
    nor revoked.
    """
    with _opened(pki, f"the old root in {pki} cannot be retired", now) as (layout, at, moment):
        if at is None:
            return Rotated(_ca(_certificate(layout.root)), [])
        if at.step == "introduce" or (at.step == "switch" and not at.done):
            step = "switch" if at.done or at.step == "switch" else "introduce"
            raise PkiError("nothing is issued under the next root yet", f"run: {_rotate(step, pki)}")
        if at.step == "switch":
            if not force:
                _refuse_early(layout, at, moment)
            _write(layout, replace(at, step="retire", done=False))
        return _retire(layout, at, moment)


@contextlib.contextmanager
def _opened(pki: Path, what: str, now: float | None) -> Iterator[tuple[Layout, State | None, float]]:
    """The authority, locked: where it lies, how far its root's replacement is, and the moment of the step."""
    layout = Layout(pki)
    with failures(what), locked(layout):
        yield layout, _state(layout), time.time() if now is None else now


def _done(layout: Layout, at: State, moment: float, ca: x509.Certificate) -> Rotated:
    """What was issued hears of it, then the step is over."""
    remarks = trust.republish(layout, trust.read(layout, moment))
    _write(layout, at)
    return Rotated(_ca(ca), remarks)


def _retire(layout: Layout, at: State, moment: float) -> Rotated:
    """Every write is left out where its result is there already."""
    if serial_of(_certificate(layout.root)) != at.new:
        if serial_of(_certificate(layout.next_root)) != at.new:
            raise PkiError(f"{layout.next_root} is not the root that was introduced", RESTORE)
        trust.write_bundle(layout, _roots_without(layout, at.old))
        found = files.read_entry(layout.next_root, (CERTIFICATE,), (KEY,))
        files.write_entry(layout.root, found, trust.new_version(at.new))
    # The old key too, which a kill may have left.
    files.tidy_entry(layout.root)
    cross = _cross(layout)
    if cross is not None:
        found = files.read_entry(layout.issuer, (CERTIFICATE, KEY))
        issuer = _certificate(layout.issuer)
        alone = templates.pem(issuer)
        if found[CERTIFICATE] != alone:
            version = trust.new_version(serial_of(issuer))
            files.write_entry(layout.issuer, {**found, CERTIFICATE: alone}, version)
    remarks = trust.republish(layout, trust.read(layout, moment), without=cross)
    files.remove(layout.cross)
    files.remove(layout.next_root)
    files.remove(layout.rotation)
    return Rotated(_ca(_certificate(layout.root)), remarks)


def _next_root(layout: Layout, facts: Facts, opening: Opening, moment: float) -> State:
    """Makes the next root and the cross certificate. What a kill leaves before the state is written is not
    trusted by anybody, and is made anew."""
    old = read_root(layout.root, moment, opening.passphrase, opening.key_file)
    _refuse_short_path(layout, old.certificate)
    key = keys.new(facts.key)
    start = int(moment) - CLOCK_SKEW
    new = templates.root(key, facts.trust_domain, start, start + facts.root_life)
    cross = templates.cross(new, old, facts.trust_domain)
    by = serial_of(old.certificate)
    record.append(layout.record, templates.entry("root", None, new))
    record.append(layout.record, templates.entry("cross", None, cross, by))
    identity = {CERTIFICATE: templates.pem(new), KEY: keys.pem(key, opening.passphrase)}
    files.write_entry(layout.next_root, identity, serial_of(new))
    files.replace(layout.cross, templates.pem(cross), files.PUBLIC_MODE, layout.pki)
    at = State("introduce", False, by, serial_of(new))
    _write(layout, at)
    return at


def _new_issuer(layout: Layout, facts: Facts, opening: Opening, moment: float, *, under_next: bool) -> NewCa:
    entry = layout.next_root if under_next else layout.root
    root = read_root(entry, moment, opening.passphrase, opening.key_file)
    key = keys.new(facts.key)
    start = int(moment) - CLOCK_SKEW
    made = templates.issuer(key.public_key(), root, facts.trust_domain, start, start + facts.issuer_life)
    chain = templates.pem(made)
    if under_next:
        cross = _cross(layout)
        if cross is None:
            raise PkiError(f"{layout.cross} is missing", RESTORE)
        chain += cross
    record.append(layout.record, templates.entry("issuer", None, made, serial_of(root.certificate)))
    files.write_entry(layout.issuer, {CERTIFICATE: chain, KEY: keys.pem(key)}, serial_of(made))
    return _ca(made)


def _refuse_early(layout: Layout, at: State, now: float) -> None:
    entries, _ = record.read(layout.record)
    under_new = {entry.serial for entry in entries if entry.kind == "issuer" and entry.issuer == at.new}
    denied = {one.serial for one in trust.read_denied(layout)}
    needing = [
        entry
        for entry in entries
        if entry.kind == "workload"
        and entry.issuer not in under_new
        and entry.serial not in denied
        and now <= entry.not_after
    ]
    if needing:
        names = list(dict.fromkeys(entry.workload or "" for entry in needing))
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        last = max(entry.not_after for entry in needing)
        raise PkiError(
            f"{len(needing)} certificates under the old root have not expired (of {shown}), the last ends at "
            f"{proof.when(last)}",
            f"renew what is still in use ({command('renew', '', layout.pki, '--all')}) and retire after that "
            "time, or break them with --force",
        )


def _refuse_short_path(layout: Layout, root: x509.Certificate) -> None:
    try:
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        short = constraints.path_length is not None and constraints.path_length < templates.ROOT_PATH
    except (x509.ExtensionNotFound, *UNREADABLE):
        short = True
    if short:
        raise PkiError(
            f"the root in {layout.root} cannot sign another root: its path length leaves no room",
            "make a new authority in another directory with `fastmesh certs init --pki DIRECTORY`",
        )


def _state(layout: Layout) -> State | None:
    try:
        found = State(**json.loads(files.read_text(layout.rotation)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):
        raise PkiError(f"{layout.rotation} is damaged", RESTORE) from None
    if found.step not in STEPS or type(found.done) is not bool:
        raise PkiError(f"{layout.rotation} is damaged", RESTORE)
    return found


def _switched(layout: Layout) -> bool:
    try:
        at = _state(layout)
    except (OSError, PkiError):
        return False
    return at is not None and at.step == "switch"


def _write(layout: Layout, at: State) -> None:
    files.replace(layout.rotation, json.dumps(asdict(at)) + "\n", files.PUBLIC_MODE, layout.pki)


def _roots_with(layout: Layout, new: x509.Certificate) -> str:
    text = files.read_text(layout.bundle)
    there = _bundle(layout, text)
    return text if new in there else "".join(map(templates.pem, [*there, new]))


def _roots_without(layout: Layout, old: str) -> str:
    kept = [one for one in _bundle(layout, files.read_text(layout.bundle)) if serial_of(one) != old]
    if not kept:
        raise PkiError(f"{layout.bundle} does not hold the next root", RESTORE)
    return "".join(map(templates.pem, kept))


def _bundle(layout: Layout, text: str) -> list[x509.Certificate]:
    return [certificate(one, str(layout.bundle)) for one in proof.certificates(text, str(layout.bundle))]


def _certificate(entry: Path) -> x509.Certificate:
    try:
        text = files.read_entry(entry, (CERTIFICATE,))[CERTIFICATE]
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} is missing", RESTORE) from None
    return certificate(text, f"{entry}/{CERTIFICATE}")


def _cross(layout: Layout) -> str | None:
    try:
        return files.read_text(layout.cross)
    except FileNotFoundError:
        return None


def _is_under(issuer: x509.Certificate, root: x509.Certificate) -> bool:
    return issuer.issuer == root.subject


def _ca(made: x509.Certificate) -> NewCa:
    return NewCa(common_name(made), end_of(made))


def _with(facts: Facts, key: str | None, name: str, life: int | None) -> Facts:
    told: dict[str, Any] = {"key": key, name: life}
    return replace(facts, **{name: value for name, value in told.items() if value is not None})


def _rotate(step: str, pki: Path) -> str:
    return command("rotate-root", step, pki)
