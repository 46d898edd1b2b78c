"""Windows of what the HTTP/2 codec receives (RFC 9113 5.2): who gives back what, when, and how they grow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.http2_codec import (
    DATA,
    FLOW_CONTROL_ERROR,
    GET,
    HEADERS,
    PING,
    POST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    body,
    frames,
    ping,
    server,
    settings,
    window_update,
)

from fastmesh import _http2 as http2

OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def worker() -> Iterator[http2.Worker]:
    w = http2.Worker()
    yield w
    assert (w.blocks, w.bytes, w.buffers) == (0, 0, 0)


def updates(sent: list[Frame], stream: int) -> list[int]:
    return [int.from_bytes(f.payload, "big") for f in sent if f.kind == WINDOW_UPDATE and f.stream == stream]


def test_a_stream_gets_back_what_is_consumed(worker: http2.Worker) -> None:
    """In halves of a window, and not before."""
    conn, peer = server(worker, stream_window_max=65536)
    conn.receive(peer.headers(1, POST))
    for _ in range(4):
        conn.receive(peer.data(1, bytes(16_384)))
    assert updates(frames(conn.pack()), 1) == [] and conn.held == 65_536
    conn.consume(1, 20_000)
    assert updates(frames(conn.pack()), 1) == []
    conn.consume(1, 20_000)
    assert updates(frames(conn.pack()), 1) == [40_000]
    conn.consume(1, 1 << 30)  # more than there is is no more than there is
    assert conn.held == 0
    conn.close()


def test_more_than_a_stream_s_window_is_an_error_of_the_stream(worker: http2.Worker) -> None:
    conn, peer = server(worker, stream_window_max=65536)
    conn.receive(peer.headers(1, POST) + peer.headers(3, POST))
    for _ in range(4):
        conn.receive(peer.data(1, bytes(16_384)))
    conn.receive(peer.data(1, b"x"))
    [reset] = [f for f in frames(conn.pack()) if f.kind == RST_STREAM]
    assert (reset.stream, reset.payload) == (1, FLOW_CONTROL_ERROR.to_bytes(4, "big"))
    assert conn.take()[-1] == ("closed", 1, FLOW_CONTROL_ERROR, False) and conn.held == 0
    conn.receive(peer.data(3, b"y"))
    assert conn.take() == [("data", 3, b"y")]
    conn.close()


def test_more_than_the_connection_s_window_is_an_error_of_the_connection(worker: http2.Worker) -> None:
    conn, peer = server(worker, held_max=100_000, stream_window=1 << 20, stream_window_max=1 << 20)
    conn.receive(peer.headers(1, POST))
    with pytest.raises(http2.Refused, match="h2_flow_control"):
        for _ in range(20):
            conn.receive(peer.data(1, bytes(16_384)))
            conn.pack()
    assert conn.held <= 2 * 100_000
    conn.close()


def test_one_slow_stream_stalls_no_other(worker: http2.Worker) -> None:
    """The connection's window comes back as bytes arrive, though nothing of the first stream is consumed."""
    conn, peer = server(worker, stream_window_max=65536)
    conn.receive(peer.headers(1, POST) + peer.headers(3, POST))
    for _ in range(4):
        conn.receive(peer.data(1, bytes(16_384)))
    window = (1 << 20) - 4 * 16_384
    total = 0
    for _ in range(200):
        conn.receive(peer.data(3, bytes(16_384)))
        conn.consume(3, 16_384)
        window += sum(updates(frames(conn.pack()), 0)) - 16_384
        total += 16_384
        assert window > 0
    assert total > 3 << 20 and conn.held == 65_536
    conn.close()


def test_what_all_streams_hold_together_is_bounded(worker: http2.Worker) -> None:
    """Above held_max the connection's window stays away, below it all of it comes back."""
    conn, peer = server(worker, held_max=200_000, stream_window_max=65536)
    streams = [2 * n + 1 for n in range(20)]
    for stream in streams:
        conn.receive(peer.headers(stream, POST))
    window = 200_000
    sent = dict.fromkeys(streams, 0)
    while window >= 16_384:
        stream = min(sent, key=lambda s: sent[s])
        conn.receive(peer.data(stream, bytes(16_384)))
        sent[stream] += 16_384
        window += sum(updates(frames(conn.pack()), 0)) - 16_384
    assert 200_000 <= conn.held <= 400_000
    for stream in streams:
        conn.consume(stream, sent[stream])
    window += sum(updates(frames(conn.pack()), 0))
    assert conn.held == 0 and window >= 100_000
    conn.close()


@pytest.mark.parametrize("how", ["reset", "reset by the peer", "closed", "refused", "bad"])
def test_what_a_stream_that_is_gone_held_comes_back(worker: http2.Worker, how: str) -> None:
    """Whatever becomes of streams, the connection's window does not shrink for good."""
    conn, peer = server(worker, held_max=65_535, stream_window_max=65536)
    window = 65_535
    for n in range(30):
        stream = 2 * n + 1
        conn.refuse = how == "refused"
        head = (*POST, (b"bad name", b"x")) if how == "bad" else POST
        conn.receive(peer.headers(stream, head))
        if how == "refused":
            conn.pack()
        assert window >= 30_000
        conn.receive(peer.data(stream, bytes(15_000), how == "closed"))
        if how == "reset":
            conn.reset(stream)
        elif how == "reset by the peer":
            conn.receive(Frame(RST_STREAM, 0, stream, bytes(4)).data)
        elif how in ("closed", "bad"):
            conn.respond(stream, OK)
            conn.reset_behind(stream)
        window += sum(updates(frames(conn.pack()), 0)) - 15_000
        assert conn.held == 0 and conn.open == 0
    conn.close()


def test_data_that_were_under_way_when_a_stream_was_reset(worker: http2.Worker) -> None:
    """Even in the middle of a frame."""
    conn, peer = server(worker, held_max=65_535, stream_window_max=65536)
    window = 65_535
    for n in range(20):
        stream = 2 * n + 1
        conn.receive(peer.headers(stream, POST))
        data = peer.data(stream, bytes(10_000))
        conn.receive(data[:5000])
        conn.reset(stream)
        if n % 2:
            window += sum(updates(frames(conn.pack()), 0))
        conn.receive(data[5000:] + peer.data(stream, bytes(100)))
        window += sum(updates(frames(conn.pack()), 0)) - 10_100
        assert window > 20_000 and conn.held == 0
    conn.close()


def test_who_has_said_all_gets_no_window(worker: http2.Worker) -> None:
    conn, peer = server(worker, stream_window_max=65536)
    conn.receive(peer.headers(1, POST))
    for n in range(4):
        conn.receive(peer.data(1, bytes(16_000), n == 3))
    conn.consume(1, 64_000)
    assert updates(frames(conn.pack()), 1) == []
    conn.close()


def test_windows_grow_with_need(worker: http2.Worker) -> None:
    """More than two thirds of the window in a round trip: it doubles, up to its maximum, for all streams."""
    conn, peer = server(worker)
    assert conn.window == 65_536
    conn.receive(peer.headers(1, POST))
    rooms = 65_536
    for want in (131_072, 262_144, 262_144):
        for _ in range(100):
            conn.receive(peer.data(1, bytes(8192)))
            conn.consume(1, 8192)
            sent = frames(conn.pack())
            rooms += sum(updates(sent, 1)) - 8192
            if any(f.kind == PING for f in sent):
                break
        else:
            assert want == conn.window == 262_144  # at the maximum nobody measures any more
            break
        measure = next(f for f in sent if f.kind == PING)
        for _ in range(conn.window // 8192 * 3 // 4):
            conn.receive(peer.data(1, bytes(8192)))
            conn.consume(1, 8192)
            rooms += sum(updates(frames(conn.pack()), 1)) - 8192
            assert rooms >= 0
        conn.receive(ping(measure.payload, ack=True))
        [announced] = [f for f in frames(conn.pack()) if f.kind == SETTINGS]
        assert announced.payload == b"\0\x04" + want.to_bytes(4, "big")
        rooms += want - conn.window // 2 if want > conn.window // 2 else 0
        conn.receive(settings(ack=True))
        assert conn.window == want
    conn.close()


def test_windows_do_not_grow_without_need(worker: http2.Worker) -> None:
    """A sender that is slow, or a round trip that is short: every measurement is rarer than the last."""
    conn, peer = server(worker)
    conn.receive(peer.headers(1, POST))
    measured = []
    for n in range(3000):
        conn.receive(peer.data(1, bytes(1000)))
        conn.consume(1, 1000)
        for f in frames(conn.pack()):
            if f.kind == PING:
                measured.append(n)
                conn.receive(ping(f.payload, ack=True))
    assert conn.window == 65_536 and 3 <= len(measured) <= 8
    conn.close()


def test_what_is_sent_obeys_the_peer_s_windows(worker: http2.Worker) -> None:
    """Of the stream and of the connection; the rest follows with the room."""
    conn, peer = server(worker, (4, 1000))
    conn.receive(peer.headers(1, GET, True))
    conn.respond(1, OK, False)
    conn.data(1, bytes(5000))
    conn.finish(1)
    [head, data] = frames(conn.pack())
    assert (head.kind, data.kind, len(data.payload), data.end) == (HEADERS, DATA, 1000, False)
    assert frames(conn.pack()) == [] and not conn.wants_write
    conn.receive(window_update(1, 1))
    assert [len(f.payload) for f in frames(conn.pack())] == [1]
    conn.receive(settings((4, 2000)))
    assert [len(f.payload) for f in frames(conn.pack()) if f.kind == DATA] == [1000]
    conn.receive(window_update(1, 1 << 20))
    [last] = frames(conn.pack())
    assert (len(last.payload), last.end) == (2999, True)
    conn.close()


def test_trailers_need_no_window(worker: http2.Worker) -> None:
    """A body that fills the window to the last byte: its trailers follow all the same."""
    conn, peer = server(worker, (4, 1000))
    conn.receive(peer.headers(1, GET, True))
    conn.respond(1, OK, False)
    conn.data(1, bytes(1000))
    assert len(frames(conn.pack())) == 2
    conn.finish(1, b"x: y\r\n\r\n")
    [trailers] = frames(conn.pack())
    assert (trailers.kind, trailers.end) == (HEADERS, True)
    assert conn.take()[-1] == ("closed", 1, 0, False)
    conn.close()


def test_the_connection_s_window_is_shared(worker: http2.Worker) -> None:
    conn, peer = server(worker, (4, 1 << 20))
    for stream in (1, 3):
        conn.receive(peer.headers(stream, GET, True))
        conn.respond(stream, OK, False)
        conn.data(stream, bytes(60_000))
    sent = [f for f in frames(conn.pack()) if f.kind == DATA]
    assert sum(len(f.payload) for f in sent) == 65_535
    assert all(sum(len(f.payload) for f in sent if f.stream == stream) > 16_000 for stream in (1, 3))
    conn.receive(window_update(0, 1 << 20))
    sent += frames(conn.pack())
    assert {s: sum(len(f.payload) for f in sent if f.stream == s and f.kind == DATA) for s in (1, 3)} == {
        1: 60_000,
        3: 60_000,
    }
    assert body(conn.take(), 1) == b""
    conn.close()
