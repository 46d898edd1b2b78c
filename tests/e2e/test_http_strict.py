"""What two parsers could read differently is refused, and so is what is too large (RFC 9112, RFC 9110).

Each case is one raw message; the refusal is an answer with the right status and reason, the connection
closes, and the upstream never sees anything of it.
"""

from __future__ import annotations

import contextlib

import pytest
from kit.fixtures import LaneFactory
from kit.upstream import ServerConn, answering, once
from kit.wire import Closed, chunked, request, response

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

# name: (bytes, status, reasons that are right)
BAD_HEADS: dict[str, tuple[bytes, int, set[str]]] = {
    # framing that two parsers could read differently (RFC 9112 6.1, 6.3)
    "length and transfer-encoding": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_framing"},
    ),
    "transfer-encoding and length": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
        {"bad_framing"},
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        400,
        {"bad_length"},
    ),
    "list of lengths": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!",
        400,
        {"bad_length"},
    ),
    "negative length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, {"bad_length"}),
    "signed length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400, {"bad_length"}),
    "hex length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400, {"bad_length"}),
    "empty length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400, {"bad_length"}),
    "length with a space": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\nhello",
        400,
        {"bad_length"},
    ),
    "length over 64 bits": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\nx",
        400,
        {"bad_length"},
    ),
    "transfer-encoding gzip": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "gzip, chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "chunked twice": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "chunked in two lines": (
        b"POST / HTTP/1.1\r\nHost: a\r\n" + 2 * b"Transfer-Encoding: chunked\r\n" + b"\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "chunked, identity": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "xchunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding"},
    ),
    "vertical tab before chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding", "bad_field"},
    ),
    "transfer-encoding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        {"bad_transfer_coding", "bad_framing"},
    ),
    # field lines (RFC 9112 5)
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, {"bad_field"}),
    "tab before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A\t: b\r\n\r\n", 400, {"bad_field"}),
    "obs-fold": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", 400, {"bad_field"}),
    "obs-fold with a tab": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\tc\r\n\r\n", 400, {"bad_field"}),
    "space before the first field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, {"bad_field"}),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A b\r\n\r\n", 400, {"bad_field"}),
    "empty name": (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400, {"bad_field"}),
    "name with a bracket": (b"GET / HTTP/1.1\r\nHost: a\r\nX[A]: b\r\n\r\n", 400, {"bad_field"}),
    "name beyond ASCII": (b"GET / HTTP/1.1\r\nHost: a\r\nX-\xe9: b\r\n\r\n", 400, {"bad_field"}),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x00c\r\n\r\n", 400, {"bad_field"}),
    "control byte in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x01c\r\n\r\n", 400, {"bad_field"}),
    "DEL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\x7fc\r\n\r\n", 400, {"bad_field"}),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rX-B: c\r\n\r\n", 400, {"bad_field"}),
    "bare LF ends a field": (b"GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n", 400, {"bad_field", "bad_host"}),
    "bare LF ends the head": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, {"bad_field"}),
    "bare LF everywhere": (
        b"GET / HTTP/1.1\nHost: a\n\n",
        400,
        {"bad_field", "bad_request_line", "bad_version"},
    ),
    # Host (RFC 9112 3.2)
    "no Host": (b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n", 400, {"bad_host"}),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, {"bad_host"}),
    "the same Host twice": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, {"bad_host"}),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, {"bad_host"}),
    "Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, {"bad_host"}),
    "Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, {"bad_host"}),
    "Host list": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, {"bad_host"}),
    "Host with a bad port": (b"GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n", 400, {"bad_host"}),
    "absolute-form and another Host": (b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, {"bad_host"}),
    # request line and target (RFC 9112 3)
    "control byte in the target": (
        b"GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        {"bad_target", "bad_request_line"},
    ),
    "NUL in the target": (
        b"GET /a\x00b HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        {"bad_target", "bad_request_line"},
    ),
    "tab in the target": (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target", "bad_request_line"}),
    "space in the target": (
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        {"bad_target", "bad_request_line", "bad_version"},
    ),
    "bytes beyond ASCII in the target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target"}),
    "fragment in the target": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target"}),
    "target without a slash": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target"}),
    "ftp target": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target"}),
    "asterisk with GET": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_target"}),
    "user in the authority": (
        b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        {"bad_target", "bad_host"},
    ),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_request_line", "bad_target"}),
    "tab for a space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_request_line"}),
    "no version": (b"GET /\r\nHost: a\r\n\r\n", 400, {"bad_request_line", "bad_version"}),
    "method with a colon": (b"GE:T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, {"bad_request_line"}),
    "bare CR in the request line": (
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        400,
        {"bad_request_line", "bad_version"},
    ),
    "lower-case version": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, {"bad_request_line", "bad_version"}),
    "not HTTP at all": (b"\x80\x81\x82 hello\r\n\r\n", 400, {"bad_request_line"}),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, {"bad_version"}),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, {"bad_version"}),
    # limits
    "line over 16 KiB": (b"GET /" + b"a" * 16384 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, {"line_too_long"}),
    "head over 64 KiB": (
        b"GET / HTTP/1.1\r\nHost: a\r\n"
        + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 8000) for n in range(9))
        + b"\r\n",
        431,
        {"head_too_large"},
    ),
    "129 fields": (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(128)) + b"\r\n",
        431,
        {"too_many_fields"},
    ),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_refused_and_closed(lane: LaneFactory, name: str) -> None:
    data, status, reasons = BAD_HEADS[name]
    here = lane()
    server = here.upstream()
    with here.client() as client:
        client.send(data)
        answer = client.read_response()
        assert answer.status in ({status, 505} if "bad_version" in reasons else {status})
        assert answer.reason in reasons
        assert "close" in answer.tokens("connection")
        client.expect_close()
    assert server.connections == []


@pytest.mark.parametrize(
    "name", ["length and transfer-encoding", "obs-fold", "no Host", "control byte in the target"]
)
def test_refused_also_byte_by_byte_and_behind_a_good_request(lane: LaneFactory, name: str) -> None:
    data, status, reasons = BAD_HEADS[name]
    here = lane()
    server = here.upstream()
    with here.client() as client:
        client.send(request())
        assert client.read_response().status == 200
        try:
            for byte in data:
                client.send(bytes([byte]))
        except ConnectionError:
            pass  # refused before the last byte
        answer = client.read_response()
        assert (answer.status, answer.reason in reasons) == (status, True)
    assert len(server.requests) == 1


def test_limits_are_refused_before_the_head_ends(lane: LaneFactory) -> None:
    """A head that never ends is refused at the limit, not kept."""
    here = lane()
    for start, filler, status in (
        (b"GET /", b"a" * 20000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X-Filler: " + b"v" * 70000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"a: b\r\n" * 200, 431),
    ):
        with here.client() as client:
            client.send(start, filler)
            answer = client.read_response()
            assert answer.status == status


def test_just_within_the_limits(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    target = "/" + "a" * (16384 - len("GET / HTTP/1.1"))
    for data in (
        request(target=target[:-4]),
        request(headers=[(f"X-{n}", "v") for n in range(120)]),
        request(headers=[("X-Large", "v" * 60000)]),
    ):
        with here.client() as client:
            client.send(data)
            assert client.read_response().status == 200
    assert len(server.requests) == 3
    assert len(server.requests[2].get("x-large") or "") == 60000


BAD_CHUNKS = {
    "not a number": b"xyz\r\nhello\r\n0\r\n\r\n",
    "empty size": b"\r\nhello\r\n0\r\n\r\n",
    "0x prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "space in front": b" 5\r\nhello\r\n0\r\n\r\n",
    "overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "overflow to zero": b"10000000000000000\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "too little data": b"6\r\nhello\r\n0\r\n\r\n",
    "too much data": b"4\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "control byte in an extension": b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "endless extension": b"5;" + b"a" * 8192 + b"\r\nhello\r\n0\r\n\r\n",
    "bad trailer": b"5\r\nhello\r\n0\r\nX-A : b\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_refused_and_never_completed(lane: LaneFactory, name: str) -> None:
    """The upstream may have seen the beginning, but never an end: the request must not count as whole."""
    whole: list[bytes] = []

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            for one in conn:
                whole.append(one.body)
                conn.send(response())

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(CHUNKED, BAD_CHUNKS[name])
        answer = client.read_response()
        assert answer.status == 400
        assert answer.reason in {"bad_chunk", "bad_trailer"}
        client.expect_close()
    assert here.ask(request("POST", body=b"the next")).status == 200
    assert whole == [b"the next"]


def test_bad_chunk_late_in_a_streamed_body(lane: LaneFactory) -> None:
    whole: list[bytes] = []

    def script(conn: ServerConn) -> None:
        try:
            whole.append(conn.read_request().body)
        except (Closed, ConnectionError):
            return

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(CHUNKED, b"%x\r\n%s\r\n" % (200_000, b"x" * 200_000))
        server.wait_requests(1)
        client.send(b"xyz\r\n")
        assert client.read_response().status == 400
        client.expect_close()
    server.wait_open(0)
    assert whole == []


# what an endpoint sends is held to the same rules: 502

OK = b"HTTP/1.1 200 OK\r\n"
BAD_RESPONSES = {
    "no HTTP": b"hello there\r\n\r\n",
    "two-digit status": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status 999999": b"HTTP/1.1 200000 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/3.7": b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n",
    "length and transfer-encoding": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "bad length": OK + b"Content-Length: 3x\r\n\r\nabc",
    "unknown coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "obs-fold": OK + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "NUL": OK + b"X-A: \x00\r\nContent-Length: 0\r\n\r\n",
    "bare CR": OK + b"X-A: b\rX-B: c\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "101 without an upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "head over 64 KiB": OK + b"X-A: " + b"v" * 70000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_RESPONSES)
def test_malformed_answers_become_502(lane: LaneFactory, name: str) -> None:
    here = lane()
    server = here.upstream(once(BAD_RESPONSES[name]), answering())
    server.tolerate()
    with here.client() as client:
        client.send(request(body=b""))
        answer = client.read_response()
        assert answer.status == 502
        assert answer.reason in {"upstream_bad_response", "upstream_head_too_large"}
        if "close" not in answer.tokens("connection"):
            client.send(request())
            assert client.read_response().status == 200
    assert len(server.requests) <= 2, "a malformed answer is no reason to send the request again"


@pytest.mark.parametrize(
    "tail",
    [b"xyz\r\n", b"5\r\nhello!!\r\n", b"10000000000000000\r\n"],
    ids=["not a number", "too much data", "overflow"],
)
def test_bad_chunks_in_an_answer_end_it_visibly_incomplete(lane: LaneFactory, tail: bytes) -> None:
    here = lane()
    here.upstream(once(response(None, headers=[("Transfer-Encoding", "chunked")]) + b"3\r\nabc\r\n" + tail))
    with here.client() as client:
        client.send(request())
        try:
            answer = client.read_response()
        except (Closed, ConnectionError):
            return  # the head had gone out: only the cut can tell
        assert answer.status == 502


def test_truncated_answers_end_visibly_incomplete(lane: LaneFactory) -> None:
    cut_short = [
        response(None, headers=[("Content-Length", "1000")]) + b"x" * 500,
        response(None, headers=[("Transfer-Encoding", "chunked")]) + chunked(b"abc" * 100)[:-5],
        response(None, headers=[("Transfer-Encoding", "chunked")]) + b"3\r\nab",
    ]
    for data in cut_short:
        here = lane()
        here.upstream(once(data))
        with here.client() as client:
            client.send(request())
            with pytest.raises((Closed, ConnectionError)):
                assert client.read_response().status == 502
                raise Closed  # a 502 instead of the truncated answer is just as visible


def test_smuggling_attempt_reaches_the_upstream_as_nothing(lane: LaneFactory) -> None:
    """The classic CL.TE pair: neither the outer nor the hidden request may arrive."""
    here = lane()
    server = here.upstream()
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    with here.client() as client:
        client.send(
            b"POST /outer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % (5 + len(hidden)),
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            hidden,
        )
        assert client.read_response().status == 400
        client.expect_close()
    assert server.connections == []
