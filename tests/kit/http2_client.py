"""A blocking HTTP/2 client over plaintext or TLS that shows what comes back.

It sends whatever it is told to. What it reads must be right: offences of the server against RFC 9113 are
AssertionErrors.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hpack import Decoder

from kit.http2 import (
    FRAME_MAX,
    PREFACE,
    WINDOW,
    Fields,
    Flag,
    Frame,
    Setting,
    Type,
    data,
    headers,
    ping,
    request,
    settings,
    window_update,
)
from kit.wire import Address, Conn, connect


@dataclass
class Answer:
    """What came on one stream."""

    heads: list[list[tuple[str, str]]] = field(default_factory=list)  # interim ones first
    trailers: list[tuple[str, str]] | None = None
    body: bytearray = field(default_factory=bytearray)
    final: bool = False  # the last of `heads` is no interim one
    ended: bool = False  # END_STREAM
    reset: int | None = None  # the code of RST_STREAM
    window: int = WINDOW  # what the server may still send

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def status(self) -> int | None:
        """The status of the final response, None before it came."""
        return int(dict(self.heads[-1])[":status"]) if self.final else None

    def get(self, name: str) -> str | None:
        """A field of the latest head."""
        return dict(self.heads[-1]).get(name)


class Client:
    """A client connection. It sends nothing of its own accord but the acknowledgement of SETTINGS, and with
    `generous` WINDOW_UPDATE for every DATA frame. After the end of the connection `closed` is true and
    sending does nothing."""

    def __init__(self, conn: Conn, *, generous: bool = False) -> None:
        self.conn = conn
        self.generous = generous
        self.decoder = Decoder(max_header_list_size=1 << 20)
        self.answers: dict[int, Answer] = {}
        self.frames: list[Frame] = []  # all that have come
        self.settings: dict[int, int] = {}  # the server's
        self.settings_seen = 0
        self.acks = 0
        self.pongs: list[bytes] = []
        self.window = WINDOW  # of the connection, what the server may still send
        self.credit: dict[int, int] = {}  # window updates for us, by stream; 0: the connection
        self.goaways: list[tuple[int, int, bytes]] = []  # last stream, code, debug data
        self.closed = False
        self.http1 = b""  # what a server said that took us for a client of HTTP/1
        self._pending: list[dict[int, int]] = []  # settings of ours that wait for their acknowledgement
        self._mine = {Setting.INITIAL_WINDOW_SIZE: WINDOW, Setting.MAX_FRAME_SIZE: FRAME_MAX}
        self._block: tuple[int, bool, bytearray] | None = None  # stream, END_STREAM, what came so far

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    # writing

    def send(self, *parts: Frame | bytes, dribble: bool = False) -> None:
        """Send frames and raw bytes, `dribble`: each byte by itself. What the server does not take any more
        because it has closed is not sent."""
        for part in parts:
            if isinstance(part, Frame):
                self._sent(part)
        out = b"".join(part.encode() if isinstance(part, Frame) else part for part in parts)
        try:
            for piece in [out[at : at + 1] for at in range(len(out))] if dribble else [out]:
                self.conn.send(piece)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            return  # what it said before it closed is still to be read

    def open(self, values: Iterable[tuple[int, int]] = ()) -> None:
        """Preface and SETTINGS."""
        self.send(PREFACE, settings(values))

    def answer(self, stream: int) -> Answer:
        if stream not in self.answers:
            self.answers[stream] = Answer(window=self._mine[Setting.INITIAL_WINDOW_SIZE])
        return self.answers[stream]

    def _sent(self, frame: Frame) -> None:
        """Remember what a frame of ours allows the server."""
        if frame.length is not None:
            return
        if frame.type == Type.SETTINGS and not frame.flags & Flag.ACK and len(frame.payload) % 6 == 0:
            self._pending.append(dict(struct.iter_unpack(">HI", frame.payload)))
        elif frame.type == Type.WINDOW_UPDATE and len(frame.payload) == 4:
            increment = int.from_bytes(frame.payload) & 0x7FFFFFFF
            if frame.stream == 0:
                self.window += increment
            else:
                self.answer(frame.stream).window += increment

    # reading

    def next(self) -> Frame | None:
        """The next frame, already taken account of; None at the end of the connection."""
        while len(self.conn.buffer) < 9 or len(self.conn.buffer) < 9 + int.from_bytes(self.conn.buffer[:3]):
            try:
                more = self.conn.fill()
            except (ConnectionResetError, ssl.SSLError):
                more = False
            if not self.frames and self.conn.buffer.startswith(b"HTTP/1."):
                self.http1 = bytes(self.conn.buffer)
                self.conn.buffer.clear()
            if not more:
                self.closed = True
                return None
        head = self.conn.take(9)
        length = int.from_bytes(head[:3])
        frame = Frame(head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF, self.conn.take(length))
        self.frames.append(frame)
        self._came(frame)
        return frame

    def until(self, condition: Callable[[], bool], what: str) -> bool:
        """Read until the condition holds; False if the connection ended before."""
        while not condition():
            try:
                if self.next() is None:
                    return condition()
            except AssertionError as error:
                shown = "\n  ".join(map(str, self.frames[-20:]))
                raise AssertionError(f"while waiting for {what}: {error}\n  {shown}") from error
        return True

    def until_over(self, stream: int) -> Answer:
        """The whole answer, or its reset; AssertionError if the connection ends before."""
        answer = self.answer(stream)
        assert self.until(lambda: answer.over, f"the end of stream {stream}"), f"closed: {self.goaways}"
        return answer

    def until_closed(self) -> None:
        self.until(lambda: False, "the end of the connection")

    def ask(self, stream: int, fields: Fields | None = None, body: bytes | None = None) -> Answer:
        """A request and its whole answer."""
        self.send(headers(stream, request() if fields is None else fields, end=body is None))
        if body is not None:
            self.send(data(stream, body, end=True))
        return self.until_over(stream)

    def fence(self, content: bytes = b"a fence!") -> bool:
        """A PING and its answer: what the server has said so far has been read. False at the end."""
        count = len(self.pongs)
        self.send(ping(content))
        return self.until(lambda: content in self.pongs[count:], "the answer to a PING")

    def _came(self, frame: Frame) -> None:
        assert len(frame.payload) <= self._limit(Setting.MAX_FRAME_SIZE), f"too large: {frame}"
        if self.settings_seen == 0:
            assert frame.type in (Type.SETTINGS, Type.GOAWAY), f"first frame: {frame}"
        if self._block is not None:
            mine = frame.type == Type.CONTINUATION and frame.stream == self._block[0]
            assert mine, f"inside a header block: {frame}"
        if frame.type == Type.DATA:
            self._data(frame)
        elif frame.type in (Type.HEADERS, Type.CONTINUATION):
            self._headers(frame)
        elif frame.type == Type.RST_STREAM:
            assert len(frame.payload) == 4 and frame.stream in self.answers, f"unexpected: {frame}"
            self.answers[frame.stream].reset = int.from_bytes(frame.payload)
        elif frame.type == Type.SETTINGS:
            self._settings(frame)
        elif frame.type == Type.PING:
            assert len(frame.payload) == 8 and frame.stream == 0, f"bad: {frame}"
            if frame.flags & Flag.ACK:
                self.pongs.append(frame.payload)
            else:
                self.send(ping(frame.payload, ack=True))
        elif frame.type == Type.GOAWAY:
            assert frame.stream == 0 and len(frame.payload) >= 8, f"bad: {frame}"
            last, code = struct.unpack(">II", frame.payload[:8])
            self.goaways.append((last, code, frame.payload[8:]))
        elif frame.type == Type.WINDOW_UPDATE:
            increment = int.from_bytes(frame.payload) & 0x7FFFFFFF
            assert len(frame.payload) == 4 and increment, f"bad: {frame}"
            self.credit[frame.stream] = self.credit.get(frame.stream, 0) + increment
        else:
            assert frame.type not in set(Type), f"unexpected: {frame}"

    def _limit(self, key: int) -> int:
        """The largest value that the server may go by now."""
        return max([self._mine[Setting(key)], *(sent[key] for sent in self._pending if key in sent)])

    def _settings(self, frame: Frame) -> None:
        assert frame.stream == 0, f"bad: {frame}"
        if not frame.flags & Flag.ACK:
            assert len(frame.payload) % 6 == 0, f"bad: {frame}"
            self.settings |= dict(struct.iter_unpack(">HI", frame.payload))
            self.settings_seen += 1
            self.send(settings(ack=True))
            return
        assert self._pending and not frame.payload, "an acknowledgement of SETTINGS that were not sent"
        self.acks += 1
        now = self._pending.pop(0)
        before = self._mine[Setting.INITIAL_WINDOW_SIZE]
        self._mine |= {Setting(key): value for key, value in now.items() if key in self._mine}
        for answer in self.answers.values():
            answer.window += self._mine[Setting.INITIAL_WINDOW_SIZE] - before
        if Setting.HEADER_TABLE_SIZE in now:
            self.decoder.max_allowed_table_size = now[Setting.HEADER_TABLE_SIZE]

    def _data(self, frame: Frame) -> None:
        assert frame.stream in self.answers, f"never opened: {frame}"
        answer = self.answers[frame.stream]
        assert answer.final and not answer.over, f"out of place: {frame}"
        size = len(frame.payload)
        answer.window -= size
        self.window -= size
        slack = self._limit(Setting.INITIAL_WINDOW_SIZE) - self._mine[Setting.INITIAL_WINDOW_SIZE]
        assert size == 0 or (self.window >= 0 and answer.window + slack >= 0), f"beyond the window: {frame}"
        content = frame.payload
        if frame.flags & Flag.PADDED:
            content = content[1 : len(content) - content[0]]
        answer.body += content
        answer.ended = bool(frame.flags & Flag.END_STREAM)
        if self.generous and size:
            self.send(window_update(0, size))
            if not answer.ended:
                self.send(window_update(frame.stream, size))

    def _headers(self, frame: Frame) -> None:
        assert frame.stream in self.answers, f"never opened: {frame}"
        content = frame.payload
        if frame.type == Type.HEADERS:
            if frame.flags & Flag.PADDED:
                content = content[1 : len(content) - content[0]]
            if frame.flags & Flag.PRIORITY:
                content = content[5:]
            self._block = frame.stream, bool(frame.flags & Flag.END_STREAM), bytearray()
        assert self._block is not None, f"no header block: {frame}"
        self._block[2].extend(content)
        if not frame.flags & Flag.END_HEADERS:
            return
        stream, end, block = self._block
        self._block = None
        fields = [(_text(name), _text(value)) for name, value in self.decoder.decode(bytes(block), raw=True)]
        answer = self.answers[stream]
        assert not answer.over, f"out of place: {frame}"
        if answer.final:
            assert end, f"trailers without END_STREAM: {fields}"
            answer.trailers = fields
        else:
            answer.heads.append(fields)
            answer.final = not dict(fields)[":status"].startswith("1")
            assert answer.final or not end, f"an interim response that ends: {fields}"
        answer.ended = end


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class TlsSocket:
    """TLS of a client over a connected socket. Unlike `ssl.SSLSocket` it still reads after a failed write:
    a server that has closed because of what we sent has said why."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        self.sock = sock
        self.family = sock.family
        self.fileno = sock.fileno
        self.settimeout = sock.settimeout
        self.gettimeout = sock.gettimeout
        self.setsockopt = sock.setsockopt
        self.getsockname = sock.getsockname
        self.shutdown = sock.shutdown
        self.close = sock.close
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def _flush(self) -> None:
        self.sock.sendall(self._out.read())

    def _fill(self) -> None:
        part = self.sock.recv(65536)
        if part:
            self._in.write(part)
        else:
            self._in.write_eof()

    def sendall(self, data: bytes) -> None:
        if data:
            self.tls.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        """All that has come, at least something; what select() does not tell of is not left behind."""
        out = bytearray()
        while len(out) < size:
            try:
                part = self.tls.read(size - len(out))
            except ssl.SSLWantReadError:
                if out:
                    break
                self._fill()
                continue
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                break
            if not part:
                break
            out += part
        return bytes(out)


def dial(address: Address, context: ssl.SSLContext | None = None, name: str | None = None) -> Client:
    """A client connection by prior knowledge, or over TLS with ALPN. Nothing is sent yet."""
    conn = connect(address)
    if context is not None:
        context.set_alpn_protocols(["h2"])
        try:
            tls = TlsSocket(conn.sock, context, name)
            assert tls.tls.selected_alpn_protocol() == "h2", tls.tls.selected_alpn_protocol()
        except BaseException:
            conn.close()
            raise
        conn.sock = tls  # type: ignore[assignment]
    return Client(conn)
