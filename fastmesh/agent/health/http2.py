"""A request and its answer in HTTP/2, on a connection of their own, through the library `h2`.

For endpoints that speak nothing else: gRPC, and services with `protocol: http2`.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from fastmesh.agent.health.http1 import MOST, of_status
from fastmesh.agent.health.words import AGENT, AnswerError, Outcome, Peer

Fields = list[tuple[str, str]]
_SETTINGS: Final = 4
_CODES: Final = {
    0: "NO_ERROR",
    1: "PROTOCOL_ERROR",
    2: "INTERNAL_ERROR",
    3: "FLOW_CONTROL_ERROR",
    7: "REFUSED_STREAM",
    8: "CANCEL",
    11: "ENHANCE_YOUR_CALM",
    12: "INADEQUATE_SECURITY",
    13: "HTTP_1_1_REQUIRED",
}


class Answer:
    """`fields`: those of the head, `trailers` those behind the body; names in lower case."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.body = bytearray()
        self.trailers: dict[str, str] = {}
        self.ended = False

    @property
    def status(self) -> int:
        text = self.fields.get(":status", "")
        return int(text) if text.isascii() and text.isdigit() else 0


async def ask_http2(peer: Peer, path: str) -> Outcome:
    """GET of `path`. Raises AnswerError."""
    head = [*request_line("GET", peer, path), ("user-agent", AGENT), ("accept", "*/*")]
    return of_status((await exchange(peer, head, None)).status)


def request_line(method: str, peer: Peer, path: str) -> Fields:
    """The fields that every request begins with (RFC 9113, 8.3.1)."""
    scheme = "https" if peer.secure else "http"
    return [(":method", method), (":scheme", scheme), (":authority", peer.host), (":path", path)]


async def exchange(peer: Peer, head: Fields, body: bytes | None) -> Answer:
    """Send a request and wait for its whole answer. Raises AnswerError."""
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, head, end_stream=body is None)
    if body is not None:
        connection.send_data(stream, body, end_stream=True)
    peer.writer.write(connection.data_to_send())
    answer = Answer()
    size = 0
    try:
        while not answer.ended:
            data = await peer.reader.read(MOST)
            if not data:
                raise AnswerError("the connection was closed before the answer")
            if size == 0 and len(data) > 3 and data[3] != _SETTINGS:  # the server's preface (RFC 9113, 3.4)
                raise AnswerError("the answer is not HTTP/2")
            size += len(data)
            if size > MOST:
                raise AnswerError(f"the answer is longer than {MOST} bytes")
            for event in connection.receive_data(data):
                _take(answer, event)
            peer.writer.write(connection.data_to_send())
        connection.close_connection()
        peer.writer.write(connection.data_to_send())
    except (ProtocolError, UnicodeDecodeError):
        raise AnswerError("the answer is not HTTP/2") from None
    return answer


def _take(answer: Answer, event: Event) -> None:
    if isinstance(event, ResponseReceived):
        answer.fields = _fields(event.headers)
    elif isinstance(event, DataReceived):
        # What an answer may be is less than the window: none of it is given back.
        answer.body += event.data or b""
    elif isinstance(event, TrailersReceived):
        answer.trailers = _fields(event.headers)
    elif isinstance(event, StreamEnded):
        answer.ended = True
    elif isinstance(event, StreamReset):
        raise AnswerError(f"the request was reset: {_code(event.error_code)}")
    elif isinstance(event, ConnectionTerminated) and event.error_code:
        raise AnswerError(f"the connection was ended: {_code(event.error_code)}")


def _fields(pairs: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in pairs or ()}  # type: ignore[attr-defined]


def _code(number: object) -> str:
    return _CODES.get(int(number), f"error {int(number)}")  # type: ignore[call-overload]
