"""Handshakes are bounded: how many, how often from one source, and what they may take from requests."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from kit.fixtures import Serve, Serving
from kit.pki import Pki, client_context
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound
from kit.upstream import answering
from kit.wire import connect, connect_tls, request


def serves(address: tuple[str, int], context: ssl.SSLContext) -> bool:
    with connect_tls(address, context) as client:
        client.send(request())
        return bool(client.read_response().status == 200)


def test_handshakes_under_way_are_counted(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """One more is closed at once; whoever ends, however, makes room again."""
    config = inbound(pki, upstream(answering(b"yes")).address[1], max_handshakes=3)
    proxy, context = serve(config), client_context(pki.identity("svc-a"))
    address = address_of(config)
    for round_ in range(3):
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(connect(address)) for _ in range(3)]
            waiting[0].send(b"\x16\x03\x01\x02\x00\x01")
            with connect(address) as late:
                late.expect_close()
            proxy.wait_metric("counted", lambda m, n=round_ + 1: m.by_reason("tls_busy") == n)
            if round_ == 1:
                waiting[1].send(b"no TLS at all")
                waiting[1].expect_close()
                assert serves(address, context)
        proxy.wait_metric("all closed", lambda m: m.sum("downstream_connections_open") == 0)
        assert serves(address, context)
    assert proxy.metrics().by_reason("tls_handshake") == 3, "a hello that ended early, each time"


def test_connections_that_are_established_do_not_count(serve: Serve, upstream: Serving, pki: Pki) -> None:
    config = inbound(pki, upstream(answering(b"yes")).address[1], max_handshakes=1, protocol="auto")
    serve(config)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(
                connect_tls(address_of(config), client_context(pki.identity("svc-a")))
            )
            client.send(request())
            assert client.read_response().status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_handshakes_of_a_source_are_limited(serve: Serve, upstream: Serving, pki: Pki, host: str) -> None:
    config = inbound(pki, upstream(answering(b"yes")).address[1], host, handshakes_per_source=5)
    proxy = serve(config)
    refused = 0
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(connect(address_of(config)))
            client.sock.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                refused += client.sock.recv(1) == b""
    assert 10 <= refused <= 15, "a second's worth at once, then one every 200 ms"
    proxy.wait_metric("counted", lambda m: m.by_reason("tls_rate") == refused)
    if host == "127.0.0.1":
        with socket.create_connection(address_of(config), 5, ("127.0.0.77", 0)) as other:
            other.settimeout(0.1)
            with pytest.raises(TimeoutError):
                other.recv(1)


def test_permissive_plaintext_is_no_handshake(serve: Serve, upstream: Serving, pki: Pki) -> None:
    config = inbound(
        pki,
        upstream(answering(b"yes")).address[1],
        tls="permissive",
        max_handshakes=1,
        handshakes_per_source=1,
    )
    serve(config)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            client = stack.enter_context(connect(address_of(config)))
            client.send(request())
            assert client.read_response().status == 200


FLOOD = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.load_cert_chain(sys.argv[2], sys.argv[3])
address = ("127.0.0.1", int(sys.argv[1]))
hello = ssl.MemoryBIO(), ssl.MemoryBIO()
end = context.wrap_bio(*hello)
try:
    end.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = hello[1].read()          # a first flight costs the client nothing and the server a signature
print("ready", flush=True)
while True:
    for s in [socket.create_connection(address) for _ in range(64)]:
        s.sendall(hello)
        s.close()
"""


@contextlib.contextmanager
def flood(proxy: Fastmesh, address: tuple[str, int], pki: Pki) -> Iterator[Callable[[], float]]:
    """Somebody begins handshakes as fast as one process can; how many were begun so far."""
    identity = pki.identity("svc-x")
    command = [sys.executable, "-c", FLOOD, str(address[1]), str(identity.certificate), str(identity.key)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = proxy.metrics().sum("downstream_connections_total")
        proxy.wait_metric("the flood runs", lambda m: m.sum("downstream_connections_total") > before + 200)
        yield lambda: proxy.metrics().sum("downstream_connections_total")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_a_flood_of_handshakes_does_not_stall_requests(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Requests on an established connection are answered while many clients shake hands. What one has to
    wait for, `tests/core/test_worker.py` counts."""
    config = inbound(pki, upstream(answering(b"yes")).address[1])
    proxy, address = serve(config), address_of(config)
    with (
        connect_tls(address, client_context(pki.identity("svc-a"))) as client,
        flood(proxy, address, pki) as begun,
    ):
        before = begun()
        while begun() < before + 1000:
            client.send(request())
            assert client.read_response().status == 200
    assert proxy.metrics().sum("tls_handshakes_total", side="downstream") == 1


def test_tickets_live_for_two_keys(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Every worker resumes what another began, also across a change of the key."""
    config = inbound(pki, upstream(answering(b"yes")).address[1])
    proxy = serve(config, workers=2)
    context = client_context(pki.identity("svc-a"))
    session: ssl.SSLSession | None = None
    for number in range(8):
        with connect_tls(address_of(config), context, session) as client:
            client.send(request())
            assert client.read_response().status == 200
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.session_reused == (number > 0)
            session = client.sock.session if session is None else session
    assert proxy.metrics().sum("tls_resumed_total", side="downstream") == 7
