"""Where a snapshot has private keys: as `key` beside a `certificate`, in three places and no other.

What is shown, and what tells two snapshots apart, is without them: a certificate is for one key.
"""

from __future__ import annotations

import contextlib

from fastmesh.host.parts import blocks, owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

REDACTED = "[redacted]"


def redact(snapshot: Mapping[str, Any]) -> None:
    """Puts `REDACTED` in the place of every private key."""
    for pair in _with_key(snapshot):
        pair["key"] = REDACTED


@contextlib.contextmanager
def redacted(snapshot: Mapping[str, Any]) -> Iterator[None]:
    """The same, for as long as the block runs."""
    pairs = [(pair, pair["key"]) for pair in _with_key(snapshot)]
    redact(snapshot)
    try:
        yield
    finally:
        for pair, key in pairs:
            pair["key"] = key


def _with_key(snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for pair in _pairs(snapshot):
        if pair.get("key"):
            yield pair


def _pairs(snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if snapshot.get("identity"):
        yield snapshot["identity"]
    for _, owner in owners(snapshot):
        yield from blocks(owner)
