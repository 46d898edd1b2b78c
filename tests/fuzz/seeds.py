"""Turn the corpora of messages into inputs of a fuzz target: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import json
import ssl
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


def hellos() -> Iterator[tuple[str, bytes]]:
    """What real clients begin TLS with: OpenSSL's, in several ways."""
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    offering = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    offering.set_alpn_protocols(["h2", "http/1.1"])
    large = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    large.set_alpn_protocols([f"protocol-{n}" * 8 for n in range(60)])
    cases = {
        "name": (plain, "shop.example"),
        "capitals": (plain, "Shop.Example"),
        "no-name": (plain, "192.0.2.1"),
        "long-name": (plain, ".".join(["a" * 60] * 4)),
        "1.2": (old, "shop.example"),
        "alpn": (offering, "shop.example"),
        "large": (large, "shop.example"),
    }
    for name, (context, host) in cases.items():
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            context.wrap_bio(into, out, server_hostname=host).do_handshake()
        except ssl.SSLWantReadError:
            yield name, out.read()


def grease(data: bytes) -> bytes:
    """The hello, of one record, with one more extension that means nothing (RFC 8701)."""
    session = 5 + 4 + 2 + 32
    suites = session + 1 + data[session]
    compression = suites + 2 + int.from_bytes(data[suites : suites + 2])
    at = compression + 1 + data[compression]
    body = data[9:at] + (int.from_bytes(data[at : at + 2]) + 4).to_bytes(2) + b"\x0a\x0a\0\0" + data[at + 2 :]
    return data[:3] + (len(body) + 4).to_bytes(2) + b"\x01" + len(body).to_bytes(3) + body


OTHERS = {
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "redis-inline": b"GET /key\r\n",
    "memcached": b"get key\r\n",
    "postgres-ssl": bytes.fromhex("0000000804d2162f"),
    "postgres": bytes.fromhex("0000001400030000") + b"user\0a\0\0",
    "mysql": bytes.fromhex("200000018da20b00000000c0080000000000000000000000000000000000000000000000")
    + b"root\0",
    "smtp": b"EHLO mail.example\r\nMAIL FROM:<a@example>\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "nats": b'CONNECT {"verbose":false,"pedantic":false,"lang":"python3","version":"2.6.0"}\r\nPING\r\n',
    "stomp": b"CONNECT\naccept-version:1.2\nhost:a\n\n\0",
    "mqtt": bytes.fromhex("100c00044d5154540402003c0000"),
    "kafka": bytes.fromhex("0000001500120003000000010004726461720000"),
    "rtsp": b"OPTIONS rtsp://a/b RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "sip": b"INVITE sip:a@example SIP/2.0\r\n",
    "http2": http2.PREFACE + http2.settings().encode(),
    "shouted": b"OPTIONS of some other protocol\r\n",
}


def detect() -> Iterator[tuple[str, bytes]]:
    """Requests, hellos and what other protocols begin with; and choices to make some by."""
    for name, mode, data in messages():
        if mode == 0:
            yield f"{name}", b"\x04\x07" + data
    for name, data in hellos():
        yield f"hello-{name}", b"\x01\x07" + data
        yield f"hello-{name}-grease", b"\x01\x07" + grease(data)
    for name, data in OTHERS.items():
        yield f"{name}", b"\x00\x07" + data
        yield f"{name}-http2", b"\x04\x07" + data
    for form in range(0, 128, 3):
        yield f"made-hello-{form}", b"\x02\x07" + bytes([form, *range(form, 200, 3)])
        yield f"made-request-{form}", bytes([3 + form % 2 * 4, 7, form, *range(form, form + 60)])


def transparent() -> Iterator[tuple[str, bytes]]:
    """Choices, without a plan: what they mean is the target's affair."""
    for mode in range(3):
        for step in (1, 3, 7, 11, 31):
            yield f"{mode}-{step}", bytes([mode, *(n * step % 256 for n in range(64 * step))])


TARGETS = {
    "http1": http1,
    "http2": http2_connections,
    "translation": translation,
    "detect": detect,
    "transparent": transparent,
}


def main(target: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in TARGETS[target]():
        if len(data) <= LONGEST:
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
