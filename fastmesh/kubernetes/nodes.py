"""YAML as Kubernetes' tools read it, in nodes that are written as they were read.

A manifest goes through `kubectl` (sigs.k8s.io/yaml) next, so its scalars mean what they mean there: `0644` is
octal, `on` is true, but `22:22` and `2026-01-01` are text (YAML 1.1 has other ideas of both). What nobody
changes is written with the text and the quotes it came with; so no scalar can change its meaning on the way.

Aliases and merge keys are expanded: what is changed in one place must not change in another. All of it is
bounded: nesting, and the number of values once aliases are expanded.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml
from yaml.resolver import BaseResolver

from fastmesh.config import events
from fastmesh.config.errors import shown

MAX_DEPTH: Final = 128
MAX_VALUES: Final = 250_000

_TEXT: Final = BaseResolver.DEFAULT_SCALAR_TAG
_LIST: Final = BaseResolver.DEFAULT_SEQUENCE_TAG
_MAP: Final = BaseResolver.DEFAULT_MAPPING_TAG
_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE: Final = frozenset(f(word) for word in ("y", "yes", "on", "true") for f in (str, str.title, str.upper))
_FALSE: Final = frozenset(
    f(word) for word in ("n", "no", "off", "false") for f in (str, str.title, str.upper)
)
_INTEGER: Final = re.compile(
    r"[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)"
)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
# What some reader of YAML takes for a number or a time.
_NUMERIC: Final = re.compile(r"[-+.]?[0-9.][0-9a-fA-F_.,:xXoOTtZz+ -]*|[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./+-][A-Za-z0-9_./+@$()-]*(?::[A-Za-z0-9_./+@-]+)*")


class Boundary:
    """A document's place in the text, and its root; None if it is empty."""

    __slots__ = ("begin", "root")

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.root: yaml.Node | None = None


def compose(text: str, name: str) -> list[Boundary]:
    """The documents of `text`. Raises `ConfigErrors` that say what is wrong in the file, and where."""
    return events.read(text, lambda: _Builder(name)).found


class _Builder(events.Reader[yaml.Node]):
    """Documents of PyYAML's nodes."""

    max_depth = MAX_DEPTH
    max_values = MAX_VALUES
    scope = "document"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.found: list[Boundary] = []

    def begin(self, event: yaml.DocumentStartEvent) -> None:
        assert event.start_mark is not None
        self.found.append(Boundary(event.start_mark.index))

    def end(self, root: yaml.Node) -> None:
        if value(root) is not None:
            self.found[-1].root = root

    def collection(self, event: events.Start) -> yaml.CollectionNode:
        kind, tag = (
            (yaml.SequenceNode, _LIST)
            if isinstance(event, yaml.SequenceStartEvent)
            else (yaml.MappingNode, _MAP)
        )
        return kind(event.tag or tag, [], *_marks(event), event.flow_style)

    def scalar(self, event: yaml.ScalarEvent) -> yaml.ScalarNode:
        tag, text, style = event.tag or _TEXT, event.value, event.style or None
        if style is None and event.tag in (_TEXT, "!"):  # `!!str 5` is a text
            tag, style = _TEXT, "'"
        elif (
            style is None and not text
        ):  # within a flow collection, nothing would be written as an empty text
            text = "null"
        try:
            # JSON writes a character beyond U+FFFF as two halves.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self.fail(event, "half a character (a lone surrogate), expected text")
        return yaml.ScalarNode(tag, text, *_marks(event), style)

    def copied(self, node: yaml.Node, event: yaml.Event) -> yaml.Node:
        return copy_of(node, _marks(event))

    def close(self, node: yaml.Node, children: list[yaml.Node]) -> None:
        if isinstance(node, yaml.SequenceNode):
            node.value = children
            return
        first: dict[str, yaml.Node] = {}
        merges: list[yaml.Node] = []
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, "a list or mapping as a key, expected a name")
            if key.value == "<<" and not key.style:
                merges += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            before = first.setdefault(key.value, key)
            if before is not key:
                assert before.start_mark is not None
                line = before.start_mark.line + 1
                self.fail(
                    key, f"key {shown(key.value)} is given twice, first on line {line}, expected it once"
                )
            node.value.append((key, value))
        for source in merges:
            if not isinstance(source, yaml.MappingNode):
                self.fail(source, "no mapping after '<<', expected a mapping or a list of mappings")
            for key, value in source.value:
                if first.setdefault(key.value, key) is key:
                    node.value.append((key, value))

    def size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(map(self.size, node.value))
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self.size(key) + self.size(child) for key, child in node.value)
        return 1


def _marks(at: yaml.Event | yaml.Node) -> tuple[Any, Any]:
    return at.start_mark, at.end_mark


def copy_of(node: yaml.Node, marks: tuple[Any, Any] | None = None) -> yaml.Node:
    """Another node with the same content, at the same place or all of it at `marks`. `copy.deepcopy` goes
    through ten calls a level, which is more than Python takes of the deepest documents."""
    at = marks or _marks(node)
    if isinstance(node, yaml.SequenceNode):
        items = [copy_of(item, marks) for item in node.value]
        return yaml.SequenceNode(node.tag, items, *at, node.flow_style)
    if isinstance(node, yaml.MappingNode):
        entries = [(copy_of(key, marks), copy_of(value, marks)) for key, value in node.value]
        return yaml.MappingNode(node.tag, entries, *at, node.flow_style)
    assert isinstance(node, yaml.ScalarNode)
    return yaml.ScalarNode(node.tag, node.value, *at, node.style)


def value(node: yaml.Node | None) -> Any:
    """What a node means, as JSON's kinds of values."""
    if node is None:
        return None
    if isinstance(node, yaml.MappingNode):
        return {key.value: value(child) for key, child in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [value(child) for child in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style and node.tag == _TEXT else _resolved(node)


def _resolved(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        sign = -1 if digits[0] == "-" else 1
        digits = digits.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        try:
            return sign * (int(digits, 8) if octal else int(digits, 0))
        except ValueError:  # 09
            return float(digits) * sign
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def node(data: Any) -> yaml.Node:
    """A node that means `data`, and that every reader of YAML takes for it."""
    if isinstance(data, dict):
        return yaml.MappingNode(_MAP, [(node(str(k)), node(v)) for k, v in data.items()], flow_style=not data)
    if isinstance(data, list):
        return yaml.SequenceNode(_LIST, [node(item) for item in data], flow_style=not data)
    if data is None or isinstance(data, bool):
        return yaml.ScalarNode(_TEXT, {None: "null", True: "true", False: "false"}[data])
    if isinstance(data, str):
        return yaml.ScalarNode(_TEXT, data, style=None if _is_plain(data) else "'")
    return yaml.ScalarNode(_TEXT, str(data))


def _is_plain(text: str) -> bool:
    words = text in _NULLS or text in _TRUE or text in _FALSE
    return not words and not _NUMERIC.fullmatch(text) and bool(_PLAIN.fullmatch(text))


def written(root: yaml.Node) -> str:
    """The text of a document, without the line that begins it."""
    text: str = yaml.serialize(
        root, Dumper=yaml.BaseDumper, allow_unicode=True, width=1 << 20, explicit_start=False
    )
    return text.removesuffix("...\n")


def place(root: yaml.Node | None, path: tuple[str | int, ...]) -> tuple[int, int]:
    """Line and column of what is at `path`, or of the nearest thing above it that is there; else 0, 0."""
    at, mark = root, root.start_mark if root is not None else None
    for part in path:
        if isinstance(at, yaml.MappingNode):
            entry = next(((key, child) for key, child in at.value if key.value == part), None)
            if entry is None:
                break
            at = entry[1]
            # The key says where a value is that has none.
            mark = at.start_mark if at.start_mark is not None and _is_there(at) else entry[0].start_mark
        elif isinstance(at, yaml.SequenceNode) and isinstance(part, int) and part < len(at.value):
            at = at.value[part]
            mark = at.start_mark
        else:
            break
    return (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)


def _is_there(node: yaml.Node) -> bool:
    return not isinstance(node, yaml.ScalarNode) or bool(node.style) or node.value not in ("", "null")
