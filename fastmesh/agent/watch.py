"""Files that a part of the snapshot is made of (`host.parts`), watched from outside: stat and nothing else.

What has changed is due to be loaded once it has stopped changing: from one look to the next, half a second
later. What was refused is loaded again after a while, too: the clock, memory or the disk may have been the
reason.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastmesh.host.parts import IDENTITY, blocks, only, owners, spoken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

RETRY_LOAD_S: Final = 2.0
RETRY_LOAD_MOST_S: Final = 60.0
FILES: Final = ("certificate.pem", "key.pem", "bundle.pem", "federated.json", "revoked.json")
_PLACES: Final = ("", "current", "..data", *FILES)

Print = tuple[object, ...]


class Watch:
    """The files of one part. Times are those of the monotonic clock."""

    def __init__(self, name: str, places: Sequence[Path]) -> None:
        self.places = places
        self.loading = False
        # Why what is there is not in use; empty when it is.
        self.error = ""
        self._what = "the identity" if name == IDENTITY else f"the TLS of {spoken(name)}"
        # What was loaded last, and what was there at the last look.
        self._taken: Print | None = None
        self._seen: Print | None = None
        self._rejections = 0
        self._again_at = 0.0
        # What the operator was told last: about which files, and why.
        self._said: tuple[Print | None, str] | None = None

    def due(self, in_use: Callable[[], bool], now: float) -> bool:
        """Look once: is it to be loaded? `in_use` says whether the files are what the snapshot has."""
        seen = fingerprint(self.places)
        if self._taken is None:
            # The first look. What was loaded before it may be something else by now.
            self._taken = seen if in_use() else ()
            self._seen = seen
        still, self._seen = seen == self._seen, seen
        if self.loading or not still:  # perhaps in the middle of being written
            return False
        return seen != self._taken or bool(self._rejections and now >= self._again_at)

    def begin(self) -> None:
        """What is there now is being loaded."""
        self._taken = fingerprint(self.places)
        self.loading = True

    def forget(self) -> None:
        """What was loaded may not be in use."""
        self._taken = None

    def ended(self, outcome: str, why: str, now: float) -> str:
        """What became of it, and what there is to tell, if anything: once for each change."""
        self.loading = False
        self.error = why
        if outcome == "rejected":
            delay = min(RETRY_LOAD_S * 2.0 ** min(self._rejections, 16), RETRY_LOAD_MOST_S)
            self._rejections += 1
            self._again_at = now + delay
            before, self._said = self._said, (self._taken, why)
            if before == self._said:
                return ""
            return f"warning: {self._what} on disk is not taken over, the one in use stays: {why}"
        before, self._said = self._said, None
        self._rejections = 0
        return f"{self._what} on disk is good again" if before else ""


def places_of(snapshot: Mapping[str, Any], home: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """The parts of a snapshot, each with the places to look at; the configuration's paths begin at `home`."""
    identity = snapshot.get(IDENTITY)
    if identity and identity.get("pki"):
        entry = entry_of(identity)
        yield IDENTITY, tuple(entry / place for place in _PLACES)
    for name, owner in owners(snapshot):
        found = [path for block in blocks(owner) for path in block.get("files", {}).values()]
        if found:
            yield name, tuple(home / path for path in dict.fromkeys(found))


def entry_of(identity: Mapping[str, Any]) -> Path:
    """The directory of the workload's files."""
    return Path(identity["pki"], "workloads", identity["workload"])


def fingerprint(places: Sequence[Path]) -> Print:
    """What changes when anything about the files does: links that are followed, inodes, times and sizes."""
    prints: list[object] = []
    for place in places:
        try:
            found = place.stat()
        except OSError as error:
            prints.append(error.errno)
        else:
            prints.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(prints)


def is_in_use(snapshot: Mapping[str, Any], name: str, home: Path) -> bool:
    """Whether the files of a part are what the snapshot has, as far as they are public."""
    # Not at the top: an agent without TLS does without. Read as the loader reads: nothing that stands there
    # (a FIFO, an endless file) can hold it up.
    from fastmesh.certs.errors import PkiError

    with contextlib.suppress(OSError, PkiError):
        if name == IDENTITY:
            return _identity_in_use(snapshot[IDENTITY])
        return all(
            _block_in_use(block, home) for _, owner in owners(only(snapshot, name)) for block in blocks(owner)
        )
    return False


def _identity_in_use(identity: Mapping[str, Any]) -> bool:
    from fastmesh.certs import files, store

    found = files.read_entry(
        entry_of(identity), (store.CERTIFICATE, store.BUNDLE), (store.FEDERATED, store.REVOKED)
    )
    there = {
        "certificate": found[store.CERTIFICATE],
        "bundle": found[store.BUNDLE],
        "federated": store.read_federated(found.get(store.FEDERATED), "", ""),
        "revoked": [*store.read_revoked(found.get(store.REVOKED), "")],
    }
    return all(identity[key] == value for key, value in there.items())


def _block_in_use(block: Mapping[str, Any], home: Path) -> bool:
    from fastmesh._core import tls_material_error
    from fastmesh.certs import files

    found = {which: files.read_pem(home / path) for which, path in block["files"].items()}
    # The snapshot here is without its keys: the right one is the one of the certificate.
    key = found.pop("key", None)
    return all(block[which] == files.certificates_in(text) for which, text in found.items()) and (
        key is None or tls_material_error(block["certificate"], key, None) is None
    )
