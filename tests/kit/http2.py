"""HTTP/2 frames as bytes, legal or not (RFC 9113).

Nothing here forbids anything: a frame can have any type, flags, length and payload, a field block any bytes
(`kit.blocks`). `kit.http2_client` and `kit.http2_server` are the two ends of a connection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from kit import blocks

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = 65535  # the initial flow-control window (RFC 9113 section 6.9.2)
FRAME_MAX = 16384  # the initial SETTINGS_MAX_FRAME_SIZE
Fields = Iterable[tuple[bytes | str, bytes | str]]


class Type(IntEnum):
    """Frame types (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """Flags of frames; ACK is that of SETTINGS and PING."""

    ACK = 1
    END_STREAM = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


class Code(IntEnum):
    """Error codes (RFC 9113 section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """Settings (RFC 9113 section 6.5.2, RFC 8441 section 3)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    ENABLE_CONNECT_PROTOCOL = 8


@dataclass(frozen=True)
class Frame:
    """One frame. `length` is what its header says where that is not the length of the payload."""

    type: int
    flags: int = 0
    stream: int = 0
    payload: bytes = b""
    length: int | None = None
    reserved: bool = False

    def encode(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        stream = self.stream | (0x80000000 if self.reserved else 0)
        return (
            struct.pack(">I", length)[1:] + struct.pack(">BBI", self.type, self.flags, stream) + self.payload
        )

    def __str__(self) -> str:
        name = Type(self.type).name if self.type in set(Type) else f"type {self.type:#x}"
        return f"{name} stream={self.stream} flags={self.flags:#x} {self.payload[:40].hex()}"


def padded(content: bytes, pad: int, said: int | None = None) -> bytes:
    """A payload with `pad` bytes of padding that says it has `said` of them."""
    return bytes([pad if said is None else said]) + content + bytes(pad)


def priority(depends: int = 0, weight: int = 16, exclusive: bool = False) -> bytes:
    """The deprecated priority fields of HEADERS and PRIORITY frames; `weight` from 1 to 256."""
    return struct.pack(">IB", depends | (0x80000000 if exclusive else 0), weight - 1)


def settings(values: Iterable[tuple[int, int]] = (), *, ack: bool = False) -> Frame:
    payload = b"".join(struct.pack(">HI", key, value) for key, value in values)
    return Frame(Type.SETTINGS, Flag.ACK if ack else 0, 0, payload)


def data(stream: int, content: bytes = b"", *, end: bool = False) -> Frame:
    return Frame(Type.DATA, Flag.END_STREAM if end else 0, stream, content)


def headers(stream: int, fields: Fields, *, end: bool = False) -> Frame:
    """HEADERS in one frame, without the use of a dynamic table."""
    return headers_raw(stream, blocks.block(fields), end=end)


def headers_raw(stream: int, block: bytes, *, end: bool = False) -> Frame:
    return Frame(Type.HEADERS, Flag.END_HEADERS | (Flag.END_STREAM if end else 0), stream, block)


def reset(stream: int, code: int = Code.CANCEL) -> Frame:
    return Frame(Type.RST_STREAM, 0, stream, struct.pack(">I", code))


def ping(content: bytes = b"fastmesh", *, ack: bool = False) -> Frame:
    return Frame(Type.PING, Flag.ACK if ack else 0, 0, content)


def goaway(last: int = 0, code: int = Code.NO_ERROR, debug: bytes = b"") -> Frame:
    return Frame(Type.GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def window_update(stream: int, increment: int) -> Frame:
    return Frame(Type.WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def request(
    method: str = "GET",
    path: str = "/",
    fields: Fields = (),
    *,
    authority: str = "test",
    scheme: str = "http",
) -> list[tuple[bytes | str, bytes | str]]:
    """The header list of a request."""
    pseudo = [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)]
    return [*pseudo, *fields]
