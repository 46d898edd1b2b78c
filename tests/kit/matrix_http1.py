"""The two ends of an exchange in HTTP/1.1, one step at a time (see `kit.matrix`)."""

from __future__ import annotations

import contextlib
import socket

from kit.matrix import ADDED, HOPS, Arrivals, End, Fields, Framing, Said
from kit.wire import Address, Closed, Conn, Head, connect

NARROW = 1 << 18  # with less than some segments of the loopback TCP waits for its timers


class Content:
    """The content of one message, as it comes."""

    def __init__(self, conn: Conn, framing: str, length: int = 0) -> None:
        self.conn = conn
        self.framing = framing
        self.left = length  # of the content; of a chunk
        self.ended = framing == "none"
        self.trailers: list[tuple[str, str]] = []
        self._came = bytearray()

    def read(self, count: int) -> bytes:
        """Exactly so much; `Closed` if there is less."""
        while len(self._came) < count:
            if not self._more():
                raise Closed(f"the content ends with {bytes(self._came)!r}")
        data = bytes(self._came[:count])
        del self._came[:count]
        return data

    def finish(self) -> bytes:
        """What is left of it."""
        while self._more():
            pass
        return bytes(self._came)

    def _more(self) -> bool:
        """Read on; False at its end."""
        if self.framing == "length":
            self.ended = self.left == 0
        elif self.framing == "stream" and self.left == 0 and not self.ended:
            self.left = int(self.conn.read_until(b"\r\n").split(b";")[0], 16)
            if self.left == 0:
                self.ended = True
                self._read_trailers()
        if self.ended:
            return False
        if not self.conn.buffer and not self.conn.fill():
            if self.framing != "close":
                raise Closed("closed inside the content")
            self.ended = True
            return False
        part = self.conn.take(len(self.conn.buffer) if self.framing == "close" else self.left)
        self._came += part
        self.left -= len(part)
        if self.framing == "stream" and self.left == 0:
            assert self.conn.read_exact(2) == b"\r\n", "behind a chunk"
        return True

    def _read_trailers(self) -> None:
        while (line := self.conn.read_until(b"\r\n")) != b"\r\n":
            name, _, value = line[:-2].decode("latin-1").partition(":")
            self.trailers.append((name, value.strip(" ")))


class Http1End(End):
    """What both ends have in common."""

    conn: Conn
    content: Content | None = None  # of the message that comes
    head: Head | None = None  # likewise
    out: str = "none"  # how what we send is framed

    def sends(self, *parts: bytes) -> None:
        framed = [b"%x\r\n%s\r\n" % (len(part), part) if self.out == "stream" else part for part in parts]
        self.in_pieces(self.conn.send, framed)

    def ends(self, trailers: Fields = ()) -> None:
        self.settle()
        if self.out == "stream":
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.conn.send(f"0\r\n{lines}\r\n")
        else:
            assert not trailers
        if self.out == "close":
            self.conn.shutdown()

    def gets(self, expected: bytes) -> None:
        self.settle()
        assert self.content is not None
        assert self.content.read(len(expected)) == expected

    def over(self, trailers: Fields = ()) -> None:
        self.settle()
        assert self.content is not None
        rest = self.content.finish()
        assert (rest, self.content.trailers) == (b"", list(trailers))

    def broken(self, code: int = 0) -> None:
        """The connection ends where the message has not."""
        self.settle()
        try:
            rest = self.content.finish() if self.content is not None else b""
        except (Closed, ConnectionError):
            return
        assert not rest, f"more came: {rest!r}"
        self.conn.expect_close()

    def leaves(self, code: int = 0) -> None:
        """A reset."""
        self.settle()
        self.conn.reset()

    def breaks(self) -> None:
        """A reset of the connection."""
        self.leaves()

    def hops(self, wanted: Fields) -> None:
        """What the proxies on the way have written about themselves and the client."""
        assert self.head is not None
        assert [pair for pair in self.head.fields if pair[0].lower() in HOPS] == list(wanted)

    def hangs_up(self) -> None:
        self.settle()
        self.conn.close()

    def _write(self, first: str, fields: Fields, length: Framing) -> None:
        lines = [first, *(f"{name}: {value}" for name, value in fields)]
        self.out = "none" if length is None else length if isinstance(length, str) else "length"
        if self.out == "stream":
            lines.append("Transfer-Encoding: chunked")
        elif self.out == "length":
            lines.append(f"Content-Length: {length}")
        self.conn.send("\r\n".join([*lines, "", ""]))

    def _read(self, head: Head, bodiless: bool, response: bool) -> Said:
        """Begin to read what the head announces."""
        self.head = head
        coding, length = head.get("transfer-encoding"), head.get("content-length")
        framing = "stream" if coding else "length" if length is not None else "close" if response else "none"
        assert coding in (None, "chunked"), coding
        assert not (coding and length is not None), f"both: {head.raw!r}"
        fields = [pair for pair in head.fields if pair[0].lower() not in ADDED]
        said = Said(fields, f"length {length}" if framing == "length" else framing)
        if bodiless:
            framing = "none"
            if said.framing == "close":
                said.framing = "none"
        self.content = Content(self.conn, framing, int(length or 0))
        return said


class NearHttp1(Http1End):
    """A client."""

    def __init__(self, address: Address, service: str) -> None:
        super().__init__()
        self.conn = connect(address)
        self.service = service
        self.method = "GET"
        self.said_close = False  # the answer has announced that the connection closes

    def narrow(self) -> None:
        """From now on the kernel keeps little of what is not read."""
        self.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)

    def ask(
        self,
        method: str,
        target: str,
        fields: Fields = (),
        length: Framing = None,
        *,
        authority: str | None = None,
        version: str = "HTTP/1.1",
        late: bool = False,
    ) -> None:
        self.method = method
        host = [] if authority == "" else [("Host", authority or self.service)]
        self._write(f"{method} {target} {version}", [*host, *fields], length)

    def sees(
        self, status: int, fields: Fields = (), framing: str = "none", phrase: str | None = None
    ) -> None:
        self.settle()
        head = self.conn.read_head()
        version, code, said_phrase = head.line.split(" ", 2)
        bodiless = self.method == "HEAD" or status in (204, 304) or status < 200
        said = self._read(head, bodiless, True)
        self.said_close = "close" in head.tokens("connection")
        assert (version, int(code), said) == ("HTTP/1.1", status, Said(list(fields), framing)), head.raw
        if phrase is not None:
            assert said_phrase == phrase

    def refused(self, status: int, reason: str) -> None:
        """An answer of the proxy itself."""
        self.settle()
        head = self.conn.read_head()
        self.said_close = "close" in head.tokens("connection")
        shown = int(head.line.split(" ")[1]), head.get("x-fastmesh-reason")
        assert shown in {(status, one) for one in reason.split("|")}, head.raw
        self._read(head, self.method == "HEAD", True)
        if self.content is not None:
            self.content.finish()

    def dropped(self, code: int = 0) -> None:
        """The rest of the request is wanted no more: HTTP/1 has no words for that."""

    def half_closes(self) -> None:
        self.settle()
        self.conn.shutdown()

    def told_of_close(self, wanted: bool) -> None:
        """Whether the answer has announced that the connection closes (RFC 9112 9.6)."""
        assert self.said_close == wanted

    def check_after(self, keeps: bool) -> bool:
        """Whether the connection serves on: `keeps`; otherwise it is closed, as was said."""
        self.settle()
        if not keeps and self.conn.sock.fileno() >= 0:
            self.conn.expect_close()
        return keeps

    def close(self) -> None:
        self.settle()
        self.conn.close()


class FarHttp1(Http1End):
    """A server."""

    def __init__(self, arrivals: Arrivals) -> None:
        super().__init__()
        self.arrivals = arrivals

    def narrow(self) -> None:
        self.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)

    def sees(
        self,
        method: str,
        path: str,
        fields: Fields = (),
        framing: str = "none",
        *,
        authority: str | None = None,
        on: str = "new",
    ) -> None:
        self.settle()
        if on == "new":
            self.conn = self.arrivals.next()
        head = self.conn.read_head()
        said = self._read(head, False, False)
        wanted = (
            f"{method} {path} HTTP/1.1",
            [authority or self.arrivals.service],
            Said(list(fields), framing),
        )
        assert (head.line, head.all("host"), said) == wanted, head.raw

    def interim(self, status: int, fields: Fields = ()) -> None:
        self._write(f"HTTP/1.1 {status} Interim", fields, None)

    def answers(
        self,
        status: int,
        fields: Fields = (),
        length: Framing = None,
        *,
        phrase: str = "As Said",
        version: str = "HTTP/1.1",
    ) -> None:
        self._write(f"{version} {status} {phrase}", fields, length)

    def answers_and_closes(self, status: int, fields: Fields = (), length: Framing = None) -> None:
        """The same, and no more of the request is read."""
        self.answers(status, [*fields, ("Connection", "close")], length)

    def stops_reading(self) -> None:
        """The answer is whole. (A close with unread bytes would be a reset.)"""
        self.conn.shutdown()

    def check_after(self, keeps: bool) -> str:
        """Where the next request comes: "same" or "new"; the connection has ended then."""
        self.settle()
        if not keeps and self.conn.sock.fileno() >= 0:
            self.conn.pending()
            self.conn.buffer.clear()
            self.drained()
        return "same" if keeps else "new"

    def drained(self) -> None:
        """The proxy ends the connection; what of the request still comes is read away."""
        with contextlib.suppress(ConnectionError):
            self.conn.read_to_end()
