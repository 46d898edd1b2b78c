"""Messages that end otherwise than planned must not touch the ones beside them.

Each test leaves a connection in the middle of something: half-closed, timed out, cut, switched too early.
"""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from kit.fixtures import LaneFactory
from kit.limits import DEADLINE, wait_until
from kit.upstream import ServerConn, answering, echo
from kit.wire import Closed, chunked, request, response

SWITCH = [("Connection", "upgrade"), ("Upgrade", "websocket")]
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"

# half-closed clients


def test_half_closed_client_gets_our_own_answer(lane: LaneFactory) -> None:
    """The answer is queued before the client's end is read: the end must not take it along."""
    here = lane("no-endpoint")
    for _ in range(5):
        with here.client() as client:
            client.send(request())
            client.shutdown()
            assert client.read_response().reason == "no_endpoint"
            client.expect_close(reset_ok=False)


def test_half_close_behind_several_of_our_own_answers(lane: LaneFactory) -> None:
    here = lane("no-endpoint")
    with here.client() as client:
        client.send(request() * 20)
        client.shutdown()
        for _ in range(20):
            assert client.read_response().reason == "no_endpoint"
        client.expect_close(reset_ok=False)


def test_half_close_while_the_answer_is_still_queued(lane: LaneFactory) -> None:
    """The whole answer is in the queue, its reader is slow, and has shut its own side."""
    here = lane()
    body = b"x" * 8_000_000
    here.upstream(answering(body))
    client = here.client()
    client.send(request())
    head = client.read_response_head()
    client.read_exact(1000)
    client.shutdown()
    assert len(client.read_exact(int(head.get("content-length") or 0) - 1000)) == len(body) - 1000
    client.expect_close(reset_ok=False)


def test_half_close_before_the_switch_reaches_the_endpoint(lane: LaneFactory) -> None:
    go = threading.Event()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        assert go.wait(DEADLINE)
        conn.send(SWITCHED)
        conn.expect_close(reset_ok=False)
        conn.send(b"last words")

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request(headers=SWITCH))
        client.shutdown()
        server.wait_requests(1)
        go.set()
        assert client.read_response().status == 101
        assert client.read_to_end() == b"last words"


def test_bytes_and_half_close_before_the_switch(lane: LaneFactory) -> None:
    go = threading.Event()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        assert go.wait(DEADLINE)
        conn.send(SWITCHED)
        assert conn.read_to_end() == b"early bytes"
        conn.send(b"last words")

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request(headers=SWITCH), b"early bytes")
        client.shutdown()
        server.wait_requests(1)
        go.set()
        assert client.read_response().status == 101
        assert client.read_to_end() == b"last words"


# the switch


def test_connect_with_bytes_behind_it(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        assert conn.read_exact(11) == b"early bytes"
        conn.send(b"hello")
        assert conn.read_to_end() == b"more"
        conn.send(b"end")

    here = lane("outbound")
    here.upstream(script)
    with here.client() as client:
        host = f"{here.service}:80"
        client.send(request("CONNECT", host, host=host), b"early bytes")
        answer = client.read_response("CONNECT")
        assert answer.status == 200
        assert answer.get("content-length") is None
        assert answer.get("transfer-encoding") is None
        assert client.read_exact(5) == b"hello"
        client.send(b"more")
        client.shutdown()
        assert client.read_to_end() == b"end"


def test_switch_before_the_request_is_complete_is_refused(lane: LaneFactory) -> None:
    """RFC 9110 7.8: the new protocol begins behind the request, not inside its body."""

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(SWITCHED)
        with contextlib.suppress(ConnectionError):
            conn.read_to_end()

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[*SWITCH, ("Content-Length", "1000")]), b"half")
        answer = client.read_response()
        assert (answer.status, answer.reason) == (502, "upstream_bad_response")


def test_switch_to_nothing_is_refused(lane: LaneFactory) -> None:
    """RFC 9110 15.2.2: a 101 says what it switches to."""

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            conn.read_to_end()

    here = lane()
    here.upstream(script)
    answer = here.ask(request(headers=SWITCH))
    assert (answer.status, answer.reason) == (502, "upstream_bad_response")


@pytest.mark.parametrize("protocol", ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0"])
def test_switch_to_another_kind_of_http_is_not_offered(lane: LaneFactory, protocol: str) -> None:
    """Requests inside a tunnel would pass no rule and no route: the offer ends here."""
    here = lane()
    server = here.upstream()
    headers = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", protocol),
        ("HTTP2-Settings", "AAMAAABk"),
    ]
    with here.client() as client:
        for _ in range(2):
            client.send(request(headers=headers))
            assert client.read_response().status == 200
    for seen in server.requests:
        assert seen.get("upgrade") is None
        assert seen.get("http2-settings") is None
        assert "upgrade" not in seen.tokens("connection")


# repeated requests


def test_timeout_on_a_reused_connection_is_not_repeated(lane: LaneFactory) -> None:
    """The endpoint has the request and works on it: asking again would do the work twice."""
    here = lane("response-timeout")

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"warm"))
        conn.read_request()
        with contextlib.suppress(ConnectionError):
            conn.read_to_end()

    server = here.upstream(script, answering(b"asked again"))
    with here.client() as client:
        client.send(request())
        assert client.read_response().body == b"warm"
        client.send(request("POST", "/pay", body=b"10"))
        answer = client.read_response()
        assert (answer.status, answer.reason) == (504, "upstream_timeout")
    assert [seen.target for seen in server.requests] == ["/", "/pay"]


@pytest.mark.parametrize("size", [70_000, 100_000, 200_000, 400_000])
@pytest.mark.parametrize("first", [1, 10_000, 40_000])
def test_upload_moved_by_the_kernel_is_not_repeated_in_part(lane: LaneFactory, size: int, first: int) -> None:
    here = lane()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"warm"))
        conn.read_request()
        conn.close()

    server = here.upstream(script, answering(b"asked again"))
    with here.client() as client:
        client.send(request())
        assert client.read_response().body == b"warm"
        client.send(request("POST", "/large", headers=[("Content-Length", str(size))]), b"x" * first)
        server.wait_requests(2)
        client.send(b"x" * (size - first))
        answer = client.read_response()
    if answer.status == 200:
        assert len(server.requests[2].body) == size
    else:
        assert (answer.status, answer.reason) == (502, "upstream_closed")
        assert [seen.target for seen in server.requests] == ["/", "/large"]


# interim answers


def test_endless_interim_answers_are_stopped(lane: LaneFactory) -> None:
    """A client that does not read them must not make the proxy keep them."""
    total = 64_000_000
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: <" + b"a" * 8000 + b">\r\n\r\n"
    blocked = threading.Event()
    sent = [0]

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.sock.settimeout(1)
        while sent[0] < total:
            try:
                sent[0] += conn.sock.send(hint)
            except TimeoutError:
                break
        blocked.set()

    here = lane()
    here.upstream(script)
    client = here.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(request())
    assert blocked.wait(3 * DEADLINE)
    assert sent[0] < total // 2


# HTTP/1.0


@pytest.mark.parametrize("host", [[], [("Host", "")]], ids=["none", "empty"])
def test_http_1_0_absolute_form_without_host_gets_one(lane: LaneFactory, host: list[tuple[str, str]]) -> None:
    """RFC 9112 3.2: the next hop speaks HTTP/1.1, where a request without Host is none."""
    here = lane()
    server = here.upstream()
    data = request(target="http://name.test:8080/p", host=None, version="HTTP/1.0", headers=host)
    assert here.ask(data).status == 200
    assert server.requests[0].all("host") == ["name.test:8080"]


def test_answer_cut_short_is_no_whole_answer_for_http_1_0(lane: LaneFactory) -> None:
    here = lane()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")

    here.upstream(script)
    with here.client() as client:
        client.send(request(version="HTTP/1.0"))
        with pytest.raises((ConnectionError, Closed)):
            client.read_response_head()
            client.read_to_end()


# early answers


def test_early_answer_then_next_request_on_the_same_connection(lane: LaneFactory) -> None:
    """The endpoint answers at the head and goes on reading: the rest of the body is not the next request."""

    evil = b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
    bodies = []

    def script(conn: ServerConn) -> None:
        while conn.buffer or conn.fill():
            head = conn.read_request_head()
            conn.send(response(head.target.encode()))
            bodies.append(conn.read_request_body(head).body)

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request("POST", "/1", headers=[("Transfer-Encoding", "chunked")]))
        assert client.read_response().body == b"/1"
        client.send(chunked(evil), request("POST", "/2", body=b"two"))
        assert client.read_response().body == b"/2"
    wait_until(lambda: sorted(bodies) == [evil, b"two"], "both bodies, whole")
    assert [seen.target for seen in server.requests] == ["/1", "/2"]


def test_final_answer_instead_of_100_ends_the_exchange(lane: LaneFactory) -> None:
    """RFC 9110 10.1.1: the client may keep the body to itself; nobody waits for it."""

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(b"no", "401 Unauthorized"))
        conn.expect_close()

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Expect", "100-continue"), ("Content-Length", "10")]))
        answer = client.read_response()
        assert answer.status == 401
        assert "close" in answer.tokens("connection")
        client.expect_close(reset_ok=False)
        server.wait_open(0)


@pytest.mark.parametrize("end", ["half-close", "half-close in a long body", "bad chunk", "bad trailer"])
def test_client_that_breaks_off_its_upload_keeps_the_answer_it_has(lane: LaneFactory, end: str) -> None:
    """The answer is whole: what becomes of the rest of the request ends the connection, but not with a reset,
    which would take what the client has not read yet out of its hands."""

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(b"early"))
        with contextlib.suppress(ConnectionError):
            conn.read_to_end()

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        if end == "half-close in a long body":
            client.send(request("POST", headers=[("Content-Length", "5000000")]), b"x" * 1_000_000)
        else:
            client.send(request("POST", headers=[("Transfer-Encoding", "chunked")]), b"5\r\nhello\r\n")
        assert client.read_response().body == b"early"
        if end.startswith("half-close"):
            client.shutdown()
        else:
            client.send(b"zz\r\n" if end == "bad chunk" else b"0\r\nContent-Length: 1\r\n\r\n")
        server.wait_open(0)
        client.expect_close(reset_ok=False)


def test_our_own_answer_to_an_upload_then_the_next_request(lane: LaneFactory) -> None:
    here = lane("no-endpoint")
    with here.client() as client:
        client.send(request("POST", "/1", headers=[("Content-Length", "60")]))
        assert client.read_response().reason == "no_endpoint"
        client.send(b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n".ljust(60, b"."))
        client.send(request("HEAD", "/2"))
        answer = client.read_response("HEAD")
        assert answer.reason == "no_endpoint"
        client.send(request("GET", "/3"))
        assert client.read_response().reason == "no_endpoint"
        client.expect_quiet()


def test_head_answer_with_body_framing_leaves_the_next_alone(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        conn.read_request()
        conn.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n")
        echo(conn)

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request("HEAD"), request(), request("POST", body=b"three"))
        assert client.read_response("HEAD").status == 200
        assert client.read_response().status == 304
        assert client.read_response().body == b"three"
    assert len(server.connections) == 1
