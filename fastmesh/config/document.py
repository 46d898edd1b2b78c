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
from pathlib import Path
from typing import Final, Literal

import yaml

from fastmesh.config import events
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
    builder = events.read(decode(data, name), lambda: _Builder(name))
    if builder.root is None:
        empty = "the file is empty, expected at least `listeners`"
        raise ConfigErrors([*builder.errors, ConfigError(name, 1, 1, empty)])
    return builder.root, builder.errors


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


class _Builder(events.Reader[Node]):
    """Builds the tree of the one document; errors that do not stop reading are kept."""

    max_depth = MAX_DEPTH
    max_values = MAX_VALUES
    scope = "file"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.root: Node | None = None

    def begin(self, event: yaml.DocumentStartEvent) -> None:
        if self.root is not None:
            self.fail(event, "a second document, expected one document in the file")

    def end(self, root: Node) -> None:
        self.root = root

    def scalar(self, event: yaml.ScalarEvent) -> Node:
        node = self._made("scalar", event)
        node.text = event.value
        node.quoted = bool(event.style)  # libyaml says "" for a plain one, the Python parser None
        return node

    def collection(self, event: events.Start) -> Node:
        return self._made("list" if isinstance(event, yaml.SequenceStartEvent) else "map", event)

    def _made(self, kind: Literal["scalar", "list", "map"], event: yaml.ScalarEvent | events.Start) -> Node:
        line, column = events.start(event)
        if event.tag is not None:
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.error(line, column, f"the tag {tag}, expected a value without a tag")
        return Node(kind, line, column)

    def copied(self, node: Node, event: yaml.AliasEvent) -> Node:
        return node.moved(*events.start(event))

    def size(self, node: Node) -> int:
        return node.size

    def close(self, node: Node, children: list[Node]) -> None:
        node.size = 1 + sum(child.size for child in children)
        if node.kind == "list":
            node.items = children
            return
        merges: list[tuple[Node, Node]] = []
        for key, value in zip(children[::2], children[1::2], strict=True):
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

    def merge(self, node: Node, value: Node) -> None:
        """`<<`: keys that the mapping itself has win, then those of earlier mappings in the list."""
        for source in value.items if value.kind == "list" else [value]:
            if source.kind != "map":
                message = f"{source.described()} after '<<', expected a mapping or a list of mappings"
                self.error(source.line, source.column, message)
                continue
            for text, entry in source.entries.items():
                node.entries.setdefault(text, entry)
