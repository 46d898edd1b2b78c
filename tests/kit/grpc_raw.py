"""gRPC a frame at a time: either end of a connection on the h2 package, for tests that see and send anything.

`RawEnd` wraps a `kit.wire.Conn`. As a client it makes calls by hand and shows each answer as it is on the
wire; as a server it runs in a script of `kit.upstream` and may answer, refuse or ignore a call. It reads only
when asked to (`until`), always with the deadline of the connection.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
from hyperframe.frame import GoAwayFrame, PingFrame

from kit.upstream import Script, ServerConn
from kit.wire import Closed, Conn

Fields = list[tuple[str, str]]


def frame(message: bytes, compressed: bool = False) -> bytes:
    """A message with its prefix."""
    return struct.pack("!BI", compressed, len(message)) + message


@dataclass
class Stream:
    """What the other end has sent on one stream."""

    number: int
    heads: list[Fields] = field(default_factory=list)  # of a message; interim ones too
    data: bytearray = field(default_factory=bytearray)
    trailers: Fields | None = None
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def fields(self) -> dict[str, str]:
        """Of the last head."""
        return dict(self.heads[-1]) if self.heads else {}

    @property
    def trailers_only(self) -> bool:
        """Is the whole answer one block of fields?"""
        return len(self.heads) == 1 and self.ended and self.trailers is None and not self.data

    @property
    def end(self) -> dict[str, str]:
        """The fields that tell the status: trailers, or the head that is all there is."""
        return dict(self.trailers) if self.trailers is not None else self.fields if self.trailers_only else {}

    @property
    def status(self) -> int | None:
        """grpc-status, None without one."""
        return int(self.end["grpc-status"]) if "grpc-status" in self.end else None

    @property
    def messages(self) -> list[tuple[bool, bytes]]:
        """Whole messages: compressed, and the bytes."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            flag, size = struct.unpack_from("!BI", self.data, at)
            if at + 5 + size > len(self.data):
                break
            found.append((bool(flag), bytes(self.data[at + 5 : at + 5 + size])))
            at += 5 + size
        return found


class RawEnd:
    """One end of an HTTP/2 connection."""

    def __init__(self, conn: Conn, *, client: bool = True) -> None:
        self.conn = conn
        # What is sent is not judged either: a test may mean to break a rule.
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="latin-1",
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.streams: dict[int, Stream] = {}
        self.pongs: list[bytes] = []
        self.goaway: tuple[int, int] | None = None  # last stream, code
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.conn.send(self.h2.data_to_send())

    def turn(self) -> bool:
        """Take what has arrived, waiting for something; False at the end of the connection."""
        try:
            more = bool(self.conn.buffer) or self.conn.fill()
        except ConnectionError:
            more = False
        if not more:
            return False
        for event in self.h2.receive_data(self.conn.take(len(self.conn.buffer))):
            self._take(event)
        self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs.append(event.ping_data)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = (event.last_stream_id or 0, int(event.error_code or 0))
        elif number:
            stream = self.streams.setdefault(number, Stream(number))
            match event:
                case (
                    h2.events.RequestReceived()
                    | h2.events.ResponseReceived()
                    | h2.events.InformationalResponseReceived()
                ):
                    stream.heads.append(list(event.headers))
                case h2.events.DataReceived():
                    stream.data += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, number)
                case h2.events.TrailersReceived():
                    stream.trailers = list(event.headers)
                case h2.events.StreamEnded():
                    stream.ended = True
                case h2.events.StreamReset():
                    stream.reset = int(event.error_code)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Read until `condition()`; Closed if the connection ends before."""
        while not condition():
            if not self.turn():
                raise Closed(f"the connection ended before {what}; GOAWAY: {self.goaway}, {self.streams}")

    # client

    def start(
        self,
        path: str = "/fastmesh.test.Script/Who",
        fields: Iterable[tuple[str, str]] = (),
        *,
        authority: str = "svc-b",
        data: bytes | None = b"\0\0\0\0\0",
        end: bool = True,
        content_type: str = "application/grpc",
    ) -> Stream:
        """Begin a call, by default one with an empty message; `data` None: none yet."""
        number = self.h2.get_next_available_stream_id()
        head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("content-type", content_type),
            ("te", "trailers"),
            *fields,
        ]
        self.h2.send_headers(number, head, end_stream=data is None and end)
        if data is not None:
            self.h2.send_data(number, data, end_stream=end)
        self.streams[number] = Stream(number)
        self.flush()
        return self.streams[number]

    def finish(self, stream: Stream) -> Stream:
        """Read until the call is over."""
        self.until(lambda: stream.over, f"the end of stream {stream.number}")
        return stream

    def call(self, *arguments: str, **options: object) -> Stream:
        """A whole call; arguments as for `start`."""
        return self.finish(self.start(*arguments, **options))  # type: ignore[arg-type]

    def ping(self, data: bytes) -> None:
        """PING, and wait for its answer."""
        self.conn.send(PingFrame(0, opaque_data=data).serialize())
        # The library sent none itself, so an answer is one to ours.
        self.until(lambda: data in self.pongs, "an answer to PING")

    # server

    def head(self, stream: Stream, fields: Iterable[tuple[str, str]] = ()) -> None:
        """The head of an answer."""
        self.h2.send_headers(
            stream.number, [(":status", "200"), ("content-type", "application/grpc"), *fields]
        )
        self.flush()

    def send(self, stream: Stream, data: bytes) -> None:
        self.h2.send_data(stream.number, data)
        self.flush()

    def status(self, stream: Stream, status: int = 0, fields: Iterable[tuple[str, str]] = ()) -> None:
        """Trailers with a status."""
        self.h2.send_headers(stream.number, [("grpc-status", str(status)), *fields], end_stream=True)
        self.flush()

    def reply(self, stream: Stream, message: bytes) -> None:
        """A whole answer with one message."""
        self.head(stream)
        self.send(stream, frame(message))
        self.status(stream)

    def reset(self, stream: Stream, code: int) -> None:
        self.h2.reset_stream(stream.number, code)
        self.flush()

    def go_away(self, last: int, code: int = 0) -> None:
        """GOAWAY; beside the library, which would end the connection with it."""
        self.conn.send(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())


def serving(on_call: Callable[[RawEnd, Stream], None], kept: list[Stream] | None = None) -> Script:
    """A script of `kit.upstream`: `on_call` for each call whose request is complete. `kept`: all of them."""

    def script(conn: ServerConn) -> None:
        end = RawEnd(conn, client=False)
        done: set[int] = set()
        while end.turn():
            for number, stream in list(end.streams.items()):
                if stream.ended and number not in done:
                    done.add(number)
                    if kept is not None:
                        kept.append(stream)
                    on_call(end, stream)

    return script


def answering(message: bytes, kept: list[Stream] | None = None) -> Script:
    """A script that answers every call with this message."""
    return serving(lambda end, stream: end.reply(stream, message), kept)
