"""The deny list: certificates that are refused before they end.

It is short, because certificates are: a line goes when its certificate would have expired anyway. It reaches
workloads as part of what they trust (see `trust`), so revoking is as fast as an entry.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastmesh.certs import record, trust
from fastmesh.certs.errors import PkiError
from fastmesh.certs.signer import failures, locked
from fastmesh.certs.store import Layout, command
from fastmesh.certs.trust import Denied

# A beginning of a serial number, as `list` shows them, or a whole one; with colons, as OpenSSL does.
_SERIAL: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a command denied: lines of the deny list, new and old, and remarks about entries left alone."""

    denied: list[Denied]
    remarks: list[str]


def revoke(pki: Path, what: list[str], *, now: float | None = None) -> Revoked:
    """Denies certificates: all of a workload that have not expired, or the one with a serial number.

    All are looked up before the first is denied. Doing it again changes nothing and finishes what a kill
    left. Raises PkiError for a name or serial that is not on record, and for a CA's.
    """
    layout = Layout(pki)
    with failures(f"nothing can be revoked in {pki}"), locked(layout):
        moment = time.time() if now is None else now
        try:
            entries, _ = record.read(layout.record)
        except FileNotFoundError:
            raise PkiError(f"{layout.record} is missing", "restore it from a backup") from None
        chosen = [entry for one in what for entry in _find(pki, one, entries, moment)]
        before = {one.serial: one for one in trust.read_denied(layout)}
        denied = [
            before.get(entry.serial)
            or Denied(entry.serial, entry.workload or "", entry.not_after, int(moment))
            for entry in dict.fromkeys(chosen)
        ]
        trust.write_denied(layout, {**before, **{one.serial: one for one in denied}}.values(), moment)
        return Revoked(denied, trust.republish(layout, trust.read(layout, moment)))


def _find(pki: Path, what: str, entries: list[record.Entry], now: float) -> list[record.Entry]:
    own = [entry for entry in entries if entry.workload == what]
    if own:
        alive = [entry for entry in own if now <= entry.not_after]
        if not alive:
            raise PkiError(f"no certificate of {what} is valid any more: there is nothing to revoke")
        return alive
    digits = what.replace(":", "").lower()
    # A whole number without the zeros that it begins with, as OpenSSL prints it, is one too.
    whole = digits.zfill(32)
    found = [entry for entry in entries if entry.serial.startswith(digits) or entry.serial == whole]
    if not _SERIAL.fullmatch(digits) or not found:
        raise PkiError(
            f"no workload and no serial number {what!r} is on record",
            f"see: {command('list', '', pki, '--all')}",
        )
    if len(found) > 1:
        raise PkiError(f"{len(found)} serial numbers begin with {digits}", "give the whole one")
    (entry,) = found
    if entry.kind != "workload":
        remedy = "rotate-root" if entry.kind in ("root", "cross") else "rotate-issuer"
        raise PkiError(
            f"{digits} is a CA's certificate ({entry.kind}): the deny list is for workloads'",
            f"replace it with: {command(remedy, '', pki)}",
        )
    if now > entry.not_after:
        raise PkiError(f"{digits} has expired already: there is nothing to revoke")
    return [entry]
