"""Heads over HTTP/2 (RFC 9113 8): what is malformed is refused for its reason; what is not arrives whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.http2_codec import (
    DATA,
    END_STREAM,
    GET,
    HEADERS,
    OK,
    POST,
    PROTOCOL_ERROR,
    RST_STREAM,
    Peer,
    client,
    frame,
    frames,
    named,
    server,
)

from fastmesh import _http2 as http2

Pairs = tuple[tuple[bytes, bytes], ...]


@pytest.fixture
def worker() -> Iterator[http2.Worker]:
    w = http2.Worker()
    yield w
    assert (w.blocks, w.bytes, w.buffers) == (0, 0, 0)


@pytest.fixture
def serving(worker: http2.Worker) -> Iterator[tuple[http2.Conn, Peer]]:
    conn, peer = server(worker)
    yield conn, peer
    conn.close()


@pytest.fixture
def calling(worker: http2.Worker) -> Iterator[tuple[http2.Conn, Peer]]:
    conn, peer = client(worker)
    yield conn, peer
    conn.close()


def pseudo(**fields: bytes | None) -> Pairs:
    """The pseudo-fields of a GET, some of them changed, added or (None) left out."""
    values: dict[str, bytes | None] = {
        "method": b"GET",
        "scheme": b"http",
        "path": b"/",
        "authority": b"a.example",
        **fields,
    }
    return tuple((b":" + name.encode(), value) for name, value in values.items() if value is not None)


BAD_REQUESTS: list[tuple[str, Pairs, str]] = [
    ("no method", pseudo(method=None), "bad_request_line"),
    ("an empty method", pseudo(method=b""), "bad_request_line"),
    ("a method that is no token", pseudo(method=b"G T"), "bad_request_line"),
    ("a method that is too long", pseudo(method=b"G" * 65), "bad_request_line"),
    ("no scheme", pseudo(scheme=None), "bad_target"),
    ("another scheme", pseudo(scheme=b"ftp"), "bad_target"),
    ("a scheme in capitals", pseudo(scheme=b"HTTP"), "bad_target"),
    ("no path", pseudo(path=None), "bad_target"),
    ("an empty path", pseudo(path=b""), "bad_target"),
    ("a path that is none", pseudo(path=b"a"), "bad_target"),
    ("an absolute form", pseudo(path=b"http://a.example/"), "bad_target"),
    ("a query alone", pseudo(path=b"?a"), "bad_target"),
    ("the asterisk of a GET", pseudo(path=b"*"), "bad_target"),
    ("a path with a space", pseudo(path=b"/a b"), "bad_target"),
    ("a path with a fragment", pseudo(path=b"/a#b"), "bad_target"),
    ("a path with a byte above", pseudo(path=b"/\xff"), "bad_target"),
    ("a path that is too long", pseudo(path=b"/" * 16385), "line_too_long"),
    ("no authority", pseudo(authority=None), "bad_host"),
    ("an empty authority", pseudo(authority=b""), "bad_host"),
    ("an authority with a user", pseudo(authority=b"u@a.example"), "bad_host"),
    ("an authority with a path", pseudo(authority=b"a.example/x"), "bad_host"),
    ("a port that is none", pseudo(authority=b"a.example:x"), "bad_host"),
    ("another host", (*GET, (b"host", b"b.example")), "bad_host"),
    ("another port", (*GET, (b"host", b"a.example:81")), "bad_host"),
    ("two hosts", (*GET, (b"host", b"a.example"), (b"host", b"a.example")), "bad_host"),
    ("a host with a user", (*pseudo(authority=None), (b"host", b"u@h")), "bad_host"),
    ("two methods", (*GET, (b":method", b"GET")), "bad_field"),
    ("two paths", (*GET, (b":path", b"/")), "bad_field"),
    ("two authorities", (*GET, (b":authority", b"a.example")), "bad_field"),
    ("a status", (*GET, (b":status", b"200")), "bad_field"),
    ("a pseudo-field that nobody knows", (*GET, (b":x", b"y")), "bad_field"),
    ("a pseudo-field without a name", (*GET, (b":", b"y")), "bad_field"),
    ("a pseudo-field behind others", (*GET[:3], (b"x", b"y"), GET[3]), "bad_field"),
    ("a pseudo-field with a line end", pseudo(path=b"/\r\nx: y"), "bad_field"),
    ("a name in capitals", (*GET, (b"X-a", b"y")), "bad_field"),
    ("a name with a space", (*GET, (b"x a", b"y")), "bad_field"),
    ("a name with a colon", (*GET, (b"x:a", b"y")), "bad_field"),
    ("a name with a line end", (*GET, (b"x\r\na", b"y")), "bad_field"),
    ("a name with a NUL", (*GET, (b"x\0", b"y")), "bad_field"),
    ("a name with a byte above", (*GET, (b"x\xe9", b"y")), "bad_field"),
    ("an empty name", (*GET, (b"", b"y")), "bad_field"),
    ("a value with a line feed", (*GET, (b"x", b"a\nb")), "bad_field"),
    ("a value with a carriage return", (*GET, (b"x", b"a\rb")), "bad_field"),
    ("a value with a NUL", (*GET, (b"x", b"a\0b")), "bad_field"),
    ("a value with a control", (*GET, (b"x", b"a\x01b")), "bad_field"),
    ("a value with a DEL", (*GET, (b"x", b"a\x7fb")), "bad_field"),
    ("a value with a space before", (*GET, (b"x", b" a")), "bad_field"),
    ("a value with a tab behind", (*GET, (b"x", b"a\t")), "bad_field"),
    ("connection", (*GET, (b"connection", b"close")), "bad_field"),
    ("keep-alive", (*GET, (b"keep-alive", b"5")), "bad_field"),
    ("proxy-connection", (*GET, (b"proxy-connection", b"close")), "bad_field"),
    ("transfer-encoding", (*GET, (b"transfer-encoding", b"chunked")), "bad_field"),
    ("upgrade", (*GET, (b"upgrade", b"websocket")), "bad_field"),
    ("te of another kind", (*GET, (b"te", b"gzip")), "bad_field"),
    ("te of two kinds", (*GET, (b"te", b"trailers, gzip")), "bad_field"),
    ("a length that is none", (*POST, (b"content-length", b"x")), "bad_length"),
    ("a length with a sign", (*POST, (b"content-length", b"+1")), "bad_length"),
    ("a length that is empty", (*POST, (b"content-length", b"")), "bad_length"),
    ("two lengths", (*POST, (b"content-length", b"1"), (b"content-length", b"1")), "bad_length"),
    ("a list of lengths", (*POST, (b"content-length", b"1, 1")), "bad_length"),
    ("connect with a scheme", pseudo(method=b"CONNECT", path=None, authority=b"a:1"), "bad_target"),
    ("connect with a path", pseudo(method=b"CONNECT", scheme=None, authority=b"a:1"), "bad_target"),
    (
        "connect without authority",
        pseudo(method=b"CONNECT", scheme=None, path=None, authority=None),
        "bad_target",
    ),
    ("connect without a port", pseudo(method=b"CONNECT", scheme=None, path=None), "bad_target"),
    (
        "connect with a length",
        (*pseudo(method=b"CONNECT", scheme=None, path=None, authority=b"a:1"), (b"content-length", b"3")),
        "bad_framing",
    ),
    ("a protocol without connect", pseudo(protocol=b"websocket"), "bad_request_line"),
    ("a protocol that is no token", pseudo(method=b"CONNECT", protocol=b"web socket"), "bad_request_line"),
    ("a protocol that is empty", pseudo(method=b"CONNECT", protocol=b""), "bad_request_line"),
    ("a protocol without a path", pseudo(method=b"CONNECT", protocol=b"websocket", path=None), "bad_target"),
    (
        "a protocol without authority",
        pseudo(method=b"CONNECT", protocol=b"w", authority=None),
        "bad_request_line",
    ),
    ("too many fields", (*GET, *((b"x", b"y"),) * 128), "too_many_fields"),
    ("too many bytes", (*GET, *((b"x", b"y" * 1000),) * 64), "head_too_large"),
    ("one field of too many bytes", (*GET, (b"x", b"y" * 65500)), "head_too_large"),
]


@pytest.mark.parametrize(
    ("fields", "reason"), [case[1:] for case in BAD_REQUESTS], ids=[c[0] for c in BAD_REQUESTS]
)
@pytest.mark.parametrize("end", [True, False], ids=["whole", "with content"])
def test_requests_that_are_malformed(
    serving: tuple[http2.Conn, Peer], fields: Pairs, reason: str, end: bool
) -> None:
    """They are answered, by the owner; nothing more of them is shown, and the connection goes on."""
    conn, peer = serving
    pieces = 1 + sum(len(name) + len(value) for name, value in fields) // 16_000
    conn.receive(peer.headers(1, fields, end, pieces=pieces))
    assert conn.take() == [("bad", 1, reason)] and not conn.building
    if not end:
        conn.receive(peer.data(1, b"content"))
        conn.receive(peer.headers(1, ((b"x", b"y"),), True))
    conn.respond(1, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    conn.reset_behind(1)
    assert [f.kind for f in frames(conn.pack())] == [HEADERS]
    assert conn.take() == [("closed", 1, 0, False)] and conn.held == 0
    conn.receive(peer.headers(3, GET, True))
    assert conn.take()[0][:2] == ("head", 3)


GOOD_REQUESTS: list[tuple[str, Pairs, dict[str, object]]] = [
    ("the asterisk of OPTIONS", pseudo(method=b"OPTIONS", path=b"*"), {"path": b"*"}),
    ("another method", pseudo(method=b"PURGE"), {"method": b"PURGE"}),
    ("https", pseudo(scheme=b"https"), {"scheme": b"https"}),
    ("an address", pseudo(authority=b"[::1]:8080"), {"authority": b"[::1]:8080"}),
    ("the same host twice", (*GET, (b"host", b"A.example:80")), {"fields": [(b"host", b"a.example", False)]}),
    (
        "host alone",
        (*pseudo(authority=None), (b"host", b"h")),
        {"authority": b"h", "fields": [(b"host", b"h", False)]},
    ),
    (
        "host late",
        (*pseudo(authority=None), (b"a", b"1"), (b"b", b"2"), (b"host", b"h"), (b"c", b"3")),
        {
            "authority": b"h",
            "fields": [(b"host", b"h", False), (b"a", b"1", False), (b"b", b"2", False), (b"c", b"3", False)],
        },
    ),
    (
        "crumbs",
        (*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"cookie", b""), (b"x", b"y")),
        {
            "fields": [
                (b"host", b"a.example", False),
                (b"cookie", b"a=1; b=2; ", False),
                (b"x", b"y", False),
            ],
        },
    ),
    (
        "crumbs apart",
        (*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3"), (b"z", b"")),
        {
            "fields": [
                (b"host", b"a.example", False),
                (b"cookie", b"a=1; b=2; c=3", False),
                (b"x", b"y", False),
                (b"z", b"", False),
            ],
        },
    ),
    (
        "crumbs apart and host late",
        (*pseudo(authority=None), (b"cookie", b"a=1"), (b"x", b"y"), (b"host", b"h"), (b"cookie", b"b=2")),
        {
            "fields": [(b"host", b"h", False), (b"cookie", b"a=1; b=2", False), (b"x", b"y", False)],
        },
    ),
    ("pseudo-fields in another order", tuple(reversed(GET)), {"path": b"/", "authority": b"a.example"}),
    ("every byte of a value", (*GET, (b"x", bytes([c for c in range(33, 256) if c != 127]))), {}),
    ("a value with a tab inside", (*GET, (b"x", b"a\tb")), {}),
    ("an empty value", (*GET, (b"x", b"")), {}),
    ("a zero length", (*POST, (b"content-length", b"0")), {"framing": "none", "length": 0}),
    ("as many fields as there may be", (*GET, *((b"x", b"y"),) * 127), {}),
    ("as many bytes as there may be", (*GET, (b"x", b"y" * 32_000), (b"z", b"y" * 33_000)), {}),
    (
        "a large head with host late",
        (*pseudo(authority=None), (b"x", b"y" * 30_000), (b"host", b"h"), (b"z", b"y" * 34_000)),
        {"authority": b"h"},
    ),
    (
        "extended connect",
        pseudo(method=b"CONNECT", protocol=b"websocket"),
        {"protocol": b"websocket", "path": b"/"},
    ),
]


@pytest.mark.parametrize(
    ("fields", "shown"), [case[1:] for case in GOOD_REQUESTS], ids=[c[0] for c in GOOD_REQUESTS]
)
def test_requests_that_are_not(
    serving: tuple[http2.Conn, Peer], fields: Pairs, shown: dict[str, object]
) -> None:
    conn, peer = serving
    pieces = 1 + sum(len(name) + len(value) for name, value in fields) // 16_000
    conn.receive(peer.headers(1, fields, True, pieces=pieces))
    [(_, _, head, end)] = conn.take()
    assert end and {key: head[key] for key in shown} == shown
    if "fields" not in shown:
        given = [
            (name, value, False) for name, value in fields if not name.startswith(b":") and name != b"host"
        ]
        assert head["fields"][1:] == given and head["fields"][0][0] == b"host"
    assert not conn.building


def test_extended_connect_is_known_where_it_was_announced(worker: http2.Worker) -> None:
    conn, peer = server(worker, extended_connect=False)
    conn.receive(peer.headers(1, pseudo(method=b"CONNECT", protocol=b"websocket"), False))
    assert conn.take() == [("bad", 1, "bad_field")]
    conn.close()


@pytest.mark.parametrize("length", [b"3", b"5"])
@pytest.mark.parametrize("how", ["data", "trailers", "empty data"])
def test_content_is_as_long_as_it_says(serving: tuple[http2.Conn, Peer], length: bytes, how: str) -> None:
    conn, peer = serving
    conn.receive(peer.headers(1, (*POST, (b"content-length", length))))
    if how == "data":
        conn.receive(peer.data(1, b"1234", True))
    else:
        conn.receive(peer.data(1, b"1234"))
        conn.receive(
            peer.data(1, b"", True) if how == "empty data" else peer.headers(1, ((b"x", b"y"),), True)
        )
    [head, *rest] = conn.take()
    assert head[2]["length"] == int(length)
    # too much is told with the byte that is too many, too little at the end
    assert rest == [*([("data", 1, b"1234")] if length == b"5" else []), ("bad", 1, "bad_length")]


def test_a_request_without_content_that_promises_some(serving: tuple[http2.Conn, Peer]) -> None:
    conn, peer = serving
    conn.receive(peer.headers(1, (*POST, (b"content-length", b"3")), True))
    assert conn.take() == [("bad", 1, "bad_length")]


BAD_TRAILERS: list[tuple[str, Pairs, bool]] = [
    ("a pseudo-field", ((b":path", b"/"),), True),
    ("a status", ((b":status", b"200"),), True),
    ("a name in capitals", ((b"X", b"y"),), True),
    ("a value with a line end", ((b"x", b"a\r\nb"),), True),
    ("content-length", ((b"content-length", b"4"),), True),
    ("transfer-encoding", ((b"transfer-encoding", b"chunked"),), True),
    ("no end", ((b"x", b"y"),), False),
    ("too many fields", ((b"x", b"y"),) * 129, True),
    ("too many bytes", ((b"x", b"y" * 1000),) * 80, True),
]


@pytest.mark.parametrize(
    ("fields", "end"), [case[1:] for case in BAD_TRAILERS], ids=[c[0] for c in BAD_TRAILERS]
)
@pytest.mark.parametrize("role", ["server", "client"])
def test_trailers_that_are_malformed(worker: http2.Worker, fields: Pairs, end: bool, role: str) -> None:
    if role == "server":
        conn, peer = server(worker)
        conn.receive(peer.headers(1, POST))
    else:
        conn, peer = client(worker)
        conn.request(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n", False)
        conn.pack()
        conn.receive(peer.headers(1, OK))
    conn.receive(peer.data(1, b"1234"))
    conn.receive(peer.headers(1, fields, end, pieces=1 + sum(len(value) for _, value in fields) // 16_000))
    reason = "bad_trailer" if role == "server" else "upstream_bad_response"
    [head, data, bad] = conn.take()
    assert (head[0], data[0], bad) == ("head", "data", ("bad", 1, reason))
    conn.close()


def test_trailers_that_belong_into_the_head_stay_behind(serving: tuple[http2.Conn, Peer]) -> None:
    conn, peer = serving
    conn.receive(peer.headers(1, POST))
    conn.receive(
        peer.headers(1, ((b"x", b"y"), (b"authorization", b"z"), (b"te", b"gzip"), (b"host", b"h")), True)
    )
    assert conn.take()[1] == (
        "end",
        1,
        [(b"x", b"y", False), (b"authorization", b"z", True), (b"te", b"gzip", True), (b"host", b"h", True)],
    )


BAD_RESPONSES: list[tuple[str, Pairs, bool, str]] = [
    ("no status", ((b"x", b"y"),), True, "upstream_bad_response"),
    ("two status", (*OK, *OK), True, "upstream_bad_response"),
    ("a status that is none", ((b":status", b"20"),), True, "upstream_bad_response"),
    ("a status with letters", ((b":status", b"2x0"),), True, "upstream_bad_response"),
    ("a status below", ((b":status", b"099"),), True, "upstream_bad_response"),
    ("a switch of protocols", ((b":status", b"101"),), False, "upstream_bad_response"),
    ("an interim head that ends", ((b":status", b"103"),), True, "upstream_bad_response"),
    ("a path", (*OK, (b":path", b"/")), True, "upstream_bad_response"),
    ("connection", (*OK, (b"connection", b"close")), True, "upstream_bad_response"),
    ("a value with a NUL", (*OK, (b"x", b"\0")), True, "upstream_bad_response"),
    (
        "two lengths",
        (*OK, (b"content-length", b"0"), (b"content-length", b"0")),
        True,
        "upstream_bad_response",
    ),
    ("a length and no content", (*OK, (b"content-length", b"1")), True, "upstream_bad_response"),
    ("204 with a length", ((b":status", b"204"), (b"content-length", b"1")), True, "upstream_bad_response"),
    ("100 with a length", ((b":status", b"100"), (b"content-length", b"1")), False, "upstream_bad_response"),
    ("too many bytes", (*OK, *((b"x", b"y" * 1000),) * 70), True, "upstream_head_too_large"),
    ("too many fields", (*OK, *((b"x", b"y"),) * 129), True, "upstream_head_too_large"),
]


@pytest.mark.parametrize(
    ("fields", "end", "reason"), [case[1:] for case in BAD_RESPONSES], ids=[c[0] for c in BAD_RESPONSES]
)
@pytest.mark.parametrize("forget", [False, True])
def test_responses_that_are_malformed(
    calling: tuple[http2.Conn, Peer], fields: Pairs, end: bool, reason: str, forget: bool
) -> None:
    """They end their stream, whether the owner waits for that or forgets it inside the hook."""
    conn, peer = calling
    stream = conn.request(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n", False)
    conn.pack()

    def react(event: tuple) -> None:
        if event[0] == "bad" and forget:
            conn.forget(stream)

    conn.react = react
    conn.receive(
        peer.headers(stream, fields, end, pieces=1 + sum(len(value) for _, value in fields) // 16_000)
    )
    assert conn.take() == [("bad", stream, reason)]
    if not end:
        conn.receive(peer.data(stream, b"more"))
    [reset] = frames(conn.pack())
    assert (reset.kind, reset.payload) == (RST_STREAM, PROTOCOL_ERROR.to_bytes(4, "big"))
    assert conn.take() == ([] if forget else [("closed", stream, PROTOCOL_ERROR, False)])
    assert conn.held == 0 and conn.open == 0


def test_data_before_a_response(calling: tuple[http2.Conn, Peer]) -> None:
    """DATA behind nothing but interim heads is no content (RFC 9113 8.1)."""
    conn, peer = calling
    for end in (False, True):
        stream = conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        conn.pack()
        conn.receive(
            peer.headers(stream, ((b":status", b"103"),)) + peer.data(stream, b"" if end else b"x", end)
        )
        resets = frames(conn.pack())
        # a stream that has ended on both sides is over: no frame may follow on it
        assert [f.kind for f in resets] == ([] if end else [RST_STREAM])
        assert [event[0] for event in conn.take()] == ["head", "bad", "closed"]


def test_interim_heads_without_end(calling: tuple[http2.Conn, Peer]) -> None:
    conn, peer = calling
    stream = conn.request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    conn.pack()
    for _ in range(33):
        conn.receive(peer.headers(stream, ((b":status", b"103"),)))
    assert [event[0] for event in conn.take()] == ["head"] * 32 + ["bad"]


@pytest.mark.parametrize(
    ("method", "fields", "end", "framing", "length"),
    [
        (b"GET", OK, False, "chunked", None),
        (b"GET", OK, True, "length", 0),
        (b"GET", (*OK, (b"content-length", b"4")), False, "length", 4),
        (b"HEAD", (*OK, (b"content-length", b"4")), True, "none", 0),
        (b"HEAD", OK, False, "none", 0),
        (b"GET", ((b":status", b"304"), (b"content-length", b"4")), True, "none", 0),
        (b"GET", ((b":status", b"204"), (b"content-length", b"0")), True, "none", 0),
        (b"CONNECT", (*OK, (b"content-length", b"4")), False, "none", 0),
        (b"CONNECT", ((b":status", b"404"), (b"content-length", b"4")), False, "length", 4),
    ],
)
def test_framing_of_responses(  # noqa: PLR0917
    calling: tuple[http2.Conn, Peer],
    method: bytes,
    fields: Pairs,
    end: bool,
    framing: str,
    length: int | None,
) -> None:
    """By status and request method, as in HTTP/1 (RFC 9110 6.4.1)."""
    conn, peer = calling
    target = b"h:1" if method == b"CONNECT" else b"/"
    stream = conn.request(method + b" " + target + b" HTTP/1.1\r\nHost: h:1\r\n\r\n", method != b"CONNECT")
    conn.pack()
    conn.receive(peer.headers(stream, fields, end))
    head = conn.take()[0][2]
    assert (head["framing"], head["length"]) == (framing, length)
    stays = [hop for name, _, hop in head["fields"] if name == b"content-length"]
    if stays:
        assert stays == [fields[0][1] == b"204" or (method == b"CONNECT" and fields == (*OK, fields[1]))]


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_content_where_there_is_none(calling: tuple[http2.Conn, Peer], method: bytes) -> None:
    conn, peer = calling
    stream = conn.request(method + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
    conn.pack()
    status = ((b":status", b"204" if method == b"GET" else b"200"),)
    conn.receive(peer.headers(stream, status) + peer.data(stream, b"x", True))
    assert [event[0] for event in conn.take()] == ["head", "bad"]


def test_end_without_content_is_told(calling: tuple[http2.Conn, Peer]) -> None:
    conn, peer = calling
    stream = conn.request(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    conn.pack()
    conn.receive(peer.headers(stream, OK) + frame(DATA, END_STREAM, stream))
    assert [event[0] for event in conn.take()] == ["head", "end", "closed"]


def test_heads_in_pieces(serving: tuple[http2.Conn, Peer]) -> None:
    """In as many CONTINUATION frames as are allowed, cut anywhere."""
    conn, peer = serving
    for stream, pieces in ((1, 2), (3, 7), (5, 30)):
        fields = (*GET, (b"x-" + str(stream).encode(), bytes(range(33, 127)) * 5))
        conn.receive(peer.headers(stream, fields, True, pieces=pieces))
        assert named(conn.take(), "head")[0][2]["fields"][1][:2] == fields[-1]


def test_a_stream_reset_in_the_middle_of_its_head(serving: tuple[http2.Conn, Peer]) -> None:
    """Between two CONTINUATIONs the owner gives up: nothing of the head is kept, and HPACK stays in step."""
    conn, peer = serving
    conn.receive(peer.headers(1, POST))
    conn.take()
    block = peer.headers(1, ((b"x", b"first"), (b"y", b"second")), True, pieces=2)
    conn.receive(block[:20])
    assert conn.building
    conn.reset(1)
    assert not conn.building
    conn.pack()
    conn.receive(block[20:])
    assert conn.take() == [] and not conn.building
    conn.receive(peer.headers(3, (*GET, (b"x", b"first"), (b"y", b"second")), True))
    assert [field[:2] for field in conn.take()[0][2]["fields"][1:]] == [(b"x", b"first"), (b"y", b"second")]
