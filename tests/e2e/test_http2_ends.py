"""How connections and streams of HTTP/2 end: what one of them takes along, and what it must not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
from kit import http2
from kit.fixtures import Serve, Serving
from kit.http2 import Flag, Frame, Type
from kit.http2_client import Answer, Client, dial
from kit.http2_server import H2Conn, answering, h2
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import ServerConn
from kit.wire import Address, Closed, connect, request, response

WAITING = 40  # streams that wait when their connection ends


def edge(serve: Serve, *endpoints: str, service: object = None, **more: object) -> tuple[Fastmesh, Address]:
    port = free_port()
    extra = service if isinstance(service, dict) else {}
    proxy = serve(
        {
            "listeners": [
                {"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web", **more}
            ],
            "services": {"web": {"endpoints": list(endpoints), **extra}},
        }
    )
    return proxy, ("127.0.0.1", port)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Whoever waits for it goes on when the test is over at the latest."""
    event = threading.Event()
    yield event
    event.set()


def send_requests(client: Client, streams: range, fields: http2.Fields) -> None:
    for stream in streams:
        client.answer(stream)
    client.send(*(http2.headers(stream, fields, end=True) for stream in streams))


def served(address: Address, count: int = 3 * WAITING) -> None:
    """Another connection serves as many streams, all at once."""
    with dial(address) as client:
        client.open()
        streams = range(1, 2 * count, 2)
        send_requests(client, streams, http2.request())
        for stream in streams:
            assert client.until_over(stream).status == 200


def open_streams(client: Client, count: int = WAITING) -> None:
    client.open()
    send_requests(client, range(1, 2 * count, 2), http2.request(path="/wait"))


def test_streams_of_a_client_that_breaks_the_rules(
    serve: Serve, upstream: Serving, gate: threading.Event
) -> None:
    """They are gone at once, their connection lingers: neither harms the streams that come meanwhile."""

    def slow(conn: ServerConn) -> None:
        for seen in conn:
            assert seen.target != "/wait" or gate.wait(20)
            conn.send(response(b"ok"))

    server = upstream(slow)
    server.tolerate(ConnectionError)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}")
    for _ in range(3):
        with dial(address) as client:
            open_streams(client)
            assert client.fence()
            client.send(http2.data(0, b"DATA are of a stream"))
            assert client.until(lambda: bool(client.goaways), "GOAWAY")
            proxy.wait_metric("the streams' end", lambda m: m.sum("exchanges") == 0)
            served(address)
        served(address)
    assert not proxy.new_faults()


def test_streams_of_an_endpoint_that_breaks_the_rules(
    serve: Serve, upstream: Serving, gate: threading.Event
) -> None:
    def wrong(conn: H2Conn) -> None:
        conn.until(lambda: len(conn.requests) == WAITING, "all requests")
        conn.raw(http2.data(0, b"DATA are of a stream"))
        gate.wait(20)

    server = upstream(h2(wrong), h2(answering()))
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"})
    with dial(address) as client:
        open_streams(client)
        for stream in range(1, 2 * WAITING, 2):
            assert client.until_over(stream).status == 502
        served(address)
    served(address)
    assert not proxy.new_faults()


def test_streams_next_to_a_head_that_does_not_end(
    serve: Serve, upstream: Serving, gate: threading.Event
) -> None:
    """A head has its time, in one frame as in several; what it takes along is reset, or closed."""

    def slow(conn: ServerConn) -> None:
        for _ in conn:
            gate.wait(20)

    server = upstream(slow)
    server.tolerate(ConnectionError)
    proxy, address = edge(
        serve,
        f"127.0.0.1:{server.address[1]}",
        header_timeout="300ms",
        http2={"ping_interval": "0s"},
    )
    whole = http2.headers(2 * WAITING + 1, http2.request(), end=True)
    cut = whole.encode()[:-3]
    open_end = Frame(Type.HEADERS, Flag.END_STREAM, whole.stream, whole.payload).encode()
    for number, piece in enumerate((cut, open_end), 1):
        with dial(address) as client:
            open_streams(client)
            assert client.fence()
            client.answer(whole.stream)
            client.send(piece)
            client.until_closed()
        proxy.wait_metric("the streams' end", lambda m: m.sum("exchanges") == 0)
        assert proxy.metrics().by_reason("header_timeout") == number
    assert not proxy.new_faults()


def test_a_reload_that_drops_the_service_of_a_lingering_connection(
    serve: Serve, upstream: Serving, gate: threading.Event
) -> None:
    """A connection that has said GOAWAY outlives its endpoint's record by its last words, not by more."""

    def lingering(conn: H2Conn) -> None:
        for seen in conn:
            conn.answer(seen, body=b"ok")
            gate.wait(20)  # it does not close when it is told to

    server = upstream(h2(lingering))
    server.tolerate(ConnectionError)
    other = upstream()
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"})
    with dial(address) as client:
        client.open()
        assert client.ask(1).status == 200
    proxy.reload(services={"web": {"endpoints": [f"127.0.0.1:{other.address[1]}"]}})
    proxy.wait_metric("the end of the connection", lambda m: m.sum("upstream_connections_open") == 0)
    with connect(address) as plain:
        plain.send(request())
        assert plain.read_response().status == 200
    assert not proxy.new_faults()


def test_a_tunnel_from_stream_to_stream_keeps_nothing(serve: Serve, upstream: Serving) -> None:
    """What has gone through it is gone, however long it lasts."""
    chunk = bytes(16_000)

    def echoed(answer: Answer, count: int) -> bool:
        return len(answer.body) == count * len(chunk)

    def echo_on(conn: H2Conn) -> None:
        tunnel = conn.next_request()
        assert tunnel is not None
        conn.head(tunnel, 200)
        while not tunnel.over:
            if not tunnel.body and not conn.pump():
                return
            part = bytes(tunnel.body)
            tunnel.body.clear()
            if part:
                conn.data(tunnel, part)

    server = upstream(h2(echo_on, settings={"ENABLE_CONNECT_PROTOCOL": 1}))
    server.tolerate(ConnectionError, Closed)
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", service={"protocol": "http2"})
    with dial(address) as client:
        client.generous = True
        client.open()
        answer = client.answer(1)
        fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/")]
        client.send(http2.headers(1, [*fields, (":authority", "test"), ("sec-websocket-version", "13")]))
        assert client.until(lambda: answer.status == 200, "the answer")
        for count in range(1, 101):
            client.send(http2.data(1, chunk))
            assert client.until(partial(echoed, answer, count), "the echo")
        assert proxy.metrics().sum("buffers") < 20
