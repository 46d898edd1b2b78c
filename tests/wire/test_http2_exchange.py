"""The HTTP/2 codec against itself: what one side says arrives at the other, in as few frames as it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.http2_codec import (
    CANCEL,
    DATA,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    PING,
    REFUSED_STREAM,
    RST_STREAM,
    body,
    client,
    frames,
    named,
    pair,
    pump,
    server,
)

from fastmesh import _http2 as http2

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def worker() -> Iterator[http2.Worker]:
    """Its memory is all given back in the end."""
    w = http2.Worker()
    yield w
    assert (w.blocks, w.bytes, w.buffers) == (0, 0, 0)


@pytest.fixture
def both(worker: http2.Worker) -> Iterator[tuple[http2.Conn, http2.Conn]]:
    a, b = pair(worker)
    yield a, b
    a.close()
    b.close()


def test_a_request_and_its_response(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    request = (
        b"POST /path?query HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: Me\r\nContent-Length: 5\r\n"
        b"Expect: 100-continue\r\nConnection: close, X-Hop\r\nX-Hop: stays\r\n"
        b"TE: trailers\r\nKeep-Alive: 5\r\n\r\n"
    )
    stream = a.request(request, False, scheme=b"https")
    assert a.sent_nothing(stream) and a.open == 1
    pump(a, b)
    assert not a.sent_nothing(stream) and b.open == 1
    [(_, number, head, end)] = b.take()
    assert (number, end) == (stream, False)
    assert head == {
        "method": b"POST",
        "path": b"/path?query",
        "authority": b"a.example:8080",
        "scheme": b"https",
        "protocol": b"",
        "framing": "length",
        "length": 5,
        "expect": True,
        "te": True,
        "fields": [
            (b"host", b"a.example:8080", False),
            (b"user-agent", b"Me", False),
            (b"content-length", b"5", False),
            (b"expect", b"100-continue", False),
            (b"te", b"trailers", True),
        ],
    }
    assert b.line == (
        b"POST /path?query HTTP/1.1\r\nhost: a.example:8080\r\nuser-agent: Me\r\ncontent-length: 5\r\n"
        b"expect: 100-continue\r\n"
    )
    b.respond(stream, b"HTTP/1.1 100 Continue\r\n\r\n", False)
    pump(a, b)
    [(_, _, head, end)] = a.take()
    assert (head["status"], head["interim"], end) == (100, True, False)
    a.data(stream, b"12345")
    a.finish(stream)
    pump(a, b)
    assert b.take() == [("data", stream, b"12345"), ("end", stream, None)]
    b.respond(stream, b"HTTP/1.1 200 Fine\r\nServer: S\r\nConnection: close\r\n\r\n", False)
    b.data(stream, b"answer")
    b.finish(stream, b"X-Sum: 1\r\nContent-Type: x\r\n\r\n")
    pump(a, b)
    [first, *rest] = a.take()
    assert first[2]["fields"] == [(b"server", b"S", False)] and first[2]["framing"] == "chunked"
    assert rest == [
        ("data", stream, b"answer"),
        ("end", stream, [(b"x-sum", b"1", False)]),
        ("closed", stream, 0, False),
    ]
    assert b.take() == [("closed", stream, 0, False)]
    assert a.open == b.open == 0


def test_a_response_has_one_head(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    stream = a.request(POST, False)
    pump(a, b)
    b.respond(stream, OK, False)
    with pytest.raises(http2.Refused, match="internal"):
        b.respond(stream, OK, False)


def test_what_an_owner_adds(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    stream = a.request(
        b"GET / HTTP/1.1\r\nHost: h\r\nVia: 1.1 x\r\nX-Forwarded-For: 1\r\nX-A: b\r\n\r\n",
        lines=b"x-forwarded-for: 1, 2\r\nx-empty: \r\n",
        skip=(b"x-forwarded-for",),
        via=11,
    )
    pump(a, b)
    assert b.take()[0][2]["fields"] == [
        (b"host", b"h", False),
        (b"x-forwarded-for", b"1, 2", False),
        (b"x-empty", b"", False),
        (b"via", b"1.1 x", False),
        (b"x-a", b"b", False),
        (b"via", b"1.1 fastmesh", False),
    ]
    b.respond(
        stream,
        b"HTTP/1.1 200 OK\r\nServer: S\r\n\r\n",
        True,
        skip=(b"server",),
        lines=b"server: f\r\n",
        via=20,
    )
    pump(a, b)
    [head, closed] = a.take()
    assert head[2]["fields"] == [(b"server", b"f", False), (b"via", b"2 fastmesh", False)]
    # END_STREAM with the head: nothing follows, which HTTP/1 has to say
    assert (head[2]["framing"], head[2]["length"], head[3]) == ("length", 0, True)
    assert closed == ("closed", stream, 0, False)


@pytest.mark.parametrize(
    ("request_head", "path"),
    [
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b"*"),
        (b"OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n", b"*"),
        (b"GET http://h?a=b HTTP/1.1\r\nHost: h\r\n\r\n", b"/?a=b"),
        (b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", b"/"),
    ],
)
def test_paths_that_no_slice_can_show(
    both: tuple[http2.Conn, http2.Conn], request_head: bytes, path: bytes
) -> None:
    a, b = both
    a.request(request_head)
    pump(a, b)
    assert b.take()[0][2]["path"] == path


def test_a_request_of_http_1_0_without_host(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    a.request(b"GET / HTTP/1.0\r\n\r\n", authority=b"svc", via=10)
    pump(a, b)
    head = b.take()[0][2]
    assert head["authority"] == b"svc" and head["fields"][-1] == (b"via", b"1.0 fastmesh", False)


def test_connect(both: tuple[http2.Conn, http2.Conn]) -> None:
    """A tunnel (RFC 9113 8.5): DATA both ways until both have ended."""
    a, b = both
    stream = a.request(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", False)
    pump(a, b)
    head = b.take()[0][2]
    assert (head["method"], head["authority"], head["path"], head["scheme"]) == (
        b"CONNECT",
        b"h:443",
        b"",
        b"",
    )
    b.respond(stream, OK, False)
    b.data(stream, b"from b")
    a.data(stream, b"from a")
    pump(a, b)
    assert body(b.take(), stream) == b"from a"
    [head, data] = a.take()
    assert head[2]["framing"] == "none" and data[2] == b"from b"
    a.finish(stream)
    pump(a, b)
    assert b.take() == [("end", stream, None)]
    b.finish(stream)
    pump(a, b)
    assert a.take() == [("end", stream, None), ("closed", stream, 0, False)]


def test_extended_connect(both: tuple[http2.Conn, http2.Conn]) -> None:
    """RFC 8441: what an Upgrade of HTTP/1 becomes."""
    a, b = both
    assert a.may_extend
    stream = a.request(
        b"GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        False,
        protocol=b"websocket",
    )
    pump(a, b)
    head = b.take()[0][2]
    assert (head["method"], head["protocol"], head["path"]) == (b"CONNECT", b"websocket", b"/chat")
    assert head["fields"] == [(b"host", b"h", False)]
    b.respond(stream, OK, False)
    pump(a, b)
    assert a.take()[0][2]["status"] == 200


def test_a_turn_leaves_in_as_few_frames_as_it_fits_in(worker: http2.Worker) -> None:
    """Head, body in pieces and end, said in one turn: HEADERS and one DATA with END_STREAM."""
    a, _ = client(worker)
    stream = a.request(POST, False)
    for piece in (b"one ", b"two ", b"three"):
        a.data(stream, piece)
    a.data(stream, b" four", take=True)
    a.finish(stream)
    head, data = frames(a.pack())
    assert (head.kind, head.end) == (HEADERS, False)
    assert (data.kind, data.flags, data.payload) == (DATA, END_STREAM, b"one two three four")
    # without a body END_STREAM is on the head
    a.request(GET)
    [head] = frames(a.pack())
    assert (head.kind, head.end) == (HEADERS, True)
    # trailers make no DATA frame where there is no body, and none that is empty
    for data in (b"", b"x"):
        stream = a.request(POST, False)
        if data:
            a.data(stream, data)
        a.finish(stream, b"x-sum: 1\r\n\r\n")
        kinds = [(f.kind, f.end, f.payload if f.kind == DATA else b"") for f in frames(a.pack())]
        assert kinds == [
            (HEADERS, False, b""),
            *([(DATA, False, data)] if data else []),
            (HEADERS, True, b""),
        ]
    # trailers of which nothing goes on are no trailers
    stream = a.request(POST, False)
    a.data(stream, b"x")
    a.finish(stream, b"content-type: no\r\n\r\n")
    assert [(f.kind, f.end) for f in frames(a.pack())] == [(HEADERS, False), (DATA, True)]
    a.close()


def test_streams_share_a_turn_evenly(worker: http2.Worker) -> None:
    """A long answer does not hold back a short one that came later."""
    b, peer = server(worker, (4, 1 << 20))
    b.receive(
        peer.headers(
            1, ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")), True
        )
    )
    b.receive(
        peer.headers(
            3, ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")), True
        )
    )
    for stream, size in ((1, 60_000), (3, 20_000)):
        b.respond(stream, OK, False)
        b.data(stream, bytes(size))
        b.finish(stream)
    order = [f.stream for f in frames(b.pack()) if f.kind == DATA]
    assert order[:3] != [1, 1, 1] and set(order[:3]) == {1, 3}
    b.close()


def test_packing_stops_when_it_is_enough(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    stream = a.request(POST, False)
    a.data(stream, bytes(60_000))
    first = a.pack(10_000)
    assert 10_000 <= len(first) <= 10_000 + 16_384 + 9 and a.wants_write
    b.receive(first)
    pump(a, b)
    assert len(body(b.take(), stream)) == 60_000 and not a.wants_write


@pytest.mark.parametrize("take", [False, True])
def test_bodies_pass_with_windows_smaller_than_they_are(worker: http2.Worker, take: bool) -> None:
    """Both ways at once, in pieces of every size, each byte in its place; a full queue says so."""
    a, b = pair(worker, stream_window=20_000, stream_window_max=20_000, held_max=65_536)
    sent = {a: bytes(range(251)) * 1500, b: bytes(reversed(range(241))) * 1700}
    left = dict(sent)
    got = {a: b"", b: b""}
    stream = a.request(POST, False)
    pump(a, b)
    b.take()
    b.respond(stream, OK, False)
    full = {a: False, b: False}
    size = 1
    for _ in range(100_000):
        for one, other in ((a, b), (b, a)):
            while left[one] and not full[one]:
                size = size * 7 % 16_381
                full[one] = one.data(stream, left[one][:size], take)
                left[one] = left[one][size:]
            other.receive(one.pack())
            for event in other.take():
                if event[0] == "data":
                    got[other] += event[2]
                    other.consume(stream, len(event[2]))
            if named(one.take(), "writable"):
                full[one] = False
        if not any(left.values()) and len(got[a]) == len(sent[b]) and len(got[b]) == len(sent[a]):
            break
    assert got == {a: sent[b], b: sent[a]}
    assert a.held == b.held == 0
    a.finish(stream)
    b.finish(stream)
    pump(a, b)
    assert a.open == b.open == 0
    a.close()
    b.close()


@pytest.mark.parametrize("by", ["client", "server"])
def test_a_reset_is_told_once_and_forgotten_at_once(both: tuple[http2.Conn, http2.Conn], by: str) -> None:
    a, b = both
    stream = a.request(POST, False)
    a.data(stream, bytes(1000))
    pump(a, b)
    b.take()
    one, other = (a, b) if by == "client" else (b, a)
    if by == "server":
        b.respond(stream, OK, False)
        b.data(stream, bytes(1000))
    one.reset(stream, CANCEL)
    assert one.open == 0
    [reset] = frames(one.pack())
    assert reset.kind == RST_STREAM
    other.receive(reset.data)
    assert other.take() == [("closed", stream, CANCEL, True)]
    assert one.take() == [] and one.held == other.held == 0
    # what was under way is swallowed
    stream = a.request(GET)
    pump(a, b)
    assert named(b.take(), "head")


def test_forgetting_a_stream_ends_it_if_it_is_not_over(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    stream = a.request(POST, False)
    pump(a, b)
    a.forget(stream)
    [reset] = frames(a.pack())
    assert (reset.kind, reset.payload) == (RST_STREAM, CANCEL.to_bytes(4, "big"))
    # inside the hook that tells the end there is nothing left to be said
    stream = a.request(GET)
    pump(a, b)
    b.respond(stream, OK)

    def react(event: tuple) -> None:
        if event[0] == "head":
            a.forget(event[1])

    a.react = react
    a.receive(b.pack())
    assert a.pack() == b"" and [event[0] for event in a.take()] == ["head"] and a.open == 0


def test_a_request_that_was_reset_before_it_left_never_leaves(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    first = a.request(POST, False)
    a.data(first, b"x")
    second = a.request(GET)
    a.reset(first)
    pump(a, b)
    assert [event[:2] for event in b.take()] == [("head", second)]
    assert a.take() == []


def test_an_early_answer_ends_with_no_error(both: tuple[http2.Conn, http2.Conn]) -> None:
    """RFC 9113 8.1: the client need not send the rest of its request."""
    a, b = both
    stream = a.request(POST, False)
    a.data(stream, b"begin")
    pump(a, b)
    b.take()
    b.respond(stream, b"HTTP/1.1 413 Too Large\r\n\r\n", False)
    b.data(stream, b"no")
    b.finish(stream)
    b.reset_behind(stream, NO_ERROR)
    kinds = frames(b.pack())
    assert [f.kind for f in kinds] == [HEADERS, DATA, RST_STREAM]
    assert b.take() == [("closed", stream, NO_ERROR, False)]
    for f in kinds:
        a.receive(f.data)
    assert [event[0] for event in a.take()] == ["head", "data", "end", "closed"]
    # when the end is out already, the reset follows at once
    stream = a.request(POST, False)
    pump(a, b)
    b.respond(stream, OK)
    pump(a, b)
    b.reset_behind(stream)
    assert [f.kind for f in frames(b.pack())] == [RST_STREAM]
    # and when the request is complete there is none
    stream = a.request(GET)
    pump(a, b)
    b.respond(stream, OK)
    b.reset_behind(stream)
    assert [f.kind for f in frames(b.pack())] == [HEADERS]


def test_a_stream_that_is_refused(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    b.refuse = True
    stream = a.request(POST, False)
    a.data(stream, bytes(100))
    pump(a, b)
    assert a.take() == [("closed", stream, REFUSED_STREAM, True)]
    assert b.take() == [] and b.open == 0 and not b.building


def test_limits_of_streams(worker: http2.Worker) -> None:
    a, b = pair(worker, max_streams=3)
    assert a.peer_streams == 3
    streams = []
    while a.may_open:
        streams.append(a.request(GET))
    assert len(streams) == 3
    pump(a, b)
    assert len(named(b.take(), "head")) == 3
    b.respond(streams[0], OK)
    pump(a, b)
    assert a.may_open
    # one that asks for more all the same waits, and is served when there is room
    streams += [a.request(GET), a.request(GET)]
    pump(a, b)
    assert len(named(b.take(), "head")) == 1
    b.respond(streams[1], OK)
    pump(a, b)
    assert len(named(b.take(), "head")) == 1
    a.close()
    b.close()


def test_an_orderly_end(both: tuple[http2.Conn, http2.Conn]) -> None:
    """RFC 9113 6.8: first a notice, then the last stream; what is under way is finished."""
    a, b = both
    first = a.request(GET)
    pump(a, b)
    b.take()
    b.goaway_notice()
    second = a.request(GET)
    pump(a, b)
    assert a.take() == [("goaway", (1 << 31) - 1, 0)] and not a.may_open
    assert named(b.take(), "head")[0][1] == second
    b.goaway()
    pump(a, b)
    assert a.take() == [("goaway", second, 0)]
    for stream in (first, second):
        b.respond(stream, OK)
    pump(a, b)
    assert [event[0] for event in a.take()] == ["head", "closed"] * 2
    assert not b.wants_write


def test_a_request_that_crosses_goaway_was_not_processed(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    first = a.request(GET)
    pump(a, b)
    b.goaway()
    crossing = a.request(GET)
    there, back = a.pack(), b.pack()
    waiting = a.request(GET)
    a.receive(back)
    b.receive(there)
    assert a.take() == [("goaway", first, 0), ("closed", crossing, REFUSED_STREAM, True)]
    pump(a, b)
    assert a.take() == [("closed", waiting, REFUSED_STREAM, True)]
    assert len(named(b.take(), "head")) == 1


def test_keep_alive(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both
    a.now_ms = 5000
    assert a.ping_since == 0 and a.settings_since == 0
    a.ping()
    a.ping()
    there = a.pack()
    assert [f.kind for f in frames(there)] == [PING] and a.ping_since == 5000
    b.receive(there)
    a.receive(b.pack())
    assert a.ping_since == 0


def test_settings_that_are_not_acknowledged(worker: http2.Worker) -> None:
    a = http2.Conn(worker, http2.CLIENT, now_ms=7000)
    a.pack()
    assert a.settings_since == 7000
    a.close()


def test_bytes_may_come_one_by_one(worker: http2.Worker) -> None:
    """However the bytes are cut, the same happens."""
    a, b = pair(worker)
    script: list[bytes] = []
    for end in (False, True):
        stream = a.request(
            b"PUT /x HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\nTransfer-Encoding: chunked\r\n\r\n", end
        )
        if not end:
            a.data(stream, b"some bytes")
            a.finish(stream, b"x-sum: 1\r\n\r\n")
        script.append(a.pack())
    data = b"".join(script)
    b.receive(data)
    whole = b.take()
    a.close()
    b.close()
    for step in range(1, len(data)):
        a, b = pair(worker)
        for at in range(0, len(data), step):
            b.receive(data[at : at + step])
        events: list[tuple] = []
        for event in b.take():
            if event[0] == "data" and events and events[-1][:2] == event[:2]:
                events[-1] = (*event[:2], events[-1][2] + event[2])
            else:
                events.append(event)
        assert events == whole
        assert not b.building
        a.close()
        b.close()


def test_hooks_may_end_any_stream(both: tuple[http2.Conn, http2.Conn]) -> None:
    """Inside a hook, on the stream that it is about and on others, in every kind of hook."""
    a, b = both
    streams = [a.request(POST, False) for _ in range(4)]
    for stream in streams:
        a.data(stream, b"12345")
        a.finish(stream, b"x: y\r\n\r\n")
    todo = iter(streams)

    def react(event: tuple) -> None:
        if event[0] in ("head", "data"):
            for stream in (event[1], next(todo, 0)):
                if stream in b.known:
                    b.reset(stream)

    b.react = react
    pump(a, b)
    assert b.open == 0 and b.held == 0 and not b.building
    assert [event[0] for event in a.take()] == ["closed"] * 4


def test_a_hook_may_answer_at_once(both: tuple[http2.Conn, http2.Conn]) -> None:
    a, b = both

    def react(event: tuple) -> None:
        if event[0] == "head":
            b.respond(event[1], OK, False)
            b.data(event[1], b"x" * 30_000)
            b.finish(event[1])

    b.react = react
    streams = [a.request(GET) for _ in range(30)]
    pump(a, b)
    events = a.take()
    assert sorted(event[1] for event in named(events, "closed")) == streams
    assert all(body(events, stream) == b"x" * 30_000 for stream in streams)
    assert a.held == b.held == 0
