"""An HTTP/2 peer that says exactly what it is told, frame by frame, and what to show the codec with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import hpack

from fastmesh import _http2 as http2
from kit import http2 as kit
from kit.http2 import PREFACE, Code, Flag, Type

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = Type
END_STREAM, ACK, END_HEADERS, PADDED = Flag.END_STREAM, Flag.ACK, Flag.END_HEADERS, Flag.PADDED
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR = Code.NO_ERROR, Code.PROTOCOL_ERROR, Code.FLOW_CONTROL_ERROR
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = Code.REFUSED_STREAM, Code.CANCEL, Code.ENHANCE_YOUR_CALM

Fields = Iterable[tuple[bytes, bytes]]

GET = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a.example"))
POST = ((b":method", b"POST"), *GET[1:])
OK = ((b":status", b"200"),)


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def end(self) -> bool:
        return bool(self.flags & END_STREAM)

    @property
    def data(self) -> bytes:
        return frame(self.kind, self.flags, self.stream, self.payload)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame, whether it makes sense or not."""
    return kit.Frame(kind, flags, stream, payload).encode()


def settings(*pairs: tuple[int, int], ack: bool = False) -> bytes:
    return kit.settings(pairs, ack=ack).encode()


def window_update(stream: int, increment: int) -> bytes:
    return kit.window_update(stream, increment).encode()


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    return kit.reset(stream, code).encode()


def goaway(last: int, code: int = NO_ERROR) -> bytes:
    return kit.goaway(last, code).encode()


def ping(data: bytes = b"12345678", ack: bool = False) -> bytes:
    return kit.ping(data, ack=ack).encode()


def frames(data: bytes) -> list[Frame]:
    """What data consists of; nothing may be left over."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + length, "half a frame"
        stream = int.from_bytes(data[5:9], "big")
        found.append(Frame(data[3], data[4], stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


@dataclass
class Peer:
    """The other side of a connection: it makes and reads header blocks with an HPACK state of its own."""

    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    decoder: hpack.Decoder = field(default_factory=hpack.Decoder)

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(list(fields))

    def headers(self, stream: int, fields: Fields, end: bool = False, *, pieces: int = 1) -> bytes:
        """HEADERS, in `pieces` frames."""
        block = self.block(fields)
        step = -(-len(block) // pieces)
        parts = [block[at : at + step] for at in range(0, len(block), step)]
        out = b""
        for at, part in enumerate(parts):
            flags = END_HEADERS if at == len(parts) - 1 else 0
            if at == 0:
                out += frame(HEADERS, flags | (END_STREAM if end else 0), stream, part)
            else:
                out += frame(CONTINUATION, flags, stream, part)
        return out

    def data(self, stream: int, data: bytes, end: bool = False) -> bytes:
        return frame(DATA, END_STREAM if end else 0, stream, data)

    def fields(self, block: bytes) -> list[tuple[bytes, bytes]]:
        return [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]


def server(worker: http2.Worker, *first: tuple[int, int], **limits: int) -> tuple[http2.Conn, Peer]:
    """A server that has exchanged SETTINGS with a peer; `first`: the peer's."""
    conn = http2.Conn(worker, http2.SERVER, **limits)
    conn.receive(PREFACE + settings(*first))
    assert frames(conn.pack())[0].kind == SETTINGS
    conn.receive(settings(ack=True))
    assert conn.take() == [("settings",)]
    return conn, Peer()


def client(worker: http2.Worker, *first: tuple[int, int], **limits: int) -> tuple[http2.Conn, Peer]:
    """A client that has exchanged SETTINGS with a peer."""
    conn = http2.Conn(worker, http2.CLIENT, **limits)
    preface = conn.pack()
    assert preface.startswith(PREFACE)
    conn.receive(settings(*first) + settings(ack=True))
    conn.pack()
    assert conn.take() == [("settings",)]
    return conn, Peer()


def pump(a: http2.Conn, b: http2.Conn, *, most: int = 1 << 30) -> int:
    """Carry bytes between two connections until there are none; how many there were."""
    total = 0
    for _ in range(10_000):
        there = a.pack(most)
        if there:
            b.receive(there)
        back = b.pack(most)
        if back:
            a.receive(back)
        total += len(there) + len(back)
        if not there and not back:
            return total
    raise AssertionError("two connections that never have enough")


def pair(worker: http2.Worker, **limits: int) -> tuple[http2.Conn, http2.Conn]:
    """(client, server) of the codec's own, past their SETTINGS."""
    a, b = http2.Conn(worker, http2.CLIENT, **limits), http2.Conn(worker, http2.SERVER, **limits)
    pump(a, b)
    assert a.take() == b.take() == [("settings",)]
    return a, b


def body(events: list[tuple], stream: int) -> bytes:
    """The bytes of a stream in what happened."""
    return b"".join(event[2] for event in events if event[:2] == ("data", stream))


def named(events: list[tuple], name: str) -> list[tuple]:
    return [event for event in events if event[0] == name]
