"""The HTTP/2 corpus as text: what one file says, and the bytes that it stands for.

The format is described in tests/corpus/http2/README.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kit import blocks
from kit.http2 import PREFACE, Code, Flag, Frame, Setting, Type, padded, priority

CORPUS = Path(__file__).parent.parent / "corpus" / "http2"

_KEYS = ("rule", "expect", "departs", "upstream", "sees", "never", "body", "start", "after", "requires")
_WORD = re.compile(r'([\w.-]+)=("[^"]*"|\S*)|(\S+)')
_TARGET = re.compile(r"([A-Z]+) (?:(\w+):)?//([^/?]*)(\S*)")
_TIMES = re.compile(r"\{(.+?)\*(\d+)\}")
_REPEAT = re.compile(r"(?:(\d+)\* )?(.*)")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_PLAIN = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "s": " ", "\\": "\\", "{": "{"}


@dataclass(frozen=True)
class Condition:
    """One thing that holds afterwards: `answered 1 200`, `stream 1 CANCEL/STREAM_CLOSED`, `ignored`."""

    what: str
    stream: int = 0
    value: str = ""

    @property
    def codes(self) -> set[int]:
        return {Code[name] for name in self.value.split("/")}

    def __str__(self) -> str:
        return " ".join(filter(None, [self.what, str(self.stream or ""), self.value]))


@dataclass(frozen=True)
class Step:
    """A line of the script: a frame or raw bytes to send, or something to wait for (`words`)."""

    send: Frame | bytes | None = None
    words: tuple[str, ...] = ()


@dataclass
class Case:
    """One file; `steps` need the scheme of the connection for the requests that leave it open."""

    path: Path
    rule: str = ""
    expect: list[list[Condition]] = field(default_factory=list)  # one of them, all of its conditions
    departs: list[list[Condition]] = field(default_factory=list)  # not what the rule says, but tolerated
    upstream: str = ""
    sees: list[str] = field(default_factory=list)
    never: list[str] = field(default_factory=list)
    body: str | None = None
    start: str = "settings"
    after: str = "request"
    requires: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.path.stem

    @property
    def size(self) -> int:
        """Bytes that it sends."""
        sent = (step.send for step in self.steps())
        return sum(len(part.encode() if isinstance(part, Frame) else part) for part in sent if part)

    def steps(self, scheme: str = "http") -> Iterator[Step]:
        at = 0
        while at < len(self.lines):
            first = at
            at += 1
            while at < len(self.lines) and self.lines[at].startswith(" "):
                at += 1
            times, line = _REPEAT.fullmatch(self.lines[first]).groups()  # type: ignore[union-attr]
            try:
                step = _step(line, [item.strip(" ") for item in self.lines[first + 1 : at]], scheme)
            except (ValueError, KeyError, IndexError, struct.error) as error:
                raise ValueError(f"{self.path.name}: {line!r}: {error!r}") from error
            for _ in range(int(times or 1)):
                yield step


def load(where: Path = CORPUS) -> list[Case]:
    """All cases in the order of their names."""
    return [parse(path) for path in sorted(where.glob("*.h2"))]


def parse(path: Path) -> Case:
    """Read a file; ValueError with its name if it is not right."""
    case = Case(path)
    head, _, script = path.read_text().partition("\n\n")
    for line in head.splitlines():
        if line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not colon or key not in _KEYS:
            raise ValueError(f"{path.name}: {line!r}")
        if key in ("expect", "departs"):
            getattr(case, key).append([_condition(path, one) for one in value.split(", ")])
        elif key in ("sees", "never"):
            getattr(case, key).append(unescape(value))
        elif key == "requires":
            case.requires |= set(value.split())
        else:
            setattr(case, key, unescape(value))
    answered = any(one.what == "answered" for conditions in case.expect + case.departs for one in conditions)
    case.upstream = case.upstream or ("any" if answered else "none")
    case.lines = [line for line in script.splitlines() if line.strip() and not line.startswith("#")]
    if not case.rule or not case.expect or case.upstream not in ("any", "none", "cut"):
        raise ValueError(f"{path.name}: rule, expect or upstream is missing or wrong")
    list(case.steps())
    return case


_STREAMS = ("answered", "stream", "malformed", "body", "interim", "trailer")
_BARE = ("connection", "ignored", "served", "closed")


def _condition(path: Path, text: str) -> Condition:
    what, *rest = text.split()
    try:
        if what in _STREAMS:
            condition = Condition(what, int(rest[0]), " ".join(rest[1:]))
        elif what in _BARE:
            condition = Condition(what, 0, " ".join(rest))
        else:
            raise ValueError("unknown")
        if what in ("stream", "connection"):
            _ = condition.codes
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path.name}: {text!r}: {error!r}") from error
    return condition


def unescape(text: str) -> str:
    """Escapes and repetitions of the format; characters stand for bytes."""
    text = _TIMES.sub(lambda found: unescape(found[1]) * int(found[2]), text)
    return _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "x" else _PLAIN[m[1]], text)


def _number(text: str) -> int:
    return int(text, 0)


def _step(line: str, items: list[str], scheme: str) -> Step:
    words = []
    values: dict[str, str] = {}
    for key, value, word in _WORD.findall(line):
        if word:
            words.append(word)
        else:
            values[key] = unescape(value[1:-1] if value.startswith('"') else value)
    if words[0] in ("WAIT", "HELD", "CLOSE", "OVERFLOW", "UPLOAD", "EXCEED"):
        return Step(words=tuple(words))
    if words[0] == "PREFACE":
        return Step(send=PREFACE)
    if words[0] == "RAW":
        return Step(send=_content(values))
    content = b"".join(_item(item, scheme) for item in items)
    return Step(send=_frame(words, values, content))


def _content(values: dict[str, str]) -> bytes:
    """What `hex`, `text` and `zeros` stand for, and no other key."""
    content = bytes.fromhex(values.pop("hex", ""))
    content += values.pop("text", "").encode("latin-1")
    content += bytes(_number(values.pop("zeros", "0")))
    return content


def _frame(words: list[str], values: dict[str, str], content: bytes) -> Frame:
    """A frame of its name, stream and flags, its keys, and its header block."""
    kind, stream, *names = words
    number = Type[kind].value if kind in Type.__members__ else _number(kind)
    flags = _number(values.pop("flags", "0"))
    for name in names:
        flags |= Flag[name]
    length = values.pop("length", None)
    reserved = values.pop("reserved", "0") != "0"
    pad, said = values.pop("pad", None), values.pop("said", None)
    content += _content(values)
    if {"depends", "weight", "exclusive"} & set(values):
        front = priority(
            _number(values.pop("depends", "0")),
            _number(values.pop("weight", "16")),
            values.pop("exclusive", "0") != "0",
        )
        content = front + content
        if number == Type.HEADERS:
            flags |= Flag.PRIORITY
    if "promised" in values:
        content = struct.pack(">I", _number(values.pop("promised"))) + content
    if "last" in values:
        content = struct.pack(">I", _number(values.pop("last"))) + _code(values.pop("error")) + content
    elif "error" in values:
        content = _code(values.pop("error")) + content
    if "increment" in values:
        content = struct.pack(">I", _number(values.pop("increment"))) + content
    if number == Type.SETTINGS:
        for key in list(values):
            setting = Setting[key] if key in Setting.__members__ else _number(key)
            content += struct.pack(">HI", setting, _number(values.pop(key)))
    if pad is not None:
        content = padded(content, _number(pad), None if said is None else _number(said))
        flags |= Flag.PADDED
    if values:
        raise ValueError(f"unknown: {', '.join(values)}")
    return Frame(
        number, flags, _number(stream), content, None if length is None else _number(length), reserved
    )


def _code(text: str) -> bytes:
    return struct.pack(">I", Code[text] if text in Code.__members__ else _number(text))


def _item(line: str, scheme: str) -> bytes:
    """One line of a header block."""
    how: list[str] = []
    if line.startswith("["):
        inside, _, line = line[1:].partition("]")
        line = line.removeprefix(" ")
        how = inside.split()
        if how[0] == "times":
            return int(how[1]) * _item(line, scheme)
        if how[0] == "hex":
            return bytes.fromhex("".join(how[1:]))
        if how[0] == "indexed":
            return blocks.indexed(int(how[1]))
        if how[0] == "size":
            return blocks.table_size(int(how[1]))
    if target := _TARGET.fullmatch(line):
        method, own, authority, path = target.groups()
        pseudo = {":method": method, ":scheme": own or scheme, ":path": path or "/", ":authority": authority}
        return blocks.block((name, unescape(value)) for name, value in pseudo.items())
    name, value = _field(line) if "name" not in " ".join(how) else ("", unescape(line))
    if not how:
        return blocks.field(name, value)
    index = next((int(word[5:]) for word in how if word.startswith("name=")), None)
    return blocks.literal(name if index is None else index, value, how[0], "huffman" in how)


def _field(line: str) -> tuple[str, str]:
    """`name: value`, the name with or without a colon in front, the value perhaps empty."""
    at = line.find(": ", 1)
    if at >= 0:
        return unescape(line[:at]), unescape(line[at + 2 :])
    if line.endswith(":") and len(line) > 1:
        return unescape(line[:-1]), ""
    if line.startswith(": "):  # the empty name
        return "", unescape(line[2:])
    raise ValueError(f"not a field: {line!r}")
