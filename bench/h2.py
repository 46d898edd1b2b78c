"""A small HTTP/2 client on a blocking socket: to ask once, and to hold idle connections and streams.

No load comes from here. It knows what the bench needs of RFC 9113 and RFC 7541: field lines as literals, an
answer's `:status 200` in its static form, every other field unread.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITY: Final = 32
ENABLE_PUSH: Final = 2
STATUS_200: Final = 0x88  # index 8 of the static table
Frame = tuple[int, int, int, bytes]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A field line without indexing, with a new name (RFC 7541, section 6.2.2)."""
    return bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


def status_is_200(block: bytes) -> bool:
    """Whether a response's field section begins with `:status: 200`, behind any table size update."""
    at = 0
    while at < len(block) and block[at] & 0xE0 == 0x20:
        more = block[at] & 0x1F == 0x1F
        at += 1
        while more and at < len(block):
            more = bool(block[at] & 0x80)
            at += 1
    return at < len(block) and block[at] == STATUS_200


class Connection:
    """One HTTP/2 connection. Its methods raise OSError, also for what is no right answer."""

    def __init__(self, sock: socket.socket, host: str, scheme: str) -> None:
        self._socket = sock
        self._fields = literal(":scheme", scheme) + literal(":authority", host)
        self._next = 1
        self._input = bytearray()
        settings = struct.pack(">HI", ENABLE_PUSH, 0)
        sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))

    def close(self) -> None:
        self._socket.close()

    def get(self, path: str) -> bytes:
        """One GET on a stream of its own; its body."""
        stream = self._request("GET", path, END_STREAM)
        body = self._head(stream)
        while not body.ended:
            body.take(self._frame(stream))
        return bytes(body.bytes)

    def open(self, path: str) -> int:
        """A POST that goes on: its stream, once the head of the answer is in."""
        stream = self._request("POST", path, 0)
        if self._head(stream).ended:
            raise OSError("an answer ended before its request")
        return stream

    def exchange(self, stream: int, message: bytes) -> None:
        """Send a message on an open stream and read it back."""
        self._socket.sendall(frame(DATA, 0, stream, message))
        body = _Body()
        while len(body.bytes) < len(message):
            body.take(self._frame(stream))
            if body.ended:
                raise OSError("a stream ended")
        if body.bytes != message:
            raise OSError("a message came back changed")

    def _request(self, method: str, path: str, flags: int) -> int:
        stream, self._next = self._next, self._next + 2
        block = literal(":method", method) + self._fields + literal(":path", path)
        if not flags & END_STREAM:
            block += literal("content-type", "application/grpc") + literal("te", "trailers")
        self._socket.sendall(frame(HEADERS, flags | END_HEADERS, stream, block))
        return stream

    def _head(self, stream: int) -> _Body:
        kind, flags, _, payload = self._frame(stream)
        if kind != HEADERS:
            raise OSError(f"an answer begins with a frame of type {kind}")
        if flags & PADDED:
            payload = payload[1:]
        if flags & PRIORITY:
            payload = payload[5:]
        if not status_is_200(payload):
            raise OSError(f"no status 200: {payload[:20]!r}")
        return _Body(ended=bool(flags & END_STREAM))

    def _frame(self, stream: int) -> Frame:
        """The next HEADERS or DATA frame of a stream; what concerns the connection is dealt with here."""
        while True:
            kind, flags, on, payload = self._any()
            if kind == SETTINGS and not flags & ACK:
                self._socket.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self._socket.sendall(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY or (kind == RST_STREAM and on == stream):
                raise OSError(f"ended by a frame of type {kind}: {payload[:60]!r}")
            elif kind in (HEADERS, DATA):
                if kind == DATA and payload:
                    more = struct.pack(">I", len(payload))
                    self._socket.sendall(frame(WINDOW_UPDATE, 0, 0, more) + frame(WINDOW_UPDATE, 0, on, more))
                if on == stream:
                    return kind, flags, on, payload

    def _any(self) -> Frame:
        head = self._read(9)
        length = int.from_bytes(head[:3], "big")
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        return head[3], head[4], stream, self._read(length)

    def _read(self, count: int) -> bytes:
        while len(self._input) < count:
            got = self._socket.recv(65536)
            if not got:
                raise OSError("closed within an answer")
            self._input += got
        taken = bytes(self._input[:count])
        del self._input[:count]
        return taken


class _Body:
    def __init__(self, *, ended: bool = False) -> None:
        self.bytes = bytearray()
        self.ended = ended

    def take(self, got: Frame) -> None:
        kind, flags, _, payload = got
        if kind == DATA:
            self.bytes += payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
        self.ended = self.ended or bool(flags & END_STREAM)
