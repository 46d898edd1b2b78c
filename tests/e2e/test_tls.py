"""Mutual TLS between sidecars: who gets through, who is refused and how it is counted, resumption."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from kit import procfs
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.pki import Identity, Pki, client_context, self_signed, server_context
from kit.proxy import Fastmesh, Metrics
from kit.sidecars import address_of, inbound, outbound
from kit.svid import PythonEnd
from kit.upstream import ServerConn, Upstream, answering
from kit.wire import Closed, connect, connect_tls, request, response

ALLOW = [{"from": ["svc-a"], "methods": ["GET", "POST"], "paths": ["/*"]}]


@dataclass
class Mesh:
    app: Upstream
    a: Fastmesh
    b: Fastmesh
    outbound: tuple[str, int]
    inbound: tuple[str, int]

    def ask(self, **options: Any) -> Any:
        with connect(self.outbound) as client:
            client.send(request(host="svc-b", **options))
            return client.read_response()


@pytest.fixture
def mesh(serve: Serve, upstream: Serving, pki: Pki) -> Mesh:
    """Application, sidecar of svc-b, sidecar of svc-a: the two example files."""
    app = upstream(answering(b"hello from the application"))
    config_b = inbound(pki, app.address[1], allow=ALLOW)
    config_a = outbound(pki, address_of(config_b)[1])
    b, a = serve(config_b), serve(config_a)
    return Mesh(app, a, b, address_of(config_a), address_of(config_b))


# the way through


def test_a_request_crosses_the_mesh(mesh: Mesh) -> None:
    with connect(mesh.outbound) as client:
        for number in range(20):
            client.send(request("POST", f"/{number}", body=b"x" * number * 1000, host="svc-b:80"))
            answer = client.read_response()
            assert (answer.status, answer.body) == (200, b"hello from the application")
    seen = mesh.app.requests[-1]
    assert (seen.target, len(seen.body), seen.get("host")) == ("/19", 19000, "svc-b:80")
    via = [part.strip() for part in (seen.get("via") or "").split(",")]
    assert len(via) == 2, "two hops"
    assert len(mesh.app.connections) == 1


def test_large_bodies_cross_the_mesh_both_ways(mesh: Mesh) -> None:
    body = bytes(range(256)) * 20_000  # 5 MB
    mesh.app.scripts = (echo_body,)
    with connect(mesh.outbound) as client:
        for _ in range(2):
            client.send(request("POST", host="svc-b", headers=[("Content-Length", str(len(body)))]))
            with client.sending(body):
                answer = client.read_response()
            assert answer.body == body


def echo_body(conn: ServerConn) -> None:
    for seen in conn:
        conn.send(response(seen.body))


def test_between_the_sidecars_there_is_only_tls_1_3(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """What leaves the host is TLS 1.3 and nothing of the request shows."""
    recorded = bytearray()
    app = upstream()
    config_b = inbound(pki, app.address[1])

    def wiretap(conn: ServerConn) -> None:
        with connect(address_of(config_b)) as inner:

            def back() -> None:
                with contextlib.suppress(OSError):
                    while inner.fill():
                        data = inner.take(len(inner.buffer))
                        recorded.extend(data)
                        conn.send(data)

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            while conn.fill():
                data = conn.take(len(conn.buffer))
                recorded.extend(data)
                inner.send(data)
            inner.shutdown()
            thread.join(10)

    tap = upstream(wiretap)
    config_a = outbound(pki, tap.address[1])
    serve(config_b)
    serve(config_a)
    with connect(address_of(config_a)) as client:
        client.send(request(target="/secret-path", headers=[("X-Secret", "secret-value")], host="svc-b"))
        assert client.read_response().status == 200
    assert app.requests[0].target == "/secret-path"
    data = bytes(recorded)
    assert data[:3] == b"\x16\x03\x01"
    for word in (b"secret", b"HTTP/1.1", b"svc-a", b"mesh.local"):
        assert word not in data, word
    tap.tolerate()


def test_the_application_sees_https_as_the_protocol(mesh: Mesh, pki: Pki) -> None:
    """X-Forwarded-Proto tells how the request reached the sidecar of svc-b."""
    with connect_tls(mesh.inbound, client_context(pki.identity("svc-a"))) as client:
        client.send(request())
        assert client.read_response().status == 200
    assert mesh.app.requests[0].all("x-forwarded-proto") == ["https"]


# `allow`


def tls_ask(address: tuple[str, int], identity: Identity, data: bytes) -> Any:
    with connect_tls(address, client_context(identity)) as client:
        client.send(data)
        return client.read_response()


def test_allow_names_callers_methods_and_paths(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = upstream()
    rules = [
        {"from": ["svc-a"], "methods": ["GET"], "paths": ["/api/*", "/health"]},
        {"from": ["spiffe://mesh.local/svc-*"], "methods": ["POST"], "paths": ["/hook"]},
    ]
    config = inbound(pki, app.address[1], protocol="http", allow=rules)
    serve(config)
    address = address_of(config)
    allowed = [
        ("svc-a", "GET", "/api/x"),
        ("svc-a", "GET", "/api/x/y?q=/../"),
        ("svc-a", "GET", "/health"),
        ("svc-a", "GET", "/health?deep=1"),
        ("svc-a", "POST", "/hook"),
        ("svc-x", "POST", "/hook"),
        # what only spells an allowed path otherwise reaches the application in its normal form
        ("svc-a", "GET", "//api/x"),
        ("svc-a", "GET", "/secret/../%61pi/x"),
    ]
    denied = [
        ("svc-a", "POST", "/api/x"),
        ("svc-a", "get", "/api/x"),
        ("svc-a", "GET", "/"),
        ("svc-a", "GET", "/apix"),
        ("svc-a", "GET", "/healthz"),
        ("svc-a", "GET", "/health/"),
        ("svc-a", "GET", "/API/x"),
        ("svc-a", "GET", "/api/../secret"),
        ("svc-a", "GET", "/api/%2e%2e/secret"),
        ("svc-x", "GET", "/api/x"),
        ("svc-x", "POST", "/hook/x"),
        ("svc-b", "GET", "/api/x"),
    ]
    for name, method, path in allowed:
        assert tls_ask(address, pki.identity(name), request(method, path)).status == 200, (name, method, path)
    for name, method, path in denied:
        answer = tls_ask(address, pki.identity(name), request(method, path))
        assert (answer.status, answer.reason) == (403, "denied"), (name, method, path)
    answer = tls_ask(address, pki.identity("svc-a"), request("GET", "/api/..%2fsecret"))
    assert (answer.status, answer.reason) == (400, "bad_target"), "no two readers agree on it"
    assert [seen.target for seen in app.requests[-2:]] == ["/api/x", "/api/x"]
    assert len(app.requests) == len(allowed)


def test_rules_of_a_reload_hold_for_connections_that_are_open(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    """What an earlier set said of the caller is not taken for theirs, whatever memory they lie in."""
    app = upstream()
    config = inbound(pki, app.address[1], protocol="http")
    address = address_of(config)

    config["listeners"][0]["allow"] = [{"from": ["svc-a"]}]
    proxy = serve(config)
    with connect_tls(address, client_context(pki.identity("svc-a"))) as client:
        for number in range(1, 9):
            client.send(request(target="http://x?q", host="x"))
            assert client.read_response().status == (200 if number % 2 else 403), number
            # every other time svc-a is not named, in a set of the same size
            who = "svc-x" if number % 2 else "svc-a"
            config["listeners"][0]["allow"] = [{"from": [who], "paths": ["/"]}]
            written = yaml.safe_load(proxy.path.read_text())
            proxy.path.write_text(yaml.safe_dump({**written, "listeners": config["listeners"]}))
            os.kill(proxy.pid, signal.SIGHUP)
            proxy.wait_metric("loaded", lambda m, n=number: m.sum("worker_snapshot_number") == 1 + n)


def test_the_example_refuses_other_callers_and_methods(mesh: Mesh, pki: Pki) -> None:
    assert mesh.ask().status == 200
    assert mesh.ask(method="POST", body=b"x").status == 200
    answer = mesh.ask(method="DELETE")
    assert (answer.status, answer.reason) == (403, "denied"), (
        "the refusal of the far sidecar arrives as it is"
    )
    assert tls_ask(mesh.inbound, pki.identity("svc-x"), request()).status == 403
    assert len(mesh.app.requests) == 2


def test_denied_connection_goes_on(mesh: Mesh, pki: Pki) -> None:
    with connect_tls(mesh.inbound, client_context(pki.identity("svc-a"))) as client:
        client.send(request("DELETE"), request("GET"))
        assert [client.read_response().status, client.read_response().status] == [403, 200]


def test_opaque_connections_that_no_rule_allows_are_closed(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = upstream(lambda conn: conn.send(conn.read_exact(4)))
    config = inbound(pki, app.address[1], protocol="tcp", allow=[{"from": ["svc-a"]}])
    serve(config)
    address = address_of(config)
    with connect_tls(address, client_context(pki.identity("svc-a"))) as client:
        client.send(b"ping")
        assert client.read_exact(4) == b"ping"
    with connect_tls(address, client_context(pki.identity("svc-x"))) as client:
        with contextlib.suppress(OSError):
            client.send(b"ping")
        client.expect_close()
    assert len(app.connections) == 1


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\x03", b"GET /secret\r\n\r\n", b"get /api/x HTTP/1.1\r\n\r\n"]
)
def test_detection_is_no_way_around_the_rules(serve: Serve, upstream: Serving, pki: Pki, data: bytes) -> None:
    """What is not HTTP has no path: a rule that names paths or methods does not allow it."""
    app = upstream()
    config = inbound(
        pki, app.address[1], allow=[{"from": ["svc-a"], "methods": ["GET"], "paths": ["/api/*"]}]
    )
    serve(config)
    with connect_tls(address_of(config), client_context(pki.identity("svc-a"))) as client:
        with contextlib.suppress(OSError):
            client.send(data)
        with contextlib.suppress(OSError):
            got = client.read_to_end()
            assert not got.startswith(b"HTTP/1.1 2"), got
    assert app.connections == []


def test_the_alert_for_a_connection_goes_to_no_other(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Data that gets the connection closed, with a breach of the protocol behind it in the same segment."""
    app = upstream()
    config = inbound(
        pki, app.address[1], allow=[{"from": ["svc-a"], "methods": ["GET"], "paths": ["/api/*"]}]
    )
    serve(config)
    address = address_of(config)
    context = client_context(pki.identity("svc-a"))
    with connect_tls(address, context) as bystander:
        for _ in range(3):
            bystander.send(request(target="/api/x"))
            assert bystander.read_response().status == 200
            end = PythonEnd(context, server=False)
            with connect(address) as raw:
                raw.send(end.handshake())
                while not end.done:
                    assert raw.fill()
                    out = end.handshake(raw.take(len(raw.buffer)))
                    if out and not end.done:
                        raw.send(out)
                raw.send(out + end.write(b"\0\1\2\3") + b"no record")
                with contextlib.suppress(ConnectionError):
                    raw.read_to_end()


def test_permissive_accepts_both_and_rules_hold_for_identities(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    app = upstream()
    open_config = inbound(pki, app.address[1], tls="permissive")
    strict_config = inbound(pki, app.address[1], tls="permissive", allow=[{"from": ["*"]}])
    both = {
        **open_config,
        "listeners": [*open_config["listeners"], {**strict_config["listeners"][0], "name": "ruled"}],
    }
    serve(both)
    open_address, ruled = address_of(open_config), address_of(strict_config)
    identity = pki.identity("svc-a")
    for address, plain_status in ((open_address, 200), (ruled, 403)):
        assert tls_ask(address, identity, request()).status == 200
        with connect(address) as client:
            client.send(request())
            assert client.read_response().status == plain_status


# refused at the door, each under its own reason


def refused_by_handshake(address: tuple[str, int], context: ssl.SSLContext) -> None:
    """In TLS 1.3 a client learns of its refusal with its first read."""
    try:
        with connect_tls(address, context) as client:
            with contextlib.suppress(OSError):
                client.send(request())
            got = client.read_to_end()
            raise AssertionError(f"not refused: {got!r}")
    except (ssl.SSLError, ConnectionError, Closed):
        pass


def plain_http(address: tuple[str, int]) -> None:
    with connect(address) as client:
        client.send(request())
        with contextlib.suppress(ConnectionError):
            got = client.read_to_end()
            assert not got.startswith(b"HTTP/1.1 2"), got


def tls_1_2(address: tuple[str, int], identity: Identity) -> None:
    context = client_context(identity)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    refused_by_handshake(address, context)


HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def strangers(
    pki: Pki, other_pki: Pki, tmp_path: Path
) -> dict[str, tuple[str, Callable[[tuple[str, int]], None]]]:
    """case -> (the reason it must be counted under, how to try)"""

    def forged(name: str, uris: list[str], **options: Any) -> Callable[[tuple[str, int]], None]:
        identity = pki.forge(tmp_path / name, uris, **options)
        return lambda address: refused_by_handshake(address, client_context(identity))

    mine = "spiffe://mesh.local/svc-a"
    alien = Identity(other_pki.identity("svc-a").certificate, other_pki.identity("svc-a").key, pki.bundle)
    lonely = self_signed(tmp_path / "lonely", mine)
    lonely = Identity(lonely.certificate, lonely.key, pki.bundle)
    return {
        "no certificate": (
            "tls_no_certificate",
            lambda address: refused_by_handshake(address, client_context(None)),
        ),
        "another CA": ("tls_untrusted", lambda address: refused_by_handshake(address, client_context(alien))),
        "self-signed": (
            "tls_untrusted",
            lambda address: refused_by_handshake(address, client_context(lonely)),
        ),
        "expired": ("tls_expired", forged("expired", [mine], not_before=-2 * HOUR, not_after=-HOUR)),
        "not yet valid": ("tls_expired", forged("early", [mine], not_before=HOUR, not_after=2 * HOUR)),
        "no SPIFFE id": ("tls_identity", forged("nameless", [])),
        "two SPIFFE ids": ("tls_identity", forged("double", [mine, "spiffe://mesh.local/svc-b"])),
        "another trust domain": ("tls_identity", forged("foreign", ["spiffe://other.domain/svc-a"])),
        "no path": ("tls_identity", forged("pathless", ["spiffe://mesh.local"])),
        "https URI": ("tls_identity", forged("web", ["https://mesh.local/svc-a"])),
        "a CA as a leaf": ("tls_identity", forged("authority", [mine], ca=True)),
        "plain HTTP": ("tls_not_tls", plain_http),
        "TLS 1.2": ("tls_version", lambda address: tls_1_2(address, pki.identity("svc-a"))),
    }


def test_refusals_are_counted_under_their_own_reason(
    serve: Serve,
    upstream: Serving,
    pki: Pki,
    strangers: dict[str, tuple[str, Callable[[tuple[str, int]], None]]],
) -> None:
    app = upstream()
    config = inbound(pki, app.address[1])
    proxy = serve(config)
    address = address_of(config)
    wanted: dict[str, int] = {}
    for case, (reason, attempt) in strangers.items():
        attempt(address)
        wanted[reason] = wanted.get(reason, 0) + 1
        proxy.wait_metric(f"{case}: {wanted}", lambda m: reasons_of(m, wanted) == wanted)
    assert app.connections == [], "not one of them came through"
    assert tls_ask(address, pki.identity("svc-a"), request()).status == 200


def reasons_of(metrics: Metrics, wanted: dict[str, int]) -> dict[str, int]:
    """All tls_* reasons that were counted."""
    names = {s.labels["reason"] for s in metrics.samples if s.labels.get("reason", "").startswith("tls_")}
    return {name: int(count) for name in names | set(wanted) if (count := metrics.by_reason(name))}


def test_openssl_client_is_refused_too(mesh: Mesh, other_pki: Pki) -> None:
    """The check of the documentation: `openssl s_client` without a certificate, and with another CA's."""
    address = f"{mesh.inbound[0]}:{mesh.inbound[1]}"
    alien = other_pki.identity("svc-a")
    for extra in ([], ["-cert", str(alien.certificate), "-key", str(alien.key)]):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", address, "-quiet", *extra],
            input=request(),
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert b"HTTP/1.1" not in done.stdout
        assert b"alert" in done.stderr
    mesh.b.wait_metric(
        "one of each", lambda m: m.by_reason("tls_no_certificate") == 1 and m.by_reason("tls_untrusted") == 1
    )


def test_handshake_that_stalls_is_ended(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = upstream()
    config = inbound(pki, app.address[1], header_timeout="300ms")
    proxy = serve(config)
    with connect(address_of(config)) as client:
        client.send(b"\x16\x03\x01\x02\x00\x01")
        client.expect_close()
    proxy.wait_metric("counted", lambda m: m.by_reason("tls_timeout") == 1)


# outbound: the proxy is the client and must know whom it talks to


def tls_server(context: ssl.SSLContext) -> Callable[[ServerConn], None]:
    def script(conn: ServerConn) -> None:
        try:
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
            for _ in conn:
                conn.send(response(b"from the far side"))
        except (OSError, Closed):
            return

    return script


def outbound_ask(serve: Serve, pki: Pki, port: int, **service: Any) -> tuple[Any, Fastmesh]:
    config = outbound(pki, port, **service)
    proxy = serve(config)
    with connect(address_of(config)) as client:
        client.send(request(host="svc-b"))
        return client.read_response(), proxy


@pytest.mark.parametrize(
    "case", ["svc-x", "another CA", "expired", "plain HTTP", "TLS 1.2", "requires another CA"]
)
def test_endpoint_that_cannot_prove_the_service_is_refused(
    serve: Serve, upstream: Serving, pki: Pki, *, other_pki: Pki, tmp_path: Path, case: str
) -> None:
    scripts: dict[str, tuple[Any, set[str]]] = {}
    if case == "svc-x":
        scripts[case] = (tls_server(server_context(pki.identity("svc-x"))), {"upstream_tls_identity"})
    elif case == "another CA":
        scripts[case] = (tls_server(server_context(other_pki.identity("svc-b"))), {"upstream_tls_untrusted"})
    elif case == "expired":
        old = pki.forge(
            tmp_path / "old", ["spiffe://mesh.local/svc-b"], not_before=-2 * HOUR, not_after=-HOUR
        )
        scripts[case] = (tls_server(server_context(old)), {"upstream_tls_expired"})
    elif case == "plain HTTP":
        scripts[case] = (
            lambda conn: conn.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            {"upstream_tls_handshake"},
        )
    elif case == "TLS 1.2":
        context = server_context(pki.identity("svc-b"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        scripts[case] = (tls_server(context), {"upstream_tls_handshake"})
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        identity = pki.identity("svc-b")
        context.load_cert_chain(identity.certificate, identity.key)
        context.load_verify_locations(other_pki.bundle)
        context.verify_mode = ssl.CERT_REQUIRED
        scripts[case] = (tls_server(context), {"upstream_tls_refused"})
    script, reasons = scripts[case]
    server = upstream(script)
    answer, proxy = outbound_ask(serve, pki, server.address[1])
    assert answer.status == 502
    assert answer.reason in reasons
    assert server.requests == [], "not one byte of the request went to a stranger"
    proxy.wait_metric("counted", lambda m: m.by_reason(answer.reason) >= 1)


def test_endpoint_of_the_right_name_is_spoken_to(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(tls_server(server_context(pki.identity("svc-b"))))
    answer, _ = outbound_ask(serve, pki, server.address[1])
    assert (answer.status, answer.body) == (200, b"from the far side")


def test_endpoint_that_stalls_the_handshake(serve: Serve, upstream: Serving, pki: Pki) -> None:
    server = upstream(lambda conn: conn.expect_close() if conn.fill() and not conn.buffer.clear() else None)
    answer, _ = outbound_ask(serve, pki, server.address[1], connect_timeout="300ms")
    assert (answer.status, answer.reason) == (504, "upstream_tls_timeout")


def test_next_endpoint_when_one_proves_the_wrong_name(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Nothing of the request went to the impostor, so another endpoint may have it."""
    impostor = upstream(tls_server(server_context(pki.identity("svc-x"))))
    real = upstream(tls_server(server_context(pki.identity("svc-b"))))
    config = outbound(pki, impostor.address[1])
    config["services"]["svc-b"]["endpoints"].append(f"127.0.0.1:{real.address[1]}")
    serve(config)
    for _ in range(4):
        with connect(address_of(config)) as client:
            client.send(request("POST", host="svc-b", body=b"x"))
            assert client.read_response().status == 200
    assert impostor.requests == []


def test_truncation_between_the_sidecars_is_noticed(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """A close without close_notify in a close-delimited body could be an attacker's cut (RFC 8446 6.1)."""

    def cut(conn: ServerConn) -> None:
        plain = conn.sock.dup()
        context = server_context(pki.identity("svc-b"))
        conn.sock = context.wrap_socket(conn.sock, server_side=True)
        conn.read_request()
        conn.send(response(None, headers=[("Connection", "close")]), b"half of it")
        plain.shutdown(2)  # FIN beneath TLS
        plain.close()

    server = upstream(cut)
    config = outbound(pki, server.address[1])
    serve(config)
    with connect(address_of(config)) as client:
        client.send(request(host="svc-b"))
        with contextlib.suppress(Closed, ConnectionError):
            answer = client.read_response()
            assert answer.status == 502, f"a cut answer passed as whole: {answer.raw!r} {answer.body!r}"
    server.tolerate(OSError)


# resumption


def test_sessions_resume_across_workers(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """A ticket from one worker is good at the other: they share the ticket keys."""
    app = upstream()
    config = inbound(pki, app.address[1])
    proxy = serve(config, workers=2)
    workers = proxy.wait_workers(2)
    address = address_of(config)
    context = client_context(pki.identity("svc-a"))
    session, issuer = None, None
    pairs: set[tuple[int, int]] = set()
    for _ in range(100):
        with connect_tls(address, context, session) as client:
            client.send(request())
            assert client.read_response().status == 200
            me = client.sock.getsockname()[1]
            owner = next(pid for pid in workers if me in procfs.owned_peers(pid, address[1]))
            assert isinstance(client.sock, ssl.SSLSocket)
            if session is not None:
                assert client.sock.session_reused, f"worker {owner} did not accept a ticket of {issuer}"
                assert issuer is not None
                pairs.add((issuer, owner))
            session, issuer = client.sock.session, owner
            assert session is not None
        if len(pairs) == 4:
            break
    assert len(pairs) == 4, pairs
    metrics = proxy.metrics()
    assert any("resum" in s.name or "resum" in str(s.labels) for s in metrics.samples if s.value >= 4), (
        "counted"
    )


def test_resumed_session_of_an_expired_certificate_is_refused(
    serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path
) -> None:
    """A ticket does not outlive the certificate that earned it."""
    app = upstream()
    config = inbound(pki, app.address[1])
    serve(config)
    address = address_of(config)
    brief = pki.forge(
        tmp_path / "brief", ["spiffe://mesh.local/svc-a"], not_after=datetime.timedelta(seconds=3)
    )
    context = client_context(brief)
    with connect_tls(address, context) as client:
        client.send(request())
        assert client.read_response().status == 200
        session = client.sock.session
    # Validity ends with the second of notAfter, inclusive (RFC 5280 4.1.2.5), and time(2) reads a clock
    # that is up to a tick behind the precise one.
    leaf = x509.load_pem_x509_certificate(brief.certificate.read_bytes())
    expiry = leaf.not_valid_after_utc + datetime.timedelta(seconds=1.1)
    wait_until(lambda: datetime.datetime.now(datetime.UTC) > expiry, "the certificate's end")
    try:
        with connect_tls(address, context, session) as client:
            client.send(request())
            assert client.read_to_end() == b""
    except (ssl.SSLError, ConnectionError, Closed):
        pass
    assert len(app.requests) == 1


def test_sidecars_resume_their_sessions(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """A sidecar that connects again to the same endpoint does not start from nothing."""
    app = upstream()
    config_b = inbound(pki, app.address[1])
    config_a = outbound(pki, address_of(config_b)[1], pool={"idle_max": 0})
    b, a = serve(config_b), serve(config_a)
    for _ in range(5):
        with connect(address_of(config_a)) as client:
            client.send(request(host="svc-b"))
            assert client.read_response().status == 200
    for proxy in (a, b):
        metrics = proxy.metrics()
        resumed = [s.value for s in metrics.samples if "tls" in s.name and "resum" in s.name + str(s.labels)]
        assert max(resumed, default=0) >= 3, metrics.text
