"""Turn the corpora of messages into inputs of a fuzz target: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent
HTTP1 = TESTS / "corpus" / "http1"
MODES = {"GET": 0, "HEAD": 2, "CONNECT": 4}
LONGEST = 8192  # of an input, as `run` has it

sys.path.insert(0, str(TESTS))

from kit import http2, http2_case  # noqa: E402


def messages() -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and bytes of each case of HTTP/1."""
    for path in [*HTTP1.glob("valid/*.http"), *HTTP1.glob("invalid/*.http")]:
        doc = json.loads(path.with_suffix(".json").read_text())
        mode = (doc["kind"] == "response") | MODES[doc.get("request", "GET")]
        yield f"{path.parent.name}-{path.stem}", mode, path.read_bytes()


def http1() -> Iterator[tuple[str, bytes]]:
    for name, mode, data in messages():
        yield name, bytes([mode, 7]) + data


def http2_connections() -> Iterator[tuple[str, bytes]]:
    """The corpus of connections, to a busy server and to one that does nothing; and some responses."""
    deeds = bytes(range(1, 64, 3))
    for case in http2_case.load():
        parts = [step.send for step in case.steps() if step.send is not None]
        data = b"".join(part.encode() if isinstance(part, http2.Frame) else part for part in parts)
        data = data.removeprefix(http2.PREFACE)
        if case.start == "settings":
            data = http2.settings().encode() + data
        yield f"passive-{case}", bytes([18, 3, 1, 2, 3]) + data
        yield f"busy-{case}", bytes([2, len(deeds)]) + deeds + data
    answer = [(":status", "200"), ("content-length", "3"), ("set-cookie", "a=b")]
    interim = [(":status", "103"), ("link", "a")]
    frames = {
        "whole": [http2.headers(1, answer), http2.data(1, b"abc", end=True)],
        "interim": [http2.headers(1, interim), http2.headers(1, [(":status", "204")], end=True)],
        "trailers": [
            http2.headers(5, [(":status", "200")]),
            http2.data(5, b"abc"),
            http2.headers(5, [("a", "b")], end=True),
        ],
        "reset": [http2.headers(1, [(":status", "200")]), http2.reset(1), http2.reset(3, 7)],
        "goaway": [http2.goaway(3), http2.headers(3, answer), http2.data(3, b"abcd")],
    }
    for name, sent in frames.items():
        data = b"".join(frame.encode() for frame in [http2.settings(), *sent])
        yield f"response-{name}", bytes([17, 3, 1, 2, 3]) + data
        yield f"response-busy-{name}", bytes([1, len(deeds)]) + deeds + data


def translation() -> Iterator[tuple[str, bytes]]:
    """Heads of HTTP/1 as they are; field lists as (length, name, length, value)."""
    for name, mode, data in messages():
        yield name, bytes([mode << 1]) + data
    lists = {
        "get": [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/a?b"),
            (":authority", "a:80"),
            ("te", "trailers"),
        ],
        "host": [
            (":method", "PUT"),
            (":scheme", "https"),
            (":path", "/"),
            ("x", "y"),
            ("host", "a"),
            ("cookie", "a"),
        ],
        "connect": [
            (":method", "CONNECT"),
            (":authority", "a:1"),
            ("cookie", "a=b"),
            ("x", ""),
            ("cookie", "c"),
        ],
        "websocket": [
            *[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
            *[(":protocol", "websocket"), ("sec-websocket-version", "13")],
        ],
        "post": [
            *[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
            *[("content-length", "3"), ("expect", "100-continue")],
        ],
    }
    for name, fields in lists.items():
        text = b"".join(bytes([len(a)]) + a.encode() + bytes([len(b)]) + b.encode() for a, b in fields)
        for end in (0, 8):
            yield f"list-{name}-{end}", bytes([1 + end]) + text
    for status in ("200", "204", "304", "103"):
        fields = [(":status", status), ("content-length", "0"), ("x-a", "b"), ("connection", "close")]
        text = b"".join(bytes([len(a)]) + a.encode() + bytes([len(b)]) + b.encode() for a, b in fields)
        yield f"list-{status}", bytes([3]) + text


TARGETS = {"http1": http1, "http2": http2_connections, "translation": translation}


def main(target: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in TARGETS[target]():
        if len(data) <= LONGEST:
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
