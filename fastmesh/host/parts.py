"""The parts of a snapshot that are made of files, and become new with them while all else stays.

They are called `identity`, `listener/NAME` and `service/NAME`. Of a listener or a service with ordinary TLS
the part is its blocks: each has `files`, their paths by what they hold, and beside it what was read from
them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

IDENTITY = "identity"
KINDS = ("listener", "service")
# Where a listener or a service has its blocks: one of them, or a list.
BLOCKS = ("tls_contexts", "tls_settings", "tls_context")


def blocks(owner: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The blocks of a listener or a service."""
    for key in BLOCKS:
        found = owner.get(key) or ()
        yield from (found,) if isinstance(found, dict) else found


def owners(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The listeners and services, each with the name of its part."""
    for kind in KINDS:
        for owner in snapshot.get(f"{kind}s", ()):
            yield f"{kind}/{owner['name']}", owner


def spoken(name: str) -> str:
    """`listener edge` for a person."""
    return name.replace("/", " ", 1)


def only(snapshot: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A snapshot of this part alone; empty if there is none of this name."""
    if name == IDENTITY:
        return {IDENTITY: snapshot[IDENTITY]} if snapshot.get(IDENTITY) else {}
    kind = name.partition("/")[0]
    found = [owner for own, owner in owners(snapshot) if own == name]
    return {f"{kind}s": found} if found else {}


def with_parts(snapshot: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshot with these parts of it new; the given one stays as it is."""
    new = dict(snapshot)
    if IDENTITY in parts:
        new[IDENTITY] = parts[IDENTITY]
    for kind in KINDS:
        if f"{kind}s" in snapshot:
            new[f"{kind}s"] = [
                {**owner, **parts.get(f"{kind}/{owner['name']}", {})} for owner in snapshot[f"{kind}s"]
            ]
    return new
