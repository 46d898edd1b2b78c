"""The two ends of an exchange in HTTP/2, one step at a time (see `kit.matrix`)."""

from __future__ import annotations

from kit import http2
from kit.http2 import Code, Setting
from kit.http2_client import Answer, dial
from kit.http2_server import H2Conn, H2Request
from kit.matrix import ADDED, HOPS, Arrivals, End, Fields, Framing, Said
from kit.wire import Address


def _said(fields: list[tuple[str, str]], ended: bool) -> Said:
    shown = dict(fields)
    length = shown.get("content-length")
    plain = [pair for pair in fields if not pair[0].startswith(":") and pair[0] not in ADDED]
    return Said(plain, f"length {length}" if length is not None else "none" if ended else "stream")


def _all(fields: Fields, length: Framing) -> list[tuple[str, str]]:
    """As HTTP/2 has them."""
    sized = [("content-length", str(length))] if isinstance(length, int) else []
    return [(name.lower(), value) for name, value in [*fields, *sized]]


class NearHttp2(End):
    """A client. Its requests go over one connection."""

    def __init__(self, address: Address, service: str) -> None:
        super().__init__()
        self.client = dial(address)
        self.client.open()
        self.service = service
        self.stream = -1
        self.heads = 0  # seen already
        self.bytes = 0  # likewise, of the body
        self.sent = 0  # on all streams
        self.sent_here = 0  # of this request's body
        self.last = -1  # its length
        self.ended = False
        self.answer = Answer()

    def narrow(self) -> None:
        """Nothing: windows bound what is not read."""

    def ask(
        self,
        method: str,
        path: str,
        fields: Fields = (),
        length: Framing = None,
        *,
        authority: str | None = None,
        late: bool = False,
    ) -> None:
        """`late`: the last of a body of a known length does not end the request, as it does otherwise."""
        self.client.generous = True
        self.last = -1 if late or not isinstance(length, int) else length
        self.ended = length is None
        self.stream += 2
        self.heads = self.bytes = self.sent_here = 0
        self.answer = self.client.answer(self.stream)
        head = http2.request(method, path, _all(fields, length), authority=authority or self.service)
        self.client.send(http2.headers(self.stream, head, end=length is None))

    def sends(self, *parts: bytes) -> None:
        self.in_pieces(self._send, parts)

    def _send(self, part: bytes) -> None:
        """As the server's windows allow."""
        while part:
            initial = self.client.settings.get(Setting.INITIAL_WINDOW_SIZE, http2.WINDOW)
            here = initial + self.client.credit.get(self.stream, 0) - self.sent_here
            room = min(here, http2.WINDOW + self.client.credit.get(0, 0) - self.sent, http2.FRAME_MAX)
            if room <= 0:
                assert self.client.next() is not None, f"closed: {self.client.goaways}"
                continue
            now, part = part[:room], part[room:]
            self.sent += len(now)
            self.sent_here += len(now)
            self.ended = self.sent_here == self.last
            self.client.send(http2.data(self.stream, now, end=self.ended))

    def ends(self, trailers: Fields = ()) -> None:
        self.settle()
        if self.ended:
            return
        if trailers:
            self.client.send(http2.headers(self.stream, _all(trailers, None), end=True))
        else:
            self.client.send(http2.data(self.stream, end=True))

    def _until(self, condition: str, wanted: int) -> None:
        answer = self.answer

        def holds() -> bool:
            have = len(answer.heads) if condition == "heads" else len(answer.body)
            return have >= wanted or answer.over

        assert self.client.until(holds, f"{wanted} {condition}"), f"closed: {self.client.goaways}"

    def sees(
        self, status: int, fields: Fields = (), framing: str = "none", phrase: str | None = None
    ) -> None:
        self.settle()
        self.heads += 1
        self._until("heads", self.heads)
        assert len(self.answer.heads) >= self.heads, f"no head: {self.answer}"
        head = self.answer.heads[self.heads - 1]
        ended = self.answer.ended and not self.answer.body and self.answer.trailers is None
        said = _said(head, ended or status < 200)
        assert (dict(head)[":status"], said) == (str(status), Said(list(fields), framing)), head

    def gets(self, expected: bytes) -> None:
        self.settle()
        self._until("bytes", self.bytes + len(expected))
        assert self.answer.body[self.bytes : self.bytes + len(expected)] == expected, self.answer.reset
        self.bytes += len(expected)

    def over(self, trailers: Fields = ()) -> None:
        self.settle()
        answer = self.answer
        assert self.client.until(lambda: answer.over, "the end"), f"closed: {self.client.goaways}"
        assert answer.ended, f"reset: {answer.reset}"
        assert (bytes(answer.body[self.bytes :]), answer.trailers or []) == (b"", list(trailers))

    def refused(self, status: int, reason: str) -> None:
        """An answer of the proxy itself."""
        self.settle()
        answer = self.answer
        assert self.client.until(lambda: answer.over, "the end"), f"closed: {self.client.goaways}"
        shown = answer.status, answer.get("x-fastmesh-reason"), answer.ended
        assert shown in {(status, one, True) for one in reason.split("|")}, answer

    def broken(self, code: int = Code.INTERNAL_ERROR) -> None:
        """The stream is reset."""
        self.settle()
        answer = self.answer
        self.client.until(lambda: answer.over, "a reset")
        assert answer.reset == code, f"{answer.reset}, not {code}; ended: {answer.ended}"

    def dropped(self, code: int = Code.NO_ERROR) -> None:
        """The answer is whole, and the rest of the request wanted no more."""
        self.settle()
        answer = self.answer
        assert self.client.until(lambda: answer.reset is not None, "a reset behind the answer")
        assert answer.ended and answer.reset == code, f"ended: {answer.ended}, reset: {answer.reset}"

    def leaves(self, code: int = Code.CANCEL) -> None:
        self.settle()
        self.client.send(http2.reset(self.stream, code))

    def hangs_up(self) -> None:
        self.settle()
        self.client.conn.close()

    def breaks(self) -> None:
        """A reset of the connection."""
        self.settle()
        self.client.conn.reset()

    def goes_away(self) -> None:
        """It will send no more requests."""
        self.client.send(http2.goaway())

    def hops(self, wanted: Fields) -> None:
        """What the proxies on the way have written about themselves and the client."""
        assert [pair for pair in self.answer.heads[self.heads - 1] if pair[0] in HOPS] == list(wanted)

    def half_closes(self) -> None:
        """END_STREAM has done it."""

    def told_of_close(self, wanted: bool) -> None:
        """It needs no field, and one request's answer does not end others' connection."""

    def check_after(self, keeps: bool) -> bool:
        """Whether the connection serves on: `keeps`; otherwise it is closed."""
        self.settle()
        if keeps:
            assert self.client.fence() and not self.client.goaways, f"closed: {self.client.goaways}"
        elif self.client.conn.sock.fileno() >= 0:
            self.client.until_closed()
        return keeps

    def close(self) -> None:
        self.settle()
        self.client.conn.close()


class FarHttp2(End):
    """A server."""

    def __init__(self, arrivals: Arrivals) -> None:
        super().__init__()
        self.arrivals = arrivals
        self.conn: H2Conn
        self.request: H2Request
        self.bytes = 0  # of its body, seen already
        self.ended = False  # our answer

    def narrow(self) -> None:
        """Windows bound what is not read."""
        self.conn.generous = False

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
            self.conn = H2Conn(self.arrivals.next())
            self.conn.h2.config.normalize_inbound_headers = False  # it would join crumbs of cookies
        request = self.conn.next_request()
        assert request is not None, "closed"
        self.request, self.bytes = request, 0
        ended = request.ended and not request.body and not request.trailers
        assert "host" not in dict(request.fields), ":authority says it"
        shown = request.method, request.path, request.get(":authority"), _said(request.fields, ended)
        wanted = method, path, authority or self.arrivals.service, Said(list(fields), framing)
        assert shown == wanted, request.fields

    def gets(self, expected: bytes) -> None:
        self.settle()
        request, wanted = self.request, self.bytes + len(expected)
        if not self.conn.generous:
            self.conn.generous = True
            self.conn.allow(request.stream)
        self.conn.until(lambda: len(request.body) >= wanted or request.over, f"{wanted} bytes")
        assert request.body[self.bytes : wanted] == expected, request.reset
        self.bytes = wanted

    def over(self, trailers: Fields = ()) -> None:
        self.settle()
        request = self.conn.whole(self.request)
        assert request.ended, f"reset: {request.reset}"
        assert (bytes(request.body[self.bytes :]), request.trailers) == (b"", list(trailers))

    def broken(self, code: int = Code.CANCEL) -> None:
        """The stream is reset."""
        self.settle()
        request = self.request
        self.conn.until(lambda: request.reset is not None, "a reset")
        assert request.reset == code, f"{request.reset}, not {code}"

    def interim(self, status: int, fields: Fields = ()) -> None:
        self.conn.interim(self.request, status, _all(fields, None))

    def answers(
        self,
        status: int,
        fields: Fields = (),
        length: Framing = None,
        *,
        phrase: str = "",
        version: str = "",
    ) -> None:
        """`length` 0 ends it, too."""
        plain = [(":status", str(status)), *_all(fields, length)]
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in plain]
        self.conn.h2.send_headers(self.request.stream, encoded, end_stream=not length)
        self.conn.flush()
        self.ended = not length

    def answers_and_closes(self, status: int, fields: Fields = (), length: Framing = None) -> None:
        self.answers(status, fields, length)

    def stops_reading(self) -> None:
        """The answer is whole (RFC 9113 8.1)."""
        self.conn.reset(self.request, Code.NO_ERROR)

    def sends(self, *parts: bytes) -> None:
        self.in_pieces(lambda part: self.conn.data(self.request, part), parts)

    def ends(self, trailers: Fields = ()) -> None:
        self.settle()
        if self.ended:
            return
        if trailers:
            self.conn.trailers(self.request, _all(trailers, None))
        else:
            self.conn.h2.end_stream(self.request.stream)
            self.conn.flush()

    def leaves(self, code: int = Code.INTERNAL_ERROR) -> None:
        self.settle()
        self.conn.reset(self.request, code)

    def refuses(self) -> None:
        """It has not looked at the request (RFC 9113 8.7)."""
        self.leaves(Code.REFUSED_STREAM)

    def goes_away(self, last: int | None = None) -> None:
        self.conn.goaway(last)

    def hangs_up(self) -> None:
        self.settle()
        self.conn.conn.close()

    def breaks(self) -> None:
        """A reset of the connection."""
        self.settle()
        self.conn.conn.reset()

    def hops(self, wanted: Fields) -> None:
        """What the proxies on the way have written about themselves and the client."""
        assert [pair for pair in self.request.fields if pair[0] in HOPS] == list(wanted)

    def check_after(self, keeps: bool) -> str:
        """Where the next request comes: "same" or "new"."""
        self.settle()
        return "same" if keeps else "new"
