"""The record of every certificate that the authority ever signed: JSON lines, only ever appended to.

A line that is no record (a crash, an editor) costs that line alone: readers skip it and tell its number.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from fastmesh.certs import files, spiffe

_KINDS: Final = ("root", "cross", "issuer", "workload")
_HEX: Final = re.compile(r"[0-9a-f]{1,64}")
# What the first lines ever written do not have.
_ADDED: Final = {"issuer": "", "ttl": 0}
_MAX_TIME: Final = 253402300799  # the end of the year 9999, where RFC 5280's times end too


@dataclass(frozen=True, slots=True)
class Entry:
    """One signed certificate. Times are Unix seconds; `serial` and `sha256` (of the DER form) are
    hexadecimal."""

    kind: str  # root | cross | issuer | workload
    workload: str | None
    spiffe_id: str
    serial: str
    not_before: int
    not_after: int
    sha256: str
    time: int = 0  # when the line was written
    issuer: str = ""  # serial of the CA that signed it; empty for a root, and in records of old
    ttl: int = 0  # the life asked for in seconds, which an issuer near its end may have cut; 0: not told


def append(path: Path, entry: Entry) -> None:
    """Puts `entry` on record; it is on the disk when this returns. The caller holds the directory's lock."""
    files.append_line(path, json.dumps({**asdict(entry), "time": int(time.time())}, separators=(",", ":")))


def read(path: Path) -> tuple[list[Entry], list[int]]:
    """All entries in order, and the numbers (from 1) of the lines that are none. Raises as
    `files.read_text`."""
    entries: list[Entry] = []
    damaged: list[int] = []
    text = files.read_text(path, None)
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        entry = _entry(line)
        if entry is None:
            damaged.append(number)
        else:
            entries.append(entry)
    return entries, damaged


def find(path: Path, serial: str) -> Entry | None:
    """The entry of a certificate, without reading the others. Raises as `files.read_text`."""
    for line in reversed(files.read_text(path, None).split("\n")):
        if serial in line and (entry := _entry(line)) is not None and entry.serial == serial:
            return entry
    return None


def _entry(line: str) -> Entry | None:
    try:
        found = {**_ADDED, **json.loads(line)}
        entry = Entry(**{name.name: found[name.name] for name in fields(Entry)})
        # What comes from here ends up in paths and on terminals.
        spiffe.parse(entry.spiffe_id)
        if entry.workload is not None:
            spiffe.workload(entry.workload)
        sound = (
            all(_HEX.fullmatch(value) for value in (entry.serial, entry.sha256))
            and entry.kind in _KINDS
            and (entry.workload is not None) == (entry.kind == "workload")
            and all(
                type(value) is int and 0 <= value <= _MAX_TIME
                for value in (entry.not_before, entry.not_after, entry.time, entry.ttl)
            )
            and (entry.issuer == "" or _HEX.fullmatch(entry.issuer) is not None)
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return entry if sound else None
