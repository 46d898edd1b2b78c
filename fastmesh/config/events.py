"""YAML's event stream, read under the rules that all our files have; who reads makes the nodes.

What a parser accepts is bounded here, whatever the text says: its nesting, and the number of values after
aliases are expanded ("billion laughs"). An alias needs its anchor before it, and may not stand inside it. The
reader keeps its own stack, so that nesting cannot exhaust Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, Generic, NoReturn, TypeVar

import yaml

from fastmesh.config.errors import ConfigError, ConfigErrors, shown

Start = yaml.SequenceStartEvent | yaml.MappingStartEvent
N = TypeVar("N")


class Reader(Generic[N]):
    """Reads one text once. Subclasses say what a node is."""

    max_depth: ClassVar[int]
    max_values: ClassVar[int]
    scope: ClassVar[str]  # within which an anchor counts: the file or the document

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[ConfigError] = []  # those that do not stop reading
        self._anchors: dict[str, N | None] = {}  # None: still open, an alias would contain itself
        self._values = 0

    # what a subclass makes

    def begin(self, event: yaml.DocumentStartEvent) -> None:
        """A document begins."""
        raise NotImplementedError

    def end(self, root: N) -> None:
        """The root of that document is complete."""
        raise NotImplementedError

    def scalar(self, event: yaml.ScalarEvent) -> N:
        raise NotImplementedError

    def collection(self, event: Start) -> N:
        """A list or mapping whose entries come later, with `close`."""
        raise NotImplementedError

    def close(self, node: N, children: list[N]) -> None:
        """What is in a list; of a mapping keys and values in turn."""
        raise NotImplementedError

    def copied(self, node: N, event: yaml.AliasEvent) -> N:
        """What an alias stands for, at its place."""
        raise NotImplementedError

    def size(self, node: N) -> int:
        """The number of values in a node, aliases expanded."""
        raise NotImplementedError

    # the rules

    def read(self, events: Iterator[yaml.Event]) -> None:
        """Raises `ConfigErrors` when there is nothing to go on with."""
        stack: list[tuple[N, str | None, list[N]]] = []
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                self.begin(event)
                continue
            if isinstance(event, yaml.ScalarEvent):
                self._count(1, event)
                node, anchor = self.scalar(event), event.anchor
            elif isinstance(event, yaml.AliasEvent):
                node, anchor = self._aliased(event), None
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                if len(stack) >= self.max_depth:
                    self.fail(event, f"nested more than {self.max_depth} levels deep, expected less")
                self._count(1, event)
                stack.append((self.collection(event), event.anchor, []))
                if event.anchor is not None:
                    self._anchors[event.anchor] = None
                continue
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                node, anchor, children = stack.pop()
                self.close(node, children)
            else:
                continue
            if anchor is not None:
                self._anchors[anchor] = node
            if stack:
                stack[-1][2].append(node)
            else:
                self.end(node)

    def _aliased(self, event: yaml.AliasEvent) -> N:
        name = event.anchor or ""
        if name not in self._anchors:
            message = f"the alias {shown('*' + name)} has no anchor before it"
            self.fail(event, f"{message}, expected {shown('&' + name)} earlier in the {self.scope}")
        target = self._anchors[name]
        if target is None:
            message = f"the alias {shown('*' + name)} stands inside its own anchor"
            self.fail(event, f"{message}, expected a value that does not contain itself")
        self._count(self.size(target), event)
        return self.copied(target, event)

    def _count(self, values: int, event: yaml.Event) -> None:
        self._values += values
        if self._values > self.max_values:
            self.fail(event, f"more than {self.max_values} values once aliases are expanded, expected fewer")

    def error(self, line: int, column: int, message: str) -> None:
        self.errors.append(ConfigError(self.name, line, column, message))

    def fail(self, at: yaml.Event | yaml.Node, message: str) -> NoReturn:
        self.error(*start(at), message)
        raise ConfigErrors(self.errors)


R = TypeVar("R", bound=Reader[Any])


def read(text: str, make: Callable[[], R]) -> R:
    """A reader that has read `text`. Raises `ConfigErrors` that say what is wrong in it, and where."""
    # libyaml is ten times faster, the Python parser says better what is wrong.
    if yaml.__with_libyaml__:
        reader = make()
        try:
            reader.read(yaml.parse(text, yaml.CBaseLoader))
            return reader
        except yaml.YAMLError:
            pass
    reader = make()
    try:
        reader.read(yaml.parse(text, yaml.BaseLoader))
    except yaml.MarkedYAMLError as error:
        mark, message = _syntax(error)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigErrors([*reader.errors, ConfigError(reader.name, line, column, message)]) from None
    return reader


def start(at: yaml.Event | yaml.Node) -> tuple[int, int]:
    """Line and column, which count from 1."""
    mark = at.start_mark
    assert mark is not None  # parsers always set it
    return mark.line + 1, mark.column + 1


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


def _syntax(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
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
