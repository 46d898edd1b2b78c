"""The schema as data: what `schema.py` declares, in the form that the loader and the pages walk over."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from typing import Annotated, Any, Final, Literal

import msgspec

from fastmesh.config.schema import Config
from fastmesh.config.schema_types import Section
from fastmesh.config.values import Kind

REQUIRED: Final = msgspec.NODEFAULT


class Type(msgspec.Struct, frozen=True, kw_only=True):
    """What a value may be: one of `plain` (bool or int), `kind`, `choices`, `item`, `section` says it."""

    plain: type | None = None
    kind: Kind | None = None
    choices: tuple[str, ...] = ()
    item: Type | None = None  # of a list, or of a mapping when `key` is set too
    key: Kind | None = None
    section: type[Section] | None = None
    short: str | None = None  # the field of `section` that a plain text stands for
    off: bool = False  # the text `off` means none
    optional: bool = False
    ge: int | None = None
    le: int | None = None
    min_length: int | None = None
    max_length: int | None = None


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: its key in the file, the attribute that holds it, and what `schema.py` says about it."""

    key: str
    attribute: str
    type: Type
    default: Any
    doc: str
    examples: list[Any]

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@functools.cache
def fields(section: type[Section]) -> dict[str, Field]:
    """The settings of a section by their key, in the order in which they are declared."""
    out: dict[str, Field] = {}
    for info in msgspec.structs.fields(section):
        default = info.default_factory() if info.default_factory is not REQUIRED else info.default
        metas = _metas(info.type)
        out[info.encode_name] = Field(
            key=info.encode_name,
            attribute=info.name,
            type=_type(info.type),
            default=default,
            doc=next((m.description for m in reversed(metas) if m.description), ""),
            examples=next((m.examples for m in reversed(metas) if m.examples), []),
        )
    return out


@functools.cache
def sections() -> tuple[tuple[str, type[Section]], ...]:
    """All sections with the path where they stand (`listeners[]`), each before those inside it."""
    out: list[tuple[str, type[Section]]] = []

    def walk(section: type[Section], path: str) -> None:
        out.append((path, section))
        for field in fields(section).values():
            inner = f"{path}.{field.key}" if path else field.key
            kind = field.type
            if kind.item is not None:
                inner += ".NAME" if kind.key is not None else "[]"
                kind = kind.item
            if kind.section is not None and kind.section not in (found for _, found in out):
                walk(kind.section, inner)

    walk(Config, "")
    return tuple(out)


def title(section: type[Section]) -> str:
    """What messages call a section: `a listener`, `the configuration`."""
    return (inspect.getdoc(section) or section.__name__).partition("\n")[0]


def about(section: type[Section]) -> str:
    """What a section is for, in prose."""
    return (inspect.getdoc(section) or "").partition("\n")[2].strip().replace("\n", " ")


def _metas(annotation: Any) -> list[msgspec.Meta]:
    if typing.get_origin(annotation) is not Annotated:
        return []
    return [meta for meta in annotation.__metadata__ if isinstance(meta, msgspec.Meta)]


def _type(annotation: Any) -> Type:
    merged: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for meta in _metas(annotation):
        extra.update(meta.extra or {})
        for bound in ("ge", "le", "min_length", "max_length"):
            if getattr(meta, bound) is not None:
                merged[bound] = getattr(meta, bound)
    merged.update(extra)
    if typing.get_origin(annotation) is Annotated:
        annotation = annotation.__origin__
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [arg for arg in args if arg is not type(None)]
        return msgspec.structs.replace(_type(inner), optional=True, **merged)
    if origin is Literal:
        return Type(choices=args, **merged)
    if origin is list:
        return Type(item=_type(args[0]), **merged)
    if origin is dict:
        return Type(key=_type(args[0]).kind, item=_type(args[1]), **merged)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Type(section=annotation, **merged)
    if "kind" in merged:
        return Type(**merged)
    assert annotation in (bool, int), annotation
    return Type(plain=annotation, **merged)
