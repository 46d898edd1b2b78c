"""The HTTP/2 codec against h2, an implementation that shares nothing with it."""

from __future__ import annotations

from collections.abc import Iterator

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from kit.http2_codec import named

from fastmesh import _http2 as http2

HEAD = [(":method", "POST"), (":scheme", "https"), (":path", "/a?b"), (":authority", "a.example")]
OK = b"HTTP/1.1 200 OK\r\n\r\n"
BODY = bytes(range(256)) * 2000


class Other:
    """h2's connection, with what it received."""

    def __init__(self, client: bool) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding=None)
        )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def carry(self, conn: http2.Conn, step: int = 1 << 30, *, acknowledge: bool = True) -> None:
        """Bytes both ways, `step` at a time, until there are none."""
        while True:
            there = self.h2.data_to_send() or b""
            for at in range(0, len(there), step):
                conn.receive(there[at : at + step])
            back = conn.pack()
            for at in range(0, len(back), step):
                self.events += self.h2.receive_data(back[at : at + step])
            if acknowledge:
                for event in self.events:
                    if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        event.flow_controlled_length = 0
            if not there and not back:
                return

    def of(self, kind: type) -> list:
        return [event for event in self.events if type(event) is kind]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived) if event.stream_id == stream)


@pytest.fixture
def worker() -> Iterator[http2.Worker]:
    w = http2.Worker()
    yield w
    assert (w.blocks, w.bytes, w.buffers) == (0, 0, 0)


@pytest.fixture
def serving(worker: http2.Worker) -> Iterator[tuple[http2.Conn, Other]]:
    conn = http2.Conn(worker, http2.SERVER)
    other = Other(client=True)
    other.carry(conn)
    yield conn, other
    conn.close()


@pytest.fixture
def calling(worker: http2.Worker) -> Iterator[tuple[http2.Conn, Other]]:
    conn = http2.Conn(worker, http2.CLIENT)
    other = Other(client=False)
    other.carry(conn)
    yield conn, other
    conn.close()


def test_what_is_announced(serving: tuple[http2.Conn, Other], calling: tuple[http2.Conn, Other]) -> None:
    codes = h2.settings.SettingCodes
    server, client = serving[1].h2.remote_settings, calling[1].h2.remote_settings
    assert server[codes.MAX_CONCURRENT_STREAMS] == 1000 and server[codes.ENABLE_CONNECT_PROTOCOL] == 1
    assert server[codes.MAX_HEADER_LIST_SIZE] == client[codes.MAX_HEADER_LIST_SIZE] == 65536
    assert server[codes.INITIAL_WINDOW_SIZE] == client[codes.INITIAL_WINDOW_SIZE] == 65536
    assert client[codes.ENABLE_PUSH] == 0
    assert serving[1].h2.outbound_flow_control_window == 1 << 20


@pytest.mark.parametrize("step", [1, 10, 1 << 30])
def test_requests_of_h2(serving: tuple[http2.Conn, Other], step: int) -> None:
    conn, other = serving
    for stream in (1, 3, 5):
        other.h2.send_headers(stream, [*HEAD, ("x-n", str(stream)), ("te", "trailers")])
        other.h2.send_data(stream, b"content", pad_length=7)
        other.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    other.carry(conn, step)
    events = conn.take()
    for stream in (1, 3, 5):
        mine = [event for event in events if event[1:2] == (stream,)]
        assert mine[0][2]["te"] and mine[0][2]["scheme"] == b"https"
        assert b"".join(event[2] for event in named(mine, "data")) == b"content"
        assert mine[-1] == ("end", stream, [(b"grpc-status", b"0", False)])
        conn.respond(stream, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", False)
        conn.respond(stream, b"HTTP/1.1 200 OK\r\nX-A: B\r\n\r\n", False)
        conn.data(stream, b"answer")
        conn.finish(stream, b"grpc-status: 3\r\ngrpc-message: no\r\n\r\n")
    other.carry(conn, step)
    assert [event.headers for event in other.of(h2.events.InformationalResponseReceived)] == [
        [(b":status", b"103"), (b"link", b"x")]
    ] * 3
    assert [event.headers for event in other.of(h2.events.ResponseReceived)] == [
        [(b":status", b"200"), (b"x-a", b"B")]
    ] * 3
    assert [event.headers for event in other.of(h2.events.TrailersReceived)] == [
        [(b"grpc-status", b"3"), (b"grpc-message", b"no")]
    ] * 3
    assert [other.body(stream) for stream in (1, 3, 5)] == [b"answer"] * 3
    assert len(other.of(h2.events.StreamEnded)) == 3
    assert conn.open == 0


def test_a_large_answer_to_h2(serving: tuple[http2.Conn, Other]) -> None:
    """Longer than every window: it comes as h2 gives its windows back, and the writer is told to wait."""
    conn, other = serving
    other.h2.send_headers(1, HEAD, end_stream=True)
    other.carry(conn)
    conn.take()
    conn.respond(1, OK, False)
    left = BODY
    waited = 0
    while left:
        if conn.data(1, left[:10_000]):
            waited += 1
            other.carry(conn)
            assert named(conn.take(), "writable")
        left = left[10_000:]
    conn.finish(1)
    other.carry(conn)
    assert other.body(1) == BODY and waited
    assert len(other.of(h2.events.StreamEnded)) == 1


def test_a_large_request_of_h2(serving: tuple[http2.Conn, Other]) -> None:
    conn, other = serving
    other.h2.send_headers(1, HEAD)
    left, got = BODY, b""
    while left or len(got) < len(BODY):
        room = min(other.h2.local_flow_control_window(1), 16384)
        if left and room:
            other.h2.send_data(1, left[:room])
            left = left[room:]
        other.carry(conn)
        for event in named(conn.take(), "data"):
            got += event[2]
            conn.consume(1, len(event[2]))
    assert got == BODY and conn.held == 0


def test_resets_and_goaway_with_h2(serving: tuple[http2.Conn, Other]) -> None:
    conn, other = serving
    for stream in (1, 3):
        other.h2.send_headers(stream, HEAD)
    other.carry(conn)
    conn.take()
    other.h2.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
    conn.reset(3, 8)
    other.carry(conn)
    assert conn.take() == [("closed", 1, 8, True)]
    assert [event.stream_id for event in other.of(h2.events.StreamReset)] == [3]
    other.h2.ping(b"abcdefgh")
    conn.goaway()
    other.carry(conn)
    [ended] = other.of(h2.events.ConnectionTerminated)
    assert (ended.last_stream_id, ended.error_code) == (3, 0)
    assert len(other.of(h2.events.PingAckReceived)) == 1


def test_an_answer_before_the_request_is_complete(serving: tuple[http2.Conn, Other]) -> None:
    conn, other = serving
    other.h2.send_headers(1, HEAD)
    other.h2.send_data(1, b"begin")
    other.carry(conn)
    conn.respond(1, b"HTTP/1.1 413 Too Large\r\n\r\n")
    conn.reset_behind(1)
    other.carry(conn)
    [reset] = other.of(h2.events.StreamReset)
    assert reset.error_code == 0 and len(other.of(h2.events.ResponseReceived)) == 1
    assert conn.take()[-1] == ("closed", 1, 0, False)


@pytest.mark.parametrize("step", [1, 1 << 30])
def test_requests_to_h2(calling: tuple[http2.Conn, Other], step: int) -> None:
    conn, other = calling
    stream = conn.request(
        b"POST /x HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n",
        False,
        scheme=b"https",
        via=11,
    )
    conn.data(stream, b"content")
    conn.finish(stream, b"x-sum: 1\r\n\r\n")
    other.carry(conn, step)
    [request] = other.of(h2.events.RequestReceived)
    assert request.headers == [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", b"/x"),
        (b":authority", b"h"),
        (b"via", b"1.1 fastmesh"),
        (b"te", b"trailers"),
    ]
    assert other.body(stream) == b"content"
    assert [event.headers for event in other.of(h2.events.TrailersReceived)] == [[(b"x-sum", b"1")]]
    other.h2.send_headers(stream, [(":status", "200"), ("content-length", "6")])
    other.h2.send_data(stream, b"answer", end_stream=True)
    other.carry(conn, step)
    [head, *data, end, closed] = conn.take()[1:]
    assert head[2]["length"] == 6 and b"".join(event[2] for event in data) == b"answer"
    assert (end, closed) == (("end", stream, None), ("closed", stream, 0, False))


def test_what_h2_refuses_and_resets(calling: tuple[http2.Conn, Other]) -> None:
    conn, other = calling
    first, second, third = (conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") for _ in range(3))
    other.carry(conn)
    other.h2.reset_stream(first, h2.errors.ErrorCodes.REFUSED_STREAM)
    other.h2.reset_stream(second, h2.errors.ErrorCodes.INTERNAL_ERROR)
    other.carry(conn)
    assert conn.take()[1:] == [("closed", first, 7, True), ("closed", second, 2, True)]
    other.h2.close_connection(last_stream_id=second)
    other.carry(conn)
    assert conn.take() == [("goaway", second, 0), ("closed", third, 7, True)] and not conn.may_open


def test_a_limit_of_h2(worker: http2.Worker) -> None:
    conn = http2.Conn(worker, http2.CLIENT)
    other = Other(client=False)
    other.h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    other.carry(conn)
    assert conn.peer_streams == 2
    streams = []
    while conn.may_open:
        streams.append(conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert len(streams) == 2
    other.carry(conn)
    other.h2.send_headers(streams[0], [(":status", "200")], end_stream=True)
    other.carry(conn)
    assert conn.may_open
    conn.close()


def test_h2_may_change_its_windows(serving: tuple[http2.Conn, Other]) -> None:
    """A smaller initial window makes those of open streams negative (RFC 9113 6.9.2)."""
    conn, other = serving
    other.h2.send_headers(1, HEAD, end_stream=True)
    other.carry(conn)
    conn.respond(1, OK, False)
    conn.data(1, bytes(60_000))
    other.carry(conn, acknowledge=False)
    other.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10_000})
    other.carry(conn, acknowledge=False)
    conn.data(1, bytes(20_000))
    conn.finish(1)
    other.carry(conn, acknowledge=False)
    assert len(other.body(1)) == 60_000
    other.carry(conn)
    other.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100_000})
    other.carry(conn)
    assert len(other.body(1)) == 80_000 and len(other.of(h2.events.StreamEnded)) == 1
