"""YAML text into nodes that know their place.

Only YAML's syntax is taken from PyYAML (its event stream); what a scalar means is for the schema to say,
so `on`, `no` and `1_0` keep their text. Aliases and merge keys work; what could be read in two ways is an
error: a key given twice, an explicit tag, a second document.

Bounded by construction, whatever the file says: its size, its nesting, and the number of values after
aliases are expanded ("billion laughs"). Expanded aliases share their nodes, so composing costs what the
file's own text costs; the bound protects those who walk the result.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NoReturn

import yaml

from fastmesh.config.errors import ConfigError, ConfigErrors, shown

MAX_FILE: Final = 16 << 20
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 250_000

# What YAML 1.2 (5.1) does not allow in a stream.
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class Node:
    """A scalar, a list or a mapping, and where it stands (line and column count from 1)."""

    __slots__ = ("column", "entries", "items", "kind", "line", "quoted", "size", "text")

    def __init__(self, kind: Literal["scalar", "list", "map"], line: int, column: int) -> None:
        self.kind = kind
        self.line = line
        self.column = column
        self.text = ""
        self.quoted = False
        self.items: list[Node] = []
        self.entries: dict[str, tuple[Node, Node]] = {}  # key text -> (key, value)
        self.size = 1  # values in it, aliases expanded

    def moved(self, line: int, column: int) -> Node:
        """The same node at an alias: its own place is the alias, its content stays where it was written."""
        other = Node(self.kind, line, column)
        other.text, other.quoted = self.text, self.quoted
        other.items, other.entries, other.size = self.items, self.entries, self.size
        return other

    def described(self) -> str:
        """What this is, for "…, expected …"."""
        if self.kind == "list":
            return "a list"
        if self.kind == "map":
            return "a mapping"
        if self.empty:
            return "nothing"
        return shown(self.text)

    @property
    def empty(self) -> bool:
        """`key:` without a value, `null` or `~`."""
        return self.kind == "scalar" and not self.quoted and self.text in ("", "~", "null", "Null", "NULL")


def read(path: Path, name: str) -> bytes:
    """The bytes of a configuration file, or `ConfigErrors` that say why it cannot be read."""
    try:
        data, kind = _bytes(path)
    except FileNotFoundError:
        message = "does not exist, expected a configuration file (`fastmesh init` writes one to start from)"
    except IsADirectoryError:
        message = "is a directory, expected a file"
    except PermissionError:
        message = "cannot be read: permission denied"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        message = f"cannot be read: {(error.strerror if isinstance(error, OSError) else None) or error}"
    else:
        if not data and stat.S_ISFIFO(kind):
            message = "is a pipe that nobody writes to, expected a file"
        elif len(data) <= MAX_FILE:
            return data
        else:
            message = f"is larger than {MAX_FILE >> 20}MiB, expected a configuration file"
    raise ConfigErrors([ConfigError(name, 0, 0, message)])


def _bytes(path: Path) -> tuple[bytes, int]:
    """At most one byte more than `MAX_FILE` of a file, and its mode."""
    # O_NONBLOCK: opening a named pipe must not wait until somebody writes to it. Reading may: a shell's
    # `<(…)` is a pipe too.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE + 1), mode
    finally:
        os.close(descriptor)


def parse(data: bytes, name: str) -> tuple[Node, list[ConfigError]]:
    """The one document in `data`, with the errors that do not stop reading (keys given twice and the like).

    Raises `ConfigErrors` when there is nothing to go on with: broken syntax, bad encoding, a bound passed.
    """
    text = decode(data, name)
    # libyaml is ten times faster, the Python parser says better what is wrong.
    if yaml.__with_libyaml__:
        composer = _Composer(name)
        try:
            return composer.compose(yaml.parse(text, yaml.CBaseLoader)), composer.errors
        except yaml.YAMLError:
            pass
    composer = _Composer(name)
    try:
        return composer.compose(yaml.parse(text, yaml.BaseLoader)), composer.errors
    except yaml.MarkedYAMLError as error:
        mark, message = syntax(error)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigErrors([*composer.errors, ConfigError(name, line, column, message)]) from None


def decode(data: bytes, name: str) -> str:
    """The text of a YAML file. Raises `ConfigErrors` for what is not UTF-8, and for control characters."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigErrors([ConfigError(name, 1, 1, "the file is in UTF-16, expected UTF-8")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.object` lacks a byte order mark that was skipped, and `start` counts in it.
        line, column = _place(error.object[: error.start].decode("utf-8"))
        byte = error.object[error.start]
        raise ConfigErrors(
            [ConfigError(name, line, column, f"byte 0x{byte:02x} is not UTF-8, expected UTF-8")]
        ) from None
    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        line, column = _place(text[: bad.start()])
        what = f"control character U+{ord(bad[0]):04X}, expected printable text"
        raise ConfigErrors([ConfigError(name, line, column, what)])
    return text


def _place(before: str) -> tuple[int, int]:
    """Line and column of the character that follows `before`."""
    breaks = list(_BREAK.finditer(before))
    return len(breaks) + 1, len(before) - (breaks[-1].end() if breaks else 0) + 1


_Begin = yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent


class _Composer:
    """Builds the tree from the event stream; keeps its own stack, so that nesting cannot exhaust Python's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[ConfigError] = []
        self.anchors: dict[str, Node | None] = {}  # None: still open, an alias would contain itself
        self.values = 0

    def compose(self, events: Iterator[yaml.Event]) -> Node:
        root: Node | None = None
        stack: list[_Open] = []
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self.fail(event, "a second document, expected one document in the file")
            node: Node | None = None
            if isinstance(event, yaml.ScalarEvent):
                node = self.start("scalar", event)
                node.text = event.value
                node.quoted = bool(event.style)  # libyaml says "" for a plain one, the Python parser None
                if event.anchor is not None:
                    self.anchors[event.anchor] = node
            elif isinstance(event, yaml.AliasEvent):
                node = self.alias(event)
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                if len(stack) >= MAX_DEPTH:
                    self.fail(event, f"nested more than {MAX_DEPTH} levels deep, expected less")
                kind: Literal["list", "map"] = "list" if isinstance(event, yaml.SequenceStartEvent) else "map"
                stack.append(_Open(self.start(kind, event), event.anchor))
                if event.anchor is not None:
                    self.anchors[event.anchor] = None
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                opened = stack.pop()
                node = self.close(opened)
                if opened.anchor is not None:
                    self.anchors[opened.anchor] = node
            if node is None:
                continue
            if stack:
                stack[-1].children.append(node)
            else:
                root = node
        if root is None:
            empty = "the file is empty, expected at least `listeners`"
            raise ConfigErrors([*self.errors, ConfigError(self.name, 1, 1, empty)])
        return root

    def start(self, kind: Literal["scalar", "list", "map"], event: _Begin) -> Node:
        self.count(1, event)
        line, column = _start(event)
        if event.tag is not None:
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.error(line, column, f"the tag {tag}, expected a value without a tag")
        return Node(kind, line, column)

    def alias(self, event: yaml.AliasEvent) -> Node:
        name = event.anchor or ""
        if name not in self.anchors:
            message = f"the alias {shown('*' + name)} has no anchor before it"
            self.fail(event, f"{message}, expected {shown('&' + name)} earlier in the file")
        target = self.anchors[name]
        if target is None:
            message = f"the alias {shown('*' + name)} stands inside its own anchor"
            self.fail(event, f"{message}, expected a value that does not contain itself")
        self.count(target.size, event)
        return target.moved(*_start(event))

    def close(self, opened: _Open) -> Node:
        node = opened.node
        node.size = 1 + sum(child.size for child in opened.children)
        if node.kind == "list":
            node.items = opened.children
            return node
        merges: list[tuple[Node, Node]] = []
        for key, value in zip(opened.children[::2], opened.children[1::2], strict=True):
            if key.kind != "scalar":
                self.error(key.line, key.column, f"{key.described()} as a key, expected a name")
                continue
            if key.text == "<<" and not key.quoted:
                if merges:
                    self.error(key.line, key.column, "'<<' is given twice, expected one '<<' with a list")
                merges.append((key, value))
                continue
            first = node.entries.get(key.text)
            if first is not None:
                message = f"key {shown(key.text)} is given twice, first on line {first[0].line}"
                self.error(key.line, key.column, f"{message}, expected it once")
                continue
            if value.kind == "scalar" and not value.quoted and not value.text:
                value.line, value.column = key.line, key.column  # parsers disagree where nothing stands
            node.entries[key.text] = (key, value)
        for _, value in merges[:1]:
            self.merge(node, value)
        return node

    def merge(self, node: Node, value: Node) -> None:
        """`<<`: keys that the mapping itself has win, then those of earlier mappings in the list."""
        for source in value.items if value.kind == "list" else [value]:
            if source.kind != "map":
                message = f"{source.described()} after '<<', expected a mapping or a list of mappings"
                self.error(source.line, source.column, message)
                continue
            for text, entry in source.entries.items():
                node.entries.setdefault(text, entry)

    def count(self, values: int, event: yaml.Event) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            self.fail(event, f"more than {MAX_VALUES} values once aliases are expanded, expected fewer")

    def error(self, line: int, column: int, message: str) -> None:
        self.errors.append(ConfigError(self.name, line, column, message))

    def fail(self, event: yaml.Event, message: str) -> NoReturn:
        self.error(*_start(event), message)
        raise ConfigErrors(self.errors)


def _start(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None  # parsers always set it
    return mark.line + 1, mark.column + 1


class _Open:
    """A list or mapping whose end has not been read yet."""

    __slots__ = ("anchor", "children", "node")

    def __init__(self, node: Node, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.children: list[Node] = []


# The parser's words for common slips, and what helps. Matched by their start.
_HINTS: Final = (
    (
        "mapping values are not allowed",
        "':' in a place where no key can be, expected one `key: value` a line "
        "(check the indentation; quote text that contains ': ')",
    ),
    ("found character '\\t'", "a tab, expected spaces"),
    ("found a tab character", "a tab, expected spaces"),
    ("found character '@'", "'@' at the start of a value, expected it in quotes"),
    ("found character '`'", "'`' at the start of a value, expected it in quotes"),
    ("found character '%'", "'%' at the start of a value, expected it in quotes"),
    (
        "expected '<document start>'",
        "text after the end of the document, expected one mapping (check the indentation)",
    ),
)


def syntax(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    """Where a syntax error is for the person who wrote it, and what helps."""
    problem = (error.problem or "not valid YAML").replace("\n", " ")
    context = (error.context or "").replace("\n", " ")
    mark, begun = error.problem_mark, error.context_mark
    if context.endswith("an alias"):
        return mark, "'*' that begins no alias, expected a value (quote a '*': \"*\")"
    if begun is not None and ("end of stream" in problem or "<stream end>" in problem):
        what = next((word for word in ("scalar", "sequence", "mapping") if word in context), "")
        opener = {"scalar": "a quote", "sequence": "'['", "mapping": "'{'"}.get(what, "something")
        return begun, f"{opener} that is never closed, expected its end before the end of the file"
    if begun is not None and problem.startswith("could not find expected ':'"):
        return begun, "a line without ':', expected `key: value`"
    if begun is not None and problem.startswith("expected <block end>"):
        what = "list" if "collection" in context else "mapping"
        where = f"the {what} that begins on line {begun.line + 1}"
        return mark, f"a line that does not fit, expected the indentation of {where}"
    for start, message in _HINTS:
        if problem.startswith(start):
            return mark, message
    since = f" that begins on line {begun.line + 1}" if context and begun else ""
    return mark or begun, f"not valid YAML: {problem}" + (f" ({context}{since})" if context else "")
