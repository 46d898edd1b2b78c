"""HTTP/1 messages as data: the corpus, a reader over the codec, and llhttp as the judge.

A case of the corpus is NNN-name.http, the bytes, and NNN-name.json, what the standards say about them:

    rule        the section that decides, or the limit of ours that does
    kind        request | response
    request     the method that the responses answer, default GET
    messages    valid: the messages in order, as `read` shows them; keys that are false, empty or absent are
                left out. invalid: how many whole messages come first, default 0
    incomplete  the stage that waits for more bytes at the end: head | body | trailers
    rest        bytes that belong to no message: behind an upgrade or the last message, in a tunnel, or of the
                incomplete head or trailer section
    reason      invalid: the name of the reason

Expectations are written from RFC 9110 and RFC 9112, never copied from what the codec answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

from fastmesh import _http1

CORPUS = Path(__file__).parent.parent / "corpus" / "http1"

# llhttp knows a fixed list of methods; a proxy forwards any token (RFC 9110 section 16.1.1). For it to judge
# the rest of such a message, another method of its list stands in.
STAND_IN = b"LINK"


@dataclass(frozen=True)
class Case:
    """One message file with its expectation."""

    name: str
    path: Path
    doc: dict[str, Any]

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def kind(self) -> str:
        return str(self.doc["kind"])

    @property
    def method(self) -> bytes:
        return str(self.doc.get("request", "GET")).encode()

    def __str__(self) -> str:
        return self.path.stem


def load(where: str) -> list[Case]:
    """The cases of a folder of the corpus, in order."""
    return [
        Case(path.stem.partition("-")[2], path, json.loads(path.with_suffix(".json").read_text()))
        for path in sorted((CORPUS / where).glob("*.http"))
    ]


@dataclass
class Reading:
    """What a reader made of some bytes."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    incomplete: str = ""  # the stage that waits for more
    refused: str = ""  # the reason
    rest: bytes = b""


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _show(head: dict[str, Any], kind: str) -> dict[str, Any]:
    """A head of the probe in the terms of the corpus."""
    keys = ("method", "path", "authority", "scheme") if kind == "request" else ("reason",)
    shown: dict[str, Any] = {key: _text(head[key]) for key in keys}
    shown["fields"] = [[_text(name), _text(value)] for name, value, _ in head["fields"]]
    shown["hop"] = [_text(name) for name, _, hop in head["fields"] if hop]
    shown["framing"] = head["framing"]
    shown["length"] = head["length"]
    shown["skipped"] = head["skipped"]
    if kind == "response":
        shown["status"] = head["status"]
    for flag in head["flags"]:
        shown[flag] = _text(head["upgrade"]) if flag == "upgrade" else True
    return shown


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the keys that say nothing."""
    return {key: value for key, value in message.items() if value or key == "reason"}


def read(data: bytes, kind: str, method: bytes = b"GET", cuts: Sequence[int] | None = None) -> Reading:
    """Read the messages of one connection with the codec, as if they arrived in pieces that end at `cuts`."""
    cuts = [len(data)] if cuts is None else cuts
    reading = Reading()
    at = 0
    stage = "head"
    while at < len(data):
        try:
            stage = "head"
            stops = [cut - at for cut in cuts if cut > at]
            rest = data[at:]
            head = (
                _http1.parse_request(rest, stops)
                if kind == "request"
                else _http1.parse_response(rest, method, stops)
            )
            if head is None:
                reading.incomplete, reading.rest = stage, rest
                return reading
            at += head["used"]
            message = _show(head, kind)
            reading.messages.append(message)
            stage = "body"
            if head["framing"] == "length":
                body = data[at : at + head["length"]]
                message["content"] = _text(body)
                at += len(body)
                if len(body) < head["length"]:
                    reading.incomplete = stage
                    return reading
            elif head["framing"] == "chunked":
                body, used, ended = _http1.chunked(data[at:], [cut - at for cut in cuts if cut > at])
                message["content"] = _text(body)
                at += used
                if not ended:
                    reading.incomplete = stage
                    return reading
                stage = "trailers"
                trailers = _http1.parse_trailers(data[at:], [cut - at for cut in cuts if cut > at])
                if trailers is None:
                    reading.incomplete, reading.rest = stage, data[at:]
                    return reading
                at += trailers["used"]
                message["trailers"] = [[_text(name), _text(value)] for name, value, _ in trailers["fields"]]
                message["trailers_hop"] = [_text(name) for name, _, hop in trailers["fields"] if hop]
            elif head["framing"] == "close":
                message["content"] = _text(data[at:])
                at = len(data)
            if message.get("upgrade") or _tunnel(message, method) or not message.get("keep_alive"):
                reading.rest = data[at:]
                return reading
        except _http1.Refused as refused:
            if stage != "head":
                reading.messages.pop()
            reading.refused = str(refused)
            return reading
    return reading


def _tunnel(message: dict[str, Any], method: bytes) -> bool:
    if "status" in message:
        return method == b"CONNECT" and 200 <= message["status"] < 300
    return bool(message["method"] == "CONNECT")


def every_cut(size: int) -> Iterable[list[int]]:
    """Ways to cut `size` bytes: in two at every position, and in single bytes; large sizes are sampled."""
    step = 1 if size <= 2048 else size // 61
    for at in range(1, size, step):
        yield [at, size]
    yield [*range(1, size, 1 if size <= 2048 else size // 509), size]


# ---- llhttp --------------------------------------------------------------------------------------------


class _Sink:
    """Collects what httptools calls back."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.parser: Any = None

    def on_message_begin(self) -> None:
        self.messages.append(
            {
                "url": b"",
                "reason": b"",
                "fields": [],
                "content": b"",
                "trailers": [],
                "head": False,
                "whole": False,
            }
        )

    def on_url(self, url: bytes) -> None:
        self.messages[-1]["url"] += url

    def on_status(self, status: bytes) -> None:
        self.messages[-1]["reason"] += status

    def on_header(self, name: bytes, value: bytes | None) -> None:
        message = self.messages[-1]
        message["trailers" if message["head"] else "fields"].append((name, value or b""))

    def on_headers_complete(self) -> None:
        message = self.messages[-1]
        message["head"] = True
        message["version"] = self.parser.get_http_version()
        message["keep_alive"] = self.parser.should_keep_alive()
        if isinstance(self.parser, httptools.HttpRequestParser):
            message["method"] = self.parser.get_method()
        else:
            message["status"] = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.messages[-1]["content"] += body

    def on_message_complete(self) -> None:
        self.messages[-1]["whole"] = True


@dataclass
class Verdict:
    """What llhttp says: its messages (the last may be unfinished), and its error."""

    messages: list[dict[str, Any]]
    error: str


def judge(data: bytes, kind: str) -> Verdict:
    """Read the messages of one connection with llhttp, in its default strictness."""
    sink = _Sink()
    sink.parser = (httptools.HttpRequestParser if kind == "request" else httptools.HttpResponseParser)(sink)
    while data:
        try:
            sink.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            last = sink.messages[-1]
            if last["version"] != "1.0" or last.get("method") == b"CONNECT":
                break
            # it stops for an upgrade that an HTTP/1.0 client cannot ask for
            data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            # a 101 without the fields that belong to it: llhttp stops in peace, httptools does not know
            if str(error) == "Pause on CONNECT/Upgrade":
                break
            return Verdict(sink.messages, f"{type(error).__name__}: {error}")
        else:
            break
    return Verdict(sink.messages, "")


def judged_methods() -> frozenset[bytes]:
    """The methods that llhttp takes in HTTP/1 requests."""
    names = (
        b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH"
        b" UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE"
        b" UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK QUERY"
    )
    return frozenset(names.split())


def for_judge(data: bytes, reading: Reading) -> tuple[bytes, str | None]:
    """The bytes to show llhttp, and the method of the first request if another one stands in for it."""
    if not reading.messages or "method" not in reading.messages[0]:
        return data, None
    first = reading.messages[0]
    name = first["method"].encode("latin-1")
    if name in judged_methods():
        return data, None
    skipped = first["skipped"]
    return data[:skipped] + STAND_IN + data[skipped + len(name) :], first["method"]


def differences(data: bytes, kind: str, reading: Reading, method: bytes = b"GET") -> list[str]:
    """Where llhttp refuses or reads otherwise what the codec accepted; empty if nowhere.

    httptools cannot be told the method of the request that a response answers: where that decides whether
    a body follows (HEAD, CONNECT), only the head is compared.
    """
    shown, stood_for = for_judge(data[: len(data) - len(reading.rest)], reading)
    headless = kind == "response" and method in (b"HEAD", b"CONNECT")
    if headless:
        shown = shown[: shown.find(b"\r\n\r\n") + 4]
    verdict = judge(shown, kind)
    if verdict.error:
        return [f"llhttp refuses it: {verdict.error}"]
    found = []
    messages = reading.messages[:1] if headless else reading.messages
    theirs = [message for message in verdict.messages if message["head"]]
    if len(theirs) != len(messages):
        found.append(f"messages: {len(theirs)} for llhttp, {len(messages)} for us")
    for ours, other in zip(messages, theirs, strict=False):
        found += _compare(ours, other, kind, stood_for if ours is reading.messages[0] else None, headless)
    return found


def _compare(
    ours: dict[str, Any], theirs: dict[str, Any], kind: str, stood_for: str | None, headless: bool
) -> list[str]:
    found = []

    def equal(what: str, mine: object, other: object) -> None:
        if mine != other:
            found.append(f"{what}: {other!r} for llhttp, {mine!r} for us")

    equal("version", "1.0" if ours.get("http10") else "1.1", theirs["version"])
    equal("fields", ours["fields"], _fields(theirs["fields"]))
    if kind == "request":
        equal("method", "LINK" if stood_for else ours["method"], _text(theirs["method"]))
        _compare_target(ours, _text(theirs["url"]), equal)
    else:
        equal("status", ours["status"], theirs["status"])
        equal("reason", ours["reason"], _text(theirs["reason"]))
    if not headless and not ours.get("upgrade"):
        equal("content", ours.get("content", ""), _text(theirs["content"]))
        equal("trailers", ours.get("trailers", []), _fields(theirs["trailers"]))
    return found


def _fields(pairs: list[tuple[bytes, bytes]]) -> list[list[str]]:
    # llhttp leaves white space behind a value where it is
    return [[_text(name), _text(value).rstrip(" \t")] for name, value in pairs]


def _compare_target(ours: dict[str, Any], url: str, equal: Any) -> None:
    if ours["method"] == "CONNECT":
        equal("authority", ours["authority"], url)
    elif ours["scheme"]:
        # "/" stands for the empty path (RFC 9110 section 4.2.3)
        origin = f"{ours['scheme']}://{ours['authority']}"
        equal("target", origin + ("" if url == origin and ours["path"] == "/" else ours["path"]), url)
    else:
        equal("path", ours["path"], url)
