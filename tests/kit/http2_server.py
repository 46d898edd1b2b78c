"""A scripted HTTP/2 upstream: `kit.upstream.Upstream` whose connections speak HTTP/2.

    def script(conn: H2Conn) -> None:
        for request in conn:
            conn.answer(request, body=b"hello", trailers=[("x-end", "yes")])

    Upstream(address, h2(script))

The protocol is that of the package `h2`, an implementation that nobody here has written: it refuses what a
client must not send, and that fails the test. What it would not send itself goes out by `conn.raw`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from kit.http2 import Frame, goaway
from kit.upstream import Script, ServerConn
from kit.wire import Closed, Request

Pairs = Iterable[tuple[str, str]]


@dataclass
class H2Request:
    """A request as far as it has come."""

    stream: int
    fields: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None  # the code of the client's RST_STREAM

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def method(self) -> str:
        return self.get(":method") or ""

    @property
    def path(self) -> str:
        return self.get(":path") or ""

    def get(self, name: str) -> str | None:
        """The values of a field joined, None if it is absent."""
        values = self.all(name)
        return ", ".join(values) if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]


class H2Conn:
    """The server's end of one connection. `generous`: windows are given back as DATA comes; otherwise only
    by `allow`. `settings` are the server's, by name (`INITIAL_WINDOW_SIZE`)."""

    def __init__(
        self, conn: ServerConn, *, generous: bool = True, settings: dict[str, int] | None = None
    ) -> None:
        self.conn = conn
        self.generous = generous
        self.requests: dict[int, H2Request] = {}
        self.acks = 0  # of SETTINGS
        self.pongs: list[bytes] = []
        self.goaway_code: int | None = None  # of a GOAWAY of the client
        self.closed = False
        self._fresh: list[H2Request] = []  # not given out by `next_request` yet
        self._unread: dict[int, int] = {}  # bytes that came and whose window was not given back
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        wanted = {SettingCodes[name]: value for name, value in (settings or {}).items()}
        self.h2.local_settings = Settings(client=False, initial_values=wanted)
        self.h2.initiate_connection()
        self.flush()

    # reading

    def pump(self) -> bool:
        """Receive once and take account of it; False at the end of the connection."""
        try:
            more = self.conn.fill()
        except ConnectionError:
            more = False
        if not more:
            self.closed = True
            return False
        try:
            for event in self.h2.receive_data(self.conn.take(len(self.conn.buffer))):
                self._came(event)
        finally:
            self.flush()  # also what an offence of the client is answered with
        return True

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Read until the condition holds; `Closed` if the connection ends before."""
        while not condition():
            if not self.pump() and not condition():
                raise Closed(f"the client closed before {what}")

    def next_request(self) -> H2Request | None:
        """The next request whose head has come, its body perhaps not; None at the end of the connection."""
        while not self._fresh:
            if not self.pump():
                return None
        return self._fresh.pop(0)

    def whole(self, request: H2Request) -> H2Request:
        """Wait until the request has ended, or was reset."""
        self.until(lambda: request.over, f"the end of request {request.stream}")
        return request

    def __iter__(self) -> Iterator[H2Request]:
        """The requests of the connection, each whole, until it ends; those that were reset are left out."""
        while (request := self.next_request()) is not None:
            if self.whole(request).ended:
                yield request

    def until_closed(self) -> None:
        while self.pump():
            pass

    def _came(self, event: events.Event) -> None:
        if isinstance(event, events.RequestReceived):
            fields = [(str(name), str(value)) for name, value in event.headers or ()]
            request = H2Request(event.stream_id or 0, fields)
            self.requests[request.stream] = request
            self._fresh.append(request)
            plain = [pair for pair in fields if not pair[0].startswith(":")]
            self.conn.upstream.record(Request(f"{request.method} {request.path} HTTP/2", plain, b""))
        elif isinstance(event, events.DataReceived):
            stream, size = event.stream_id or 0, event.flow_controlled_length or 0
            self.requests[stream].body += event.data or b""
            self._unread[stream] = self._unread.get(stream, 0) + size
            if self.generous:
                self.allow(stream)
        elif isinstance(event, events.TrailersReceived):
            trailers = [(str(name), str(value)) for name, value in event.headers or ()]
            self.requests[event.stream_id or 0].trailers = trailers
        elif isinstance(event, events.StreamEnded):
            self.requests[event.stream_id or 0].ended = True
        elif isinstance(event, events.StreamReset):
            if event.remote_reset:
                self.requests[event.stream_id or 0].reset = int(event.error_code or 0)
        elif isinstance(event, events.SettingsAcknowledged):
            self.acks += 1
        elif isinstance(event, events.PingAckReceived):
            self.pongs.append(event.ping_data or b"")
        elif isinstance(event, events.ConnectionTerminated):
            self.goaway_code = int(event.error_code or 0)

    # writing

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.conn.send(data)

    def raw(self, *parts: Frame | bytes) -> None:
        """Send what the package would not; it knows nothing of it afterwards."""
        self.flush()
        self.conn.send(*(part.encode() if isinstance(part, Frame) else part for part in parts))

    def allow(self, stream: int) -> None:
        """Give back the window of what has come on a stream."""
        if size := self._unread.pop(stream, 0):
            self.h2.acknowledge_received_data(size, stream)
            self.flush()

    def interim(self, request: H2Request, status: int = 103, fields: Pairs = ()) -> None:
        """A 1xx head."""
        self.h2.send_headers(request.stream, [(":status", str(status)), *fields])
        self.flush()

    def head(self, request: H2Request, status: int = 200, fields: Pairs = (), *, end: bool = False) -> None:
        """The head of the final response."""
        self.h2.send_headers(request.stream, [(":status", str(status)), *fields], end_stream=end)
        self.flush()

    def data(self, request: H2Request, body: bytes, *, end: bool = False) -> None:
        """A part of the body, as the client's windows allow; stops when the client resets the stream."""
        rest = memoryview(body)
        while True:
            if request.reset is not None:
                return
            room = min(self.h2.local_flow_control_window(request.stream), self.h2.max_outbound_frame_size)
            if rest and room <= 0:
                if not self.pump():
                    raise Closed(f"the client closed before it took the body of {request.stream}")
                continue
            part, rest = rest[:room], rest[room:]
            self.h2.send_data(request.stream, bytes(part), end_stream=end and not rest)
            self.flush()
            if not rest:
                return

    def trailers(self, request: H2Request, fields: Pairs) -> None:
        self.h2.send_headers(request.stream, list(fields), end_stream=True)
        self.flush()

    def answer(
        self,
        request: H2Request,
        status: int = 200,
        fields: Pairs = (),
        body: bytes = b"",
        trailers: Pairs | None = None,
    ) -> None:
        """A whole response."""
        self.head(request, status, fields, end=not body and trailers is None)
        if body:
            self.data(request, body, end=trailers is None)
        if trailers is not None and request.reset is None:
            self.trailers(request, trailers)

    def reset(self, request: H2Request, code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        self.h2.reset_stream(request.stream, code)
        self.flush()

    def goaway(self, last: int | None = None, code: int = ErrorCodes.NO_ERROR) -> None:
        """GOAWAY that says `last` was the last request (None: the latest). The connection stays usable:
        the package would refuse to go on, so it is not asked."""
        last = max(self.requests, default=0) if last is None else last
        self.raw(goaway(last, code))

    def ping(self, content: bytes = b"upstream") -> None:
        """A PING, and wait for its answer: the client has read what was sent before."""
        count = len(self.pongs)
        self.h2.ping(content)
        self.flush()
        self.until(lambda: content in self.pongs[count:], "the answer to a PING")


H2Script = Callable[[H2Conn], None]


def h2(
    script: H2Script,
    context: ssl.SSLContext | None = None,
    *,
    generous: bool = True,
    settings: dict[str, int] | None = None,
) -> Script:
    """A script of `Upstream` that speaks HTTP/2: by prior knowledge, or over TLS with ALPN."""

    def run(conn: ServerConn) -> None:
        if context is not None:
            context.set_alpn_protocols(["h2"])
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
            agreed = conn.sock.selected_alpn_protocol()
            assert agreed == "h2", f"the client does not offer h2: {agreed}"
        script(H2Conn(conn, generous=generous, settings=settings))

    return run


def answering(
    body: bytes = b"ok", status: int = 200, fields: Pairs = (), trailers: Pairs | None = None
) -> H2Script:
    """Every request gets the same answer."""

    def script(conn: H2Conn) -> None:
        for request in conn:
            conn.answer(request, status, fields, b"" if request.method == "HEAD" else body, trailers)

    return script


def echo(conn: H2Conn) -> None:
    """Every request gets its own body and trailers back."""
    for request in conn:
        trailers = request.trailers or None
        conn.answer(request, 200, [("x-path", request.path)], bytes(request.body), trailers)
