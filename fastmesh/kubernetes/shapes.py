"""Parts of an object, taken with a word about what they should have been."""

from __future__ import annotations

from typing import Any

from fastmesh.config.errors import shown
from fastmesh.kubernetes.errors import ManifestError, Path


def described(value: Any) -> str:
    """What a value is, for "…, expected …"."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return shown(value) if isinstance(value, str) else f"the number {value}"


def mapping(of: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The mapping at `key`, which may be missing. Raises ManifestError when it is something else."""
    value = of.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestError((*path, key), f"{described(value)}, expected a mapping")
    return value


def mappings(of: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The list of mappings at `key`, which may be missing."""
    value = of.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ManifestError((*path, key), f"{described(value)}, expected a list")
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ManifestError((*path, key, index), f"{described(entry)}, expected a mapping")
    return value


def text(of: dict[str, Any], key: str, path: Path) -> str:
    """The text at `key`; empty if it is missing."""
    value = of.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestError((*path, key), f"{described(value)}, expected a text (in quotes)")
    return value


def named(entry: dict[str, Any], path: Path) -> str:
    """The name of a container or volume, which it must have."""
    name = text(entry, "name", path)
    if not name:
        raise ManifestError(path, "no name, expected `name`")
    return name


def port(value: Any, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ManifestError(path, f"{described(value)}, expected a port from 1 to 65535")
    return value
