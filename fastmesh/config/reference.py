"""What the schema says, for people and for editors: the reference page and the JSON Schema.

`python -m fastmesh.config.reference` prints the page; `docs/configuration.md` is its output, and the test
suite holds it to that. `fastmesh schema` prints the JSON Schema.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fastmesh.config.fields import Field, Type, about, fields, sections, title
from fastmesh.config.schema import Config
from fastmesh.config.schema_types import Section
from fastmesh.config.values import format_duration

_INTRODUCTION: Final = """\
# Configuration

<!-- Generated from fastmesh/config/schema.py: python -m fastmesh.config.reference > docs/configuration.md -->

One YAML file says everything. `fastmesh serve -c FILE` runs it, `fastmesh check -c FILE` reports every error
in it, `fastmesh init` writes one to start from. Without `-c` it is `fastmesh.yaml` in the current directory,
then `/etc/fastmesh/fastmesh.yaml`. Complete files stand in [examples](../examples); `fastmesh schema` prints
the JSON Schema for editors.

## How values are written

| value | written as |
|---|---|
| duration | numbers with units, large to small: `250ms`, `10s`, `1m30s`, `1h`, `7d`; at most 30 days |
| percentage | `0%` to `100%`, `0.5%` |
| address | `host:port`, `[::1]:port`, or `unix:/path` for a Unix socket |
| path | absolute, or relative to the directory of the configuration file |
| name | listeners: letters, digits, `.`, `_`, `-`; services and workloads: a DNS name in lower case |

- Every error is reported at once, as `file:line:column: what, what was expected`; the exit code is 2.
- A key that is not listed here is an error, and so is a key that is given twice.
- Anchors (`&name`), aliases (`*name`) and merge keys (`<<: *name`) work. Text that begins with `*` needs
  quotes.
- Scalars mean what the setting says, never what YAML guesses: a service may be called `no`. A number or
  `true` in quotes is text.
- The file is UTF-8, one document, at most 16 MiB.
- A bad file changes nothing: `serve` does not start with it, and a running proxy keeps what it has.
"""


def page() -> str:
    """The configuration reference in Markdown."""
    parts = [_INTRODUCTION]
    for path, section in sections():
        heading = f"`{path}`" if path else "The file"
        rows = [_row(field, path) for field in fields(section).values()]
        table = "| key | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
        parts.append(f"## {heading}\n\n{about(section)}\n\n{table}\n")
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file."""
    definitions = {section.__name__: _object(section) for _, section in sections() if section is not Config}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fastmesh configuration",
        **_object(Config),
        "$defs": definitions,
    }


def _row(field: Field, path: str) -> str:
    cells = (f"`{field.key}`", _value(field.type), _default(field), field.doc + _example(field))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _value(kind: Type) -> str:
    if kind.section is not None:
        text = f"[{title(kind.section).split(' ', 1)[1]}](#{_anchor(kind.section)})"
        return f"{_value(fields(kind.section)[kind.short].type)}, or {text}" if kind.short else text
    if kind.key is not None and kind.item is not None:
        return f"{kind.key.expected.split(' ', 1)[1]}: {_value(kind.item)}{_most(kind)}"
    if kind.item is not None:
        least = f", at least {kind.min_length}" if kind.min_length else ""
        return f"list of: {_value(kind.item)}{least}{_most(kind)}"
    if kind.choices:
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if kind.kind is not None:
        least = f", at least {format_duration(kind.ge)}" if kind.ge else ""
        return kind.kind.name + least + (", or `off`" if kind.off else "")
    if kind.plain is bool:
        return "`true`, `false`"
    return f"number from {kind.ge} to {kind.le}"


def _most(kind: Type) -> str:
    return "" if kind.max_length is None else f", at most {kind.max_length}"


def _anchor(section: type[Section]) -> str:
    """The fragment that Markdown renderers make of the section's heading."""
    path = next(path for path, other in sections() if other is section)
    return "".join(char for char in path.lower() if char.isalnum() or char == "_")


def _default(field: Field) -> str:
    if field.required:
        return "required"
    text = _text(field)
    return "" if text is None else f"`{text}`"


def _text(field: Field) -> str | None:
    """The default as one would write it; None when leaving the key out means something of its own."""
    if field.default is None or field.type.section is not None or field.type.item is not None:
        return None
    if field.type.kind is not None:
        return field.type.kind.show(field.default)
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _example(field: Field) -> str:
    if not field.examples:
        return ""
    example = field.examples[0]
    text = f"[{', '.join(map(str, example))}]" if isinstance(example, list) else str(example)
    return f" Example: `{text}`."


def _object(section: type[Section]) -> dict[str, Any]:
    known = fields(section)
    return {
        "description": about(section),
        "type": "object",
        "additionalProperties": False,
        "required": [field.key for field in known.values() if field.required],
        "properties": {field.key: _property(field) for field in known.values()},
    }


def _property(field: Field) -> dict[str, Any]:
    out = _json_type(field.type) | {"description": field.doc}
    text = _text(field)
    if text is not None:
        out["default"] = field.default if field.type.plain is not None else text
    if field.examples:
        out["examples"] = field.examples
    return out


def _json_type(kind: Type) -> dict[str, Any]:
    if kind.section is not None:
        reference = {"$ref": f"#/$defs/{kind.section.__name__}"}
        if kind.short is None:
            return reference
        return {"anyOf": [_json_type(fields(kind.section)[kind.short].type), reference]}
    if kind.key is not None and kind.item is not None:
        names = {"propertyNames": {"pattern": kind.key.pattern}}
        most = {"maxProperties": kind.max_length} if kind.max_length is not None else {}
        return {"type": "object", **names, "additionalProperties": _json_type(kind.item), **most}
    if kind.item is not None:
        least = {"minItems": kind.min_length} if kind.min_length else {}
        most = {"maxItems": kind.max_length} if kind.max_length is not None else {}
        return {"type": "array", "items": _json_type(kind.item), **least, **most}
    if kind.choices:
        return {"enum": list(kind.choices)}
    if kind.kind is not None:
        text = {"type": "string"} | _pattern(kind)
        if kind.kind.numbers is not None:
            lowest, highest = kind.kind.numbers
            number: dict[str, Any] = {"type": "integer", "minimum": lowest, "maximum": highest}
            return {"anyOf": [text, number]}
        return {"anyOf": [text, {"const": "off"}]} if kind.off else text
    if kind.plain is bool:
        return {"type": "boolean"}
    return {"type": "integer", "minimum": kind.ge, "maximum": kind.le}


def _pattern(kind: Type) -> dict[str, str]:
    if kind.kind is None or kind.kind.pattern is None:
        return {}
    # The one bound that a pattern can hold: more than nothing, in whatever unit.
    return {"pattern": kind.kind.pattern.replace("^", "^(?=.*[1-9])" if kind.ge else "^", 1)}


def schema_text() -> str:
    """The JSON Schema as a file."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(page(), end="")
