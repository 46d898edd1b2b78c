"""Clients that say nothing for a while: who speaks first decides what the connection is, client or server.

What is taken for opaque bytes on an inbound listener must never be HTTP: it would come with identity headers
of the client's making, past the rules.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE, PATIENCE, wait_until
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound
from kit.upstream import ServerConn, Upstream, answering
from kit.wire import Closed, Conn, connect, request, response

FORGED = [("x-forwarded-client-cert", "URI=spiffe://mesh.local/admin")]
EVASIONS = {
    "plain": request(headers=FORGED),
    "lower case": b"get / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
    "empty lines": b"\r\n\n\r\n" + request(headers=FORGED),
    "tabs": b"GET\t/\tHTTP/1.1\r\nhost: a\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nhost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\rhost: a\r\r\n\r\n",
    "no token": b"G(T / http/1.0 \r\nhost: a\r\n\r\n",
    "long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "white space of text": b"GET\xa0/\x1cHTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
    "fields behind HTTP/0.9": b"GET /\r\nhost: a\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
}


def greeting(conn: ServerConn) -> None:
    conn.send(b"220 ready\r\n")
    with contextlib.suppress(OSError):
        while conn.fill():
            conn.send(conn.take(len(conn.buffer)))
        conn.shutdown()


def echo(conn: ServerConn) -> None:
    with contextlib.suppress(OSError):
        while conn.fill():
            conn.send(conn.take(len(conn.buffer)))
        conn.shutdown()


def listener(pki: Pki, server: Upstream, **options: Any) -> dict[str, Any]:
    return inbound(pki, server.address[1], **{"tls": "none", **options})


def waited(proxy: Fastmesh, count: int = 1) -> None:
    """Until so many clients have been waited for in vain, and their servers are dialled."""
    proxy.wait_metric("waited in vain", lambda m: m.sum("detect_timeouts_total") == count)


def refused(client: Conn, proxy: Fastmesh, count: int = 1) -> None:
    client.expect_close()
    proxy.wait_metric("counted", lambda m: m.by_reason("late_http") == count)


def settled(proxy: Fastmesh) -> None:
    """Nothing is left of connections that have ended."""
    proxy.wait_metric(
        "nothing is left", lambda m: m.sum("tunnels") == m.sum("exchanges") == m.sum("requests_active") == 0
    )


def test_a_late_client_gets_all_that_http_is(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(answering(b"app"))
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        server.wait_connections(1)
        for _ in range(2):
            client.send(request(headers=FORGED))
            assert client.read_response().body == b"app"
    for one in server.requests:
        assert one.get("x-forwarded-client-cert") is None
        assert one.get("x-forwarded-for") == "127.0.0.1"
    metrics = proxy.metrics()
    assert metrics.sum("requests_total", service="app", code="2xx") == 2
    assert metrics.sum("tunnels_total") == 0
    assert metrics.sum("detect_delay_seconds_count") == 1
    settled(proxy)


def test_late_http_byte_by_byte(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(answering(b"app"))
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        for byte in request(headers=FORGED):
            client.send(bytes([byte]))
        with contextlib.suppress(
            Closed, ConnectionError
        ):  # on a slow machine the wait for the rest may be over
            assert client.read_response().body == b"app"
    assert not [one for one in server.requests if one.get("x-forwarded-client-cert")]


@pytest.mark.parametrize("http", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"])
def test_late_http_in_two_parts(serve: Serve, upstream: Serving, pki: Pki, http: bytes) -> None:
    server = upstream(answering(b"app"))
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        client.send(http[:3])
        client.send(http[3:])
        if http.startswith(b"PRI"):
            client.send(b"\0\0\0\x04\0\0\0\0\0")
            assert client.read_exact(9)[3] == 4, "SETTINGS"
        else:
            client.send(b"host: a\r\n\r\n")
            assert client.read_response().body == b"app"
    assert proxy.metrics().sum("tunnels_total") == 0
    settled(proxy)


@pytest.mark.parametrize("evasion", EVASIONS)
@pytest.mark.parametrize("when", ["at once", "the server spoke", "learned", "a piece, then the rest"])
def test_nothing_that_a_server_could_take_for_http_is_opaque(
    serve: Serve, upstream: Serving, pki: Pki, evasion: str, when: str
) -> None:
    got: list[bytes] = []

    def server_first(conn: ServerConn) -> None:
        conn.send(b"220 ready\r\n")
        server_second(conn)

    def server_second(conn: ServerConn) -> None:
        with contextlib.suppress(OSError):
            while conn.fill() and b"\r\n\r\n" not in conn.buffer:
                pass
            conn.send(response(headers=[("connection", "close")]))
        got.append(bytes(conn.buffer))

    speaks = when in ("the server spoke", "learned")
    server = upstream(server_first if speaks else server_second)
    config = listener(pki, server)
    proxy = serve(config)
    data = EVASIONS[evasion]
    if when == "learned":
        with connect(address_of(config)) as client:
            assert client.read_until(b"\n") == b"220 ready\r\n"
    with connect(address_of(config)) as client:
        if speaks:
            assert client.read_until(b"\n") == b"220 ready\r\n"
        elif when != "at once":
            client.send(data[:2])
            if data[:2] in (b"GE", b"PR"):
                waited(proxy)
        with contextlib.suppress(OSError):
            client.send(data[2:] if when.startswith("a piece") else data)
            if when == "at once":  # what is HTTP to us too is answered
                client.shutdown()
                client.read_to_end()
        if when != "at once":
            refused(client, proxy)
    if when == "learned":
        assert proxy.metrics().sum("detect_skipped_total") == 1
    settled(proxy)
    wait_until(lambda: len(got) == len(server.connections), "the servers' ends")
    for seen in got:
        assert b"client-cert" not in seen.lower()
        assert when == "at once" or b"host" not in seen


def test_opaque_bytes_that_mention_http_pass(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(greeting)
    config = listener(pki, server)
    serve(config)
    for data in (
        b'10.0.0.1 - - "GET / HTTP/1.1" 200 612\r\n',
        b"HTTP/1.1\r\n",
        b"\x00GET / HTTP/1.1\r\n\r\n",
        b"DESCRIBE rtsp://a/b RTSP/1.0\r\n",
        b"get /a/key\r\n" + request(),
        b"x" * 100_000,
    ):
        with connect(address_of(config)) as client:
            assert client.read_until(b"\n") == b"220 ready\r\n"
            with client.sending(data):
                assert client.read_exact(len(data)) == data


def test_outbound_nobody_is_deceived(serve: Serve, upstream: Serving) -> None:
    """The application's own bytes: opaque is opaque."""
    server = upstream(greeting)
    config = {
        "listeners": [
            {
                "name": "out",
                "role": "edge",
                "bind": f"127.0.0.1:{free_port()}",
                "to": "app",
                "protocol": "tcp",
            }
        ],
        "services": {"app": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
    }
    serve(config)
    with connect(address_of(config)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
        client.send(request())
        assert client.read_exact(len(request())) == request()


def test_what_was_learned_costs_http_nothing(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Nobody can make a port opaque for others: who speaks first decides each time."""
    server = upstream(greeting, answering(b"app"))
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    for _ in range(3):
        with connect(address_of(config)) as client:
            client.send(request(headers=FORGED))
            assert client.read_response().body == b"app"
    assert all(one.get("x-forwarded-client-cert") is None for one in server.requests)
    metrics = proxy.metrics()
    assert metrics.sum("detect_skipped_total") == 1, "then it is forgotten"
    assert metrics.sum("requests_total", code="2xx") == 3
    settled(proxy)


def test_an_http2_server_that_begins_teaches_nothing(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Its settings may come unasked; its client still speaks first."""
    settings = b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0d"
    sent = threading.Event()

    def eager(conn: ServerConn) -> None:
        conn.send(settings)
        sent.set()
        conn.read_to_end()

    server = upstream(eager, answering(b"app"))
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        assert sent.wait(30)
        client.expect_quiet(0.1 * PATIENCE)
        client.send(request())
        assert client.read_response().body == b"app"
    (app,) = json.loads(proxy.admin("/services")[1])["services"]
    assert [row["server_speaks_first"] for row in app["learned"]] == [False]
    assert proxy.metrics().sum("tunnels_total") == 0
    settled(proxy)


def test_what_such_a_server_said_is_not_lost(serve: Serve, upstream: Serving, pki: Pki) -> None:
    settings = b"\0\0\0\4\0\0\0\0\0"

    def eager(conn: ServerConn) -> None:
        conn.send(settings)
        echo(conn)

    server = upstream(eager)
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        server.wait_connections(1)
        client.send(b"\0opaque")
        assert client.read_exact(16) == settings + b"\0opaque"
        client.shutdown()
        client.expect_close(reset_ok=False)
    settled(proxy)


def test_late_opaque_bytes_join_the_connection_that_stands(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(echo)
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        for data in (b"\0\1\2", bytes(range(256)) * 4000):
            with client.sending(data):
                assert client.read_exact(len(data)) == data
        client.shutdown()
        client.expect_close(reset_ok=False)
    assert len(server.connections) == 1
    assert proxy.metrics().sum("tunnels_total") == 1
    settled(proxy)


@pytest.mark.parametrize("begun", [b"GE", b"PING", b""])
def test_too_little_and_then_the_end(serve: Serve, upstream: Serving, pki: Pki, begun: bytes) -> None:
    server = upstream(echo)
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        client.send(begun)
        client.shutdown()
        assert client.read_to_end() == begun
    settled(proxy)


def test_too_little_is_not_waited_for_again(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(echo)
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        client.send(b"PING")
        assert client.read_exact(4) == b"PING"
    settled(proxy)


@pytest.mark.parametrize("first", ["client", "server"])
def test_both_speak_at_once(serve: Serve, upstream: Serving, pki: Pki, first: str) -> None:
    """Whoever is heard first: HTTP by the rules of HTTP, or not at all."""
    go = threading.Event()

    def script(conn: ServerConn) -> None:
        if conn.index == 0:
            go.wait(30)
            with contextlib.suppress(OSError):
                greeting(conn)
        else:
            answering(b"app")(conn)

    server = upstream(script)
    config = listener(pki, server)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        server.wait_connections(1)
        with contextlib.suppress(OSError):
            if first == "server":
                go.set()
                client.send(request(headers=FORGED))
            else:
                client.send(request(headers=FORGED))
                go.set()
            client.read_to_end() if proxy.metrics().by_reason("late_http") else client.pending()
    assert not [one for one in server.requests if one.get("x-forwarded-client-cert")]
    settled(proxy)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_while_nobody_has_spoken(serve: Serve, upstream: Serving, pki: Pki, who: str) -> None:
    go = threading.Event()

    def script(conn: ServerConn) -> None:
        if who == "server":
            go.wait(30)
            conn.reset()
        else:
            conn.expect_close()

    server = upstream(script)
    config = listener(pki, server)
    proxy = serve(config)
    client = connect(address_of(config))
    waited(proxy)
    server.wait_connections(1)
    go.set()
    if who == "client":
        client.reset()
    else:
        client.expect_close()
        client.close()
    server.wait_open(0)
    settled(proxy)
    assert proxy.metrics().sum("downstream_connections_open") == 0


def test_a_server_that_closes_at_once(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(lambda conn: None)
    config = listener(pki, server)
    proxy = serve(config)
    for _ in range(2):
        with connect(address_of(config)) as client:
            assert client.read_to_end() == b""
    settled(proxy)
    assert proxy.metrics().sum("detect_skipped_total") == 0, "that is no word"


def test_no_server(serve: Serve, pki: Pki) -> None:
    config = inbound(pki, free_port(), tls="none")
    proxy = serve(config)
    with contextlib.suppress(ConnectionError), connect(address_of(config)) as client:
        client.expect_close()
    proxy.wait_metric("counted", lambda m: m.by_reason("connect_refused") == 1)
    settled(proxy)


def test_rules_about_requests_are_asked_late_too(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """As opaque bytes everything would be refused: nobody is dialled, and the client has its time."""
    server = upstream(answering(b"app"))
    config = listener(pki, server, allow=[{"methods": ["GET"]}])
    proxy = serve(config)
    with connect(address_of(config)) as client, connect(address_of(config)) as other:
        waited(proxy, 2)
        client.send(request())
        assert client.read_response().body == b"app"
        client.send(request("POST", body=b"x"))
        assert client.read_response().reason == "denied"
        other.send(b"\0opaque")
        other.expect_close()
    assert len(server.connections) == 1
    settled(proxy)


def test_rules_about_connections_let_the_server_speak(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(greeting)
    config = listener(pki, server, allow=[{"sources": ["127.0.0.0/8"]}])
    proxy = serve(config)
    for _ in range(2):
        with connect(address_of(config)) as client:
            assert client.read_until(b"\n") == b"220 ready\r\n"
    assert proxy.metrics().sum("detect_skipped_total") == 1
    proxy.reload(listeners=[config["listeners"][0] | {"deny": [{"sources": ["127.0.0.0/8"]}]}])
    with connect(address_of(config)) as client:
        client.send(b"\0")
        client.expect_close()


# permissive


@pytest.mark.parametrize("protocol", ["auto", "tcp"])
def test_permissive_a_plaintext_server_may_speak_first(
    serve: Serve, upstream: Serving, pki: Pki, protocol: str
) -> None:
    server = upstream(greeting)
    config = listener(pki, server, tls="permissive", protocol=protocol)
    proxy = serve(config)
    for _ in range(2):
        with connect(address_of(config)) as client:
            assert client.read_until(b"\n") == b"220 ready\r\n"
            client.send(b"\x16\x03\x01 is no TLS any more")
            assert client.read_exact(22) == b"\x16\x03\x01 is no TLS any more"
    metrics = proxy.metrics()
    assert metrics.sum("detect_timeouts_total") == 2, "a hello may be under way"
    assert metrics.sum("detect_skipped_total") == metrics.sum("tls_failed_total") == 0


def test_permissive_what_is_learned_cuts_no_hello_short(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(greeting)
    config = listener(pki, server, tls="permissive")
    proxy = serve(config)
    with connect(address_of(config)) as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
    context = client_context(pki.identity("svc-a"))
    for _ in range(3):
        with socket.create_connection(address_of(config)) as plain, context.wrap_socket(plain) as secure:
            assert Conn(secure).read_until(b"\n") == b"220 ready\r\n"
    metrics = proxy.metrics()
    assert metrics.sum("tls_handshakes_total", side="downstream") == 3
    assert metrics.sum("detect_skipped_total") == 3, "inside nothing has to be waited for"


@pytest.mark.parametrize("protocol", ["auto", "tcp", "http"])
def test_permissive_a_late_hello_is_tls(serve: Serve, upstream: Serving, pki: Pki, protocol: str) -> None:
    server = upstream(echo if protocol == "tcp" else answering(b"app"))
    config = listener(pki, server, tls="permissive", protocol=protocol)
    proxy = serve(config)
    client = connect(address_of(config))
    if protocol == "http":
        client.expect_quiet(0.15 * PATIENCE)
    else:
        waited(proxy)
    client.sock = client_context(pki.identity("svc-a")).wrap_socket(client.sock, server_hostname=None)
    with client:
        if protocol == "tcp":
            client.send(b"opaque")
            assert client.read_exact(6) == b"opaque"
        else:
            client.send(request(headers=FORGED))
            assert client.read_response().body == b"app"
            (one,) = server.requests
            assert "URI=spiffe://mesh.local/svc-a" in (one.get("x-forwarded-client-cert") or "")
    assert proxy.metrics().sum("tls_handshakes_total", side="downstream") == 1
    settled(proxy)


def test_permissive_a_reset_is_no_end(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """The look for TLS must not take the error away: the server would answer a client that is gone."""
    reset = threading.Event()

    def patient(conn: ServerConn) -> None:
        with pytest.raises(ConnectionResetError):
            conn.fill()
        reset.set()

    server = upstream(patient)
    config = listener(pki, server, tls="permissive")
    proxy = serve(config)
    client = connect(address_of(config))
    waited(proxy)
    server.wait_connections(1)
    client.reset()
    assert reset.wait(DEADLINE)
    settled(proxy)
    assert proxy.metrics().by_reason("downstream_reset") == 1


def test_permissive_late_plaintext_http(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(answering(b"app"))
    config = listener(pki, server, tls="permissive")
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        client.send(request(headers=FORGED))
        assert client.read_response().body == b"app"
    assert server.requests[0].get("x-forwarded-client-cert") is None
    settled(proxy)


def test_late_inside_mutual_tls(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(answering(b"app"))
    config = listener(pki, server, tls="mesh")
    proxy = serve(config)
    context = client_context(pki.identity("svc-a"))
    with socket.create_connection(address_of(config)) as plain, context.wrap_socket(plain) as secure:
        client = Conn(secure)
        waited(proxy)
        client.send(request(headers=FORGED))
        assert client.read_response().body == b"app"
    assert "svc-a" in (server.requests[0].get("x-forwarded-client-cert") or "")
    settled(proxy)


def test_required_tls_is_not_dialled_for(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(greeting)
    config = listener(pki, server, tls="mesh")
    proxy = serve(config)
    with connect(address_of(config)) as client:
        client.expect_quiet(0.3 * PATIENCE)
    assert not server.connections
    assert proxy.metrics().sum("detect_timeouts_total") == 0


# the end before the beginning


@pytest.mark.parametrize("tls", ["none", "permissive", "mesh"])
def test_an_end_without_a_word_is_passed_on(serve: Serve, upstream: Serving, pki: Pki, tls: str) -> None:
    """As `nc host port </dev/null` asks."""

    def daytime(conn: ServerConn) -> None:
        assert conn.read_to_end() == b""
        conn.send(b"it is late\r\n")

    server = upstream(daytime)
    config = listener(pki, server, tls=tls)
    proxy = serve(config)
    client = connect(address_of(config))
    if tls == "mesh":
        memory_in, memory_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = client_context(pki.identity("svc-a")).wrap_bio(memory_in, memory_out)
        got = bytearray()
        ended = False
        while b"\n" not in got:
            with contextlib.suppress(ssl.SSLWantReadError):
                secure.do_handshake()
                if not ended:
                    ended = True
                    with contextlib.suppress(ssl.SSLError):
                        secure.unwrap()  # close_notify
                got += secure.read(100)
            client.sock.sendall(memory_out.read())
            if b"\n" not in got:
                data = client.sock.recv(16384)
                assert data, "closed"
                memory_in.write(data)
        assert got == b"it is late\r\n"
    else:
        client.shutdown()
        assert client.read_to_end() == b"it is late\r\n"
    client.close()
    settled(proxy)
    assert proxy.metrics().sum("detect_timeouts_total") == 0


def test_an_end_without_a_word_is_none_of_http(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(answering(b"app"))
    for options in ({"protocol": "http"}, {"allow": [{"methods": ["GET"]}]}):
        config = listener(pki, server, **options)
        proxy = serve(config)
        with connect(address_of(config)) as client:
            client.shutdown()
            client.expect_close(reset_ok=False)
        proxy.stop()
    assert not server.connections


def test_what_nobody_speaks_on_does_not_hold_a_drain(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(lambda conn: conn.expect_close())
    config = listener(pki, server) | {"drain": "60s"}
    proxy = serve(config)
    with connect(address_of(config)) as client:
        waited(proxy)
        server.wait_connections(1)
        proxy.terminate()
        assert proxy.wait(20) == 0
        client.expect_close()
