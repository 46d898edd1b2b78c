"""Time limits: each ends what it guards, with its status or silently, and touches nothing else."""

from __future__ import annotations

import time

import pytest
from kit.fixtures import LaneFactory
from kit.limits import PATIENCE, wait_until
from kit.upstream import ServerConn, answering
from kit.wire import request, response


def test_head_that_does_not_end_in_time_gets_408(lane: LaneFactory) -> None:
    here = lane("header-timeout")
    server = here.upstream()
    with here.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        answer = client.read_response()
        assert (answer.status, answer.reason) == (408, "header_timeout")
        client.expect_close()
    assert server.connections == []


def test_drip_does_not_extend_the_head_time_limit(lane: LaneFactory) -> None:
    """The limit is on the whole head, not on the time between two bytes."""
    here = lane("header-timeout")
    with here.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        start = time.monotonic()

        def drip() -> bool:
            if client.closed() or client.pending():
                return True
            try:
                client.send(b"z")
            except ConnectionError:
                return True
            return False

        wait_until(drip, "the end of a head that drips")
        assert time.monotonic() - start >= 0.25 * PATIENCE
        assert client.read_response().status == 408


def test_head_time_limit_counts_from_the_first_byte_of_each_request(lane: LaneFactory) -> None:
    """A connection that was quiet for long is not late with its next request."""
    here = lane("header-timeout")
    here.upstream()
    with here.client() as client:
        client.send(request())
        assert client.read_response().status == 200
        client.expect_quiet(0.45 * PATIENCE)
        client.send(request())
        assert client.read_response().status == 200


def test_idle_connection_is_closed_silently(lane: LaneFactory) -> None:
    here = lane("idle-timeout")
    here.upstream()
    with here.client() as client:
        client.send(request())
        assert client.read_response().status == 200
        start = time.monotonic()
        client.expect_close(reset_ok=False)
        assert time.monotonic() - start >= 0.2 * PATIENCE


def test_idle_limit_does_not_hit_a_waiting_client(lane: LaneFactory) -> None:
    """An answer that takes longer than the idle limit is not idleness."""

    def slow(conn: ServerConn) -> None:
        for _ in conn:
            conn.expect_quiet(0.6 * PATIENCE)
            conn.send(response(b"late"))

    here = lane("idle-timeout")
    here.upstream(slow)
    assert here.ask(request()).body == b"late"


def test_slow_answer_gets_504_and_its_connection_is_not_reused(lane: LaneFactory) -> None:
    def silent(conn: ServerConn) -> None:
        conn.read_request()
        conn.expect_close()

    here = lane("response-timeout")
    server = here.upstream(silent, answering(b"second"))
    with here.client() as client:
        client.send(request())
        answer = client.read_response()
        assert (answer.status, answer.reason) == (504, "upstream_timeout")
        server.wait_open(0)
    assert here.ask(request()).body == b"second"
    assert len(server.requests) == 2, "a timeout is never retried by itself"


def test_response_limit_ends_with_the_head_of_the_answer(lane: LaneFactory) -> None:
    """A body may take longer than response_timeout."""

    def slow_body(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(None, headers=[("Content-Length", "2")]), b"a")
        conn.expect_quiet(0.5 * PATIENCE)
        conn.send(b"b")

    here = lane("response-timeout")
    here.upstream(slow_body)
    assert here.ask(request()).body == b"ab"


def test_response_limit_starts_when_the_request_is_sent(lane: LaneFactory) -> None:
    """A slow upload does not eat the time that the endpoint has for its answer."""
    here = lane("response-timeout")
    here.upstream()
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "2")]), b"a")
        client.expect_quiet(0.5 * PATIENCE)
        client.send(b"b")
        assert client.read_response().status == 200


@pytest.mark.parametrize(
    "piece", [b"z", b"\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: "], ids=["field", "interim"]
)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_drip_does_not_extend_the_response_limit(lane: LaneFactory, piece: bytes, version: str) -> None:
    """The limit is on the whole head of the final answer, not on the time between two bytes."""

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 103 Early Hints\r\nX: ")

        def drip() -> bool:
            if conn.closed():
                return True
            try:
                conn.send(piece)
            except ConnectionError:
                return True
            return False

        wait_until(drip, "the end of a head that drips")

    here = lane("response-timeout")
    here.upstream(script)
    start = time.monotonic()
    answer = here.ask(request(version=version))
    assert (answer.status, answer.reason) == (504, "upstream_timeout")
    assert time.monotonic() - start >= 0.25 * PATIENCE


def test_interim_answer_does_not_start_the_response_limit_of_an_upload(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        head = conn.read_request_head()
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        conn.read_request_body(head)
        conn.send(b"HTTP/1.1 102 Processing\r\n\r\n", response(head.body))

    here = lane("response-timeout")
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Expect", "100-continue"), ("Content-Length", "3")]))
        assert client.read_response_head().status == 100
        for piece in (b"a", b"b", b"c"):
            client.expect_quiet(0.25 * PATIENCE)
            client.send(piece)
        assert client.read_response().body == b"abc"


def test_answer_that_stalls_is_cut(lane: LaneFactory) -> None:
    def stall(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(None, headers=[("Content-Length", "100")]), b"half")
        conn.expect_close()

    here = lane("stream-timeout")
    server = here.upstream(stall)
    with here.client() as client:
        client.send(request())
        assert client.read_response_head().status == 200
        assert client.read_exact(4) == b"half"
        client.expect_close()
        server.wait_open(0)


def test_upload_that_stalls_is_cut(lane: LaneFactory) -> None:
    def waiting(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.read_exact(4)
        conn.expect_close()

    here = lane("stream-timeout")
    server = here.upstream(waiting)
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "100")]), b"half")
        answer = client.read_response()
        assert answer.status in (408, 504)
        assert answer.reason in {"body_timeout", "stream_timeout"}
        client.expect_close()
        server.wait_open(0)
