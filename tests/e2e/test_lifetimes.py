"""What outlives what: answers and the connections they wait on, early ones, and peers that stop."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from kit.fixtures import LaneFactory
from kit.limits import scaled
from kit.upstream import ServerConn, echo
from kit.wire import request, response


def test_early_answer_to_an_upload_that_the_kernel_moves(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.fill()
        conn.send(response(b"too much", "413 Content Too Large", [("Connection", "close")]))
        conn.close()  # with unread input: a reset follows the answer

    here = lane()
    here.upstream(script)
    body = bytes(scaled(16 << 20, 4 << 20))
    for _ in range(8):
        with here.client() as client:
            head = request("POST", headers=[("Content-Length", str(len(body)))])

            def send(conn: Any = client, data: bytes = head + body) -> None:
                with contextlib.suppress(OSError):
                    conn.send(data)

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            answer = client.read_response()
            assert (answer.status, answer.body) == (413, b"too much")
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
            sender.join()


def test_client_that_stops_reading_what_the_kernel_moves_is_cut(lane: LaneFactory) -> None:
    size = 64 << 20
    ended = threading.Event()

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(None, headers=[("Content-Length", str(size))]))
        try:
            for _ in range(size >> 20):
                conn.send(bytes(1 << 20))
        except ConnectionError:
            ended.set()

    here = lane("stream-timeout")
    here.upstream(script)
    with here.client() as client:
        client.send(request())
        assert client.read_response_head().status == 200
        here.proxy.wait_metric("the cut", lambda m: m.by_reason("stream_timeout") == 1)
        assert ended.wait(10)


def test_endpoint_that_answers_before_it_is_asked(lane: LaneFactory) -> None:
    """Its answer may be there when the connection is, and is all that will ever come."""

    def script(conn: ServerConn) -> None:
        conn.send(response(b"busy", "503 Service Unavailable", [("Connection", "close")]))
        conn.shutdown()
        conn.read_to_end()

    here = lane()
    server = here.upstream(script)
    for _ in range(scaled(10, 4)):
        clients = [here.client() for _ in range(32)]
        for client in clients:
            client.send(request())
        for client in clients:
            assert client.read_response().body in (b"busy",)
            client.close()
    server.tolerate(ConnectionError)


def test_every_failed_connection_counts_for_its_service(lane: LaneFactory) -> None:
    here = lane("pair")
    for _ in range(3):
        assert here.ask(request()).reason == "connect_refused"
    failures = here.proxy.metrics().sum("connect_failures_total", service=here.service)
    assert failures == 6


def test_pipelined_answers_reach_a_client_that_has_shut_its_side(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo)
    body = bytes(range(256)) * 256
    for count in (1, 2, 7):
        with here.client() as client:
            client.send(request("POST", body=body) * count)
            client.shutdown()
            for _ in range(count):
                assert client.read_response().body == body
            client.expect_close(reset_ok=False)
