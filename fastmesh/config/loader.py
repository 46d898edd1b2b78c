"""A configuration file into a checked `Config`, or every error in it at once.

The tree of the file is walked beside the schema. A value that is wrong is reported where it stands and
replaced by `INVALID`, so that the walk and the checks go on and all errors come out together; a `Config`
that holds an `INVALID` never leaves this module.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fastmesh.config.checks import check
from fastmesh.config.errors import ConfigError, ConfigErrors, nearest, plain, shown
from fastmesh.config.fields import Field, Type, fields, sections, title
from fastmesh.config.invalid import INVALID
from fastmesh.config.positions import Place, Positions, Where
from fastmesh.config.schema import Config
from fastmesh.config.schema_types import Section
from fastmesh.config.values import alternatives, format_duration, one_of

if TYPE_CHECKING:
    from fastmesh.config.document import Node


class Loaded(msgspec.Struct, frozen=True):
    """A configuration without errors, and where each part of it was written.

    `path` is absolute; relative paths of the file are relative to its directory. `name` is the file as
    errors call it.
    """

    path: Path
    name: str
    config: Config
    positions: Positions


def load(path: Path, workload: str | None = None) -> Loaded:
    """Read, validate and cross-check a configuration file; `workload` instead of what it says there.

    Raises `ConfigErrors` with all that is wrong.
    """
    from fastmesh.config import document

    return loads(document.read(path, str(path)), path, workload)


def loads(data: bytes, path: Path, workload: str | None = None) -> Loaded:
    """`load` for the bytes of a file that would stand at `path`."""
    from fastmesh.config import document  # PyYAML: only a process that reads a file pays for it

    name = str(path)
    root, errors = document.parse(data, name)
    walk = _Walk(name, errors)
    config = walk.value(Type(section=Config), root, ())
    if config is not INVALID:
        if workload is not None:
            config = msgspec.structs.replace(config, workload=workload)
        check(config, path.absolute().parent, walk.report)
    if walk.errors:
        raise ConfigErrors(walk.errors)
    return Loaded(path.absolute(), name, config, walk.positions)


_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _Walk:
    def __init__(self, name: str, errors: list[ConfigError]) -> None:
        self.name = name
        self.errors = errors
        self.positions = Positions()

    def error(self, node: Node, where: Where, message: str) -> Any:
        """Report what is wrong with the value at `where`, named by the key that it belongs to."""
        key = next((f"{plain(part)}: " for part in reversed(where) if isinstance(part, str)), "")
        self.errors.append(ConfigError(self.name, node.line, node.column, key + message))
        return INVALID

    def report(self, where: Where, message: str) -> None:
        self.errors.append(ConfigError(self.name, *self.positions.of(where), message))

    def value(self, kind: Type, node: Node, where: Where) -> Any:
        if kind.section is not None:
            if kind.short is not None and node.kind == "scalar" and not node.empty:
                return self.short(kind, node, where)
            if node.kind != "map":
                return self.error(node, where, f"{node.described()}, expected {expected(kind)}")
            return self.section(kind.section, node, where)
        if kind.key is not None:
            return self.mapping(kind, node, where)
        if kind.item is not None:
            return self.list(kind, node, where)
        if node.kind != "scalar" or node.empty:
            return self.error(node, where, f"{node.described()}, expected {expected(kind)}")
        if kind.off and node.text == "off":
            return None
        return self.scalar(kind, node, where)

    def scalar(self, kind: Type, node: Node, where: Where) -> Any:
        try:
            if kind.choices:
                return one_of(node.text, kind.choices)
            if kind.kind is not None:
                return _bounded(kind, node.text, kind.kind.parse(node.text))
            return _plain(kind, node)
        except ValueError as error:
            return self.error(node, where, str(error))

    def list(self, kind: Type, node: Node, where: Where) -> Any:
        assert kind.item is not None
        if node.kind != "list":
            return self.error(node, where, f"{node.described()}, expected {expected(kind)}")
        if len(node.items) < (kind.min_length or 0):
            return self.error(node, where, f"an empty list, expected {expected(kind)}")
        self.count(kind, node, where, len(node.items))
        out = []
        for index, item in enumerate(node.items):
            self.positions.put((*where, index), Place(item.line, item.column), None)
            out.append(self.value(kind.item, item, (*where, index)))
        return out

    def mapping(self, kind: Type, node: Node, where: Where) -> Any:
        assert kind.item is not None and kind.key is not None
        if node.kind != "map":
            return self.error(node, where, f"{node.described()}, expected {expected(kind)}")
        if not node.entries and kind.min_length:
            return self.error(node, where, f"an empty mapping, expected {expected(kind)}")
        self.count(kind, node, where, len(node.entries))
        out = {}
        for text, (key, value) in node.entries.items():
            try:
                kind.key.parse(text)
            except ValueError as error:
                self.error(key, (), str(error))
            self.positions.put((*where, text), Place(value.line, value.column), Place(key.line, key.column))
            out[text] = self.value(kind.item, value, (*where, text))
        return out

    def count(self, kind: Type, node: Node, where: Where, entries: int) -> None:
        if kind.max_length is not None and entries > kind.max_length:
            self.error(node, where, f"{entries} entries, expected at most {kind.max_length}")

    def section(self, section: type[Section], node: Node, where: Where) -> Any:
        known = fields(section)
        for text, (key, value) in node.entries.items():
            if text in known:
                self.positions.put(
                    (*where, text), Place(value.line, value.column), Place(key.line, key.column)
                )
            else:
                what = f"unknown key {shown(text)} in {title(section)}"
                self.error(key, (), f"{what}, expected {_meant(text, known)}")
        out: dict[str, Any] = {}
        for field in known.values():
            if field.key in node.entries:
                out[field.attribute] = self.value(field.type, node.entries[field.key][1], (*where, field.key))
            elif field.required:
                self.missing(section, field, node, where)
                out[field.attribute] = INVALID
        return section(**out)

    def short(self, kind: Type, node: Node, where: Where) -> Any:
        assert kind.section is not None and kind.short is not None
        field = fields(kind.section)[kind.short]
        value = self.value(field.type, node, where)
        return INVALID if value is INVALID else kind.section(**{field.attribute: value})

    def missing(self, section: type[Section], field: Field, node: Node, where: Where) -> None:
        place = self.positions.key(where) or Place(node.line, node.column)
        message = f"{title(section)} without {shown(field.key)}, expected {expected(field.type)}"
        self.errors.append(ConfigError(self.name, place.line, place.column, message))


def _meant(text: str, known: dict[str, Field]) -> str:
    """What an unknown key should have been: elsewhere, spelt otherwise, or one of those there are."""
    near = nearest(text, known)
    elsewhere = tuple(title(section) for _, section in sections() if text in fields(section))
    if elsewhere and near not in (f"{text}s", text.removesuffix("s")):
        return f"it in {alternatives(elsewhere)}"
    return shown(near) if near else alternatives(tuple(known))


def _plain(kind: Type, node: Node) -> bool | int:
    if kind.plain is bool:
        if not node.quoted and node.text in _BOOLEANS:
            return _BOOLEANS[node.text]
    elif not node.quoted and _INTEGER.fullmatch(node.text):
        return int(_bounded(kind, node.text, int(node.text)))
    quotes = " in quotes" if node.quoted else ""
    raise ValueError(f"{shown(node.text)}{quotes}, expected {expected(kind)}")


def _bounded(kind: Type, text: str, value: Any) -> Any:
    if (kind.ge is not None and value < kind.ge) or (kind.le is not None and value > kind.le):
        raise ValueError(f"{shown(text)}, expected {expected(kind)}")
    return value


def expected(kind: Type) -> str:
    """What a value of this type is, for "…, expected …"."""
    if kind.section is not None:
        known = fields(kind.section)
        short = f"{expected(known[kind.short].type)}, or " if kind.short is not None else ""
        keys = ", ".join(field.key for field in known.values())
        return f"{title(kind.section)}: {short}a mapping with {keys}"
    if kind.key is not None and kind.item is not None:
        one = title(kind.item.section) if kind.item.section is not None else expected(kind.item)
        return f"a mapping, each key {kind.key.expected}, each value {one}"
    if kind.item is not None:
        one = title(kind.item.section) if kind.item.section is not None else expected(kind.item)
        return f"a {'non-empty ' if kind.min_length else ''}list, each entry {one}"
    if kind.choices:
        return alternatives(kind.choices)
    if kind.kind is not None:
        off = ", or off" if kind.off else ""
        least = f" of at least {format_duration(kind.ge)}" if kind.ge else ""
        return kind.kind.expected + least + off
    if kind.plain is bool:
        return "true or false"
    if kind.le is not None:
        return f"a whole number from {kind.ge} to {kind.le}"
    return "a whole number"
