"""What a peer can do without end, and where it ends: GOAWAY ENHANCE_YOUR_CALM with a reason of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kit.http2_codec import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    Peer,
    client,
    frame,
    frames,
    goaway,
    ping,
    rst_stream,
    server,
    settings,
    window_update,
)

from fastmesh import _http2 as http2


@pytest.fixture
def worker() -> Iterator[http2.Worker]:
    w = http2.Worker()
    yield w
    assert (w.blocks, w.bytes, w.buffers) == (0, 0, 0)


def last_words(conn: http2.Conn, reason: str) -> int:
    """The connection is over for `reason`: it says so once, in a GOAWAY, whose code this is."""
    assert conn.wants_write
    with pytest.raises(http2.Refused) as refused:
        conn.pack()
    assert refused.value.args[0] == reason
    last = frames(refused.value.args[1])[-1]
    assert last.kind == GOAWAY
    assert not conn.wants_write
    for again in (conn.pack, lambda: conn.receive(ping()), conn.ping):
        with pytest.raises(http2.Refused, match=reason):
            again()
    with pytest.raises(http2.Refused) as refused:
        conn.pack()
    assert refused.value.args[1] == b""
    return int.from_bytes(last.payload[4:8], "big")


Step = Callable[[Peer, int], bytes]


def rapid_reset(peer: Peer, number: int) -> bytes:
    stream = 2 * number + 1
    return peer.headers(stream, GET, True) + rst_stream(stream)


def made_you_reset(peer: Peer, number: int) -> bytes:
    """A complete request, and then a window that overflows: the server has to reset the stream."""
    stream = 2 * number + 1
    return peer.headers(stream, GET, True) + window_update(stream, (1 << 31) - 1)


def too_much_content(peer: Peer, number: int) -> bytes:
    stream = 2 * number + 1
    return (
        peer.headers(stream, (*POST, (b"content-length", b"1")))
        + peer.data(stream, b"12")
        + rst_stream(stream)
    )


def empty_data(peer: Peer, number: int) -> bytes:
    return (peer.headers(1, POST) if number == 0 else b"") + frame(DATA, 0, 1)


def padded_data(peer: Peer, number: int) -> bytes:
    """Nothing but padding."""
    return (peer.headers(1, POST) if number == 0 else b"") + frame(DATA, 8, 1, b"\x01\0")


def empty_continuation(peer: Peer, number: int) -> bytes:
    return b"".join(
        [frame(HEADERS, 0, 2 * number + 1, b""), *([frame(CONTINUATION, 0, 2 * number + 1)] * 60)]
    ) + frame(CONTINUATION, END_HEADERS, 2 * number + 1, peer.block(GET))


FLOODS: list[tuple[str, Step, str, int]] = [
    ("rapid reset", rapid_reset, "h2_reset_flood", 1000),
    ("made you reset", made_you_reset, "h2_provoked_flood", 400),
    ("content of a wrong length", too_much_content, "h2_provoked_flood", 400),
    ("settings", lambda peer, number: settings((4, 65535 + number % 2)), "h2_settings_flood", 100),
    ("empty settings", lambda peer, number: settings(), "h2_settings_flood", 100),
    ("ping", lambda peer, number: ping(), "h2_ping_flood", 10_000),
    ("acknowledgements of pings", lambda peer, number: ping(ack=True), "h2_ping_flood", 10_000),
    ("empty data", empty_data, "h2_empty_flood", 1000),
    ("padding", padded_data, "h2_empty_flood", 1000),
    ("empty continuations", empty_continuation, "h2_empty_flood", 16),
    ("priority", lambda peer, number: frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), "h2_priority_flood", 10_000),
    ("unknown frames", lambda peer, number: frame(0x42, 0, 0, b"?"), "h2_priority_flood", 10_000),
    ("window updates", lambda peer, number: window_update(0, 1), "h2_window_flood", 20_000),
]


@pytest.mark.parametrize(("step", "reason", "burst"), [f[1:] for f in FLOODS], ids=[f[0] for f in FLOODS])
def test_a_flood_is_cut(worker: http2.Worker, step: Step, reason: str, burst: int) -> None:
    """So many at once pass, far more do not; everything that is asked for in between is packed and taken."""
    conn, peer = server(worker)
    sent = 0
    with pytest.raises(http2.Refused, match=reason) as refused:
        for number in range(3 * burst + 10):
            conn.receive(step(peer, number))
            sent = number
            if number % 64 == 0:
                conn.pack()
    assert burst * 0.9 <= sent <= burst * 1.2 + 10
    if len(refused.value.args) > 1:
        # what is found while packing is said there and then
        last = frames(refused.value.args[1])[-1]
        assert (last.kind, int.from_bytes(last.payload[4:8], "big")) == (GOAWAY, ENHANCE_YOUR_CALM)
    else:
        assert last_words(conn, reason) == ENHANCE_YOUR_CALM
    conn.close()


@pytest.mark.parametrize(
    ("step", "a_second"),
    [
        # cancellations of a gRPC client, and its measurements
        (rapid_reset, 400),
        (lambda peer, number: ping(), 1000),
        (lambda peer, number: settings(), 5),
        (lambda peer, number: window_update(0, 1), 5000),
        (lambda peer, number: frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), 1000),
    ],
    ids=["cancel", "ping", "settings", "window", "priority"],
)
def test_what_honest_peers_do_goes_on(worker: http2.Worker, step: Step, a_second: int) -> None:
    conn, peer = server(worker)
    number = 0
    for second in range(30):
        for part in range(10):
            conn.now_ms = 10_000 + second * 1000 + part * 100
            for _ in range(max(1, a_second // 10) if a_second >= 10 else part % 2):
                conn.receive(step(peer, number))
                number += 1
            conn.pack()
    conn.close()


def test_requests_that_are_answered_may_be_reset(worker: http2.Worker) -> None:
    """A reset that comes when the answer has left ends nothing: it is not counted."""
    conn, peer = server(worker)
    for number in range(3000):
        stream = 2 * number + 1
        conn.receive(peer.headers(stream, POST))
        conn.respond(stream, b"HTTP/1.1 200 OK\r\n\r\n")
        conn.pack()
        conn.receive(rst_stream(stream))
        assert conn.take()[-1] == ("closed", stream, 8, True)
    conn.close()


def test_window_updates_that_data_ask_for_are_free(worker: http2.Worker) -> None:
    """Two for every frame of ours, as simple clients send them, however fast."""
    conn, peer = server(worker, (4, 1 << 20))
    conn.receive(peer.headers(1, GET, True))
    conn.respond(1, b"HTTP/1.1 200 OK\r\n\r\n", False)
    for _ in range(15_000):
        conn.data(1, bytes(100))
        [data] = frames(conn.pack())[-1:]
        assert data.kind == DATA
        conn.receive(window_update(0, 100) + window_update(1, 100))
    conn.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 16384])
@pytest.mark.parametrize("refused", [False, True])
def test_a_header_block_without_end_is_cut(worker: http2.Worker, size: int, refused: bool) -> None:
    """Also where nghttp2 throws it away: on a stream that was refused."""
    conn, _ = server(worker)
    conn.refuse = refused
    field = b"\x00\x01x\x7f\x80\x7f" + b"y" * 16378 if size > 1000 else b"\x00\x01x\x01y"
    conn.receive(frame(HEADERS, 0, 1, field[:16384]))
    total = 0
    with pytest.raises(http2.Refused, match="h2_header_flood"):
        for _ in range(2000):
            conn.receive(frame(CONTINUATION, 0, 1, b"\x82" * size))
            total += size
    assert total <= 3 * 65536
    assert last_words(conn, "h2_header_flood") == ENHANCE_YOUR_CALM
    assert not conn.building
    conn.close()


def test_a_small_block_that_means_a_large_head_is_bounded(worker: http2.Worker) -> None:
    """An entry of the table, named a thousand times: counted, not stored (the HPACK bomb)."""
    conn, peer = server(worker)
    bomb = (b"x-bomb", b"y" * 3000)
    conn.receive(peer.headers(1, (*GET, bomb), True))
    conn.take()
    block = peer.block((*GET, *((bomb,) * 8000)))
    assert len(block) < 16384
    before = worker.bytes
    conn.receive(frame(HEADERS, 1 | END_HEADERS, 3, block))
    assert conn.take() == [("bad", 3, "head_too_large")] and worker.buffers == 0
    assert worker.bytes - before < 4096
    conn.close()


def test_answers_that_nobody_takes_are_bounded(worker: http2.Worker) -> None:
    """PINGs within their pace, while not a byte of ours is read: what waits to be sent has an end."""
    conn, _ = server(worker, max_streams=10)
    with pytest.raises(http2.Refused, match="h2_output_flood"):
        for _ in range(10_000):
            conn.receive(ping())
    assert last_words(conn, "h2_output_flood") == ENHANCE_YOUR_CALM
    conn.close()


def test_refusals_that_nobody_takes_are_bounded(worker: http2.Worker) -> None:
    conn, peer = server(worker, max_streams=10_000)
    conn.refuse = True
    with pytest.raises(http2.Refused, match="h2_output_flood"):
        for number in range(5000):
            conn.receive(peer.headers(2 * number + 1, GET, True))
    assert last_words(conn, "h2_output_flood") == ENHANCE_YOUR_CALM
    conn.close()


def test_a_peer_that_takes_its_answers_may_ask_on(worker: http2.Worker) -> None:
    """And what the owner itself queues is no flood, however much it is."""
    conn, peer = client(worker, (3, 10_000))
    for _ in range(5000):
        conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    for _ in range(3000):
        conn.receive(ping())
        conn.pack()
    conn.receive(peer.headers(1, ((b":status", b"200"),), True))
    assert [event[0] for event in conn.take()] == ["head", "closed"]
    conn.close()


def test_a_server_may_not_flood_either(worker: http2.Worker) -> None:
    conn, _ = client(worker)
    with pytest.raises(http2.Refused, match="upstream_h2_flood"):
        for _ in range(100_000):
            conn.receive(settings())
            conn.pack()
    assert last_words(conn, "upstream_h2_flood") == ENHANCE_YOUR_CALM
    conn.close()


WRONG: list[tuple[str, bytes, str, int]] = [
    ("data on no stream", frame(DATA, 0, 0, b"x"), "h2_protocol_error", PROTOCOL_ERROR),
    ("data on an idle stream", frame(DATA, 0, 5, b"x"), "h2_protocol_error", PROTOCOL_ERROR),
    ("headers on no stream", frame(HEADERS, END_HEADERS, 0, b"\x82"), "h2_protocol_error", PROTOCOL_ERROR),
    (
        "headers on a stream of ours",
        frame(HEADERS, END_HEADERS, 2, b"\x82"),
        "h2_protocol_error",
        PROTOCOL_ERROR,
    ),
    (
        "a continuation of nothing",
        frame(CONTINUATION, END_HEADERS, 1, b"\x82"),
        "h2_protocol_error",
        PROTOCOL_ERROR,
    ),
    ("a frame inside a head", frame(HEADERS, 0, 1, b"\x82") + ping(), "h2_protocol_error", PROTOCOL_ERROR),
    (
        "a priority inside a head",
        frame(HEADERS, 0, 1, b"\x82") + frame(PRIORITY, 0, 1, bytes(5)),
        "h2_protocol_error",
        PROTOCOL_ERROR,
    ),
    ("a reset of an idle stream", rst_stream(5), "h2_protocol_error", PROTOCOL_ERROR),
    ("a window of an idle stream", window_update(5, 1), "h2_protocol_error", PROTOCOL_ERROR),
    ("a window that grows by nothing", window_update(0, 0), "h2_protocol_error", PROTOCOL_ERROR),
    ("a window that is too large", window_update(0, (1 << 31) - 1), "h2_flow_control", 3),
    ("a push", frame(5, END_HEADERS, 1, b"\0\0\0\2\x82"), "h2_protocol_error", PROTOCOL_ERROR),
    ("settings on a stream", frame(SETTINGS, 0, 1), "h2_protocol_error", PROTOCOL_ERROR),
    ("settings of a wrong size", frame(SETTINGS, 0, 0, b"x"), "h2_frame_size", 6),
    ("a window beyond all", settings((4, 1 << 31)), "h2_flow_control", 3),
    ("a frame size that is too small", settings((5, 100)), "h2_protocol_error", PROTOCOL_ERROR),
    ("a push that is neither on nor off", settings((2, 2)), "h2_protocol_error", PROTOCOL_ERROR),
    ("a ping of a wrong size", frame(PING, 0, 0, b"x"), "h2_frame_size", 6),
    ("a ping on a stream", frame(PING, 0, 1, bytes(8)), "h2_protocol_error", PROTOCOL_ERROR),
    ("a reset of a wrong size", frame(RST_STREAM, 0, 1, b"x"), "h2_frame_size", 6),
    ("a priority on no stream", frame(PRIORITY, 0, 0, bytes(5)), "h2_protocol_error", PROTOCOL_ERROR),
    ("a goaway of a wrong size", frame(GOAWAY, 0, 0, b"x"), "h2_frame_size", 6),
    ("a goaway on a stream", frame(GOAWAY, 0, 1, bytes(8)), "h2_protocol_error", PROTOCOL_ERROR),
    ("a frame that is too large", frame(DATA, 0, 1, bytes(16385)), "h2_frame_size", 6),
    (
        "padding that is longer than the frame",
        frame(HEADERS, 8 | END_HEADERS, 1, b"\x09\x82"),
        "h2_protocol_error",
        PROTOCOL_ERROR,
    ),
    (
        "no priority where one is said to be",
        frame(HEADERS, 0x20 | END_HEADERS, 1, b"\x82"),
        "h2_frame_size",
        6,
    ),
    (
        "a head that HPACK cannot read",
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        "h2_compression",
        9,
    ),
    ("an entry of the table that there is not", frame(HEADERS, END_HEADERS, 1, b"\xfe"), "h2_compression", 9),
]


@pytest.mark.parametrize(
    ("data", "reason", "code"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_breaks_the_rules_of_the_connection(
    worker: http2.Worker, data: bytes, reason: str, code: int, step: int
) -> None:
    """A connection error (RFC 9113 5.4.1): known when what there is to say is packed."""
    conn, peer = server(worker)
    conn.receive(peer.headers(3, POST))
    conn.take()
    for at in range(0, len(data), step):
        conn.receive(data[at : at + step])
    assert last_words(conn, reason) == code
    conn.close()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" + bytes(20), PREFACE[:-1] + b"x"])
def test_a_preface_that_is_none(worker: http2.Worker, data: bytes) -> None:
    conn = http2.Conn(worker, http2.SERVER)
    with pytest.raises(http2.Refused, match="h2_protocol_error"):
        conn.receive(data)
    with pytest.raises(http2.Refused) as refused:
        conn.pack()
    # even these last words begin with SETTINGS (RFC 9113 3.4)
    assert [f.kind for f in frames(refused.value.args[1])] == [SETTINGS, GOAWAY]
    conn.close()


def test_something_else_than_settings_first(worker: http2.Worker) -> None:
    for role in (http2.SERVER, http2.CLIENT):
        conn = http2.Conn(worker, role)
        conn.pack()
        conn.receive((PREFACE if role == http2.SERVER else b"") + ping())
        last_words(conn, "h2_protocol_error" if role == http2.SERVER else "upstream_h2_protocol_error")
        conn.close()


@pytest.mark.parametrize(
    "data",
    [
        frame(5, END_HEADERS, 1, b"\0\0\0\2\x82"),
        frame(HEADERS, END_HEADERS, 2, b"\x88"),
        frame(HEADERS, END_HEADERS, 3, b"\x88"),
        frame(DATA, 0, 1, b"x"),
        goaway(3) + goaway(5),
    ],
    ids=[
        "a push",
        "a stream of its own",
        "an answer to nothing",
        "data before a head",
        "a goaway that takes back",
    ],
)
def test_a_server_that_breaks_the_rules(worker: http2.Worker, data: bytes) -> None:
    conn, _ = client(worker)
    conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    conn.pack()
    conn.receive(data)
    assert last_words(conn, "upstream_h2_protocol_error") == PROTOCOL_ERROR
    conn.close()


def test_priorities_are_cut_out(worker: http2.Worker) -> None:
    """PRIORITY and the priority of HEADERS, padded or not: HPACK stays in step."""
    conn, peer = server(worker)
    for stream, flags, before, behind in (
        (1, 0x20, b"\x80\0\0\x63\xff", b""),
        (3, 0x28, b"\x04\x80\0\0\x03\xff", bytes(4)),
        (5, 0x08, b"\x02", bytes(2)),
        (7, 0x20, b"\0\0\0\x07\0", b""),
    ):
        block = peer.block((*GET, (b"x-n", str(stream).encode())))
        data = frame(PRIORITY, 0, 99, b"\x80\0\0\x01\xff") + frame(
            HEADERS, flags | END_HEADERS | 1, stream, before + block + behind
        )
        for at in range(len(data)):
            conn.receive(data[at : at + 1])
        [(_, number, head, end)] = conn.take()
        assert (number, end) == (stream, True)
        assert head["fields"][1][1] == str(stream).encode()
    conn.close()


def test_extensions_are_ignored(worker: http2.Worker) -> None:
    """RFC 9113 5.5: frames and settings that nobody knows."""
    conn, peer = server(worker)
    conn.receive(
        frame(0x10, 0, 0, b"\0\0\0\1u=0")
        + frame(0x0A, 0, 0, b"\0\0x")
        + frame(0xFF, 0xFF, 77, b"?")
        + settings((99, 1))
    )
    conn.receive(peer.headers(1, GET, True))
    assert conn.take()[0][:2] == ("head", 1)
    conn.close()
