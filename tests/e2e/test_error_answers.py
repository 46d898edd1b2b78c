"""Answers that the proxy makes itself: status, reason, a short text, and nothing about the inside."""

from __future__ import annotations

import os
import re
import socket

import pytest
from kit.fixtures import LaneFactory
from kit.lanes import Lane
from kit.upstream import once
from kit.wire import Response, request

# What RFC 9110 wants of an answer, our own field, and what tells a client how to go on.
FIELDS = {
    "content-type",
    "content-length",
    "x-fastmesh-reason",
    "connection",
    "via",
    "date",
    "allow",
    "retry-after",
}


def no_service(lane: LaneFactory) -> tuple[Lane, bytes]:
    return lane("outbound"), request(host="nobody-here")


def refused(lane: LaneFactory) -> tuple[Lane, bytes]:
    return lane(), request()


def no_endpoint(lane: LaneFactory) -> tuple[Lane, bytes]:
    return lane("no-endpoint"), request()


def closed(lane: LaneFactory) -> tuple[Lane, bytes]:
    here = lane()
    here.upstream(once(b""))
    return here, request()


def malformed(lane: LaneFactory) -> tuple[Lane, bytes]:
    here = lane()
    here.upstream(once(b"220 smtp.example ESMTP secret-banner\r\n"))
    return here, request()


def late(lane: LaneFactory) -> tuple[Lane, bytes]:
    here = lane("response-timeout")
    here.upstream(lambda conn: (conn.read_request(), conn.expect_close())[1])
    return here, request()


CASES = {
    "no_service": (no_service, 404, False),
    "connect_refused": (refused, 502, True),
    "no_endpoint": (no_endpoint, 503, True),
    "upstream_closed": (closed, 502, True),
    "upstream_bad_response": (malformed, 502, True),
    "upstream_timeout": (late, 504, True),
    "bad_host": (lambda lane: (lane(), b"GET / HTTP/1.1\r\n\r\n"), 400, False),
    "connect_not_allowed": (lambda lane: (lane(), request("CONNECT", "a:1", host="a:1")), 405, False),
}


@pytest.mark.parametrize("reason", CASES)
def test_names_service_and_reason_and_leaks_nothing(lane: LaneFactory, reason: str) -> None:
    make, status, names_service = CASES[reason]
    here, data = make(lane)
    answer = here.ask(data)
    assert (answer.status, answer.reason) == (status, reason)
    text = answer.body.decode("ascii")
    assert reason in text, "the body names the reason"
    if names_service:
        assert here.service in text, "the body names the service"
    assert 0 < len(text) <= 300
    assert text.isprintable() or text.rstrip("\n").isprintable()
    assert (answer.get("content-type") or "").startswith("text/plain")
    assert answer.names() <= FIELDS
    assert_no_leak(answer, here)


def assert_no_leak(answer: Response, here: Lane) -> None:
    everything = (answer.raw + answer.body).decode("latin-1")
    for address in [here.address, *here.endpoints]:
        assert str(address[1]) not in everything, "an address of the inside shows"
    assert "127.0.0.1" not in everything
    assert socket.gethostname() not in everything or len(socket.gethostname()) < 4
    assert not re.search(
        r"errno|\.pyx|\.py\b|/work|/home|0x[0-9a-f]{6}|python|openssl|secret-banner", everything, re.I
    )
    assert str(os.getpid()) not in everything


@pytest.mark.parametrize("reason", ["connect_refused", "no_service", "upstream_bad_response"])
def test_head_gets_the_same_head_without_the_body(lane: LaneFactory, reason: str) -> None:
    make, status, _ = CASES[reason]
    here, data = make(lane)
    head = data.replace(b"GET ", b"HEAD ", 1)
    with here.client() as client:
        client.send(head)
        answer = client.read_response("HEAD")
        assert (answer.status, answer.reason) == (status, reason)
        client.send(head)
        assert client.read_response("HEAD").status == status, "and the connection is still in step"


def test_error_for_an_http_1_0_client_closes(lane: LaneFactory) -> None:
    with lane().client() as client:
        client.send(request(version="HTTP/1.0"))
        assert client.read_response().status == 502
        client.expect_close()


def test_errors_keep_the_connection_when_the_request_was_sound(lane: LaneFactory) -> None:
    here = lane("outbound")
    here.upstream()
    with here.client() as client:
        for _ in range(3):
            client.send(
                request(host="nobody"), request(host=here.service), request("POST", host="nobody", body=b"x")
            )
            assert [client.read_response().status for _ in range(3)] == [404, 200, 404]


def test_hostile_host_is_not_echoed_into_the_answer(lane: LaneFactory) -> None:
    """The name that no service has comes from the caller: markup in it must not come back as markup."""
    answer = lane("outbound").ask(request(host="<script>alert(1)</script>"))
    assert answer.status in (400, 404)
    assert b"<script" not in answer.body
    long = lane("outbound").ask(request(host="x" * 5000))
    assert long.status in (400, 404)
    assert len(long.body) < 1000
