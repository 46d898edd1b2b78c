"""gRPC-Web by hand, over HTTP/1.1 or HTTP/2, in binary or as text: what a browser sends, read as it comes."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kit.grpc_raw import RawEnd, Stream, frame
from kit.wire import Address, Closed, Conn, connect

TYPES = {"binary": "application/grpc-web+proto", "text": "application/grpc-web-text+proto"}
VERSIONS = ("http1", "http2")


def encoded(kind: str, data: bytes) -> bytes:
    return base64.b64encode(data) if kind == "text" else data


@dataclass
class WebCall:
    """A call under way; what is asked for is waited for."""

    kind: str
    pieces: Iterator[bytes] = field(default_factory=lambda: iter(()))  # of the body; first comes the head
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # it ended before its end
    data: bytearray = field(default_factory=bytearray)  # not taken yet
    _text: bytes = b""  # a quantum that is not whole

    def _fill(self) -> bool:
        """Take the next piece; False at the end."""
        try:
            piece = next(self.pieces, None)
        except (Closed, ConnectionError):
            self.cut, piece = True, None
        if piece is None:
            assert self.cut or not self._text, f"the text ends in {self._text!r}"
            return False
        if self.kind == "text":
            text = self._text + piece
            whole = len(text) // 4 * 4
            self._text = text[whole:]
            # Any quantum may be padded.
            piece = b"".join(
                base64.b64decode(one, validate=True) for one in re.findall(rb"[^=]+=*", text[:whole])
            )
        self.data += piece
        return True

    def head(self) -> WebCall:
        """Wait for the head of the answer."""
        assert self.status or (self._fill() and self.status), f"no answer: {self}"
        return self

    def _frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the body."""
        size = 5
        while len(self.data) < size or len(self.data) < (size := 5 + int.from_bytes(self.data[1:5])):
            if not self._fill():
                assert self.cut or not self.data, f"the body ends within a frame: {bytes(self.data[:80])!r}"
                return None
        found = self.data[0], bytes(self.data[5:size])
        del self.data[:size]
        return found

    def message(self) -> bytes:
        """The next message."""
        found = self._frame()
        assert found is not None and found[0] in (0, 1), f"no message but {found}, {self}"
        return found[1]

    def end(self) -> dict[str, str]:
        """The fields of the last frame, behind which there is nothing; empty if there is none."""
        found = self._frame()
        if found is None:
            return {}
        flags, lines = found
        assert flags == 0x80, f"one message more: {lines[:80]!r}"
        assert self._frame() is None
        assert lines.endswith(b"\r\n")
        fields = (line.partition(": ") for line in lines.decode("latin-1").split("\r\n")[:-1])
        return {name: value for name, _, value in fields}

    def code(self) -> int | None:
        """The status, with which the answer ends."""
        said = self.end().get("grpc-status")
        return None if said is None else int(said)


class Web:
    """A connection of a browser's, in a version of HTTP (VERSIONS)."""

    def __init__(self, conn: Conn, version: str) -> None:
        self.conn = conn
        self.http2 = RawEnd(conn) if version == "http2" else None

    def start(
        self,
        service: str,
        kind: str,
        body: bytes = frame(b"hello"),
        fields: Iterable[tuple[str, str]] = (),
        *,
        path: str = "/fastmesh.test.Script/Unary",
        raw: bool = False,
        end: bool = True,
        sent: bool = False,
    ) -> WebCall:
        """Begin a call; `body` as it is with `raw`. Without `end` more can be sent. `sent`: the test has
        seen to the request itself (HTTP/1.1)."""
        if not raw:
            body = encoded(kind, body)
        fields = [("x-grpc-web", "1"), *fields]
        if self.http2 is None:
            lines = [
                f"POST {path} HTTP/1.1",
                f"host: {service}",
                f"content-type: {TYPES[kind]}",
                f"content-length: {len(body)}" if end else "transfer-encoding: chunked",
                *(f"{name}: {value}" for name, value in fields),
            ]
            if not sent:
                self.conn.send("\r\n".join([*lines, "", ""]), body if end else b"")
            call = WebCall(kind)
            call.pieces = self._http1(call)
            if not end:
                self.more(call, body)
            return call
        stream = self.http2.start(
            path, fields, authority=service, data=body, end=end, content_type=TYPES[kind]
        )
        call = WebCall(kind)
        call.pieces = self._http2(call, stream)
        return call

    def more(self, call: WebCall, data: bytes, *, end: bool = False) -> None:
        """Further characters or bytes of a request, as they are."""
        if self.http2 is None:
            chunk = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
            self.conn.send(chunk + (b"0\r\n\r\n" if end else b""))
            return
        self.http2.h2.send_data(max(self.http2.streams), data, end_stream=end)
        self.http2.flush()

    def _http1(self, call: WebCall) -> Iterator[bytes]:
        head = self.conn.read_response_head()
        call.status, call.fields = head.status, {name.lower(): value for name, value in head.fields}
        yield b""
        if "content-length" in call.fields:
            yield self.conn.read_exact(int(call.fields["content-length"]))
            return
        assert call.fields["transfer-encoding"] == "chunked", call.fields
        while size := int(self.conn.read_until(b"\r\n"), 16):
            yield self.conn.read_exact(size)
            assert self.conn.read_exact(2) == b"\r\n"
        assert self.conn.read_until(b"\r\n") == b"\r\n", "trailers belong in the body"

    def _http2(self, call: WebCall, stream: Stream) -> Iterator[bytes]:
        assert self.http2 is not None
        self.http2.until(lambda: bool(stream.heads) or stream.over, "a head")
        if stream.heads:
            call.fields = stream.fields
            call.status = int(call.fields[":status"])
        yield b""
        while True:
            self.http2.until(lambda: bool(stream.data) or stream.over, "more of the body")
            if stream.data:
                yield bytes(stream.data)
                stream.data.clear()
            elif stream.reset is not None:
                raise Closed(f"reset: {stream.reset}")
            else:
                assert stream.trailers is None, "trailers belong in the body"
                return


@contextlib.contextmanager
def web(address: Address, version: str) -> Iterator[Web]:
    with connect(address) as conn:
        yield Web(conn, version)
