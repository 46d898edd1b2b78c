"""JSON Patch (RFC 6902): the difference of two values, as operations that make one of the other."""

from __future__ import annotations

from typing import Any

Operation = dict[str, Any]


def difference(old: Any, new: Any, pointer: str = "") -> list[Operation]:
    """The operations that make `new` of `old`: additions, replacements and removals, in their order.

    Lists whose entries have names (containers, volumes) are compared by name, so that an entry that is put in
    front of others leaves them untouched.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return _of_mappings(old, new, pointer)
    if isinstance(old, list) and isinstance(new, list):
        operations = _of_lists(old, new, pointer)
        if operations is not None:
            return operations
    if type(old) is type(new) and old == new:
        return []
    return [{"op": "replace", "path": pointer, "value": new}]


def _of_mappings(old: dict[str, Any], new: dict[str, Any], pointer: str) -> list[Operation]:
    operations: list[Operation] = [
        {"op": "remove", "path": _below(pointer, key)} for key in old if key not in new
    ]
    for key, value in new.items():
        at = _below(pointer, key)
        if key in old:
            operations += difference(old[key], value, at)
        else:
            operations.append({"op": "add", "path": at, "value": value})
    return operations


def _of_lists(old: list[Any], new: list[Any], pointer: str) -> list[Operation] | None:
    """None: what is in `old` does not stand in `new` in the same order."""
    names, wanted = _names(old), _names(new)
    if names is None or wanted is None or [name for name in wanted if name in names] != names:
        if len(old) != len(new):
            return None
        pairs = zip(old, new, strict=True)
        return [one for i, pair in enumerate(pairs) for one in difference(*pair, _below(pointer, str(i)))]
    operations: list[Operation] = []
    for index, name in enumerate(wanted):
        at = _below(pointer, str(index))
        if name in names:
            operations += difference(old[names.index(name)], new[index], at)
        else:
            operations.append({"op": "add", "path": at, "value": new[index]})
    return operations


def _names(values: list[Any]) -> list[str] | None:
    """The names of all entries, each once; None if they have none."""
    names = [value.get("name") if isinstance(value, dict) else None for value in values]
    known = [name for name in names if isinstance(name, str)]
    return known if len(known) == len(values) == len(set(known)) else None


def _below(pointer: str, key: str) -> str:
    """RFC 6901, section 3."""
    return f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"


def parts(pointer: str) -> list[str]:
    """The keys of a JSON pointer."""
    return [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
