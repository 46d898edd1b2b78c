"""What a connection has proved, and what a reload asks for: nothing that was proved to another counts."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.pki import Pki, client_context, server_context
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound, outbound
from kit.upstream import ServerConn, answering, echo
from kit.wire import Conn, connect, connect_tls, request, response


def change(proxy: Fastmesh, config: dict[str, Any], tls: Any) -> None:
    proxy.reload(listeners=[{**config["listeners"][0], "tls": tls}])


def by_names(pki: Pki, client_ca: Path | None = None) -> dict[str, Any]:
    """Ordinary TLS, with a certificate of the mesh for want of another."""
    own = pki.identity("svc-b")
    settings: dict[str, Any] = {"certificates": [{"certificate": str(own.certificate), "key": str(own.key)}]}
    return settings | ({"client_ca": str(client_ca)} if client_ca else {})


class Slow:
    """A client that has sent its hello and has the server's flight, and goes on when it is told to."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.conn = connect(address)
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.sent)
        while not self._shaken():
            self.conn.send(self.sent.read())
            self.received.write(self.conn.sock.recv(65536))

    def _shaken(self) -> bool:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            return True
        return False

    def finish(self, data: bytes) -> bytes:
        """The rest of the handshake and `data`: what is answered until the server closes."""
        self.tls.write(data)
        self.conn.send(self.sent.read())
        answer = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while part := self.conn.sock.recv(65536):
                self.received.write(part)
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer += self.tls.read()
        return answer

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()


def test_a_handshake_under_other_settings_gives_no_identity(
    serve: Serve, upstream: Serving, pki: Pki, other_pki: Pki
) -> None:
    """Begun with ordinary TLS, whose authority for clients may certify any name, and finished
    when the listener is the mesh's."""
    app = upstream(answering(b"yes"))
    config = inbound(pki, app.address[1], tls=by_names(pki, other_pki.bundle), protocol="http")
    proxy = serve(config)
    stranger = other_pki.identity("svc-a")
    closing = request(headers=[("Connection", "close")])
    with Slow(address_of(config), client_context(stranger, pki.bundle)) as client:
        assert b"yes" in client.finish(closing), "that is how it goes without a reload"
    with Slow(address_of(config), client_context(stranger, pki.bundle)) as client:
        change(proxy, config, "mesh")
        assert client.finish(closing) == b""
    proxy.wait_metric("counted", lambda m: m.by_reason("tls_identity") == 1)
    assert len(app.requests) == 1


def test_a_handshake_of_the_mesh_is_no_clients_certificate(
    serve: Serve, upstream: Serving, pki: Pki, other_pki: Pki
) -> None:
    app = upstream()
    config = inbound(pki, app.address[1], tls="mesh", protocol="http")
    proxy = serve(config)
    with Slow(address_of(config), client_context(pki.identity("svc-a"))) as client:
        change(proxy, config, by_names(pki, other_pki.bundle))
        assert client.finish(request()) == b""
    assert app.requests == []


@pytest.mark.parametrize("after", ["mesh", "names"])
@pytest.mark.parametrize(
    ("before", "protocol"),
    [("permissive", "http"), ("permissive", "tcp"), ("permissive", "auto"), ("none", "http")],
)
def test_plaintext_that_begins_after_a_reload(  # noqa: PLR0917
    serve: Serve, upstream: Serving, pki: Pki, before: str, protocol: str, after: str
) -> None:
    """The connection is older than the reload, what it says is not."""
    app = upstream(echo)
    config = inbound(pki, app.address[1], tls=before, protocol=protocol)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        proxy.wait_metric("accepted", lambda m: m.sum("downstream_connections_open") == 1)
        change(proxy, config, "mesh" if after == "mesh" else by_names(pki))
        with contextlib.suppress(ConnectionError):
            client.send(request())
            answer = client.read_to_end()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 403 "), (
                "the latter where it was HTTP already"
            )
    assert app.requests == []


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_tls_that_was_to_pass_through(serve: Serve, upstream: Serving, pki: Pki, protocol: str) -> None:
    """Its hello has not come whole when the listener ends TLS itself: nobody is given the half of it."""
    app = upstream(echo)
    config = inbound(pki, app.address[1], tls="passthrough")
    proxy = serve(config)
    with connect(address_of(config)) as client:
        client.send(b"\x16\x03\x01\x02\x00\x01")
        proxy.wait_metric("accepted", lambda m: m.sum("downstream_connections_open") == 1)
        listener = {**config["listeners"][0], "tls": "mesh", "protocol": protocol}
        proxy.reload(listeners=[listener])
        with contextlib.suppress(ConnectionError):
            client.expect_close()
    assert app.connections == []


def test_clients_without_a_certificate_end_where_a_reload_asks_for_one(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    app = upstream(answering())
    config = inbound(pki, app.address[1], tls=by_names(pki), protocol="http")
    proxy = serve(config)
    bare, proven = client_context(None), client_context(pki.identity("svc-a"))
    with connect_tls(address_of(config), bare) as old:
        old.send(request())
        assert old.read_response().status == 200
        change(proxy, config, by_names(pki, pki.bundle))
        old.send(request())
        answer = old.read_response()
        assert (answer.status, answer.reason) == (403, "denied")
        old.expect_close()
    with connect_tls(address_of(config), proven) as new:
        new.send(request())
        assert new.read_response().status == 200


def test_kept_connections_prove_the_identity_that_is_asked_for_now(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    """A service's `spiffe_id` changes: what proved the old one is used no more."""
    context = server_context(pki.identity("svc-b"))

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
            for _ in conn:
                conn.send(response(b"svc-b"))

    server = upstream(script)
    config = outbound(pki, server.address[1])
    service = config["services"]["svc-b"]
    proxy = serve(config)

    def ask(client: Conn) -> tuple[int, str | None]:
        client.send(request(host="svc-b"))
        answer = client.read_response()
        return answer.status, answer.reason

    with connect(address_of(config)) as client:
        assert ask(client) == (200, None)
        proxy.reload(services={"svc-b": {**service, "spiffe_id": "spiffe://mesh.local/svc-x"}})
        assert ask(client) == (502, "upstream_tls_identity")
        proxy.reload(services={"svc-b": {**service, "spiffe_id": "spiffe://mesh.local/svc-b"}})
        assert ask(client) == (200, None)
