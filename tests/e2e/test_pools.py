"""Upstream connections: reused most recent first, kept within limits, replaced safely when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

import pytest
from kit import procfs
from kit.fixtures import LaneFactory, Serve, Serving
from kit.lanes import Lane
from kit.limits import DEADLINE, wait_until
from kit.ports import free_port
from kit.upstream import Script, ServerConn, answering, echo
from kit.wire import chunked, connect, request, response


def test_connections_are_reused_across_clients(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(echo)
    for number in range(20):
        assert here.ask(request("POST", body=b"%d" % number)).body == b"%d" % number
    assert len(server.connections) == 1


def held(gates: dict[str, threading.Event]) -> Script:
    """Answer /NAME with the connection's number once the gate NAME is open."""

    def script(conn: ServerConn) -> None:
        for seen in conn:
            gate = gates.get(seen.target[1:])
            assert gate is None or gate.wait(10)
            conn.send(response(b"%d" % conn.index))

    return script


def two_idle_connections(here: Lane) -> tuple[int, int]:
    """Make the pool hold two connections; (the one that became idle first, the one that did last)."""
    gates = {"first": threading.Event(), "last": threading.Event()}
    server = here.upstream(held(gates))
    with here.client() as one, here.client() as two:
        one.send(request(target="/last"))
        server.wait_requests(1)
        two.send(request(target="/first"))
        server.wait_requests(2)
        gates["first"].set()
        first = int(two.read_response().body)
        gates["last"].set()
        last = int(one.read_response().body)
    assert {first, last} == {0, 1}
    return first, last


def test_most_recently_used_first(lane: LaneFactory) -> None:
    here = lane()
    _, last = two_idle_connections(here)
    for _ in range(5):
        assert int(here.ask(request()).body) == last


def test_busy_connection_does_not_hold_up_others(lane: LaneFactory) -> None:
    gates = {"slow": threading.Event()}
    here = lane()
    server = here.upstream(held(gates))
    with here.client() as slow:
        slow.send(request(target="/slow"))
        server.wait_requests(1)
        for _ in range(3):
            assert here.ask(request()).body == b"1"
        gates["slow"].set()
        assert slow.read_response().body == b"0"


def test_idle_limit_closes_what_is_too_much(lane: LaneFactory) -> None:
    here = lane("pool-one")
    two_idle_connections(here)
    here.upstreams[0].wait_open(1)


def test_pool_of_none_closes_after_each_answer(lane: LaneFactory) -> None:
    here = lane("pool-none")
    server = here.upstream()
    for _ in range(3):
        assert here.ask(request()).status == 200
    server.wait_connections(3)
    server.wait_open(0)


def test_idle_connections_are_closed_after_their_time(lane: LaneFactory) -> None:
    here = lane("pool-timeout")
    server = here.upstream()
    assert here.ask(request()).status == 200
    server.wait_open(0)
    assert here.ask(request()).status == 200
    assert len(server.connections) == 2


def test_idle_connection_that_the_upstream_closes_is_forgotten(lane: LaneFactory) -> None:
    here = lane()
    closing: list[ServerConn] = []

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"%d" % conn.index))
        closing.append(conn)
        conn.shutdown()
        conn.expect_close()

    server = here.upstream(script)
    for number in range(10):
        assert here.ask(request()).body == b"%d" % number
        server.wait_open(0)
    assert len(server.requests) == 10, "none was tried twice: the close was seen before the next request"


def test_unsolicited_bytes_on_an_idle_connection_do_not_answer_the_next_request(lane: LaneFactory) -> None:
    """RFC 9112 9.2: a response without a request must not be taken for the next one's."""

    def poison(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"first"), response(b"POISON"))
        conn.expect_close()

    here = lane()
    here.upstream(poison, answering(b"clean"))
    assert here.ask(request()).body == b"first"
    for _ in range(3):
        assert here.ask(request()).body == b"clean"


def test_late_unsolicited_bytes_on_an_idle_connection(lane: LaneFactory) -> None:
    poisoned = threading.Event()

    def poison(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"first"))
        conn.expect_quiet(0.05)
        conn.send(response(b"POISON"))
        poisoned.set()
        conn.expect_close()

    here = lane()
    server = here.upstream(poison, answering(b"clean"))
    assert here.ask(request()).body == b"first"
    assert poisoned.wait(10)
    server.wait_open(0)
    assert here.ask(request()).body == b"clean"


CHUNKED = [("Transfer-Encoding", "chunked")]
LAST_CHUNKS = b"5\r\n text\r\n0\r\n\r\n"
BEFORE = {
    "answer": lambda conn: conn.send(response(b"POISON")),
    "interim": lambda conn: conn.send(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "fin": ServerConn.close,
    "reset": ServerConn.reset,
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", ["http", "retry-off"])
@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([request(target="/2")], b""),
        ([request("POST", "/2", body=b"x" * 3000)], b"x" * 3000),
        ([request("POST", "/2", headers=[("Content-Length", "9")]), b"some", b" text"], b"some text"),
        ([request("POST", "/2", headers=CHUNKED), b"4\r\nsome\r\n", LAST_CHUNKS], b"some text"),
    ],
    ids=["get", "post", "upload", "chunks"],
)
def test_what_an_idle_connection_says_before_the_next_request_has_left_is_no_answer(
    lane: LaneFactory, parts: list[bytes], body: bytes, kind: str, before: str
) -> None:
    """One turn of the loop sees the request first and then the bytes, or the end, that came unasked: nothing
    has been sent on that connection yet, so any request, and any part of one, can take a fresh one."""
    here = lane(kind)
    go, gone = threading.Event(), threading.Event()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"first"))
        assert go.wait(DEADLINE)
        BEFORE[before](conn)
        gone.set()
        if before in ("answer", "interim"):
            conn.expect_close()

    server = here.upstream(script, echo)
    with here.client() as client:
        client.send(request())
        assert client.read_response().body == b"first"
        workers = here.proxy.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: all(map(procfs.stopped, workers)), "the workers to stop")
            client.send(*parts[:2])
            go.set()
            assert gone.wait(DEADLINE)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        server.wait_connections(2)
        client.send(*parts[2:])
        answer = client.read_response()
        assert (answer.status, answer.get("x-target"), answer.interim) == (200, "/2", [])
        assert answer.body == body
    assert [seen.target for seen in server.requests] == ["/", "/2"]


# a reused connection that dies without one byte of the answer


def dies_on_second(how: Callable[[ServerConn], None], before: bytes = b"") -> Script:
    """Answer one request; read the next one, send `before`, and end."""

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"warm"))
        conn.read_request()
        conn.send(before)
        how(conn)

    return script


ENDS = {"fin": ServerConn.close, "reset": ServerConn.reset}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/again"),
        request("DELETE", "/again"),
        request("POST", "/again", body=b""),
        request("POST", "/again", body=b"small body"),
        request("PUT", "/again", body=b"x" * 4000),
        request("POST", "/again", headers=[("Transfer-Encoding", "chunked")]) + chunked(b"small", b"body"),
    ],
    ids=["GET", "DELETE", "POST-empty", "POST-small", "PUT-4k", "POST-chunked"],
)
def test_request_is_replayed_on_a_fresh_connection(lane: LaneFactory, data: bytes, end: str) -> None:
    here = lane()
    server = here.upstream(dies_on_second(ENDS[end]), echo)
    with here.client() as client:
        client.send(request())
        assert client.read_response().body == b"warm"
        client.send(data)
        answer = client.read_response()
        assert (answer.status, answer.get("x-target")) == (200, "/again")
    first, again = server.requests[1], server.requests[2]
    assert (again.line, again.fields, again.body) == (first.line, first.fields, first.body)
    assert len(server.connections) == 2
    here.proxy.wait_metric("the retry is counted", lambda m: counted_retries(m.text, here.service) >= 1)


@pytest.mark.parametrize(
    ("kind", "method", "repeated"),
    [
        ("retry-idempotent", "GET", True),
        ("retry-idempotent", "PUT", True),
        ("retry-idempotent", "POST", False),
        ("retry-idempotent", "PATCH", False),
        ("retry-idempotent", "BREW", False),
        ("retry-off", "GET", False),
        ("retry-off", "POST", False),
    ],
)
def test_which_requests_are_replayed_is_configured(
    lane: LaneFactory, kind: str, method: str, repeated: bool
) -> None:
    here = lane(kind)
    server = here.upstream(dies_on_second(ServerConn.close), echo)
    with here.client() as client:
        client.send(request())
        assert client.read_response().body == b"warm"
        client.send(request(method, "/again", body=b"body"))
        answer = client.read_response()
    assert (answer.status, answer.reason) == ((200, None) if repeated else (502, "upstream_closed"))
    assert len(server.requests) == (3 if repeated else 2)


def counted_retries(text: str, service: str) -> float:
    """Sum of this service's samples that speak of retries or of reused connections found dead."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if not line.startswith("#") and f'"{service}"' in line and ("retr" in line or "reused" in line)
    )


def test_replay_when_several_idle_connections_are_dead(lane: LaneFactory) -> None:
    """The replay goes to a fresh connection, not to the next idle one that may be just as dead."""
    gates = {"a": threading.Event(), "b": threading.Event(), "c": threading.Event()}

    def script(conn: ServerConn) -> None:
        seen = conn.read_request()
        assert gates[seen.target[1:]].wait(10)
        conn.send(response(b"warm"))
        conn.read_request()
        conn.close()

    here = lane()
    server = here.upstream(script, script, script, echo)
    clients = [here.client() for _ in gates]
    for number, (client, name) in enumerate(zip(clients, gates, strict=True)):
        client.send(request(target=f"/{name}"))
        server.wait_requests(number + 1)
    for client, gate in zip(clients, gates.values(), strict=True):
        gate.set()
        assert client.read_response().body == b"warm"
    assert here.ask(request("POST", body=b"alive")).body == b"alive"
    assert len(server.connections) == 4


@pytest.mark.parametrize("end", ENDS)
def test_no_replay_once_a_byte_of_the_answer_was_seen(lane: LaneFactory, end: str) -> None:
    here = lane()
    server = here.upstream(dies_on_second(ENDS[end], b"H"), answering(b"must not be asked"))
    with here.client() as client:
        client.send(request())
        client.read_response()
        client.send(request(target="/once"))
        answer = client.read_response()
        assert answer.status == 502
        assert answer.reason in {
            "upstream_closed",
            "upstream_reset",
            "upstream_truncated",
            "upstream_bad_response",
        }
    assert [seen.target for seen in server.requests] == ["/", "/once"]


def test_no_replay_after_an_interim_answer(lane: LaneFactory) -> None:
    """103 is a byte of the answer: the endpoint has begun to work on the request."""
    here = lane()
    server = here.upstream(
        dies_on_second(ServerConn.close, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), answering(b"no")
    )
    with here.client() as client:
        client.send(request())
        client.read_response()
        client.send(request(target="/once"))
        assert client.read_response().status == 502
    assert len(server.requests) == 2


@pytest.mark.parametrize("end", ENDS)
def test_no_replay_on_a_fresh_connection(lane: LaneFactory, end: str) -> None:
    """A fresh connection that dies is no keep-alive race: the endpoint may have done the work."""
    calls: list[int] = []

    def dies(conn: ServerConn) -> None:
        conn.read_request()
        calls.append(1)
        ENDS[end](conn)

    here = lane()
    here.upstream(dies)
    answer = here.ask(request())
    assert (answer.status, answer.reason) == (502, "upstream_closed" if end == "fin" else "upstream_reset")
    assert len(calls) == 1


def test_no_replay_of_a_streamed_body(lane: LaneFactory) -> None:
    """What has been passed on is gone: a large upload on a connection that dies fails, once."""
    here = lane()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"warm"))
        head = conn.read_request_head()
        assert head.target == "/large"
        conn.read_exact(2_000_000)
        conn.reset()

    server = here.upstream(script, answering(b"must not be asked"))
    with here.client() as client:
        client.send(request())
        client.read_response()
        with contextlib.suppress(ConnectionError):
            client.send(request("POST", "/large", headers=[("Content-Length", "8000000")]), b"x" * 8_000_000)
        try:
            answer = client.read_response()
        except (AssertionError, ConnectionError):
            pass  # the upload had no end: closing is the answer
        else:
            assert answer.status == 502
    assert [seen.target for seen in server.requests] == ["/", "/large"]


def test_replay_of_an_upload_whose_beginning_is_still_in_the_buffer(lane: LaneFactory) -> None:
    """The connection dies at the head, the body comes later: whole on a fresh one or 502, not mixed."""
    here = lane()

    def dies_at_head(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(b"warm"))
        conn.read_request_head()
        conn.close()

    server = here.upstream(dies_at_head, echo)
    with here.client() as client:
        client.send(request())
        client.read_response()
        client.send(request("POST", headers=[("Content-Length", "10")]), b"01234")
        server.wait_requests(2)
        client.send(b"56789")
        answer = client.read_response()
        if answer.status == 200:
            assert answer.body == b"0123456789"
        else:
            assert answer.status == 502
    whole = [seen.body for seen in server.requests[2:]]
    assert all(body == b"0123456789" for body in whole)


def test_pipelined_requests_survive_a_replay(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(dies_on_second(ServerConn.close), echo)
    with here.client() as client:
        client.send(*[request("POST", f"/{n}", body=b"%d" % n) for n in range(4)])
        assert client.read_response().body == b"warm"
        assert [client.read_response().body for _ in range(3)] == [b"1", b"2", b"3"]


def test_a_change_of_the_protocol_leaves_no_connection_of_before(serve: Serve, upstream: Serving) -> None:
    """A reload that changes anything else keeps them."""
    server = upstream(answering(b"hello"))
    address = ("127.0.0.1", free_port())
    service = {"endpoints": [f"127.0.0.1:{server.address[1]}"]}
    listener = {"name": "front", "bind": f"127.0.0.1:{address[1]}", "protocol": "http", "to": "web"}
    proxy = serve({"listeners": [listener], "services": {"web": service}})
    changes = [
        ({}, 1),
        ({"response_timeout": "9s"}, 1),
        ({"protocol": "http1"}, 2),
        ({"protocol": "http1"}, 2),
    ]
    for number, (change, connections) in enumerate(changes):
        if number:
            proxy.reload(services={"web": service | change}, drain=f"{number}s")
        with connect(address) as client:
            client.send(request())
            assert client.read_response().body == b"hello"
        assert len(server.connections) == connections, change
    metrics = proxy.wait_metric("the old one to go", lambda m: m.sum("upstream_connections_open") == 1)
    assert metrics.sum("connections_retired_total", side="upstream", cause="replaced") == 1
