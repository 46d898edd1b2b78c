"""Manifests: files with many documents, of which few are changed.

A document that is not changed is written byte for byte as it was read, comments too. One that is changed
keeps the order of its keys, its values and their quotes, and loses its comments. JSON stays JSON.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from fastmesh.config.document import decode
from fastmesh.config.errors import ConfigError, ConfigErrors
from fastmesh.kubernetes import nodes
from fastmesh.kubernetes.errors import Path as DataPath
from fastmesh.kubernetes.patch import Operation, parts

MAX_FILE: Final = 64 << 20
STDIN: Final = "stdin"


class Document:
    """One document of a file: `number` counts from 1, `data` is what it says (None: nothing)."""

    __slots__ = ("_root", "_text", "data", "name", "number")

    def __init__(self, name: str, number: int, text: str, root: yaml.Node | None) -> None:
        self.name = name
        self.number = number
        self.data: Any = nodes.value(root)
        self._text = text
        self._root = root

    def text(self, operations: list[Operation]) -> str:
        """The document with `operations` applied to it; what it was if there are none."""
        if not operations:
            return self._text
        assert self._root is not None
        root = nodes.copy_of(self._root)
        for operation in operations:
            _apply(root, operation)
        if _is_json(self._text):
            return json.dumps(nodes.value(root), indent=4, ensure_ascii=False) + "\n"
        return nodes.written(root)

    def error(self, path: DataPath, message: str) -> ConfigError:
        """An error of this document, at the place of `path` in the file."""
        return ConfigError(self.name, *nodes.place(self._root, path), message)


def read(name: str) -> bytes:
    """The bytes of a file, or of stdin when it is called `-`. Raises `ConfigErrors` that say why not."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with Path(name).open("rb") as file:
                if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                    raise IsADirectoryError
                data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        message = "does not exist, expected a file with Kubernetes manifests, or - for stdin"
    except IsADirectoryError:
        message = "is a directory, expected a file (name its files: DIRECTORY/*.yaml)"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else None
        message = f"cannot be read: {why or error}"
    else:
        if len(data) <= MAX_FILE:
            return data
        message = f"is larger than {MAX_FILE >> 20} MiB, expected manifests"
    raise ConfigErrors([ConfigError(shown_name(name), 0, 0, message)])


def shown_name(name: str) -> str:
    return STDIN if name == "-" else name


def documents(data: bytes, name: str) -> list[Document]:
    """The documents of a file, in their order. Raises `ConfigErrors`."""
    text = decode(data, name)
    found = nodes.compose(text, name) or [nodes.Boundary(0)]
    # What stands before the first document (comments) is its own.
    begins = [0, *(one.begin for one in found[1:]), len(text)]
    return [
        Document(name, index + 1, text[begins[index] : begins[index + 1]], one.root)
        for index, one in enumerate(found)
    ]


def _is_json(text: str) -> bool:
    """Whether other tools than those for YAML may read it."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def joined(texts: list[str]) -> str:
    """Documents as one text."""
    out = ""
    for text in texts:
        if out and not out.endswith("\n"):
            out += "\n"
        # The end of a document (`...`) makes place for directives; elsewhere `---` is all that is needed.
        begins = text.startswith(("---", "%"))
        out += text if begins or not out else f"---\n{text}"
    return out


def _apply(root: yaml.Node, operation: Operation) -> None:
    """One operation of a JSON Patch, on nodes."""
    *above, last = parts(operation["path"])
    at = root
    for part in above:
        at = _child(at, part)
    if isinstance(at, yaml.SequenceNode):
        index = int(last)
        at.flow_style = at.flow_style and bool(at.value)  # `[]` would make one line of what is put into it
        if operation["op"] == "add":
            at.value.insert(index, nodes.node(operation["value"]))
        elif operation["op"] == "replace":
            at.value[index] = nodes.node(operation["value"])
        else:
            del at.value[index]
        return
    assert isinstance(at, yaml.MappingNode)
    index = next((i for i, (key, _) in enumerate(at.value) if key.value == last), len(at.value))
    if operation["op"] == "remove":
        del at.value[index]
        return
    at.flow_style = at.flow_style and bool(at.value)
    key = at.value[index][0] if index < len(at.value) else nodes.node(last)
    at.value[index : index + 1] = [(key, nodes.node(operation["value"]))]


def _child(at: yaml.Node, part: str) -> yaml.Node:
    if isinstance(at, yaml.SequenceNode):
        child: yaml.Node = at.value[int(part)]
        return child
    assert isinstance(at, yaml.MappingNode)
    found: yaml.Node = next(child for key, child in at.value if key.value == part)
    return found
